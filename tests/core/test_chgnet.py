"""CHGNets with options that the published ones lack repeat the original, or are refused with a reason."""

import math
import re
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import torch_files as made
from parity import assert_repeats, golden, unpacked
from scipy.special import erf

import jaxmlip
from jaxmlip.models.activations import ACTIVATIONS, silu, silu_gate
from jaxmlip.models.chgnet import CHGNetConfig
from jaxmlip.phonons.bloch import dynamical_matrix
from jaxmlip.potential import Potential, random_potential
from weights_convert import chgnet, torch_zip
from weights_convert.conversion import convert_file
from weights_convert.torch_zip import CheckpointError

# Made by `python -m weights_convert.golden tests/golden`.
GOLDEN = Path(__file__).parents[1] / "golden" / "chgnet"
SLOW = pytest.mark.slow
VARIANTS = ["widths", "straight", "mean"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    return unpacked(GOLDEN, "*.pth.tar.gz", tmp_path_factory.mktemp("files"))


@SLOW  # as published ones do, in test_parity.py
@pytest.mark.parametrize("variant", VARIANTS)
def test_energies_forces_stresses_and_moments_repeat_the_original(files, variant):
    crystals, wanted = golden(f"chgnet/{variant}")
    found = jaxmlip.load(files[variant], "float64").predict(list(crystals.values()))
    for (name, its), ours in zip(wanted.items(), found, strict=True):
        assert_repeats(ours, its, name, len(crystals[name]))


@SLOW
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("crystal", ["MgO_strained", "CO2_box"])
def test_a_hessian_repeats_that_of_the_original(files, variant, crystal):
    crystals, wanted = golden(f"chgnet/{variant}")
    found = jaxmlip.hessian(jaxmlip.load(files[variant], "float64"), crystals[crystal])
    np.testing.assert_allclose(found, wanted[crystal]["hessian"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_number_of_a_file_is_kept_once_or_set_aside(files, variant):
    potential = convert_file(files[variant])
    source = [
        x.ravel()
        for name, x in torch_zip.read(files[variant])["model"]["state_dict"].items()
        if not any(re.fullmatch(pattern, name) for pattern in potential.manifest["set_aside"])
    ]
    found = np.concatenate([np.ravel(x) for x in jax.tree.leaves(potential.params)])
    wanted = np.concatenate(source)
    np.testing.assert_array_equal(np.sort(found[found != 0]), np.sort(wanted[wanted != 0]))


def test_what_is_saved_is_read_again(files, tmp_path):
    for variant, file in files.items():
        potential = convert_file(file)
        potential.save(tmp_path / variant)
        again = Potential.from_folder(tmp_path / variant)
        assert (again.model, again.elements) == (potential.model, potential.elements)
        jax.tree.map(np.testing.assert_array_equal, again.params, potential.params)


def test_elements_are_those_of_the_fitted_reference_energies(files):
    assert convert_file(files["straight"]).elements == (6, 8, 12, 22, 29)
    assert not convert_file(files["widths"]).params["reference_energies"].any()  # made without


def test_the_usual_options_in_other_words_are_the_usual_configuration(tmp_path):
    usual = made.small_chgnet()
    args = usual["model"]["model_args"]
    plain = convert_file(made.save(tmp_path / "a.pth", usual)).model.config
    assert plain == CHGNetConfig(4, 5, 3, 3, 5.0, 3.0, readout=(4,))
    args.update(non_linearity="SiLU", gMLP_norm="Layer", conv_norm=None, final_mlp="normal", read_out="attn")
    args.update(atom_conv_hidden_dim=[4], angle_layer_hidden_dim=None, mlp_hidden_dims=4, is_intensive=True)
    assert convert_file(made.save(tmp_path / "b.pth", usual)).model.config == plain


def changed(tmp_path, file: Path, change) -> str:
    """What is said of the original's file after change(state_dict, model_args)."""
    model = torch_zip.read(file)["model"]
    args = {key: value for key, value in model["model_args"].items() if key != "composition_model"}
    checkpoint = {"model": {"state_dict": dict(model["state_dict"]), "model_args": args}}
    change(checkpoint["model"]["state_dict"], args)
    with pytest.raises(CheckpointError) as caught:
        convert_file(made.save(tmp_path / "changed.pth", checkpoint))
    return str(caught.value)


FIRST = "atom_conv_layers.0.twoBody_atom"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (f"{FIRST}.bn1.running_var", -np.ones(4, np.float32), "found a variance below 0"),
        (f"{FIRST}.bn1.running_var", None, f"{FIRST}.bn1.running_var: missing"),
        (
            f"{FIRST}.bn1.running_mean",
            np.ones(5, np.float32),
            "core_norm/mean: found shape (5,), needed (6,)",
        ),
        (f"{FIRST}.mlp_core.layers.0.weight", np.ones((5, 3), np.float32), "layers.0.weight"),
        (f"{FIRST}.mlp_core.layers.0.weight", np.ones((), np.float32), "layers.0.weight"),
        (f"{FIRST}.mlp_gate.layers.7.weight", np.ones((2, 2), np.float32), "layers.7.weight: 0 rules match"),
        ("mlp.0.mlp_core.layers.2.bias", None, "layers.2.bias: missing"),
        ("readout_norm.weight", np.ones(6, np.float32), "readout_norm.weight: 0 rules match, needed one"),
        ("angle_layers.0.angle_norm.bias", np.ones(7, np.float32), "found shape (7,), needed (4,)"),
    ],
)
def test_tensors_that_are_not_those_of_the_options_are_told(files, tmp_path, name, value, words):
    def change(state, args):
        args["composition_model"] = None
        state.pop(name, None)
        if value is not None:
            state[name] = value

    assert words in changed(tmp_path, files["widths"], change)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"update_bond": False}, "the model disagree in"),
        ({"update_angle": False}, "the model disagree in"),
        ({"gMLP_norm": "layer"}, "num_batches_tracked: found int64"),
        ({"conv_norm": None}, "the model disagree in"),
        ({"final_mlp": "MLP"}, "the model disagree in"),
        ({"bond_fea_dim": 6}, "the model disagree in"),
        ({"mlp_hidden_dims": 0}, "found gated_readout without a width in readout"),
        ({"mlp_first": False, "read_out": "attn"}, "depends on how often the cell is repeated"),
    ],
)
def test_options_that_are_not_those_of_the_tensors_are_told(files, tmp_path, options, words):
    said = changed(
        tmp_path, files["widths"], lambda state, args: args.update(options, composition_model=None)
    )
    assert words in said


