"""MatterSim: it repeats its original, and its files, sound and otherwise, are told apart."""

import hashlib
import math
from pathlib import Path

import jax
import numpy as np
import pytest
import torch_files as made
from conftest import public
from parity import golden, unpacked

import jaxmlip
from jaxmlip.models.basis import harmonics
from jaxmlip.models.mattersim import MatterSim, MatterSimConfig
from jaxmlip.potential import Potential, parameter_shapes
from jaxmlip.zoo.download import FetchError
from weights_convert import mattersim, published
from weights_convert.conversion import convert_file
from weights_convert.torch_zip import CheckpointError

# Made by `python -m weights_convert.golden tests/golden/mattersim mattersim`.
GOLDEN = Path(__file__).parents[1] / "golden" / "mattersim"
SLOW = pytest.mark.slow
VARIANTS = ["1m", pytest.param("5m", marks=SLOW)]
EXACT = {"energy": 1e-8, "site_energies": 1e-8, "forces": 1e-7, "stress": 1e-8, "hessian": 1e-6}
# What constants in single precision and the cut-off of cosines move, relative to the largest value.
AS_SHIPPED = {"energy": 1e-4, "forces": 1e-4}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    return unpacked(GOLDEN, "*.pth.gz", tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_energies_forces_and_stresses_repeat_the_original(files, variant):
    crystals, wanted = golden(f"mattersim/{variant}")
    found = jaxmlip.load(files[variant], "float64").predict(list(crystals.values()))
    for (name, its), ours in zip(wanted.items(), found, strict=True):
        for quantity in ("energy", "site_energies", "forces", "stress"):
            scale = len(crystals[name]) if quantity == "energy" else 1
            np.testing.assert_allclose(
                ours[quantity] / scale,
                its[quantity] / scale,
                rtol=0,
                atol=EXACT[quantity],
                err_msg=f"{quantity} of {name}",
            )
    for quantity, share in AS_SHIPPED.items():
        largest = max(np.abs(its[quantity]).max() for its in wanted.values())
        for name, its in wanted.items():
            moved = np.abs(its[quantity] - its[f"{quantity}_as_shipped"]).max()
            assert moved < share * largest, f"{quantity} of {name}"


# A crystal in a triclinic cell, one whose angles are all of 90° or 180°, and a cell thinner than the cutoff.
@SLOW
@pytest.mark.parametrize("crystal", ["MgO_strained", "MgO_ideal", "TiNiO_thin", "CO2_box", "Cu_one_atom"])
def test_a_hessian_repeats_that_of_the_original(files, crystal):
    crystals, wanted = golden("mattersim/1m")
    found = jaxmlip.hessian(jaxmlip.load(files["1m"], "float64"), crystals[crystal])
    np.testing.assert_allclose(found, wanted[crystal]["hessian"], rtol=0, atol=EXACT["hessian"])


def test_harmonics_of_four_degrees_obey_the_addition_theorem():
    u, w = np.random.default_rng(0).normal(size=(2, 20, 3))
    u, w = (x / np.linalg.norm(x, axis=1)[:, None] for x in (u, w))
    cosine = np.sum(u * w, axis=1)
    with jax.enable_x64(True):
        terms = np.asarray(harmonics(jax.numpy.asarray(u), 4) * harmonics(jax.numpy.asarray(w), 4))
    np.testing.assert_allclose(terms[:, 9:].sum(axis=1), (5 * cosine**3 - 3 * cosine) / 2, atol=1e-14)
    np.testing.assert_allclose(terms[:, 4:9].sum(axis=1), (3 * cosine**2 - 1) / 2, atol=1e-14)


def test_every_number_of_a_file_is_kept_once_or_set_aside(tmp_path):
    checkpoint = made.small_mattersim()
    potential = convert_file(made.save(tmp_path / "tiny.pth", checkpoint))
    state = dict(checkpoint["model"])
    padding = [state.pop(name) for name in (mattersim.SCALE, mattersim.SHIFT)]
    embedding = state.pop(mattersim.EMBEDDING)
    source = [x.ravel() for name, x in state.items() if not name.startswith(("rbf.", "sbf."))]
    source += [embedding[:, 1:].ravel(), *(x[1:] for x in padding)]
    found = np.concatenate([np.ravel(x) for x in jax.tree.leaves(potential.params)])
    np.testing.assert_array_equal(np.sort(found[found != 0]), np.sort(np.concatenate(source)))
    assert len(potential.manifest["set_aside"]) == 1


def test_rows_of_elements_are_found_by_their_atomic_numbers(tmp_path):
    checkpoint = made.small_mattersim()
    potential = convert_file(made.save(tmp_path / "tiny.pth", checkpoint))
    state, network = checkpoint["model"], potential.params["network"]
    assert potential.elements == (1, 2, 3, 4, 5)
    np.testing.assert_array_equal(network["elements"], state[mattersim.EMBEDDING].T[1:])
    np.testing.assert_array_equal(network["scale"], state[mattersim.SCALE][1:])
    np.testing.assert_array_equal(potential.params["reference_energies"][1:], state[mattersim.SHIFT][1:])


def test_elements_whose_energy_was_not_fitted_are_unknown(tmp_path):
    checkpoint = made.small_mattersim()
    checkpoint["model"][mattersim.SHIFT][[2, 4]] = 0, 1e-9
    assert convert_file(made.save(tmp_path / "some.pth", checkpoint)).elements == (1, 3, 5)
    checkpoint["model"][mattersim.SHIFT][:] = 0  # no energies were fitted
    assert convert_file(made.save(tmp_path / "none.pth", checkpoint)).elements == (1, 2, 3, 4, 5)


def test_files_from_before_and_after_a_tensor_was_added_are_read_and_kept(files, tmp_path):
    for variant, blocks in (("1m", 3), ("5m", 4)):
        potential = convert_file(files[variant])
        potential.save(tmp_path / variant)
        again = Potential.from_folder(tmp_path / variant)
        assert again.model.config == MatterSimConfig(features=potential.model.config.features, blocks=blocks)
        jax.tree.map(np.testing.assert_array_equal, again.params, potential.params)


def test_the_defaults_are_those_of_the_published_small_model():
    # 880,000 by the package's README, which leaves scales and energies of elements aside.
    shapes = parameter_shapes(MatterSim(MatterSimConfig()))
    count = sum(math.prod(shape) for shape in shapes.values())
    assert abs(count / 880_000 - 1) < 0.02


def changed(tmp_path, change):
    """What is said of the tiny file after change(checkpoint)."""
    checkpoint = made.small_mattersim()
    change(checkpoint)
    with pytest.raises(CheckpointError, match=r"tiny\.pth: ") as caught:
        convert_file(made.save(tmp_path / "tiny.pth", checkpoint))
    return str(caught.value)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("attention", True, "attention=True (unknown)"),
        ("\x1b[31m\n", 1, "\\x1b[31m\\n=1 (unknown)"),
        ("max_l", 5, "max_l=5 (needed a whole number from 1 to 4)"),
        ("max_n", 3, "max_n=3 and max_l=2 (needed them equal"),
        ("num_blocks", 10**30, "num_blocks=1000"),
        ("units", True, "units=True (needed a whole number"),
        ("units", None, "units=None (needed a whole number"),
        ("max_z", 0, "max_z=0 (needed a whole number from 1 to 118)"),
        ("cutoff", math.nan, "cutoff=nan (needed a length in Å)"),
        ("cutoff", 6.0, "rbf.r_max=5.0 (needed the constants of cutoff=6.0 and max_n=2)"),
        ("threebody_cutoff", 5.5, "angle_cutoff=5.5 (needed at most bond_cutoff=5.0)"),
    ],
)
def test_an_option_that_is_not_supported_is_named(tmp_path, option, value, words):
    assert words in changed(tmp_path, lambda c: c["model_args"].update({option: value}))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model_name", "graphormer", "it holds a 'graphormer' of mattersim, which is not read here"),
        ("model_args", 5, "model_args is 5, needed the options of the network"),
        ("model_args", {}, "num_blocks=None (needed a whole number"),
        ("model", {}, "model is {}, needed named tensors"),
        ("model", {5: np.ones(2)}, "under the name 5, needed named tensors alone"),
        ("model", {"final": "x"}, "model has 'x' under the name 'final'"),
    ],
)
def test_a_file_of_another_content_is_told(tmp_path, key, value, words):
    assert words in changed(tmp_path, lambda c: c.update({key: value}))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("rbf.dn", np.ones(2, np.float32), "rbf.dn=[1.0, 1.0] (needed the constants of cutoff=5.0"),
        ("sbf.coef", np.ones(3, np.float32), "sbf.coef="),
        ("rbf.r_max", np.array(5), "rbf.r_max=5 (needed the constants"),
        ("rbf.en", np.full((1, 2), np.nan, np.float32), "rbf.en=[[nan, nan]]"),
        (mattersim.SCALE, np.full(6, np.nan, np.float32), "normalizer.scale: found NaN"),
        (mattersim.SHIFT, np.ones(7, np.float32), "reference_energies: found shape (7,), needed (6,)"),
        (mattersim.SHIFT, np.ones((), np.float32), "normalizer.shift"),
        (mattersim.EMBEDDING, np.ones(3, np.float32), "network/elements: found shape"),
        ("final.g.1.linear.bias", np.ones(4, np.int32), "found int32, needed floating-point"),
        ("graph_conv.0.lora.weight", np.ones(4, np.float32), "graph_conv.0.lora.weight: 0 rules match"),
    ],
)
def test_tensors_that_are_not_those_of_the_network_are_told(tmp_path, name, value, words):
    assert words in changed(tmp_path, lambda c: c["model"].update({name: value}))


