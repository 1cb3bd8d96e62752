"""Reading torch checkpoints without torch: honest files exactly, hostile ones not at all."""

import contextlib
import copy
import os
import pickle
import sys
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch_files as made
from hypothesis import given, settings
from hypothesis import strategies as st

from weights_convert import modules, torch_zip
from weights_convert.torch_zip import CheckpointError

DTYPES = sorted(made.STORAGE_NAMES, key=str)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth.tar"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


def one_storage(dtype=np.float32, count=6):
    raw = np.arange(count).astype(dtype).tobytes()
    return made.storage("0", made.STORAGE_NAMES[np.dtype(dtype)], count), {"0": raw}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_tensor_of_any_type_shape_stride_and_offset_is_read_exactly(folder, data):
    dtype = data.draw(st.sampled_from(DTYPES))
    size = tuple(data.draw(st.lists(st.integers(0, 4), max_size=4)))
    stride = tuple(data.draw(st.integers(0, 6)) for _ in size)
    offset = data.draw(st.integers(0, 5))
    last = offset + sum(max(n - 1, 0) * step for n, step in zip(size, stride, strict=True))
    count = last + 1 + data.draw(st.integers(0, 3))
    raw = data.draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    if dtype.kind == "b":
        raw = bytes(byte % 2 for byte in raw)
    stored = made.storage("7", made.STORAGE_NAMES[dtype], count)
    file = made.write(folder / "any.pth", made.tensor(stored, offset, size, stride), {"7": raw})

    found = torch_zip.read(file)

    assert found.dtype == dtype
    assert found.shape == size
    for index in np.ndindex(size):
        place = offset + sum(k * step for k, step in zip(index, stride, strict=True))
        assert found[index].tobytes() == raw[place * dtype.itemsize : (place + 1) * dtype.itemsize]


def test_bfloat16_keeps_its_values(path):
    values = np.array([1.0, -2.5, 3e38, 1e-38], ml_dtypes.bfloat16)
    np.testing.assert_array_equal(torch_zip.read(made.save(path, {"w": values}))["w"], values)


def test_tensors_may_share_a_storage_and_changing_one_leaves_the_other(path):
    stored, storages = one_storage()
    pair = {"a": made.tensor(stored, 0, (3,), (1,)), "b": made.tensor(stored, 2, (3,), (1,))}
    found = torch_zip.read(made.write(path, made.dict_of(pair), storages))
    found["a"][2] = -1
    np.testing.assert_array_equal(found["b"], [2, 3, 4])


def test_a_parameter_a_size_a_device_and_a_numpy_scalar_become_plain_values(path):
    stored, storages = one_storage()
    little = made.with_state(
        made.call("numpy", "dtype", made.plain("f8"), made.plain(False), made.plain(True)),
        made.plain((3, "<", None, None, None, -1, -1, 0)),
    )
    eight = made.call("_codecs", "encode", made.plain(np.float64(0.1).tobytes().decode("latin1")))
    tensor = made.tensor(stored, 0, (6,), (1,))
    content = {
        "parameter": made.call("torch._utils", "_rebuild_parameter", tensor, made.plain(True)),
        "size": made.call("torch", "Size", made.plain([2, 3])),
        "device": made.call("torch", "device", made.plain("cuda"), made.plain(7)),
        "scalar": made.call("numpy.core.multiarray", "scalar", little, eight),
        "ordered": made.with_state(made.call("collections", "OrderedDict"), made.plain({"_metadata": 1})),
    }
    found = torch_zip.read(made.write(path, made.dict_of(content), storages))
    np.testing.assert_array_equal(found["parameter"], np.arange(6))
    assert found["size"] == (2, 3)
    assert found["device"] == "torch.device(cuda, 7)"
    assert found["scalar"] == 0.1
    assert found["ordered"] == {}


def test_a_class_of_torch_is_an_inert_record_of_its_arguments_and_state(path):
    layer = made.with_state(
        made.call("torch.nn.modules.linear", "Linear", made.plain(3), made.plain(2)),
        made.plain({"weight": [1.0, 2.0], "__class__": "harmless"}),
    )
    found = torch_zip.read(made.write(path, made.dict_of({"layer": layer})))["layer"]
    assert isinstance(found, torch_zip.Record)
    assert type(found).__qualname__ == "torch.nn.modules.linear.Linear"
    assert found.args == (3, 2)
    assert found.state == {"weight": [1.0, 2.0], "__class__": "harmless"}


