"""M3GNet: its sum over angles against the paper's, and its files, sound and otherwise."""

import hashlib
import json
from dataclasses import replace

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch_files as made
from ase import Atoms
from conftest import small_potential
from numpy.polynomial.legendre import legval

import jaxmlip
from jaxmlip.cli import main
from jaxmlip.crystals.graph import Cutoffs, from_atoms
from jaxmlip.models.m3gnet import M3GNetConfig
from jaxmlip.potential import Potential
from weights_convert import m3gnet, matgl
from weights_convert.conversion import convert_file
from weights_convert.torch_zip import CheckpointError


@pytest.mark.slow
def test_the_sum_over_bonds_of_an_atom_is_the_sum_over_pairs_of_bonds(crystal):
    """Eq. (2) of Chen & Ong term by term, from a list of all angles."""
    potential = small_potential("m3gnet-smooth")
    graph = from_atoms(crystal, Cutoffs(4.0, 3.0))
    e_tilde, inputs = three_body_of_the_first_block(potential, potential.graph(crystal))
    v, radial, f_c, atom = inputs

    short = graph.short
    ends = np.concatenate([graph.second[:short], graph.first[:short]])
    vectors = crystal.positions[graph.second] + graph.shifts @ crystal.cell.array
    vectors = (vectors - crystal.positions[graph.first])[:short]
    u = np.concatenate([vectors, -vectors]) / np.linalg.norm(np.tile(vectors, (2, 1)), axis=1)[:, None]
    ij, ik = graph.angle_from, graph.angle_to
    cosine = np.sum(u[ij] * u[ik], axis=1)
    legendre = np.stack([legval(cosine, row) for row in np.eye(3)], axis=1)
    weight = 1 / (1 + np.exp(-(v @ atom["kernel"] + atom["bias"])))  # σ(W_v v_k + b_v)
    terms = np.repeat(legendre, 2, axis=1) * radial[ik % short] * weight[ends[ik]] * f_c[ij % short][:, None]
    wanted = np.zeros((2 * short, 6))
    np.add.at(wanted, ij, terms)
    np.testing.assert_allclose(e_tilde.swapaxes(0, 1).reshape(2 * short, 6), wanted, atol=1e-12)


def three_body_of_the_first_block(potential, graph):
    """ẽ of eq. (2), and what goes into it."""
    seen = {}

    def spy(next_function, args, kwargs, context):
        place = context.module.path if context.method_name == "__call__" else None
        if place == ("three_body_0",):
            seen["inputs"] = args[1], args[2], args[4]
        if place == ("three_body_0", "bond"):
            seen["e_tilde"] = args[0]
        return next_function(*args, **kwargs)

    with potential.precision(), nn.intercept_methods(spy):
        potential.energy(jax.tree.map(jax.numpy.asarray, graph))
    inputs = tuple(map(np.asarray, seen["inputs"]))
    return np.asarray(seen["e_tilde"]), (*inputs, potential.params["network"]["three_body_0"]["atom"])


@pytest.fixture
def folder(tmp_path):
    return made.save_matgl(tmp_path / "tiny", *made.small_m3gnet())


@pytest.mark.parametrize("smooth", [True, False])
def test_every_number_of_the_files_is_kept_once_or_set_aside(tmp_path, smooth):
    state, options = made.small_m3gnet(smooth)
    potential = convert_file(made.save_matgl(tmp_path / "tiny", state, options))
    aside = ("data_mean", "element_refs.onehot", *m3gnet.BUFFERS)
    source = np.concatenate([x.ravel() for key, x in state.items() if key not in aside])
    found = np.concatenate([np.ravel(x) for x in jax.tree.leaves(potential.params)])
    # Rows of zeros stand for elements that the file does not know.
    np.testing.assert_array_equal(np.sort(found[found != 0]), np.sort(source))
    assert len(potential.manifest["set_aside"]) == 3


def test_rows_of_elements_are_found_by_their_atomic_numbers(folder):
    state, _ = made.small_m3gnet()
    potential = jaxmlip.load(folder)
    assert (potential.name, potential.elements) == ("tiny", (8, 1, 12))
    embedding = state["model.embedding.layer_node_embedding.weight"]
    np.testing.assert_array_equal(potential.params["network"]["elements"][[7, 0, 11]], embedding)
    references = state["element_refs.property_offset"]
    np.testing.assert_array_equal(potential.params["reference_energies"][[8, 1, 12]], references)
    with pytest.raises(ValueError, match=r"found He .* needed one of the 3 elements"):
        potential.predict(Atoms("He", cell=[5, 5, 5], pbc=True))


def test_a_converted_folder_is_loaded_with_its_origin_in_the_manifest(folder, tmp_path, capsys):
    main(["convert", str(folder), str(tmp_path / "out")])
    assert "tiny: 3 elements" in capsys.readouterr().out
    potential = Potential.from_folder(tmp_path / "out")
    assert potential.model.config == M3GNetConfig(features=4, hidden=3, radial=2, blocks=2, elements=12)
    assert potential.manifest["convention"] == m3gnet.CONVENTION
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in matgl.FILES}
    assert potential.manifest["source_sha256"] == sums
    crystal = Atoms("MgO", [(0, 0, 0), (2.1, 0.1, 0)], cell=[4.2, 4.2, 4.2], pbc=True)
    assert potential.predict(crystal)["energy"] == jaxmlip.load(folder).predict(crystal)["energy"]


