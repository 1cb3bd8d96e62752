"""From the tensors of a checkpoint to parameters: each used once or set aside, none left empty."""

import gzip
import json
import math
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch_files as made
from ase import Atoms
from ase.build import bulk
from conftest import public

from jaxmlip.cli import main
from jaxmlip.potential import Potential, parameter_shapes
from weights_convert import (
    chgnet,
    golden,
    original_chgnet,
    original_mace,
    original_matgl,
    original_mattersim,
)
from weights_convert.conversion import convert_file
from weights_convert.rules import Rule, convert
from weights_convert.torch_zip import CheckpointError

SHAPES = {"a/kernel": (3, 2), "b/scale": (4,)}
TENSORS = {"a.weight": np.arange(6.0).reshape(2, 3), "b.weight": np.arange(4.0)}
RULES = [Rule(("a.weight",), ("a/kernel",), np.transpose), Rule(("b.weight",), ("b/scale",))]


def disagreements(tensors=TENSORS, shapes=SHAPES, rules=RULES, set_aside=None):
    with pytest.raises(CheckpointError) as caught:
        convert(tensors, shapes, rules, set_aside or {})
    count, _, rest = str(caught.value).partition("filled: ")
    lines = rest.split("; ")
    assert f"in {len(lines)} places" in count
    return lines


def test_tensors_that_agree_become_parameters():
    made = convert(TENSORS, SHAPES, RULES, {})
    np.testing.assert_array_equal(made["a/kernel"], TENSORS["a.weight"].T)
    np.testing.assert_array_equal(made["b/scale"], TENSORS["b.weight"])


def test_one_tensor_under_many_names_is_refused_before_it_is_copied_for_each():
    shared = np.ones(10**6)
    tensors = TENSORS | {f"layer.{k}.weight": shared for k in range(1000)}
    rules = [*RULES, Rule(("layer.{k}.weight",), ("layer_{k}",), np.copy)]
    with pytest.raises(CheckpointError, match="the same tensors are there under many names"):
        convert(tensors, SHAPES, rules, {})


def test_a_missing_tensor_is_told_by_the_parameter_that_stays_empty():
    assert disagreements({"a.weight": TENSORS["a.weight"]}) == [
        "b/scale: no tensor of the checkpoint maps here"
    ]


def test_a_tensor_that_no_rule_uses_is_told():
    assert disagreements({**TENSORS, "c.weight": np.ones(1)}) == ["c.weight: 0 rules match, needed one"]


def test_a_tensor_that_two_rules_use_is_told():
    lines = disagreements(rules=[*RULES, Rule(("b.weight",), ("b/scale",))])
    assert lines == ["b/scale: filled twice", "b.weight: 2 rules match, needed one"]


def test_a_wrong_shape_is_told_with_both_shapes():
    lines = disagreements({**TENSORS, "b.weight": np.ones(5)})
    assert lines == ["b/scale: found shape (5,), needed (4,)"]


def test_a_parameter_that_the_model_lacks_is_told():
    lines = disagreements(shapes={"a/kernel": (3, 2)})
    assert lines == ["b/scale: made from b.weight, but the model has no such parameter"]


def test_half_of_a_pair_of_tensors_is_told():
    rule = Rule(("b.weight", "b.bias"), ("b/scale",), np.add)
    assert "b.bias: missing, though b.weight is there" in disagreements(rules=[RULES[0], rule])


def test_all_disagreements_are_told_at_once():
    lines = disagreements({"a.weight": np.ones((2, 2)), "c.weight": np.ones(1)})
    assert len(lines) == 3


def test_a_tensor_set_aside_is_not_used_and_only_the_whole_name_counts():
    extra = {**TENSORS, "c.weight": np.ones(1), "xc.weight": np.ones(1)}
    assert disagreements(extra, set_aside={r"c\..*": "a reason"}) == ["xc.weight: 0 rules match, needed one"]