def test_an_object_made_through_its_class_alone_is_a_record_of_its_arguments(path):
    irrep = made.name("e3nn.o3._irreps", "Irrep") + made.tuple_of(made.plain((1, -1))) + b"\x81"
    found = torch_zip.read(made.write(path, irrep))
    assert (found.args, found.kwargs, found.state) == (((1, -1),), {}, None)


def test_what_a_file_puts_into_an_object_stays_in_its_record(path):
    filled = made.call("torch.nn.modules.container", "ModuleList")
    items = b"(" + made.plain(1) + made.plain(2) + b"e" + made.plain(3) + b"a"
    entries = b"(" + made.plain("a") + made.plain(4) + b"u" + made.plain("b") + made.plain(5) + b"s"
    found = torch_zip.read(made.write(path, filled + items + entries))
    assert found.items == [1, 2, 3]
    assert found.entries == {"a": 4, "b": 5}
    assert {found: 6}[found] == 6
    assert repr(found) == "<record of torch.nn.modules.container.ModuleList>"


HOSTILE = [
    ("os", "system", "touch {mark}"),
    ("posix", "system", "touch {mark}"),
    ("builtins", "eval", "open({mark!r}, 'w').close()"),
    ("builtins", "exec", "open({mark!r}, 'w').close()"),
    ("subprocess", "getoutput", "touch {mark}"),
]


@pytest.mark.parametrize(("module", "function", "template"), HOSTILE)
@pytest.mark.parametrize("place", ["top", "deep in the optimizer's state"])
def test_a_call_of_anything_else_is_refused_and_not_made(path, tmp_path, module, function, template, place):
    mark = tmp_path / "it ran".replace(" ", "_")
    attack = made.call(module, function, made.plain(template.format(mark=str(mark))))
    content = attack
    if place != "top":
        stored, storages = one_storage()
        weight = made.tensor(stored, 0, (6,), (1,))
        state = made.dict_of({0: made.dict_of({"step": attack})})
        content = made.dict_of({"model": weight, "optimizer": made.dict_of({"state": state})})
        made.write(path, content, storages)
    else:
        made.write(path, content)

    with pytest.raises(CheckpointError, match=rf"asks to load {module}\.{function}.*nothing was run"):
        torch_zip.read(path)
    assert not mark.exists()

    # The same bytes do it where pickle is trusted, so the lines above prove something.
    pickle.loads(b"\x80\x02" + attack + b".")
    assert mark.exists()


@pytest.mark.parametrize("opcode", ["INST", "OBJ"])
def test_the_older_ways_of_pickle_to_call_something_are_refused_as_well(path, tmp_path, opcode):
    mark = tmp_path / "ran"
    word = made.plain(f"touch {mark}")
    attack = b"(" + (word + b"iposix\nsystem\n" if opcode == "INST" else b"cposix\nsystem\n" + word + b"o")
    with pytest.raises(CheckpointError, match=r"asks to load posix\.system.*nothing was run"):
        torch_zip.read(made.write(path, attack))
    assert not mark.exists()
    pickle.loads(b"\x80\x02" + attack + b".")
    assert mark.exists()


@pytest.mark.parametrize("opcode", ["INST", "OBJ"])
def test_a_class_that_is_called_in_an_older_way_is_a_record_and_a_dictionary_keeps_its_keys(path, opcode):
    def called(module: str, name: str, argument: bytes) -> bytes:
        if opcode == "INST":
            return b"(" + argument + f"i{module}\n{name}\n".encode()
        return b"(" + f"c{module}\n{name}\n".encode() + argument + b"o"

    layer = torch_zip.read(made.write(path, called("torch.nn", "Linear", made.plain(3))))
    assert (type(layer).__qualname__, layer.args) == ("torch.nn.Linear", (3,))
    pairs = called("collections", "OrderedDict", made.plain([("a", 1), ("b", 2)]))
    assert torch_zip.read(made.write(path, pairs)) == {"a": 1, "b": 2}
    large = called("collections", "OrderedDict", made.plain([(2**70, 1)]))
    with pytest.raises(CheckpointError, match="too many parts or digits"):
        torch_zip.read(made.write(path, large))