def test_verification_says_for_which_architectures_it_is(folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["convert", str(folder), str(tmp_path / "out"), "--verify"])
    assert (
        "runs the original of chgnet, mace, matgl-chgnet, mattersim, and found m3gnet"
        in capsys.readouterr().err
    )


def test_tensors_in_double_precision_stay_so(tmp_path):
    state, options = made.small_m3gnet()
    state = {key: x.astype(np.float64) for key, x in state.items()}
    potential = convert_file(made.save_matgl(tmp_path / "tiny", state, options))
    potential.save(tmp_path / "out")
    again = Potential.from_folder(tmp_path / "out")
    assert {x.dtype for x in jax.tree.leaves(again.params)} == {np.dtype(np.float64)}
    assert again.arrays["reference_energies"].dtype == np.float32  # computes as it was asked to


@pytest.mark.parametrize("name", matgl.FILES)
@pytest.mark.parametrize("load", [jaxmlip.load, convert_file])
def test_a_folder_that_lacks_a_file_is_told_by_its_name(folder, name, load):
    (folder / name).unlink()
    with pytest.raises(
        CheckpointError, match=f"tiny: it has no {name}; needed a folder with state.pt and model"
    ):
        load(folder)


@pytest.mark.parametrize("name", matgl.FILES)
def test_a_truncated_file_is_told_by_its_name(folder, name):
    file = folder / name
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(
        CheckpointError, match=f"{name}.* (it is not JSON|this is not a zip archive, or is truncated)"
    ):
        jaxmlip.load(folder)


def test_a_tensor_of_another_shape_is_told_with_both_shapes(tmp_path):
    state, options = made.small_m3gnet()
    state["model.graph_layers.1.conv.edge_weight_func.weight"] = np.ones((4, 3), np.float32)
    with pytest.raises(
        CheckpointError, match=r"bond_update_1/weight/kernel: found shape \(3, 4\), needed \(2, 4\)"
    ):
        convert_file(made.save_matgl(tmp_path / "tiny", state, options))


def test_a_row_for_each_element_is_needed(tmp_path):
    state, options = made.small_m3gnet()
    state["element_refs.property_offset"] = np.ones(2, np.float32)
    with pytest.raises(CheckpointError, match=r"property_offset: found shape \(2,\), needed \(3,\), 3 rows"):
        convert_file(made.save_matgl(tmp_path / "tiny", state, options))


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("include_state", True, r"include_state=True \(needed False\)"),
        ("is_intensive", True, r"is_intensive=True \(needed False\)"),
        ("use_phi", True, r"use_phi=True \(needed False\)"),
        ("rbf_type", "Gaussian", r"rbf_type='Gaussian' \(needed 'SphericalBessel'\)"),
        ("activation_type", "tanh", r"activation_type='tanh' \(needed 'swish'\)"),
        ("ntargets", 2, r"ntargets=2 \(needed 1\)"),
        ("max_l", 4, r"max_l=4 \(needed a whole number from 1 to 3\)"),
        ("nblocks", 10**30, r"nblocks=1000.* \(needed a whole number from 1 to 32\)"),
        ("units", "64", r"units='64' \(needed a whole number"),
        ("units", True, r"units=True \(needed a whole number"),
        ("cutoff", -1.0, r"cutoff=-1.0 \(needed a length in Å\)"),
        ("cutoff", 6.0, r"rbf.cutoff=5.0 \(needed cutoff=6.0\)"),
        ("threebody_cutoff", 5.5, r"threebody_cutoff=5.5 \(needed at most cutoff=5.0\)"),
        ("use_smooth", None, r"use_smooth=None \(needed true or false\)"),
        ("dim_edge_embedding", 8, "dim_node_embedding and dim_edge_embedding differ"),
        ("attention", {"heads": 4}, r"attention=.*heads.* \(unknown\)"),
        ("element_types", ["O", "O", "H"], "element_types=.*needed different elements"),
        ("element_types", ["O", "H", "Q"], "the elements Q, which do not exist"),
        ("element_types", {"O": 1}, "element_types=.*needed different elements"),
    ],
)
def test_an_option_that_is_not_supported_is_named(tmp_path, option, value, words):
    state, options = made.small_m3gnet()
    options["kwargs"]["model"]["init_args"][option] = value
    with pytest.raises(CheckpointError, match=words):
        convert_file(made.save_matgl(tmp_path / "tiny", state, options))


def test_an_option_that_is_left_out_is_not_guessed(tmp_path):
    for option in ("is_intensive", "cutoff", "units", "use_smooth"):
        state, options = made.small_m3gnet()
        del options["kwargs"]["model"]["init_args"][option]
        with pytest.raises(CheckpointError, match=f"{option}=None \\(needed"):
            convert_file(made.save_matgl(tmp_path / option, state, options))