@pytest.mark.parametrize(("norm", "output_bias"), [(True, False), (False, True)])
def test_every_number_of_a_checkpoint_is_kept_once_or_set_aside(tmp_path, norm, output_bias):
    checkpoint = made.small_chgnet(norm, output_bias)
    potential = convert_file(made.save(tmp_path / "small.pth.tar", checkpoint))

    aside = [key for key in checkpoint["model"]["state_dict"] if key.startswith("angle_layers.1.")]
    source = [v.ravel() for key, v in checkpoint["model"]["state_dict"].items() if key not in aside]
    leaves = safetensors_of(potential, tmp_path / "converted").values()
    found = np.sort(np.concatenate([leaf.ravel() for leaf in leaves]))
    # The numbers are all different; the one more is the reference energy of padding.
    np.testing.assert_array_equal(found, np.sort(np.append(np.concatenate(source), 0)))
    assert list(potential.manifest["set_aside"]) == [r"angle_layers\.1\..*"]
    assert len(aside) > 0


def safetensors_of(potential, folder):
    potential.save(folder)
    return safetensors.numpy.load_file(folder / "model.safetensors")


def test_saving_and_loading_gives_the_same_potential(tmp_path):
    first = convert_file(made.save(tmp_path / "small.pth.tar", made.small_chgnet()), name="mine")
    before = safetensors_of(first, tmp_path / "a")
    second = Potential.from_folder(tmp_path / "a")
    after = safetensors_of(second, tmp_path / "b")
    assert (second.name, second.model, second.elements) == (first.name, first.model, first.elements)
    assert before.keys() == after.keys() == parameter_shapes(first.model).keys()
    for key in before:
        np.testing.assert_array_equal(before[key], after[key])
        assert before[key].dtype == np.float32