def test_a_bytearray_is_made_of_bytes_and_of_no_number_which_would_be_its_size(path):
    pairs = [
        (made.plain(b"ab"), bytearray(b"ab")),
        (made.plain("ab") + made.plain("ascii"), bytearray(b"ab")),
    ]
    for arguments, wanted in pairs:
        held = made.name("builtins", "bytearray") + b"(" + arguments + b"tR"
        assert torch_zip.read(made.write(path, held)) == wanted
    with pytest.raises(CheckpointError, match="a bytearray is made of int, not of bytes"):
        torch_zip.read(made.write(path, made.call("builtins", "bytearray", made.plain(2**40))))


@pytest.mark.parametrize("full", ["torch.os.system", "torch.serialization.os.system", "numpy.f2py.os.system"])
def test_a_function_reached_through_a_recorded_package_is_refused(path, tmp_path, full):
    mark = tmp_path / "ran"
    module, _, function = full.partition(".")
    attack = made.call(module, function, made.plain(f"touch {mark}"))
    with pytest.raises(CheckpointError, match=rf"asks to load {full}.*nothing was run"):
        torch_zip.read(made.write(path, attack))
    assert not mark.exists()


def test_a_function_that_pickle_writes_as_an_attribute_is_a_record_of_its_name(path):
    tanh = made.call(
        "__builtin__", "getattr", made.name("torch._C", "_VariableFunctionsClass"), made.plain("tanh")
    )
    assert modules.class_of(torch_zip.read(made.write(path, tanh))) == "torch.tanh"
    method = made.call("__builtin__", "getattr", made.call("chgnet.graph", "Converter"), made.plain("_fast"))
    assert modules.class_of(torch_zip.read(made.write(path, method))) == "chgnet.graph.Converter._fast"


@pytest.mark.parametrize(
    ("owner", "attribute"),
    [
        (made.plain({}), "__class__"),
        (made.plain("text"), "format"),
        (made.call("collections", "OrderedDict"), "__reduce__"),
        (made.name("torch", "serialization"), "os"),
        (made.name("torch", "FloatStorage"), "dtype"),
    ],
)
def test_an_attribute_of_anything_but_a_record_is_refused(path, owner, attribute):
    made.write(path, made.call("__builtin__", "getattr", owner, made.plain(attribute)))
    with pytest.raises(CheckpointError, match=r"asks to load .*nothing was run"):
        torch_zip.read(path)


@pytest.mark.parametrize(
    ("module", "name", "words"),
    [
        (
            "my_package.nets",
            "Net",
            r"holds a my_package\.nets\.Net, of a package whose files are not read here",
        ),
        ("__main__", "Net", r"holds a __main__\.Net, a class of the script that saved it"),
    ],
)
def test_a_class_of_an_unknown_package_is_named_without_an_accusation(path, module, name, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        torch_zip.read(made.write(path, made.call(module, name)))
    assert "trust" not in str(caught.value)


@pytest.mark.parametrize("harmless", ["argparse.Namespace", "pathlib.PosixPath", "datetime.datetime"])
def test_plain_objects_of_the_standard_library_in_a_file_do_no_harm(path, harmless):
    module, name = harmless.split(".")
    found = torch_zip.read(made.write(path, made.dict_of({"args": made.call(module, name, made.plain("a"))})))
    assert (modules.class_of(found["args"]), found["args"].args) == (harmless, ("a",))


@pytest.mark.parametrize(
    "constructor",
    [
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch", "Size"),
        ("numpy", "dtype"),
        ("torch", "FloatStorage"),
    ],
)
def test_a_file_cannot_change_what_later_files_are_read_with(path, tmp_path, constructor):
    state = made.tuple_of(made.plain(None), made.plain({"call": None, "__defaults__": (1,), "dtype": 1}))
    made.write(path, made.with_state(made.name(*constructor), state))
    with pytest.raises(CheckpointError, match="tries to change"):
        torch_zip.read(path)
    honest = made.save(tmp_path / "honest.pth", {"w": np.arange(3.0)})
    np.testing.assert_array_equal(torch_zip.read(honest)["w"], [0, 1, 2])


@pytest.mark.parametrize("kind", ["O", "V8", "f8,O", "M8[s]"])
def test_a_numpy_type_that_is_no_number_is_refused(path, kind):
    made.write(path, made.call("numpy", "dtype", made.plain(kind)))
    with pytest.raises(CheckpointError, match="cannot be read"):
        torch_zip.read(path)


def test_numbers_of_the_other_byte_order_are_refused(path):
    state = made.plain((3, ">", None, None, None, -1, -1, 0))
    made.write(path, made.with_state(made.call("numpy", "dtype", made.plain("f8")), state))
    with pytest.raises(CheckpointError, match="byte order '>'"):
        torch_zip.read(path)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (7,), (1,)),
        (6, (), ()),
        (1, (3, 2), (2, 1)),
        (-1, (2,), (1,)),
        (5, (3,), (-1,)),
        (0, (-2,), (1,)),
        (0, (2, 3), (1,)),
        (0, (1.5,), (1,)),
        (0, (2**40,), (0,)),
    ],
)
def test_a_tensor_that_leaves_its_storage_is_refused(path, offset, size, stride):
    stored, storages = one_storage(count=6)
    made.write(path, made.tensor(stored, offset, size, stride), storages)
    with pytest.raises(CheckpointError, match="a tensor "):
        torch_zip.read(path)


