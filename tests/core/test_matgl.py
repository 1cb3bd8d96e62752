"""Networks of matgl repeat their original; files of its CHGNet, sound and otherwise, are told apart."""

import gzip
import hashlib
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import torch_files as made
from ase import Atoms
from ase.build import bulk
from conftest import public
from parity import golden

import jaxmlip
from jaxmlip.models.matgl_chgnet import MatglCHGNet, MatglCHGNetConfig
from jaxmlip.potential import Potential, parameter_shapes
from jaxmlip.zoo.download import FetchError
from weights_convert import matgl, matgl_chgnet, published
from weights_convert.conversion import convert_file
from weights_convert.original_matgl import NEWER
from weights_convert.torch_zip import CheckpointError

# Made by `python -m weights_convert.golden tests/golden/matgl matgl-chgnet`.
GOLDEN = Path(__file__).parents[1] / "golden" / "matgl"
SLOW = pytest.mark.slow
OTHERS = ("plain", "m3gnet-smooth", "m3gnet-spherical")
VARIANTS = ["matpes", *(pytest.param(name, marks=SLOW) for name in OTHERS)]
EXACT = {
    "energy": 1e-8,
    "site_energies": 1e-8,
    "forces": 1e-7,
    "stress": 1e-8,
    "magmoms": 1e-8,
    "hessian": 1e-6,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    home, found = tmp_path_factory.mktemp("folders"), {}
    for packed in GOLDEN.glob("*.state.pt.gz"):
        name = packed.name.split(".")[0]
        found[name] = home / name
        found[name].mkdir()
        (found[name] / "state.pt").write_bytes(gzip.decompress(packed.read_bytes()))
        (found[name] / "model.json").write_bytes((GOLDEN / f"{name}.model.json").read_bytes())
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_energies_forces_stresses_and_moments_repeat_the_original(folders, variant):
    crystals, wanted = golden(f"matgl/{variant}")
    found = jaxmlip.load(folders[variant], "float64").predict(list(crystals.values()))
    for (name, its), ours in zip(wanted.items(), found, strict=True):
        for quantity in its.keys() & (EXACT.keys() - {"hessian"}):
            scale = len(crystals[name]) if quantity == "energy" else 1
            np.testing.assert_allclose(
                ours[quantity] / scale,
                its[quantity] / scale,
                rtol=0,
                atol=EXACT[quantity],
                err_msg=f"{quantity} of {name}",
            )


# A crystal in a triclinic cell, one whose angles are all of 90° or 180°, and a cell thinner than the cutoff.
@SLOW
@pytest.mark.parametrize("variant", ["matpes", *OTHERS])
@pytest.mark.parametrize("crystal", ["MgO_strained", "MgO_ideal", "TiNiO_thin", "CO2_box", "Cu_one_atom"])
def test_a_hessian_repeats_that_of_the_original(folders, crystal, variant):
    crystals, wanted = golden(f"matgl/{variant}")
    found = jaxmlip.hessian(jaxmlip.load(folders[variant], "float64"), crystals[crystal])
    np.testing.assert_allclose(found, wanted[crystal]["hessian"], rtol=0, atol=EXACT["hessian"])


def test_an_m3gnet_of_matgl_4_sums_messages_where_their_bond_starts(folders):
    assert jaxmlip.load(folders["m3gnet-smooth"]).model.config.at_start


@pytest.mark.slow
def test_forces_jump_where_a_bond_reaches_the_cutoff_but_energies_do_not():
    """Its radial functions vanish there with a slope."""
    config = MatglCHGNetConfig(features=4, radial=3, angular=2, blocks=2, bond_cutoff=4.0, readout=(4,))
    potential = jaxmlip.potential.random_potential(config, seed=1).astype("float64")
    pairs = [Atoms("MgO", [[0, 0, 0], [0, 0, 4.0 + d]], cell=[12, 12, 12], pbc=True) for d in (-1e-9, 1e-9)]
    below, above = potential.predict(pairs)
    np.testing.assert_allclose(below["energy"], above["energy"], rtol=0, atol=1e-7)
    assert np.abs(below["forces"] - above["forces"]).max() > 1e-4


@pytest.mark.slow
def test_the_energy_does_not_depend_on_the_choice_of_the_cell(folders):
    """In the smaller cell bonds within the three-body cutoff join images of one atom."""
    potential = jaxmlip.load(folders["matpes"], "float64")
    atoms = bulk("Cu", a=3.6)
    one, cube = potential.predict([atoms, bulk("Cu", a=3.6, cubic=True)])
    assert potential.graph(atoms).short == 6
    np.testing.assert_allclose(4 * one["energy"], cube["energy"], rtol=1e-12)


def tiny(folder: Path) -> Path:
    return made.save_matgl(folder, *made.small_matgl_chgnet())


def test_every_number_of_a_file_is_kept_once_or_set_aside(tmp_path):
    potential = convert_file(tiny(tmp_path / "tiny"))
    aside = (
        *("data_mean", "element_refs.onehot"),
        "model.atom_graph_layers.2.bond_norm",
        "model.bond_graph_layers.1.conv_layer.edge_update_func",
    )
    state, _ = made.small_matgl_chgnet()
    source = np.concatenate([x.ravel() for key, x in state.items() if not key.startswith(aside)])
    found = np.concatenate([np.ravel(x) for x in jax.tree.leaves(potential.params)])
    # Rows of zeros stand for elements that the file does not know.
    np.testing.assert_array_equal(np.sort(found[found != 0]), np.sort(source))
    assert len(potential.manifest["set_aside"]) == 3


def test_rows_of_elements_are_found_by_their_atomic_numbers(tmp_path):
    state, _ = made.small_matgl_chgnet()
    potential = jaxmlip.load(tiny(tmp_path / "tiny"))
    assert (potential.name, potential.elements) == ("tiny", (8, 1, 12))
    embedding = state[matgl_chgnet.EMBEDDING]
    np.testing.assert_array_equal(potential.params["network"]["elements"][[7, 0, 11]], embedding)
    references = state[matgl.REFERENCES]
    np.testing.assert_array_equal(potential.params["reference_energies"][[8, 1, 12]], references)


def test_elements_are_those_with_an_energy_if_a_file_names_none(tmp_path):
    state, options = made.small_matgl_chgnet()
    options["kwargs"]["model"]["init_args"]["element_types"] = None
    state[matgl_chgnet.EMBEDDING] = np.ones((94, 4), np.float32)
    state["element_refs.onehot"] = np.eye(94, dtype=np.float32)
    state[matgl.REFERENCES] = np.where(np.isin(np.arange(94), [83, 84, 87]), 0, -1).astype(np.float32)
    potential = convert_file(made.save_matgl(tmp_path / "most", state, options))
    assert potential.elements == tuple(z for z in range(1, 95) if z not in (84, 85, 88))
    state[matgl.REFERENCES][:] = 0
    assert len(convert_file(made.save_matgl(tmp_path / "all", state, options)).elements) == 94


def renamed(state):
    found = {}
    for name, tensor in state.items():
        for older, newer in NEWER:
            name = re.sub(older, newer, name)
        found[name] = tensor
    return found


def test_names_of_tensors_from_before_and_after_matgl_changed_them_are_read(tmp_path):
    state, options = made.small_matgl_chgnet()
    newer = renamed(state)
    assert len(newer.keys() - state.keys()) > 50
    older = convert_file(tiny(tmp_path / "older"))
    again = convert_file(made.save_matgl(tmp_path / "newer", newer, options))
    jax.tree.map(np.testing.assert_array_equal, again.params, older.params)
    with pytest.raises(CheckpointError, match="needed one of them"):
        convert_file(made.save_matgl(tmp_path / "both", state | newer, options))


def test_a_converted_file_is_kept_with_its_options(folders, tmp_path):
    for variant, differing in (
        ("matpes", {"readout": (6, 6)}),
        ("plain", {"readout": (5,), "norm": False, "bond_update": False}),
    ):
        potential = convert_file(folders[variant])
        potential.save(tmp_path / variant)
        again = Potential.from_folder(tmp_path / variant)
        assert again.model.config == MatglCHGNetConfig(
            features=6, radial=5, angular=3, blocks=3, elements=94, **differing
        )
        jax.tree.map(np.testing.assert_array_equal, again.params, potential.params)


@pytest.mark.parametrize(
    ("features", "readout", "millions"),
    [(128, (128,) * 3, 2.7), (128, (128,) * 2, 2.7), (256, (256,) * 3, 11)],
)
def test_published_options_give_the_published_number_of_parameters(features, readout, millions):
    shapes = parameter_shapes(MatglCHGNet(MatglCHGNetConfig(features=features, readout=readout)))
    count = sum(math.prod(shape) for shape in shapes.values())
    assert abs(count / 1e6 / millions - 1) < 0.1


def changed(tmp_path, change):
    """What is said of the tiny folder after change(state, options of the network, arguments of Potential)."""
    state, options = made.small_matgl_chgnet()
    change(state, options["kwargs"]["model"]["init_args"], options["kwargs"])
    with pytest.raises(CheckpointError, match="tiny: ") as caught:
        convert_file(made.save_matgl(tmp_path / "tiny", state, options))
    return str(caught.value)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("attention", True, "attention=True (unknown)"),
        ("dim_state_feats", 3, "dim_state_feats=3 (needed None)"),
        ("non_linear_bond_embedding", True, "non_linear_bond_embedding=True (needed False)"),
        ("shared_bond_weights", None, "shared_bond_weights=None (needed 'both')"),
        ("layer_bond_weights", "both", "layer_bond_weights='both' (needed None)"),
        ("angle_update_hidden_dims", None, "angle_update_hidden_dims=None (needed [])"),
        ("final_mlp_type", "gated", "final_mlp_type='gated' (needed 'mlp')"),
        ("readout_field", "bond_feat", "readout_field='bond_feat' (needed 'atom_feat')"),
        ("activation_type", "tanh", "activation_type='tanh' (needed 'swish')"),
        ("normalize_hidden", True, "normalize_hidden=True (needed False)"),
        ("is_intensive", True, "is_intensive=True (needed False)"),
        ("normalization", "graph", "normalization='graph' (needed 'layer' or null)"),
        ("num_targets", 2, "num_targets=2 (needed 1)"),
        ("num_blocks", 10**30, "num_blocks=1000"),
        ("max_n", True, "max_n=True (needed a whole number from 1 to 1024)"),
        ("dim_bond_embedding", 5, "dim_bond_embedding=5 (needed 4, as dim_atom_embedding)"),
        ("atom_conv_hidden_dims", [5], "atom_conv_hidden_dims=[5] (needed [4], as dim_atom_embedding)"),
        ("bond_conv_hidden_dims", None, "bond_conv_hidden_dims=None (needed [4]"),
        ("bond_update_hidden_dims", [4, 4], "bond_update_hidden_dims=[4, 4] (needed [4]"),
        ("final_hidden_dims", [[3]], "final_hidden_dims=[[3]] (needed whole numbers)"),
        ("final_hidden_dims", [0], "final_hidden_dims=(0,) (needed up to 32 whole numbers from 1 to 4096)"),
        ("cutoff", math.nan, "cutoff=nan (needed a length in Å)"),
        ("threebody_cutoff", 0.0, "threebody_cutoff=0.0 (needed a length in Å)"),
        ("threebody_cutoff", 5.5, "angle_cutoff=5.5 (needed at most bond_cutoff=5.0)"),
        ("element_types", ["O", "O", "H"], "needed different elements"),
        ("element_types", None, "needed (94, 4), 94 rows"),
    ],
)
def test_an_option_that_is_not_supported_is_named(tmp_path, option, value, words):
    assert words in changed(tmp_path, lambda state, args, around: args.update({option: value}))