def test_the_manifest_tells_where_the_parameters_come_from(tmp_path):
    import hashlib

    file = made.save(tmp_path / "small.pth.tar", made.small_chgnet())
    manifest = convert_file(file).manifest
    assert manifest["source"] == "small.pth.tar"
    assert manifest["source_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert manifest["convention"] == chgnet.CONVENTION
    assert manifest["jaxmlip"]
    assert "licence" not in manifest  # of an unknown file


def train_only_on(checkpoint, elements) -> None:
    """Sets the trace that Adam leaves of the elements in its data."""
    squares = checkpoint["optimizer"]["state"][1]["exp_avg_sq"]
    squares[:] = 0
    squares[np.array(elements) - 1] = 1e-6


def test_elements_without_a_gradient_or_a_reference_energy_are_unknown():
    checkpoint = made.small_chgnet()
    train_only_on(checkpoint, range(1, 84))
    assert chgnet.elements(checkpoint) == tuple(range(1, 84))
    checkpoint["model"]["state_dict"]["composition_model.fc.weight"][0, 7] = 1e-14
    assert chgnet.elements(checkpoint) == (*range(1, 8), *range(9, 84))


def test_a_model_tuned_on_a_few_elements_still_knows_the_others():
    checkpoint = made.small_chgnet()
    train_only_on(checkpoint, [3, 8])
    assert chgnet.elements(checkpoint) == tuple(range(1, 95))


def test_without_a_trace_of_the_training_all_elements_are_taken_as_known():
    checkpoint = made.small_chgnet()
    del checkpoint["optimizer"]
    assert chgnet.elements(checkpoint) == tuple(range(1, 95))
    checkpoint["model"]["state_dict"]["composition_model.fc.weight"][:] = 0
    assert chgnet.elements(checkpoint) == tuple(range(1, 95))


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("update_angle", 0, r"update_angle=0 \(needed true or false\)"),
        ("mlp_first", None, r"mlp_first=None \(needed true or false\)"),
        ("non_linearity", "elu", r"non_linearity='elu' \(needed one of silu, .*, tanh\)"),
        ("gMLP_norm", "graph", r"gMLP_norm='graph' \(needed 'layer', 'batch' or None\)"),
        ("conv_norm", ["batch"], r"conv_norm=\['batch'\] \(needed 'layer'"),
        ("final_mlp", None, r"final_mlp=None \(needed a word\)"),
        ("bond_fea_dim", None, r"bond_fea_dim=None \(needed a width\)"),
        ("atom_conv_hidden_dim", [], r"atom_conv_hidden_dim=\[\] \(needed a width, a list"),
        ("mlp_hidden_dims", "44", r"mlp_hidden_dims='44' \(needed a width, a list"),
        ("attention", True, r"attention=True \(unknown\)"),
        ("skip_connection", True, "no such layers"),
        ("cutoff_coeff", 0, "energies jump where a neighbour comes within the cutoff"),
        ("composition_model", "MPF", "is_intensive=True with composition_model='MPF'"),
        ("is_intensive", False, "adds those per atom to an energy of a crystal"),
        ("composition_model", "QM9", r"'QM9' \(needed MPtrj, MPtrj_e, MP-r2SCAN, MPF, None or an AtomRef"),
        ("composition_model", None, r"None, with a tensor composition_model\.fc\.weight"),
    ],
)
def test_an_option_that_is_not_supported_is_named(tmp_path, option, value, words):
    checkpoint = made.small_chgnet()
    checkpoint["model"]["model_args"][option] = value
    with pytest.raises(CheckpointError, match=rf"small\.pth.*not supported: .*{words}"):
        convert_file(made.save(tmp_path / "small.pth", checkpoint))


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        *(
            ("n_conv", n, r"n_conv=.* \(needed a whole number from 1 to 32\)")
            for n in (1e9, 10**30, 1e308, 0, -1)
        ),
        *(("num_radial", n, r"num_radial=.* \(needed a whole") for n in (None, [1], -1, 0, math.inf, True)),
        ("num_angular", 4, "angular=4, needed an odd number"),
        *(
            ("atom_graph_cutoff", r, r"atom_graph_cutoff=.* \(needed a length")
            for r in (math.nan, math.inf, 1e30, -1)
        ),
        ("bond_graph_cutoff", 6, r"angle_cutoff=6.0 \(needed at most bond_cutoff=5.0"),
        ("cutoff_coeff", -1, r"cutoff_coeff=-1 \(needed a whole number"),
        ("mlp_hidden_dims", [4] * 100, r"mlp_hidden_dims=\(4, 4, 4, 4, …\) \(needed up to 32"),
        ("atom_fea_dim", None, r"atom_fea_dim=None \(needed a whole number"),
        ("bond_fea_dim", 10**9, r"bond_fea_dim=1000000000 \(needed a whole number from 1 to 4096"),
        ("angle_fea_dim", 0, r"angle_fea_dim=0 \(needed a whole"),
        ("bond_conv_hidden_dim", [4] * 10**4, r"bond_conv_hidden_dim=\(4, 4, 4, 4, …\) \(needed up to 32"),
        ("atom_conv_hidden_dim", [4, -4], r"atom_conv_hidden_dim=\(4, -4\) \(needed up to 32 whole"),
        ("angle_layer_hidden_dim", [[4]], r"angle_layer_hidden_dim=.* \(needed up to 32 whole"),
        ("angle_layer_hidden_dim", 0.5, r"angle_layer_hidden_dim=\(0\.5,?\) \(needed up to 32 whole"),
        ("\x1b[31m\n", 1, r"\\x1b\[31m\\n=1 \(unknown\)"),
    ],
)
def test_an_option_without_meaning_is_refused(tmp_path, option, value, words):
    checkpoint = made.small_chgnet()
    checkpoint["model"]["model_args"][option] = value
    with pytest.raises(CheckpointError, match=rf"small\.pth: .*{words}"):
        convert_file(made.save(tmp_path / "small.pth", checkpoint))