def test_a_tensor_made_of_no_storage_is_refused(path):
    made.write(path, made.tensor(made.plain([1, 2, 3]), 0, (3,), (1,)))
    with pytest.raises(CheckpointError, match=r"made of \[1, 2, 3\], not of a storage"):
        torch_zip.read(path)


@pytest.mark.parametrize("count", [5, 7])
def test_a_storage_of_another_length_than_the_pickle_says_is_refused(path, count):
    raw = np.arange(6, dtype=np.float32).tobytes()
    stored = made.storage("0", "FloatStorage", count)
    made.write(path, made.tensor(stored, 0, (2,), (1,)), {"0": raw})
    with pytest.raises(CheckpointError, match=f"storage '0' has 24 bytes, needed {count} of float32"):
        torch_zip.read(path)


def test_a_storage_that_is_not_in_the_archive_is_refused(path):
    made.write(path, made.storage("../../secret", "FloatStorage", 1))
    with pytest.raises(CheckpointError, match=r"no item named 'archive/data/\.\./\.\./secret'"):
        torch_zip.read(path)


def test_a_large_index_of_the_memo_costs_no_memory(path):
    tracemalloc.start()
    for index in (b"r\x00\x00\x00\x10", b"p400000000\n"):
        assert torch_zip.read(made.write(path, b"N" + index + b"0" + made.plain({}))) == {}
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


DOUBLED = b"K\x01" + b"2\x86" * 45  # a tuple of two, each of which is a tuple of two, and so on: 2⁴⁵ ones


@pytest.mark.parametrize(
    "content",
    [
        b"}" + DOUBLED + b"K\x01s",
        b"}(" + DOUBLED + b"K\x01u",
        b"(" + DOUBLED + b"K\x01d",
        DOUBLED + b"Q",
        made.call("__builtin__", "frozenset", b"](" + DOUBLED + b"e"),
        made.call("collections", "OrderedDict", b"](" + made.tuple_of(DOUBLED, b"N") + b"e"),
        made.call("torch.nn", "Dict") + DOUBLED + b"Ns",
        b"\x8f(" + DOUBLED + b"\x90",
        b"(" + DOUBLED + b"\x91",
        made.call("numpy", "dtype", DOUBLED),
    ],
)
def test_a_tuple_that_doubles_many_times_is_refused_where_it_would_be_looked_through(path, content):
    with pytest.raises(CheckpointError, match=r"too many parts|needed a storage|found a NumPy type"):
        torch_zip.read(made.write(path, content))


def test_many_small_repeats_are_refused_together(path):
    stored = made.storage("0", "FloatStorage", 4)
    repeat = made.tensor(stored, 0, (10**6,), (0,))
    storages = {"0": bytes(16)}
    assert torch_zip.read(made.write(path, repeat, storages)).shape == (10**6,)
    with pytest.raises(
        CheckpointError, match=r"beyond the size of the file and 80 MB: found size \(1000000,\)"
    ):
        torch_zip.read(made.write(path, made.tuple_of(*[repeat] * 30), storages))


