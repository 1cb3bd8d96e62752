"""Data sets on disk: what is written is read again, damage is named, a failed conversion leaves nothing."""

import contextlib
import json
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmlip.cli import main
from jaxmlip.crystals.graph import Cutoffs
from jaxmlip.data import dataset, writing
from jaxmlip.data.batch import Example
from jaxmlip.data.dataset import (
    CorruptRecordError,
    Dataset,
    DatasetError,
    MemorySplit,
    check,
    example,
)
from jaxmlip.data.encoding import decode, encode
from jaxmlip.data.labels import PROPERTIES, Averages, Frequencies, LabelError, LabelledCrystal, Labels
from jaxmlip.data.loader import Loader, Plan
from jaxmlip.data.readers import ReadError
from jaxmlip.data.writing import write_dataset
from jaxmlip.training.config import ConfigError, DataConfig
from jaxmlip.training.splits import isolated_atoms, read

CUTOFFS = Cutoffs(4.0, 3.0)
METALS = ("Cu", "Al", "Ni", "Ag", "Au", "Pd", "Pt", "Pb")


def labelled(k: int, material: str = "", hessian: bool = False) -> LabelledCrystal:
    rng = np.random.default_rng(k)
    atoms = bulk(METALS[k % 8], cubic=True)
    atoms.rattle(0.1, rng=rng)
    columns = {"columns": np.array([1, 5]), "hessian": rng.normal(size=(2, 4, 3))} if hessian else {}
    labels = Labels(
        energy=rng.normal(),
        forces=rng.normal(size=(4, 3)),
        stress=None if k % 2 else rng.normal(size=(3, 3)),
        magmoms=rng.normal(size=4) if k % 3 == 0 else None,
        weight=1.0 + k,
        **columns,
    )
    return LabelledCrystal(atoms, labels, material, f"frame {k}")


def write(folder, crystals, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return write_dataset(folder, crystals, CUTOFFS, **{"processes": 1} | options)


def same(a: Example, b: Example) -> bool:
    """Equal, but for the rounding of forces, moments and constants to float32."""
    rounded = {"forces", "magmoms", "hessian", "third"}
    leaves = zip(*map(jax.tree.leaves, (a.graph, b.graph)), strict=True)
    graphs = all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in leaves)

    def of(labels: Labels, p: str) -> list[np.ndarray]:
        found = getattr(labels, p)
        return list(vars(found).values()) if p in ("frequencies", "averages") else [found]

    labels = a.labels.known == b.labels.known and all(
        np.allclose(x, y, rtol=1e-7 if p in rounded else 0, atol=0, equal_nan=True)
        for p in a.labels.known
        for x, y in zip(of(a.labels, p), of(b.labels, p), strict=True)
    )
    weights = all(a.labels.weight_of(p) == b.labels.weight_of(p) for p in a.labels.known)
    return graphs and labels and weights and a.graph.short == b.graph.short