@pytest.mark.parametrize("given", [None, {}, 5, {"n_conv": 3}])
def test_options_that_are_not_there_are_not_guessed(tmp_path, given):
    checkpoint = made.small_chgnet()
    checkpoint["model"]["model_args"] = given
    with pytest.raises(CheckpointError, match=r"model_args is .*; needed the options of the network"):
        convert_file(made.save(tmp_path / "small.pth", checkpoint))


@pytest.mark.parametrize("wrong", [5, {}, {5: np.ones(2)}, {"w": None}, {"w": "s"}])
def test_a_state_dict_of_anything_but_named_tensors_is_refused(tmp_path, wrong):
    checkpoint = made.small_chgnet()
    checkpoint["model"]["state_dict"] = wrong
    with pytest.raises(CheckpointError, match=r"state_dict .*needed named tensors"):
        convert_file(made.save(tmp_path / "small.pth", checkpoint))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
@pytest.mark.filterwarnings("error")
def test_weights_of_any_floating_point_type_are_taken(tmp_path, dtype):
    checkpoint = made.small_chgnet()
    state = checkpoint["model"]["state_dict"]
    checkpoint["model"]["state_dict"] = {name: (x / 64).astype(dtype) for name, x in state.items()}
    potential = convert_file(made.save(tmp_path / "small.pth", checkpoint))
    assert potential.params["reference_energies"].dtype == (dtype if dtype == np.float64 else np.float32)


@pytest.mark.parametrize("name", ["composition_model.fc.weight", "site_wise.weight"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x: np.where(x == x.flat[0], np.float32(np.nan), x), "found NaN"),
        (lambda x: np.where(x == x.flat[0], np.float32(-np.inf), x), "found infinity"),
        (lambda x: x.astype(np.float64) * 1e300, "found infinity, or numbers beyond float32"),
        (lambda x: x.astype(np.int64), "found int64, needed floating-point"),
        (lambda x: x > 0, "found bool, needed floating-point"),
    ],
)
def test_numbers_that_are_no_weights_are_refused(tmp_path, name, spoil, words):
    checkpoint = made.small_chgnet()
    state = checkpoint["model"]["state_dict"]
    state[name] = spoil(state[name])
    with pytest.raises(CheckpointError, match=rf"small\.pth: 1 tensors hold no weights: {name}: {words}"):
        convert_file(made.save(tmp_path / "small.pth", checkpoint))


def test_hundreds_of_disagreements_are_told_in_one_short_line(tmp_path):
    checkpoint = made.small_chgnet()
    state = checkpoint["model"]["state_dict"]
    checkpoint["model"]["state_dict"] = {"composition_model.fc.weight": state["composition_model.fc.weight"]}
    file = made.save(tmp_path / "small.pth", checkpoint)
    with pytest.raises(CheckpointError, match=r"disagree in \d\d places; .*; and \d\d more$") as caught:
        convert_file(file)
    assert len(str(caught.value)) < 400 + len(str(file))


def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_its_name(tmp_path):
    checkpoint = made.small_chgnet()
    del checkpoint["model"]["state_dict"]["bond_conv_layers.0.mlp_out.layers.1.weight"]
    with pytest.raises(CheckpointError, match=r"small\.pth.*: network/bond_conv_0/out/kernel: no tensor"):
        convert_file(made.save(tmp_path / "small.pth", checkpoint))


FOREIGN = [
    ({"w": np.ones(2), "b": np.ones(2)}, r"a bare state dict of 2 tensors \(w, b\)"),
    ({"epoch": 3, "net": {"w": np.ones(2)}}, "a dictionary with the keys epoch, net"),
    ({"model": {"w": np.ones(2)}}, "a dictionary with the keys model"),
    ({}, "an empty dictionary"),
    ([1, 2], r"\[1, 2\]"),
]