def test_a_tensor_that_is_missing_is_told_by_the_parameter_that_stays_empty(tmp_path):
    said = changed(tmp_path, lambda c: c["model"].pop("graph_conv.1.edge_layer_atom.linear.weight"))
    assert "network/atom_update_1/weight/kernel: no tensor of the checkpoint maps here" in said
    said = changed(tmp_path, lambda c: c["model"].pop(mattersim.SHIFT))
    assert "reference_energies: no tensor of the checkpoint maps here" in said


@pytest.fixture
def on_the_web(tmp_path, monkeypatch):
    """A published model of which only git's sum is known."""
    file = made.save(tmp_path / "web.pth", made.small_mattersim())
    content = file.read_bytes()
    git = hashlib.sha1(b"blob " + str(len(content)).encode() + b"\0" + content).hexdigest()
    monkeypatch.setenv("JAXMLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("JAXMLIP_WEIGHTS", raising=False)
    address = published.Address(tmp_path.as_uri())
    source = published.Source("mattersim", {"web.pth": ""}, address, "MIT", "PBE", "a file", git=git)
    monkeypatch.setitem(published.MODELS, "tiny-web", source)
    return file


def test_a_file_is_known_by_the_sum_of_its_repository(on_the_web):
    potential = jaxmlip.load("tiny-web")
    assert potential.manifest["licence"] == "MIT"
    assert jaxmlip.load(on_the_web).name == "tiny-web"
    on_the_web.unlink()
    assert jaxmlip.load("tiny-web").elements == potential.elements  # from the cache


def test_a_file_with_another_sum_of_a_repository_is_refused(on_the_web):
    on_the_web.write_bytes(on_the_web.read_bytes() + b"x")
    with pytest.raises(FetchError, match=r"web\.pth has git's sum [0-9a-f]{40}, needed [0-9a-f]{40}, that"):
        jaxmlip.load("tiny-web")


@SLOW
@pytest.mark.parametrize(
    ("name", "parameters"), [("mattersim-v1.0.0-1m", 880_000), ("mattersim-v1.0.0-5m", 4_500_000)]
)
def test_a_public_model_has_the_published_number_of_parameters(name, parameters):
    potential = public(name, "float32")
    assert abs(potential.parameter_count / parameters - 1) < 0.02