def test_reference_energies_fitted_to_whole_crystals_need_energies_of_whole_crystals(files):
    checkpoint = torch_zip.read(files["straight"])
    args = checkpoint["model"]["model_args"]
    args["is_intensive"] = False
    with pytest.raises(CheckpointError, match="adds those per atom to an energy of a crystal"):
        chgnet.config(checkpoint)
    args["composition_model"].state["is_intensive"] = False
    assert not chgnet.config(checkpoint).pooled
    args["composition_model"].state["is_intensive"] = None
    with pytest.raises(CheckpointError, match="None or an AtomRef"):
        chgnet.config(checkpoint)


def test_activations_are_those_of_the_original():
    x = np.linspace(-4, 4, 33)
    σ = 1 / (1 + np.exp(-x))
    wanted = {
        "silu": x * σ,
        "scaledsilu": x * σ / 0.6,
        "relu": np.maximum(x, 0),
        "gelu": x / 2 * (1 + erf(x / math.sqrt(2))),
        "softplus": np.log1p(np.exp(x)),
        "sigmoid": σ,
        "tanh": np.tanh(x),
    }
    assert wanted.keys() == ACTIVATIONS.keys()
    with jax.enable_x64(True):
        for name, values in wanted.items():
            found = ACTIVATIONS[name](jax.numpy.asarray(x))
            np.testing.assert_allclose(found, values, rtol=0, atol=1e-15, err_msg=name)


def test_derivatives_that_are_written_out_are_those_of_the_formula_to_third_order():
    rng = np.random.default_rng(0)
    points, directions = rng.normal(size=(9, 2)), rng.normal(size=(3, 2))
    σ = jax.nn.sigmoid
    written = lambda x: silu_gate(x[0], x[1]) + silu(x[0] - x[1])  # noqa: E731
    formula = lambda x: x[0] * σ(x[0]) * σ(x[1]) + (x[0] - x[1]) * σ(x[0] - x[1])  # noqa: E731
    with jax.enable_x64(True):
        for order, along in enumerate(directions, 1):
            written, formula = (
                lambda x, f=f, along=along: jax.jvp(f, (x,), (along,))[1] for f in (written, formula)
            )
            found, wanted = jax.vmap(written)(points), jax.vmap(formula)(points)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-13, err_msg=f"order {order}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"activation": "mish"}, r"activation='mish' \(needed one of silu"),
        ({"norms": ("layer", "batch")}, r"norms=.* \(needed three of layer, batch, none\)"),
        ({"norms": ("layer", "batch", 1)}, r"norms=.* \(needed three of"),
        ({"bond_features": 0}, r"bond_features=0 \(needed a whole number from 1"),
        ({"atom_hidden": (4,) * 33}, r"atom_hidden=.* \(needed up to 32 whole"),
        ({"gated_readout": True, "readout": ()}, "gated_readout without a width"),
    ],
)
def test_options_without_meaning_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        random_potential(replace(CHGNetConfig(), **options))


SMALL = CHGNetConfig(4, 3, 3, 2, 4.0, 3.0, readout=(4,))


def test_where_angles_update_nothing_no_graph_has_them(crystal):
    potential = random_potential(replace(SMALL, update_bonds=False))
    graph = potential.graph(crystal)
    assert (len(graph.angle_from), graph.short) == (0, 0)
    assert not any("angle" in name or "short" in name for name in potential.params["network"])


@SLOW
def test_an_energy_of_the_mean_has_no_waves_and_no_range(crystal):
    potential = random_potential(replace(SMALL, pooled=True, update_bonds=False), dtype="float64")
    alone, both = potential.predict([crystal, crystal * (2, 1, 1)])
    assert both["energy"] == pytest.approx(2 * alone["energy"], abs=1e-9)
    np.testing.assert_allclose(both["forces"][:5], alone["forces"], atol=1e-9)
    with pytest.raises(ValueError, match=r"no wave .* mean over all atoms.*force_constants of a supercell"):
        dynamical_matrix(potential, crystal, [[0.5, 0, 0]])
    with pytest.raises(ValueError, match="how far the atoms of random see each other is not known"):
        jaxmlip.sparse_hessian(potential, crystal)