def test_entries_of_the_archive_that_share_their_bytes_are_refused(path):
    """A file lists one large entry under many names."""
    raw = bytes(10**6)
    tensors = [made.tensor(made.storage(str(k), "ByteStorage", len(raw)), 0, (1,), (1,)) for k in range(5)]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + made.tuple_of(*tensors) + b".")
        archive.writestr("archive/data/0", raw)
        for k in range(1, 5):
            again = copy.copy(archive.getinfo("archive/data/0"))
            again.filename = again.orig_filename = f"archive/data/{k}"
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
    with pytest.raises(CheckpointError, match=r"storages have more bytes than the file|differ"):
        torch_zip.read(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"N0" * 500_001 + b"N", r"more than 1,000,000 opcodes"),
        (
            b"".join(made.name("torch", f"C{k}") + b"0" for k in range(2_001)) + b"N",
            "more than 2,000 classes",
        ),
        (b"\x96\x00\x00\x00\x00\x10\x00\x00\x00", "protocol 5"),
        (made.tensor(made.storage("0", "FloatStorage", 1), 0, (1,) * 33, (1,) * 33), "a tensor has size"),
    ],
)
def test_what_would_cost_too_much_is_refused_before_it_costs_it(path, content, words):
    with pytest.raises(CheckpointError, match=words):
        torch_zip.read(made.write(path, content, {"0": bytes(4)}))


@pytest.mark.parametrize(
    "content",
    [
        made.name("\x1b[31mevil", "\x1b[2J"),
        made.name("x" * 10**6, "y"),
        made.storage("\x1b[2J\n" * 1000, "FloatStorage", 1),
        made.call("numpy", "dtype", made.plain("\x1b[31m\n")),
    ],
)
def test_nothing_in_a_file_steers_the_terminal_or_fills_it(path, content):
    with pytest.raises(CheckpointError) as caught:
        torch_zip.read(made.write(path, content))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_a_pipe_is_refused_and_not_waited_for(path):
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match=r"needed one that torch\.save wrote"):
        torch_zip.read(path)


def test_a_file_cut_off_anywhere_is_refused(path):
    whole = made.save(path, {"w": np.arange(3.0)}).read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="not a zip archive, or is truncated"):
            torch_zip.read(path)


def test_a_pickle_cut_off_anywhere_is_refused(path):
    stored, storages = one_storage()
    content = made.dict_of({"w": made.tensor(stored, 0, (6,), (1,))})
    for length in range(len(content)):
        made.write(path, content[:length], storages, stop=b"")
        with pytest.raises(CheckpointError, match=r"weights\.pth\.tar: cannot be read"):
            torch_zip.read(path)


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_file_with_a_changed_byte_is_read_or_refused_and_fails_in_no_other_way(folder, place, byte):
    path = folder / "changed.pth"
    whole = bytearray(made.save(path, {"w": np.arange(3.0), "n": {"k": [1, 2.5, "text"]}}).read_bytes())
    whole[int(place * len(whole))] = byte
    path.write_bytes(whole)
    with contextlib.suppress(CheckpointError):
        torch_zip.read(path)


def test_a_file_that_is_no_zip_archive_says_so_and_how_long_it_is(path):
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(CheckpointError, match=r"not a zip archive.*22 bytes"):
        torch_zip.read(path)


def test_a_missing_file_is_a_missing_file(path):
    with pytest.raises(FileNotFoundError):
        torch_zip.read(path)


def test_a_zip_archive_without_a_pickle_says_what_is_in_it(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"without a torch pickle in it.*readme\.txt"):
        torch_zip.read(path)


def test_compressed_entries_are_refused(path):
    made.write(path, made.plain(1), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="is compressed"):
        torch_zip.read(path)


def test_a_torchscript_archive_is_told_as_such_though_its_code_is_compressed(path):
    """As mace writes _compiled.model and -lammps.pt."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(1, 2))
        archive.writestr("x/code/__torch__/mace.py", "def f(): ...", zipfile.ZIP_DEFLATED)
        archive.writestr("x/constants.pkl", pickle.dumps((), 2))
    with pytest.raises(CheckpointError, match=r"TorchScript archive.*the \.model beside it"):
        torch_zip.read(path)


def test_a_file_of_torch_before_1_6_is_told_as_such(path):
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2))
    with pytest.raises(
        CheckpointError, match=r"format of torch before 1\.6.*Save it again with a newer torch"
    ):
        torch_zip.read(path)


def test_a_big_endian_file_is_refused(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(1, 2))
        archive.writestr("archive/byteorder", "big")
    with pytest.raises(CheckpointError, match="big-endian"):
        torch_zip.read(path)


def test_reading_imports_no_package_that_the_file_names(path):
    before = set(sys.modules)
    content = made.call("mace.modules.models", "ScaleShiftMACE", made.plain(1))
    torch_zip.read(made.write(path, content))
    assert not {name for name in set(sys.modules) - before if name.split(".")[0] in ("mace", "torch")}