@given(
    k=st.integers(0, 2**32),
    atoms=st.integers(1, 6),
    cutoffs=st.sampled_from([CUTOFFS, Cutoffs(4.0), Cutoffs(4.0, 3.0, listed=False), Cutoffs(14.0, 3.0)]),
    known=st.sets(st.sampled_from(PROPERTIES)),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
@settings(max_examples=40, deadline=None)
def test_a_record_gives_back_its_crystal(k, atoms, cutoffs, known, pbc):
    rng = np.random.default_rng(k)
    cell = np.diag(rng.uniform(2, 6, 3)) + rng.uniform(-0.5, 0.5, (3, 3))
    numbers = rng.integers(1, 119, atoms)
    crystal = Atoms(numbers, scaled_positions=rng.random((atoms, 3)), cell=cell, pbc=pbc)
    labels = Labels(
        energy=rng.normal() * 1e4,
        forces=rng.normal(size=(atoms, 3)),
        stress=rng.normal(size=(3, 3)),
        magmoms=rng.normal(size=atoms),
        columns=np.array([0, 2]),
        hessian=rng.normal(size=(2, atoms, 3)),
        frequencies=Frequencies(
            q_points=rng.uniform(-1, 1, (2, 3)),
            thz=np.where(np.arange(3 * atoms) == k % 4, np.nan, np.sort(rng.uniform(0, 9, (2, 3 * atoms)))),
            masses=rng.uniform(1, 200, atoms),
            weights=rng.uniform(1, 9, 2),
            assigned=np.array([True, False]),
            error=np.full((2, 3 * atoms), 0.1),
        ),
        averages=Averages(
            what=np.array([0, 1, 2, 3, k % 4]),
            at=rng.uniform(1, 9, 5),
            values=rng.uniform(0.1, 1, 5),
            masses=rng.uniform(1, 200, atoms),
            width=0.3,
        ),
        pairs=np.array([[0, 2], [1, 1]]),
        third=rng.normal(size=(2, atoms, 3)),
        weight=rng.uniform(),
        weights={p: rng.uniform() for p in sorted(known)[: k % 3]},
    ).only(known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            written = example(LabelledCrystal(crystal, labels), cutoffs)
        except LabelError:
            return  # two atoms coincide
    assert same(written, decode(encode(written), cutoffs))


def test_data_sets_of_before_a_property_was_known_are_read_as_without_it(tmp_path, monkeypatch):
    crystals = [
        replace(labelled(k), labels=replace(labelled(k).labels, weights={"energy": 2.0 + k}))
        for k in range(3)
    ]
    for module in ("encoding", "writing"):
        monkeypatch.setattr(f"jaxmlip.data.{module}.PROPERTIES", PROPERTIES[:-3])
    write(tmp_path / "old", crystals, fractions=(1, 0, 0))
    monkeypatch.undo()
    train = Dataset(tmp_path / "old").splits["train"]
    assert train.counts == {
        "energy": 3,
        "forces": 3,
        "stress": 2,
        "magmoms": 1,
        "hessian": 0,
        "frequencies": 0,
        "averages": 0,
        "third": 0,
    }
    assert [train[k].labels.weight_of("energy") for k in range(3)] == [2.0, 6.0, 12.0]
    assert train[0].labels.weight_of("frequencies") == 1.0


@given(st.binary(max_size=200), st.integers(0, 10**6), st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_a_hostile_record_is_refused_as_no_crystal(noise, at, byte):
    record = bytearray(encode(example(labelled(0, hessian=True), CUTOFFS)))
    record[at % len(record)] = byte
    for hostile in (noise, bytes(record), bytes(record)[: at % len(record)]):
        with contextlib.suppress(ValueError):
            decode(hostile, CUTOFFS)


def test_what_is_written_is_read_again_and_materials_stay_on_one_side(tmp_path):
    crystals = [labelled(k, f"mp-{k // 3}", hessian=k % 5 == 0) for k in range(240)]
    made = write(tmp_path / "d", crystals, seed=3, sources=["a.json"])
    assert made.manifest["divided_by"] == "material"
    assert made.manifest["sources"] == ["a.json"]
    side = {}
    seen = {}
    for name, split in made.splits.items():
        for k in range(len(split)):
            frame, material, _ = split.title(k)
            assert side.setdefault(material, name) == name
            seen[frame] = split[k]
        assert split.counts["stress"] == sum("stress" in e.labels.known for e in split)
        np.testing.assert_array_equal(split.sizes, [dataset.size(e.graph) for e in split])
    assert set(made.splits) == {"train", "validation", "test"}
    assert len(made.splits["train"]) > 180
    assert all(same(example(c, CUTOFFS), seen[c.name]) for c in crystals)
    again = write(tmp_path / "again", crystals, seed=3, sources=["a.json"])
    assert again.manifest == made.manifest
    assert {s.digest for s in again.splits.values()} == {s.digest for s in made.splits.values()}


def test_the_digest_of_a_split_changes_with_any_label_and_its_order_alone(tmp_path):
    crystals = [labelled(k, f"mp-{k}") for k in range(6)]
    changed = [*crystals[:5], replace(crystals[5], labels=replace(crystals[5].labels, energy=1.0))]
    several = {"same": list(crystals), "changed": changed, "turned": crystals[::-1]}
    for make in (
        lambda name, these: MemorySplit.from_crystals(these, CUTOFFS),
        lambda name, these: write(tmp_path / name, these, fractions=(1, 0, 0)).splits["train"],
    ):
        first = make("first", crystals).digest
        assert {name: make(name, these).digest == first for name, these in several.items()} == {
            "same": True,
            "changed": False,
            "turned": False,
        }


def test_fewer_crystals_of_a_dataset_are_a_part_of_more_and_say_what_they_have(tmp_path):
    whole = write(tmp_path / "d", [labelled(k, f"mp-{k}") for k in range(40)]).splits["train"]
    parts = {n: read(DataConfig(train=(str(tmp_path / "d"),), crystals=n))["train"] for n in (3, 9)}
    assert [len(p) for p in parts.values()] == [3, 9]
    assert set(parts[3].index) < set(parts[9].index)
    for part in parts.values():
        again = MemorySplit(list(part), CUTOFFS)
        assert part.counts == again.counts
        assert part.elements == again.elements
        np.testing.assert_array_equal(part.sizes, again.sizes)
    other = read(DataConfig(train=(str(tmp_path / "d"),), crystals=9, split_seed=1))["train"]
    assert len({whole.digest, parts[3].digest, parts[9].digest, other.digest}) == 4
    with pytest.raises(ConfigError, match=f"data.crystals: found 41, needed at most {len(whole)}"):
        read(DataConfig(train=(str(tmp_path / "d"),), crystals=41))


def test_frames_of_a_single_material_are_divided_and_that_is_said(tmp_path):
    crystals = [labelled(8 * k) for k in range(20)]
    with pytest.warns(UserWarning, match=r"1 material\(s\), too few.*all splits"):
        made = write_dataset(tmp_path / "d", crystals, CUTOFFS)
    assert {name: len(split) for name, split in made.splits.items()} == {
        "train": 18,
        "validation": 1,
        "test": 1,
    }
    assert made.manifest["divided_by"] == "frame"


@pytest.mark.slow
def test_processes_write_the_same_bytes_and_wake_no_device(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "FEW", 100)
    crystals = [labelled(k, f"mp-{k // 3}") for k in range(300)]
    one, two = (write(tmp_path / str(n), crystals, processes=n) for n in (1, 2))
    assert one.manifest["splits"] == two.manifest["splits"]
    code = (
        "from test_dataset import labelled, CUTOFFS; from jaxmlip.data import writing;"
        "writing._make([labelled(0)], CUTOFFS); from jax._src import xla_bridge;"
        "assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def test_shards_are_cut_at_a_size_and_read_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "SHARD_BYTES", 20_000)
    made = write(tmp_path / "d", [labelled(k, f"mp-{k}") for k in range(60)], fractions=(1, 0, 0))
    split = made.splits["train"]
    assert len(split.shards) > 2
    assert split.shards[0]["file"] == f"train-00000-of-{len(split.shards):05d}.arrayrecord"
    assert [split.title(k).name for k in range(60)] == [f"frame {k}" for k in range(60)]
    with pytest.raises(IndexError):
        split[60]


def test_threads_read_at_the_same_time(tmp_path):
    split = write(tmp_path / "d", [labelled(k, f"mp-{k}") for k in range(40)], fractions=(1, 0, 0)).splits[
        "train"
    ]
    order = np.random.default_rng(0).integers(0, 40, 2000).tolist()
    with ThreadPoolExecutor(8) as pool:
        for k, found in zip(order, pool.map(split.__getitem__, order), strict=True):
            assert found.labels.weight == 1.0 + k


def damaged(folder) -> Dataset:
    """A data set with one flipped bit within its second record."""
    made = write(folder, [labelled(k, f"mp-{k}") for k in range(12)], fractions=(1, 0, 0))
    path = folder / made.splits["train"].shards[0]["file"]
    raw = bytearray(path.read_bytes())
    raw[2500] ^= 1
    path.write_bytes(raw)
    return Dataset(folder)


def test_a_flipped_bit_is_named_by_file_and_record(tmp_path):
    split = damaged(tmp_path / "d").splits["train"]
    said = {}
    for k in range(12):
        try:
            split[k]
        except CorruptRecordError as error:
            said[k] = str(error)
    ((k, message),) = said.items()
    assert f"record {k} of {tmp_path / 'd' / 'train-00000-of-00001.arrayrecord'}" in message


def test_a_damaged_record_stops_the_loader_unless_it_is_told_to_skip(tmp_path):
    split = damaged(tmp_path / "d").splits["train"]
    plan = Plan(split.sizes, 4)
    with pytest.raises(DatasetError, match=r"record \d+ of .*skip_corrupt=True"):
        list(Loader(split, plan, np.zeros(119)).iterate())
    loader = Loader(split, plan, np.zeros(119), skip_corrupt=True)
    with pytest.warns(UserWarning, match="left out crystal"):
        batches = list(loader.iterate())
    assert len(loader.skipped) == 1
    assert sum((batch.atoms > 0).sum() for batch in batches) == 11


@pytest.mark.parametrize("kind", ["nan", "coincide", "flat"])
def test_a_bad_crystal_is_named_or_left_out_on_request(tmp_path, kind):
    crystals = [labelled(k, f"mp-{k}") for k in range(10)]
    atoms, labels = crystals[4].atoms.copy(), crystals[4].labels
    if kind == "nan":
        labels = Labels(energy=np.nan)
    elif kind == "coincide":
        atoms.positions[1] = atoms.positions[0]
    else:
        atoms.cell[0] = 0
    crystals[4] = LabelledCrystal(atoms, labels, "mp-4", "frame 4")
    with pytest.raises(LabelError, match=r"frame 4.*--skip-bad"):
        write(tmp_path / "d", crystals)
    assert list(tmp_path.iterdir()) == []
    with pytest.warns(UserWarning, match=r"left out 1 crystals(.|\n)*frame 4"):
        made = write_dataset(tmp_path / "d", crystals, CUTOFFS, fractions=(1, 0, 0), skip_bad=True)
    assert len(made.splits["train"]) == 9
    assert made.manifest["left_out"]["crystals"] == 1


@pytest.mark.filterwarnings("ignore:atoms 0 .* are 0.000 Å apart")
def test_crystals_that_cannot_be_used_are_left_out_of_memory_too():
    crystals = [labelled(k, f"mp-{k}") for k in range(5)]
    atoms = crystals[2].atoms.copy()
    atoms.positions[1] = atoms.positions[0]
    crystals[2] = LabelledCrystal(atoms, Labels(energy=1.0), "mp-2", "frame 2")
    with pytest.raises(LabelError, match="frame 2"):
        MemorySplit.from_crystals(crystals, CUTOFFS)
    with pytest.warns(UserWarning, match=r"left out 1 crystals that cannot be used:\n  frame 2"):
        assert len(MemorySplit.from_crystals(crystals, CUTOFFS, skip_bad=True)) == 4
    with pytest.raises(DatasetError, match="none of 1 crystals"):
        MemorySplit.from_crystals(crystals[2:3], CUTOFFS, skip_bad=True)


def springs_and_more(folder):
    """b/springs.extxyz, whose last frame is cut off, beside a whole a.extxyz with an isolated atom."""
    from conftest import write_springs

    (folder / "b").mkdir()
    write_springs(folder, 4)
    whole = (folder / "springs.extxyz").read_text()
    (folder / "b" / "springs.extxyz").write_text(whole[:-40])
    (folder / "springs.extxyz").unlink()
    properties = "Properties=species:S:1:pos:R:3 energy=-0.8 config_type=IsolatedAtom"
    alone = f'1\n{properties} pbc="F F F"\nSi 0 0 0\n'
    (folder / "a.extxyz").write_text(alone + whole)


def test_the_command_converts_what_is_whole_and_says_what_it_left_out(tmp_path, capsys):
    springs_and_more(tmp_path)
    arguments = ["data", "convert", str(tmp_path), "--cutoff", "4", "--validation", "0", "--test", "0"]
    with pytest.raises(SystemExit):
        main([*arguments, "--out", str(tmp_path / "set")])
    said = capsys.readouterr().err
    assert "--skip-bad" in said
    main([*arguments, "--out", str(tmp_path / "set"), "--skip-bad"])
    said += capsys.readouterr().err
    assert "a.extxyz: left out 1 isolated atom(s)" in said
    assert "b/springs.extxyz: left out 1 that cannot be used" in said
    made = Dataset(tmp_path / "set")
    assert len(made.splits["train"]) == 7
    (alone,) = isolated_atoms(DataConfig(train=(str(tmp_path / "set"),)))
    assert (str(alone.atoms.symbols), alone.labels.energy) == ("Si", -0.8)
    main([*arguments, "--out", str(tmp_path / "few"), "--limit", "3"])
    assert len(Dataset(tmp_path / "few").splits["train"]) == 3


@pytest.mark.filterwarnings("ignore:(?s).*left out 1 isolated atom")
def test_a_configuration_trains_on_what_is_whole(tmp_path):
    springs_and_more(tmp_path)
    data = DataConfig(train=(str(tmp_path),), split_by="crystal", fractions=(1, 0, 0))
    with pytest.raises(ReadError, match="skip_bad: true"):
        read(data)
    with pytest.warns(UserWarning, match="left out 1"):
        assert len(read(replace(data, skip_bad=True))["train"]) == 7
    few = replace(data, options={"limit": 3})
    assert len(read(few)["train"]) == 3
    for options in ({"isolated": "too"}, {"limits": 1}):
        with pytest.raises(ConfigError, match=r"data\.options: found (isolated|limits)"):
            read(replace(data, options=options))


@pytest.mark.slow
def test_a_full_disk_says_what_is_needed_and_leaves_nothing(tmp_path):
    # In a process of its own: the limit on the size of files is for all of it.
    code = f"""
import resource, signal
from test_dataset import labelled, write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
write({str(tmp_path / "d")!r}, [labelled(k, f"mp-{{k}}") for k in range(600)], processes=1)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert "DatasetError" in ran.stderr
    assert "bytes are free" in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_conversion_leaves_nothing(tmp_path):
    def crystals():
        yield from (labelled(k) for k in range(5))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "d", crystals())
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(tmp_path):
    (tmp_path / "precious").write_text("")
    with pytest.raises(DatasetError, match="needed a new or empty folder"):
        write(tmp_path, [labelled(0)])


def test_without_crystals_there_is_no_data_set(tmp_path):
    with pytest.raises(DatasetError, match="found no crystal"):
        write(tmp_path / "d", [])


def test_missing_cut_and_foreign_files_are_named(tmp_path):
    folder = tmp_path / "d"
    made = write(folder, [labelled(k, f"mp-{k}") for k in range(6)], fractions=(1, 0, 0))
    shard = folder / made.splits["train"].shards[0]["file"]
    with pytest.raises(DatasetError, match=r"no dataset\.json"):
        Dataset(tmp_path)
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(DatasetError, match=r"train-00000-of-00001\.arrayrecord has .* bytes, needed"):
        Dataset(folder)
    shard.write_bytes(whole)
    sizes = (folder / "train-sizes.npy").read_bytes()
    np.save(folder / "train-sizes.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(DatasetError, match=r"train-sizes\.npy cannot be read"):
        Dataset(folder)
    (folder / "train-sizes.npy").write_bytes(sizes)
    manifest = json.loads((folder / "dataset.json").read_text())
    for change, said in [
        ({"format": 99}, "format 99"),
        ({"splits": {"train": {}}}, "does not describe"),
        ({"splits": {"../train": manifest["splits"]["train"]}}, "does not describe"),
        ({"cutoffs": None}, "does not describe"),
    ]:
        (folder / "dataset.json").write_text(json.dumps(manifest | change))
        with pytest.raises(DatasetError, match=said):
            Dataset(folder)


def test_a_model_of_other_cutoffs_or_elements_is_refused():
    potential = SimpleNamespace(name="model", cutoffs=CUTOFFS, elements=(29,), functionals=())
    split = MemorySplit.from_crystals([labelled(0)], CUTOFFS)
    check(split, potential)
    with pytest.raises(DatasetError, match="Convert the data again"):
        check(MemorySplit.from_crystals([labelled(0)], Cutoffs(5.0)), potential)
    split.elements = (29, 118)
    with pytest.raises(DatasetError, match=f"elements Og, but .* knows {len(potential.elements)} elements"):
        check(split, potential)


def test_the_command_converts_files_and_asks_for_a_model_or_a_cutoff(tmp_path, monkeypatch, capsys):
    from jaxmlip.cli import data

    readers = SimpleNamespace(
        read_labelled=lambda paths, **options: (labelled(k, f"mp-{k}") for k in range(40))
    )
    monkeypatch.setitem(sys.modules, "jaxmlip.data.readers", readers)
    source = data.Source(paths=[str(tmp_path / "a.json")])
    with pytest.raises(ValueError, match="needed one of them"):
        data.convert(source, tmp_path / "d")
    data.convert(source, tmp_path / "d", cutoff=4.0, angle_cutoff=3.0, test=0.0, validation=0.3)
    made = Dataset(tmp_path / "d")
    assert made.cutoffs == CUTOFFS
    assert set(made.splits) == {"train", "validation"}
    assert "bytes/crystal" in capsys.readouterr().out