@pytest.mark.parametrize(
    "option", ["is_intensive", "cutoff", "max_f", "normalization", "bond_update_hidden_dims"]
)
def test_an_option_that_is_left_out_is_not_guessed(tmp_path, option):
    assert f"{option}=None (needed" in changed(tmp_path, lambda state, args, around: args.pop(option))


def test_what_the_potential_around_it_adds_is_refused(tmp_path):
    said = changed(tmp_path, lambda state, args, around: around.update(calc_repuls=True))
    assert "calc_repuls=True (needed False)" in said
    said = changed(tmp_path, lambda state, args, around: state.update(data_mean=np.array(0.5, np.float32)))
    assert "data_mean=0.5 (needed 0" in said


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("data_std", np.array(np.inf, np.float32), "data_std: found infinity"),
        (matgl.REFERENCES, np.ones(2, np.float32), "found shape (2,), needed (3,), 3 rows"),
        (matgl_chgnet.EMBEDDING, np.ones((3, 10**5), np.float32), "needed (3, 4)"),
        ("model.angle_embedding.layers.0.weight", np.ones((4, 3), np.float32), "found shape (3, 4)"),
        ("model.angle_expansion.frequencies", np.ones((), np.float32), "found shape ()"),
        ("model.sitewise_readout.bias", np.ones(1, np.int32), "found int32, needed floating-point"),
        ("model.lora.weight", np.ones(4, np.float32), "model.lora.weight: 0 rules match"),
        (5, np.ones(3, np.float32), "state.pt holds something else than named tensors"),
    ],
)
def test_tensors_that_are_not_those_of_the_network_are_told(tmp_path, name, value, words):
    assert words in changed(tmp_path, lambda state, args, around: state.update({name: value}))