def test_a_shift_of_the_energy_that_does_not_add_up_over_atoms_is_refused(tmp_path):
    state, options = made.small_m3gnet()
    state["data_mean"] = np.array(0.5, np.float32)
    with pytest.raises(CheckpointError, match=r"data_mean=0.5 \(needed 0"):
        convert_file(made.save_matgl(tmp_path / "tiny", state, options))


def test_nuclear_repulsion_is_refused(tmp_path):
    state, options = made.small_m3gnet()
    options["kwargs"]["calc_repuls"] = True
    with pytest.raises(CheckpointError, match=r"calc_repuls=True \(needed False\)"):
        convert_file(made.save_matgl(tmp_path / "tiny", state, options))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "model.json has @class None around None; needed a Potential around an M3GNet"),
        ("{}", "model.json has @class None around None"),
        ("[" * 100_000, "is not JSON"),
        ("\\xff", "is not JSON"),
        (
            '{"@class": "Potential", "kwargs": {"model": {"@class": "MEGNet"}}}',
            "model.json has a MEGNet of matgl, which is not read here",
        ),
        ('{"@class": "Potential", "kwargs": 3}', "@class 'Potential' around None"),
        (
            '{"@class": "Potential", "kwargs": {"model": {"@class": "M3GNet", "@model_version": 3}}}',
            "@model_version 3 .*needed @model_version 2",
        ),
    ],
)
def test_options_of_another_kind_are_told(folder, text, words):
    (folder / "model.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        jaxmlip.load(folder)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("element_refs.property_offset", np.full(3, np.nan, np.float32), "hold no weights: .*found NaN"),
        ("data_std", np.array(np.inf, np.float32), "hold no weights: data_std: found infinity"),
        ("model.final_layer.gated.layers.0.bias", np.ones(3, np.int32), "found int32, needed floating-point"),
        ("model.embedding.layer_node_embedding.weight", np.ones((3, 10**5), np.float32), r"needed \(3, 4\)"),
        (5, np.ones(3, np.float32), r"state\.pt holds something else than named tensors"),
    ],
)
def test_numbers_that_are_no_weights_are_refused(tmp_path, name, value, words):
    state, options = made.small_m3gnet()
    state[name] = value
    with pytest.raises(CheckpointError, match=words):
        convert_file(made.save_matgl(tmp_path / "tiny", state, options))


@pytest.mark.parametrize("name", ["TensorNet", "QET"])
@pytest.mark.parametrize("alone", [True, False])
def test_another_class_of_matgl_is_told_by_its_name(folder, name, alone):
    inner = {"@class": name, "@model_version": 1, "init_args": {}}
    (folder / "model.json").write_text(
        json.dumps(inner if alone else {"@class": "Potential", "kwargs": {"model": inner}})
    )
    with pytest.raises(CheckpointError, match=f"has a {name} of matgl, which is not read here"):
        jaxmlip.load(folder)


@pytest.mark.parametrize("name", ["M3GNet", "CHGNet"])
def test_a_network_without_its_potential_is_told(folder, name):
    (folder / "model.json").write_text(json.dumps({"@class": name, "@model_version": 1, "kwargs": {}}))
    with pytest.raises(CheckpointError, match=f"has an? {name} alone, without energies of the elements"):
        jaxmlip.load(folder)


@pytest.mark.parametrize("sign", ["matgl.models._m3gnet_pyg", "matgl.models._m3gnet_dgl", "compile_model"])
def test_messages_of_an_m3gnet_of_matgl_3_or_later_run_the_other_way(tmp_path, folder, sign):
    state, options = made.small_m3gnet()
    if sign == "compile_model":  # matgl 4
        options["kwargs"][sign] = False
    else:
        options["kwargs"]["model"]["@module"] = sign
    later, before = convert_file(made.save_matgl(tmp_path / "later", state, options)), convert_file(folder)
    assert later.model.config == replace(before.model.config, at_start=True)
    jax.tree.map(np.testing.assert_array_equal, later.params, before.params)


def test_dropout_that_matgl_writes_since_1_3_changes_nothing(tmp_path, folder):
    state, options = made.small_m3gnet()
    options["kwargs"]["model"]["init_args"]["dropout"] = 0.1
    found = convert_file(made.save_matgl(tmp_path / "later", state, options))
    jax.tree.map(np.testing.assert_array_equal, found.params, convert_file(folder).params)


def test_a_state_that_holds_no_tensors_is_told(folder):
    made.save(folder / "state.pt", {"model": {"x": np.ones(2)}})
    with pytest.raises(CheckpointError, match=r"state\.pt holds something else than named tensors"):
        jaxmlip.load(folder)


def test_extra_files_beside_the_two_do_no_harm(folder):
    (folder / "README.md").write_text("published with a description")
    (folder / "model.pt").write_bytes(b"not read")
    assert jaxmlip.load(folder).name == "tiny"
    assert json.loads((folder / "model.json").read_text())