@pytest.mark.parametrize(("content", "found"), FOREIGN)
def test_a_foreign_checkpoint_is_refused_by_what_it_holds(tmp_path, content, found):
    file = made.save(tmp_path / "foreign.pth", content)
    with pytest.raises(CheckpointError, match=rf"holds {found}, .*Needed, for chgnet, .*state_dict"):
        convert_file(file)


def test_a_pickled_module_is_refused_by_its_class(tmp_path):
    file = made.write(tmp_path / "module.pth", made.call("torch.nn.modules.container", "Sequential"))
    with pytest.raises(
        CheckpointError, match=r"holds a torch\.nn\.modules\.container\.Sequential as one object"
    ):
        convert_file(file)


WHOLE_CHGNET = made.with_state(made.call("chgnet.model.model", "CHGNet"), made.plain({"training": False}))
OTHER_FORMS = [
    (WHOLE_CHGNET, r"a whole CHGNet of chgnet.*torch\.save\(\{'model': model\.as_dict\(\)\}"),
    (made.dict_of({"model": WHOLE_CHGNET}), r"a whole CHGNet of chgnet.*torch\.save"),
    (made.call("matgl.models._tensornet", "TensorNet"), "a TensorNet of matgl, which is not read here"),
    (
        made.call("mattersim.forcefield.potential", "Potential"),
        r"a whole Potential of mattersim.*save method",
    ),
    (made.call("matgl.models._m3gnet", "M3GNet"), r"a whole M3GNet of matgl.*the folder that its Potential"),
    (made.plain({"state_dict": {}, "model_args": {}}), r"what CHGNet\.as_dict\(\) gives, needed .*'model'"),
    (
        made.dict_of({"model": made.call("mace.modules.models", "MACE")}),
        r"a whole MACE under the key 'model'",
    ),
]