def test_a_tensor_that_is_missing_is_told_by_the_parameter_that_stays_empty(tmp_path):
    name = "model.atom_graph_layers.1.conv_layer.node_out_func.weight"
    said = changed(tmp_path, lambda state, args, around: state.pop(name))
    assert "network/atom_conv_1/out/kernel: no tensor of the checkpoint maps here" in said
    said = changed(tmp_path, lambda state, args, around: state.pop(matgl.REFERENCES))
    assert "reference_energies: no tensor of the checkpoint maps here" in said


def test_another_version_of_the_class_is_told(tmp_path):
    said = changed(tmp_path, lambda state, args, around: around["model"].update({"@model_version": 2}))
    assert "a CHGNet with @model_version 2 and the options" in said
    assert "needed @model_version 1 and init_args, as matgl saves it" in said


@pytest.fixture
def on_the_web(tmp_path, monkeypatch):
    """A published folder; of one of its files only git's sum is known."""
    folder = tiny(tmp_path / "web")
    state = (folder / "state.pt").read_bytes()
    git = hashlib.sha1(b"blob " + str(len(state)).encode() + b"\0" + state).hexdigest()
    monkeypatch.setenv("JAXMLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("JAXMLIP_WEIGHTS", raising=False)
    files = {
        "model.json": hashlib.sha256((folder / "model.json").read_bytes()).hexdigest(),
        "state.pt": "",
    }
    address = published.Address(folder.as_uri())
    source = published.Source("matgl-chgnet", files, address, "MIT", "PBE", "two files", git=git)
    monkeypatch.setitem(published.MODELS, "tiny-web", source)
    return folder


def test_a_folder_is_known_by_both_of_its_sums(on_the_web):
    assert jaxmlip.load("tiny-web").manifest["licence"] == "MIT"
    assert jaxmlip.load(on_the_web).name == "tiny-web"
    for name in matgl.FILES:
        (on_the_web / name).unlink()
    assert jaxmlip.load("tiny-web").elements == (8, 1, 12)  # from the cache


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("state.pt", r"state\.pt has git's sum [0-9a-f]{40}, needed"),
        ("model.json", r"model\.json has sha256"),
    ],
)
def test_a_folder_with_another_sum_is_refused(on_the_web, name, words):
    file = on_the_web / name
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(FetchError, match=words):
        jaxmlip.load("tiny-web")


def test_published_folders_are_told_from_those_of_other_kinds(on_the_web, tmp_path):
    source = published.MODELS["tiny-web"]
    assert source.difference(on_the_web) == ""
    assert "git's sum None" in source.difference(on_the_web / "state.pt")
    assert "sha256" in published.MODELS["chgnet-matpes-pbe-2025.2.10"].difference(on_the_web)


@SLOW
@pytest.mark.parametrize("name", ["chgnet-mptrj-2023.12.1", "chgnet-matpes-pbe-2025.2.10"])
def test_a_public_model_knows_89_elements(name):
    assert len(public(name, "float32").elements) == 89