@pytest.mark.parametrize(("content", "words"), OTHER_FORMS)
def test_an_honest_file_of_another_form_is_told_with_what_to_do(tmp_path, content, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        convert_file(made.write(tmp_path / "other.pt", content))
    assert "trust" not in str(caught.value)


@pytest.mark.parametrize(
    ("sign", "words"),
    [
        ("composition_model.fc.weight", r"of a CHGNet, without the options.*as_dict"),
        (
            "node_embedding.linear.weight",
            r"of a MACE, without .*avg_num_neighbors.*the \.model file that mace_run_train.*--restart_latest",
        ),
        ("model.embedding.layer_node_embedding.weight", r"of a M3GNet, .*the folder that it lies in"),
        ("atom_embedding.mlp.0.linear.weight", r"of a MatterSim, .*Potential\(model\)\.save\(FILE\)"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_state_dict_alone_is_told_by_the_network_that_it_is_of(tmp_path, sign, words, wrapped):
    state = {sign: np.ones(2, np.float32)}
    checkpoint = {"model": state, "optimizer": {}, "lr_scheduler": {}} if wrapped else state
    with pytest.raises(CheckpointError, match=words):
        convert_file(made.save(tmp_path / "state.pt", checkpoint))


# Parameters of the published networks as the chgnet package counts them, those set aside among them.
PUBLISHED = {
    "chgnet-0.2.0": (400_438, 32_896),
    "chgnet-0.3.0": (412_525, 33_152),
    "chgnet-r2scan": (412_525, 33_152),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_public_model_has_the_published_number_of_parameters(name):
    potential = public(name, "float32")
    counted, aside = PUBLISHED[name]
    found = sum(int(np.prod(shape)) for shape in parameter_shapes(potential.model).values())
    assert found == counted - aside + 1  # the reference energy of padding is ours
    assert potential.manifest["parameters"] == found
    assert len(potential.manifest["set_aside"]) == 1
    assert potential.manifest["licence"].startswith("BSD-3-Clause-LBNL")


@pytest.mark.parametrize(
    ("name", "unknown"),
    [
        ("chgnet-0.2.0", {84, 85, 86, 87, 88}),
        ("chgnet-0.3.0", {84, 85, 86, 87, 88}),
        ("chgnet-r2scan", {70, 84, 85, 86, 87, 88}),
    ],
)
def test_a_public_model_knows_the_elements_of_its_training_data(name, unknown):
    assert set(public(name, "float32").elements) == set(range(1, 95)) - unknown


def test_the_command_writes_a_folder_that_loads(tmp_path, capsys):
    file = made.save(tmp_path / "small.pth.tar", made.small_chgnet())
    main(["convert", str(file), str(tmp_path / "out")])
    assert "small: 94 elements" in capsys.readouterr().out
    assert Potential.from_folder(tmp_path / "out").elements == tuple(range(1, 95))


def failed(capsys, *arguments):
    """What `jaxmlip convert` says on standard output and standard error where it fails."""
    with pytest.raises(SystemExit) as end:
        main(["convert", *map(str, arguments)])
    assert end.value.code == 1
    return capsys.readouterr()


def test_the_command_tells_of_a_file_that_it_cannot_convert(tmp_path, capsys):
    file = made.save(tmp_path / "foreign.pth", {"w": np.ones(2)})
    assert "a bare state dict" in failed(capsys, file, tmp_path / "out").err
    assert not (tmp_path / "out").exists()


def test_verification_without_torch_says_what_is_missing(tmp_path, monkeypatch, capsys):
    file = made.save(tmp_path / "small.pth.tar", made.small_chgnet())
    monkeypatch.setattr(original_chgnet, "missing", lambda: ["torch"])
    said = failed(capsys, file, tmp_path / "out", "--verify")
    assert "--verify found no torch in this environment" in said.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("difference", [1e-8, 1e-3, np.inf, np.nan])
def test_verification_fails_above_its_tolerance(tmp_path, monkeypatch, capsys, difference):
    file = made.save(tmp_path / "small.pth.tar", made.small_chgnet())
    crystal = Atoms("LiO", [(0, 0, 0), (1.9, 0.1, 0)], cell=[4, 4, 4], pbc=True)
    monkeypatch.setattr(original_chgnet, "missing", list)
    refused = Atoms("O", cell=[9, 9, 9], pbc=True)  # by the original
    monkeypatch.setattr(golden, "structures_of", lambda _: {"LiO": crystal, "O": refused})
    theirs = dict(convert_file(file).astype("float64").predict(crystal))
    theirs["forces"] = theirs["forces"] + difference
    monkeypatch.setattr(original_chgnet, "predictions", lambda *_: {"LiO": theirs})
    arguments = [file, tmp_path / "out", "--verify"]
    if difference < 1e-6:
        main(["convert", *map(str, arguments)])
        said = capsys.readouterr()
    else:
        said = failed(capsys, *arguments)
        assert "needed differences up to 1e-06" in said.err
    shown = "inf" if np.isnan(difference) else f"{difference:.1e}"
    assert f"forces   differs by at most {shown} eV/Å" in said.out


def test_verification_that_compared_nothing_is_none(tmp_path, monkeypatch, capsys):
    file = made.save(tmp_path / "small.pth.tar", made.small_chgnet())
    monkeypatch.setattr(original_chgnet, "missing", list)
    monkeypatch.setattr(golden, "structures_of", lambda _: {"O": Atoms("O", cell=[9, 9, 9], pbc=True)})
    monkeypatch.setattr(original_chgnet, "predictions", lambda *_: {})
    assert "the original refused all of O" in failed(capsys, file, tmp_path / "out", "--verify").err


def test_the_original_is_asked_for_crystals_whose_atoms_all_have_neighbours(monkeypatch):
    model = SimpleNamespace(graph_converter=SimpleNamespace(atom_graph_cutoff=3.0))
    monkeypatch.setattr(original_chgnet, "float64", nullcontext)
    monkeypatch.setattr(original_chgnet, "read", lambda _: model)
    monkeypatch.setattr(original_chgnet, "evaluate", lambda _, atoms: {"energy": len(atoms)})
    pair = Atoms("LiO", [(0, 0, 0), (1.9, 0, 0)], cell=[9, 9, 9], pbc=True)
    crystals = {"pair": pair, "apart": pair + Atoms("O", [(5, 5, 5)]), "small": bulk("Al", "sc", 2.9)}
    assert original_chgnet.predictions(Path("any"), crystals) == {
        "pair": {"energy": 2},
        "small": {"energy": 1},
    }


def test_published_models_are_recorded_from_the_files_of_their_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "chgnet", SimpleNamespace(__file__=str(tmp_path / "__init__.py")))
    for name, folder in golden.FOLDERS.items():
        (tmp_path / "pretrained" / folder).mkdir(parents=True)
        (tmp_path / "pretrained" / folder / f"of-{name}.pth.tar").touch()
    recorded = {}
    monkeypatch.setattr(
        golden, "_record_chgnet", lambda file, _, target: recorded.update({target: file.name})
    )
    monkeypatch.setattr(golden, "record_other_chgnets", lambda out: recorded.update({out: "others"}))
    golden.record_chgnet(tmp_path)
    wanted = {tmp_path / f"{name}.npz": f"of-{name}.pth.tar" for name in golden.FOLDERS}
    assert recorded == wanted | {tmp_path / "chgnet": "others"}


RECORDED = {  # and a crystal without a Hessian
    "chgnet": (original_chgnet, golden.record_other_chgnets, ".pth.tar", "TiO2_rutile"),
    "mace": (original_mace, golden.record_mace, ".model", "O_isolated"),
    "mattersim": (original_mattersim, golden.record_mattersim, ".pth", "O_isolated"),
    "matgl": (original_matgl, golden.record_matgl, ".state.pt", "O_isolated"),
}


@pytest.mark.parametrize(("original", "record", "ending", "without"), RECORDED.values(), ids=RECORDED)
def test_random_models_are_recorded_as_they_are_read_from_the_files_that_are_kept(
    original, record, ending, without, tmp_path, monkeypatch
):
    """Without the package: a model is its seed, and the energy of a crystal names the file that was read."""

    def save(seed, path):
        path = path / "state.pt" if path.is_dir() else path
        path.write_text(f"model {seed}")
        (path.parent / "model.json").write_text(f"options {seed}")

    def read(path):
        return (path / "state.pt" if path.is_dir() else path).read_text()

    def evaluate(model, atoms, head=None, with_hessian=False):
        found = {"energy": f"{model} {head}", "forces": len(atoms)}
        if with_hessian:
            found["hessian"] = np.eye(3)
        return {name: np.array(x) for name, x in found.items()}

    kind = type("Model", (int,), {"save": save})
    monkeypatch.setattr(original, "random_model", lambda seed, *_, **__: kind(seed))
    strengthened = []
    monkeypatch.setattr(original, "strengthen", lambda model, _: strengthened.append(model))
    for name, its in {"save": save, "read": read, "evaluate": evaluate}.items():
        monkeypatch.setattr(original, name, its, raising=name != "save")
    for name in ("precision", "exact", "float64"):
        monkeypatch.setattr(original, name, lambda *_: nullcontext(), raising=False)
    monkeypatch.setattr(original, "hessian", lambda *_: np.eye(3), raising=False)
    monkeypatch.setattr(original, "without_later_tensors", lambda path: None, raising=False)
    monkeypatch.setattr(original, "versions", lambda: {"package": "1.0"})
    record(tmp_path / "out")
    assert strengthened == list(range(len(original.VARIANTS)))
    for seed, variant in enumerate(original.VARIANTS):
        kept = tmp_path / "out" / f"{variant}{ending}.gz"
        assert gzip.decompress(kept.read_bytes()).decode() == f"model {seed}"
        if original is original_matgl:
            assert (tmp_path / "out" / f"{variant}.model.json").read_text() == f"options {seed}"
        archives = sorted((tmp_path / "out").glob(f"{variant}*.npz"))
        assert archives
        for file in archives:
            head = file.name.removeprefix(variant).removesuffix(".npz")[1:] or None
            with np.load(file) as held:
                assert json.loads(str(held["versions"])) == {"package": "1.0"}
                assert str(
                    held["CoO_strained/energy" if original is original_mace else "CO2_box/energy"]
                ) == (f"model {seed} {head}")
                hessians = {key.split("/")[0] for key in held.files if key.endswith("/hessian")}
                assert hessians
                assert without not in hessians


KEPT = {"chgnet": "", "mace": "mace", "matgl-chgnet": "matgl", "mattersim": "mattersim"}  # folders


@pytest.mark.slow
@pytest.mark.parametrize("package", golden.PACKAGES)
def test_a_recording_repeats_the_one_that_is_kept(package, tmp_path):
    original, record, requirement = golden.PACKAGES[package]
    if absent := original.missing():
        pytest.skip(f"no {' and no '.join(absent)} here: pip install {requirement}")
    record(tmp_path)
    kept = Path(__file__).parents[1] / "golden" / KEPT[package]
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.npz"))
    assert made
    for file in made:
        with np.load(kept / file) as before, np.load(tmp_path / file) as after:
            assert set(before.files) == set(after.files)
            for key in set(before.files) - {"versions"}:
                scale = max(1, np.abs(before[key]).max())
                np.testing.assert_allclose(
                    after[key], before[key], rtol=0, atol=1e-8 * scale, err_msg=f"{file} {key}"
                )


@pytest.mark.parametrize("original", [original_mace, original_matgl, original_mattersim])
def test_an_original_predicts_each_crystal_with_the_model_of_the_file(original, monkeypatch):
    monkeypatch.setattr(original, "read", lambda path: f"model of {path}")
    monkeypatch.setattr(original, "evaluate", lambda model, atoms, *head: (model, len(atoms), *head))
    for name in ("precision", "exact"):
        monkeypatch.setattr(original, name, lambda *_: nullcontext(), raising=False)
    crystals = {"one": Atoms("O"), "two": Atoms("O2")}
    head = ("pbe",) if original is original_mace else ()
    assert original.predictions(Path("file"), crystals, *head) == {
        "one": ("model of file", 1, *head),
        "two": ("model of file", 2, *head),
    }


@pytest.mark.parametrize(("cutoff", "repeats"), [(2.5, 1), (3.1, 2), (6.1, 3)])
def test_a_cell_without_own_images_is_the_smallest_whose_atoms_do_not_see_them(cutoff, repeats):
    found = original_matgl.without_own_images(bulk("Po", "sc", a=3.0), cutoff)
    assert len(found) == repeats**3
    assert np.linalg.norm(found.cell.array, axis=1).min() > cutoff


def test_golden_values_are_of_the_crystals_that_a_new_recording_has():
    files = sorted((Path(__file__).parents[1] / "golden").rglob("*.npz"))
    assert len(files) > 10
    for file in files:
        with np.load(file) as archive:
            names = {key.split("/")[0] for key in archive.files if "/" in key}
            elements = np.unique(np.concatenate([archive[f"{name}/numbers"] for name in names]))
            crystals = golden.structures() | golden.structures_of(elements.tolist())
            crystals |= golden.further_structures()
            for name in names - {"mixed"}:  # of the first elements in the order of the model
                for quantity in ("numbers", "positions"):
                    its = getattr(crystals[name], quantity)
                    np.testing.assert_allclose(archive[f"{name}/{quantity}"], its, atol=1e-12)


def test_recording_golden_values_needs_neither_jax_nor_torch_to_start():
    script = "import sys, weights_convert.golden; print({'jax', 'torch', 'jaxmlip'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
