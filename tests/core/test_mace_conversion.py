"""Models of mace-torch, read without it, repeat what it computes; files that are no such model are told."""

import json
import math
import os
import pickle
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import torch_files as made
from ase.build import bulk
from conftest import public
from parity import golden, unpacked

import jaxmlip
from jaxmlip import cli
from jaxmlip.models.mace import MACEConfig
from jaxmlip.potential import Potential, random_potential
from jaxmlip.zoo import load as sources
from weights_convert import mace, modules, torch_zip
from weights_convert.conversion import convert_file
from weights_convert.torch_zip import CheckpointError, Record

# Made by `python -m weights_convert.golden tests/golden/mace mace`.
GOLDEN = Path(__file__).parents[1] / "golden" / "mace"
VARIANTS = sorted(path.stem for path in GOLDEN.glob("*.npz"))  # of models, and of heads as model.head
# To compile, and of rare options.
LONG = ("density", "cutoff-on-weights", "degrees-two-three", "three-layers", "nonlinear.omol", "soft")
# Of both sides in float64, relative to the largest value.
EXACT = {"energy": 1e-10, "site_energies": 1e-10, "forces": 1e-9, "stress": 1e-9, "hessian": 1e-8}


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> dict[str, Path]:
    return unpacked(GOLDEN, "*.model.gz", tmp_path_factory.mktemp("mace"))


def load(files, variant: str, dtype: str = "float64") -> Potential:
    name, _, head = variant.partition(".")
    return jaxmlip.load(files[name], dtype, head=head or None)


def assert_repeats(found, wanted, quantities) -> None:
    """`found` and `wanted`: crystal -> quantity -> values."""
    for quantity in quantities:
        largest = max(np.abs(its[quantity]).max() for its in wanted.values())
        for crystal, its in wanted.items():
            np.testing.assert_allclose(
                found[crystal][quantity],
                its[quantity],
                rtol=0,
                atol=EXACT[quantity] * largest,
                err_msg=f"{quantity} of {crystal}",
            )


@pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=pytest.mark.slow) if v in LONG else v for v in VARIANTS]
)
def test_a_converted_model_repeats_the_original(files, variant):
    potential = load(files, variant)
    crystals, wanted = golden(f"mace/{variant}")
    found = dict(zip(crystals, potential.predict(list(crystals.values())), strict=True))
    assert_repeats(found, wanted, ("energy", "site_energies", "forces", "stress"))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["density", "cutoff-on-weights", "nonlinear.omat", "soft"])
def test_the_hessian_of_a_converted_model_repeats_that_of_the_original(files, variant):
    crystals, wanted = golden(f"mace/{variant}")
    name = "CoO_strained"
    found = {name: {"hessian": jaxmlip.hessian(load(files, variant), crystals[name])}}
    assert_repeats(found, {name: wanted[name]}, ["hessian"])


PUBLIC_CLASSES = (
    "mp0a_small",
    pytest.param("mp0a_medium", marks=pytest.mark.slow),
    pytest.param("mp0b3_medium", marks=pytest.mark.slow),
)


def public_class(name: str):
    """A random model of a published class, the crystals, and what the original gives for each."""
    from ase.io.jsonio import read_json

    weights, reference = (Path(os.environ.get(f"JAXMLIP_{k}", "/none")) for k in ("WEIGHTS", "REFERENCE"))
    file = weights / "mace_random" / f"{name}.model"
    for needed in (file, reference / "mace_random.npz", reference / "structures.json"):
        if not needed.is_file():
            pytest.skip(f"{needed.name} is not where JAXMLIP_WEIGHTS and JAXMLIP_REFERENCE point")
    with np.load(reference / "mace_random.npz") as archive:
        keys = [key.split("/")[1:] for key in archive.files if key.startswith(f"{name}/")]
        values: dict[str, dict[str, np.ndarray]] = {}
        for crystal, quantity in keys:
            values.setdefault(crystal, {})[quantity] = archive[f"{name}/{crystal}/{quantity}"]
    structures = read_json(reference / "structures.json")
    return jaxmlip.load(file, "float64"), {key: structures[key] for key in values}, values


@pytest.mark.parametrize("name", PUBLIC_CLASSES)
def test_a_random_model_of_a_published_class_repeats_the_original(name):
    potential, crystals, wanted = public_class(name)
    assert len(crystals) > 10
    found = dict(zip(crystals, potential.predict(list(crystals.values())), strict=True))
    assert_repeats(found, wanted, ("energy", "site_energies", "forces", "stress"))


@pytest.mark.slow
def test_the_hessian_of_a_random_model_of_a_published_class_repeats_that_of_the_original():
    potential, crystals, wanted = public_class("mp0a_medium")
    name = "MgO_prim_strained"
    found = {name: {"hessian": jaxmlip.hessian(potential, crystals[name])}}
    assert_repeats(found, {name: wanted[name]}, ["hessian"])


def test_the_published_small_model_gives_what_janus_core_expects():
    # janus-core, tests/test_single_point.py and test_eos.py: the cell of tests/data/NaCl.cif, and relaxed.
    name = "mace-mp-0a-small"
    if name not in sources.MODELS:
        pytest.skip(f"no source of {name} is known")
    potential = public(name)
    for volume, energy in ((5.64**3, -27.035127799332745), (184.05884033013012, -27.046359959669214)):
        salt = bulk("NaCl", "rocksalt", volume ** (1 / 3), cubic=True)
        assert potential.predict(salt)["energy"] == pytest.approx(energy, abs=1e-6)


@pytest.mark.parametrize("variant", ["density", "soft"])
def test_every_weight_of_a_file_is_kept_once(files, variant):
    checkpoint = torch_zip.read(files[variant])
    states = [here.state for _, here in modules.walk(checkpoint) if here.state]
    parts = [its.ravel() for state in states for its in state["_parameters"].values() if its is not None]
    source = np.concatenate(parts)
    kept = jax.tree.leaves(convert_file(files[variant]).params["network"])
    kept = np.concatenate([leaf.ravel() for leaf in kept])
    np.testing.assert_array_equal(np.sort(kept), np.sort(source))


@pytest.mark.parametrize(("variant", "dtype"), [("agnostic-residual", np.float32), ("density", np.float64)])
def test_parameters_keep_the_precision_of_the_file_also_when_saved(files, tmp_path, variant, dtype):
    potential = convert_file(files[variant])
    potential.save(tmp_path)
    for one in (potential, Potential.from_folder(tmp_path)):
        assert {leaf.dtype for leaf in jax.tree.leaves(one.params["network"])} == {np.dtype(dtype)}
        assert one.params["reference_energies"].dtype == dtype
    jax.tree.map(np.testing.assert_array_equal, potential.params, Potential.from_folder(tmp_path).params)


@pytest.mark.slow
def test_the_converted_file_of_a_published_size_is_no_larger_than_its_parameters(tmp_path):
    config = MACEConfig(elements=tuple(range(1, 90)), paths=(1, 4, 23, 1, 6, 51))
    potential = random_potential(config)
    # As converted: couplings are in float64.
    coupling = jax.tree.map(np.float64, potential.params["constants"]["coupling"])
    potential.params["constants"]["coupling"] = coupling
    potential.save(tmp_path)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(potential.params["network"]))
    assert (tmp_path / "model.safetensors").stat().st_size < 1.01 * weights


def test_the_reference_energies_are_those_of_the_file_by_atomic_number(files):
    potential = convert_file(files["degrees-two-three"])
    checkpoint = torch_zip.read(files["degrees-two-three"])
    energies = modules.at(checkpoint, "atomic_energies_fn.atomic_energies")
    assert potential.model.config.elements == (27, 3, 17, 8)
    assert potential.elements == (3, 8, 17, 27)
    reference = potential.params["reference_energies"]
    assert reference.shape == (28,)
    np.testing.assert_array_equal(reference[[27, 3, 17, 8]], energies)
    assert np.count_nonzero(reference) == 4


def test_an_element_that_the_file_does_not_have_is_told(files):
    with pytest.raises(ValueError, match="Na"):
        load(files, "density").predict(bulk("NaCl", "rocksalt", 5.64))


def test_a_file_with_several_heads_needs_the_name_of_one(files):
    with pytest.raises(CheckpointError, match=r"two-heads\.model.*has the heads pbe, r2scan.*head='pbe'"):
        jaxmlip.load(files["two-heads"])


def test_a_head_that_the_file_does_not_have_is_told(files):
    with pytest.raises(CheckpointError, match=r"found head='scan'.*the heads pbe, r2scan"):
        jaxmlip.load(files["two-heads"], head="scan")
    with pytest.raises(CheckpointError, match=r"found head='scan'.*the heads Default"):
        jaxmlip.load(files["density"], head="scan")


def test_a_head_of_something_without_heads_is_an_error(files, tmp_path):
    chgnet = made.save(tmp_path / "small.pth.tar", made.small_chgnet())
    with pytest.raises(CheckpointError, match="the file has no heads; leave it out"):
        jaxmlip.load(chgnet, head="pbe")
    with pytest.raises(ValueError, match=r"found head='pbe', but chgnet-0\.3\.0 has one head"):
        jaxmlip.load("chgnet-0.3.0", head="pbe")
    convert_file(files["two-heads"], head="pbe").save(tmp_path / "pbe")
    with pytest.raises(ValueError, match="found head='pbe'"):
        jaxmlip.load(tmp_path / "pbe", head="pbe")


def test_the_command_converts_a_head(files, tmp_path):
    source = str(files["two-heads"])
    cli.main(["convert", source, str(tmp_path / "a"), "--head", "r2scan"])
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["head"] == "r2scan"
    found = Potential.from_folder(tmp_path / "a").params
    jax.tree.map(np.testing.assert_array_equal, found, convert_file(source, head="r2scan").params)


@pytest.fixture
def tampered(files, monkeypatch):
    """Converts a file after change(checkpoint) on what was read."""

    def convert_after(change, variant="density"):
        name, _, head = variant.partition(".")
        checkpoint = torch_zip.read(files[name])
        change(checkpoint)
        monkeypatch.setattr(torch_zip, "read", lambda _: checkpoint)
        return convert_file(files[name], head=head or None)

    return convert_after


def put(path: str, value):
    """A change that replaces what is at `path`, or removes it if `value` is None."""
    *above, name = path.split(".")

    def change(checkpoint):
        module = modules.at(checkpoint, ".".join(above)) if above else checkpoint
        homes = [module.state, *(module.state[part] for part in modules.PARTS)]
        for home in homes:
            if name in home:
                home.pop(name)
                if value is not None:
                    home[name] = value
                return
        module.state[name] = value

    return change


def record(full: str, **attributes) -> Record:
    made = type(full.split(".")[-1], (Record,), {"__qualname__": full})()
    made.state = attributes
    return made


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("r_max", "r_max is missing; the model is a mace.modules.models.ScaleShiftMACE with "),
        (
            "interactions.1.avg_num_neighbors",
            "avg_num_neighbors is missing; interactions.1 is a mace",
        ),
        ("interactions.0.skip_tp", "interactions.0.skip_tp is missing"),
        ("products.1.symmetric_contractions", "products.1.symmetric_contractions is missing"),
        ("radial_embedding.bessel_fn.bessel_weights", "bessel_weights is missing"),
        ("interactions.0.linear_up.weight", r"network/interaction_0/up/l0: no tensor of the checkpoint"),
        ("scale_shift.scale", "constants/scale: no tensor of the checkpoint maps here"),
    ],
)
def test_a_missing_attribute_is_named_with_what_is_there(tampered, path, words):
    with pytest.raises(CheckpointError, match=rf"density\.model: [\s\S]*{words}"):
        tampered(put(path, None))


CONTRACTION = "products.0.symmetric_contractions.contractions.1"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "interactions.1.linear.weight",
            r"1\.linear\.weight: found shape \(3,\), needed \(160,\)",
        ),
        ("interactions.1.conv_tp_weights.layer0.weight", r"layer_0: found shape \(3,\), needed \(5, 12\)"),
        (f"{CONTRACTION}.weights_max", r"product_0/l1_nu3: found shape \(3,\)"),
        (f"{CONTRACTION}.U_matrix_1", r"found shape \(\) but for the paths, needed \(3, 16\)"),
        ("readouts.0.linear.weight", r"readouts\.0\.linear\.weight: found shape \(3,\), needed one of 4"),
    ],
)
def test_a_wrong_shape_is_told_with_both_shapes(tampered, path, words):
    with pytest.raises(CheckpointError, match=words):
        tampered(put(path, np.ones(3)))


CUEQ = record("mace.modules.wrapper_ops.CuEquivarianceConfig", enabled=True, layout_str="ir_mul")
TANH = type("tanh", (Record,), {"__qualname__": "torch.tanh"})
OPTIONS = [
    ("use_so3", True, r"use_so3=True \(needed False\)"),
    ("use_agnostic_product", True, r"products\.0\.use_agnostic_product=False \(needed True\)"),
    ("use_last_readout_only", True, r"use_last_readout_only=True \(needed False\)"),
    ("edge_irreps", "8x0e", r"edge_irreps=8x0e \(needed 4x0e\+4x1o\)"),
    ("joint_embedding", record("mace.modules.embeddings.GenericJointEmbedding"), r"joint_embedding=mace\."),
    ("radial_embedding.bessel_fn", record("mace.modules.radial.GaussianBasis"), r"bessel_fn=.*GaussianBasis"),
    (
        "radial_embedding.distance_transform",
        record("mace.modules.radial.Tanh"),
        r"=mace\.modules.radial\.Tanh",
    ),
    ("spherical_harmonics.normalization", "norm", r"normalization=norm \(needed component\)"),
    ("interactions.1", record("mace.modules.blocks.RealAgnosticAttResidualInteractionBlock"), "AttResidual"),
    ("readouts.1", record("mace.modules.blocks.NonLinearBiasReadoutBlock"), "NonLinearBiasReadoutBlock"),
    ("products.0.cueq_config", CUEQ, r"products\.0\.cueq_config\.enabled=True \(needed False\)"),
    ("interactions.0.conv_tp_weights.layer0.act.f", TANH, r"layer0\.act=torch\.tanh \(needed .*silu\)"),
    ("interactions.0.conv_tp_weights.layer0.act.cst", 1.5, r"the constants of activations=\[1\.5, 1\.679"),
    ("interactions.0.avg_num_neighbors", 7.0, r"avg_num_neighbors=\[7\.0, 8\.3\]"),
    ("interactions.1.hidden_irreps", 1, None),  # nothing reads it
    (
        "interactions.1.linear_up.irreps_in",
        "4x0e+4x1e",
        r"irreps_in=4x0e\+4x1e \(needed 4x0e\+4x1o",
    ),
    ("products.0.linear.irreps_out", "4x0e+2x1o", r"irreps_out=4x0e\+2x1o \(needed 4x0e\+4x1o"),
    ("products.1.use_sc", False, r"products\.1\.use_sc=False \(needed True\)"),
    ("radial_embedding.cutoff_fn.r_max", np.array(4.0), r"cutoff_fn\.r_max=4\.0 \(needed 4\.5\)"),
    ("pair_repulsion_fn.p", np.array(6), r"pair_repulsion_fn\.p=6 \(needed 5\)"),
    ("atomic_numbers", np.array([3, 8, 8]), r"elements=\(3, 8, 8\) \(needed different ones\)"),
]


@pytest.mark.parametrize(("path", "value", "words"), OPTIONS, ids=[path for path, *_ in OPTIONS])
def test_an_option_that_is_not_supported_is_named(tampered, path, value, words):
    if words is None:
        tampered(put(path, value))
        return
    with pytest.raises(CheckpointError, match=rf"density\.model: (this MACE|options beyond) .*{words}"):
        tampered(put(path, value))


GATES, NET = "interactions.0.equivariant_nonlin", "interactions.0.conv_tp_weights.net"
NONLINEAR_OPTIONS = [
    ("radial_embedding.apply_cutoff", True, r"radial_embedding\.apply_cutoff=True \(needed False\)"),
    ("products.1.use_agnostic_product", False, r"1\.use_agnostic_product=False \(needed True\)"),
    ("edge_irreps", "8x0e", r"edge_irreps=8x0e \(needed 3x0e\+3x1o\)"),
    (
        "interactions.0.transpose_mul_ir",
        record("mace.Layout"),
        r"transpose_mul_ir=mace\.Layout \(needed None\)",
    ),
    (
        GATES,
        record("e3nn.nn.NormGate"),
        r"equivariant_nonlin=e3nn\.nn\.NormGate \(needed mace\.modules\.gate\.",
    ),
    (f"{GATES}._act_scalar", TANH, r"scalars=torch\.tanh \(needed .*silu\)"),
    (f"{GATES}._act_gate", TANH, r"gates=torch\.tanh \(needed .*sigmoid\)"),
    (f"{GATES}._scalar_cst", 1.5, r"the constants of activations=\[1\.5, 1\.679"),
    (f"{GATES}._gate_cst", 1.5, r"the constants of gates=\[1\.5, 1\.846"),
    (f"{GATES}._gate_cst", -1.5, r"the constants of gates=\[-1\.5, 1\.846"),
    (f"{GATES}._layout_is_ir_mul", True, r"_layout_is_ir_mul=True \(needed False\)"),
    (f"{GATES}._g_start", 0, r"_g_start=0 \(needed 4\)"),
    (f"{GATES}._gated_info", [(12, 12, 5, 4, 0)], r"_gated_info=\[\(12, 12, 5, .* \(needed \[\(12, 12, 3, "),
    (f"{GATES}.irreps_gates", "4x0e", r"irreps_gates=4x0e \(needed 8x0e\)"),
    (f"{NET}.1", record("torch.nn.RMSNorm"), r"net\.1=torch\.nn\.RMSNorm \(needed .*LayerNorm\)"),
    (f"{NET}.7", record("torch.nn.Linear"), r"the number of layers of .*net=8 \(needed 7\)"),
    (f"{NET}.1.eps", 1e-6, r"net\.1\.eps=1e-06 \(needed 1e-05\)"),
    (
        "interactions.1.linear_res.irreps_in",
        "3x0e+3x1e",
        r"linear_res\.irreps_in=3x0e\+3x1e \(needed 3x0e\+3x1o",
    ),
    (
        "interactions.1.conv_tp.irreps_in1",
        "4x0e+4x1o",
        r"conv_tp\.irreps_in1=4x0e\+4x1o|linear_up\.irreps_out=3x0e",
    ),
]


@pytest.mark.parametrize(("path", "value", "words"), NONLINEAR_OPTIONS)
def test_an_option_of_non_linear_blocks_that_is_not_supported_is_named(tampered, path, value, words):
    with pytest.raises(CheckpointError, match=rf"nonlinear\.model: (this MACE|options beyond) .*({words})"):
        tampered(put(path, value), "nonlinear.omat")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("interactions.0.alpha", np.ones(3), r"interaction_0/offset: found shape \(3,\), needed \(\)"),
        ("interactions.0.beta", np.array(np.nan), r"interactions\.0\.beta: found NaN"),
        ("interactions.1.beta", None, "interaction_1/slope: no tensor of the checkpoint maps here"),
        (f"{NET}.0.bias", np.ones(3), r"radial/weights_0_bias: found shape \(3,\), needed \(8,\)"),
        (f"{NET}.4.weight", None, "radial/weights_1_scale|radial/weights_2_scale"),
        (
            "interactions.1.density_fn.net.3.weight",
            np.ones((2, 64)),
            r"found shape \(64, 2\), needed \(64, 1\)",
        ),
        ("interactions.1.source_embedding.weight", np.ones(5), r"found shape \(5,\), needed one of 12"),
        (
            "interactions.1.linear_res.weight",
            np.ones(5),
            r"linear_res\.weight: found shape \(5,\), needed \(48,\)",
        ),
    ],
)
def test_a_wrong_or_missing_tensor_of_a_non_linear_block_is_told(tampered, path, value, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        tampered(put(path, value), "nonlinear.omat")
    assert str(caught.value).isprintable()


def test_gates_of_e3nn_are_held_to_the_same(tampered):
    acts = "interactions.1.equivariant_nonlin.act_gates.acts"
    with pytest.raises(CheckpointError, match=r"the constants of gates=\[1\.5, 1\.846"):
        tampered(put(f"{acts}.0.cst", 1.5), "soft")
    with pytest.raises(CheckpointError, match=r"gates=torch\.nn\.functional\.sigmoid, torch\.tanh \(needed"):
        tampered(put(f"{acts}.1.f", TANH), "soft")


def test_a_soft_transform_needs_its_steepness(tampered):
    with pytest.raises(CheckpointError, match="constants/soft: no tensor of the checkpoint maps here"):
        tampered(put("radial_embedding.distance_transform.alpha", None), "soft")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"soft": True}, "found agnesi=True and soft=True"),
        ({"edge_channels": (8,)}, r"found edge_channels=\(8,\) for 2 blocks"),
        (
            {"blocks": ("density", "nonlinear-residual")},
            "found cutoff_on_basis=True with a nonlinear-residual",
        ),
    ],
)
def test_options_that_do_not_go_together_are_told(options, words):
    with pytest.raises(ValueError, match=words):
        MACEConfig(elements=(1,), **options)


CORRELATION = "products.0.symmetric_contractions.contractions.0.correlation"
WITHOUT_MEANING = [
    ("atomic_numbers", np.zeros(0, np.int64), "atomic_numbers is empty"),
    ("node_embedding.linear.weight", np.zeros(0, np.float32), "node_embedding.linear.weight .*is empty"),
    ("heads", 5, r"heads=5, needed a list"),
    ("heads", ["a", "a"], r"heads=\['a', 'a'\], needed different names"),
    ("heads", ["\x1b[31m", "b"], r"it has the heads \\x1b\[31m, b"),
    *(("radial_embedding.cutoff_fn.p", p, "density.model: ") for p in (math.inf, 1e30, 0, -3, math.nan)),
    *((CORRELATION, nu, "density.model: ") for nu in (math.inf, 1e30, 0, -3)),
    ("r_max", np.array(np.nan), r"r_max=nan \(needed a length"),
    ("scale_shift.scale", np.array(np.nan), "hold no weights: scale_shift.scale: found NaN"),
    ("scale_shift.shift", np.array(1), "scale_shift.shift: found int64"),
    ("atomic_energies_fn.atomic_energies", np.full((1, 3), np.inf), "found infinity"),
]


@pytest.mark.parametrize(("path", "value", "words"), WITHOUT_MEANING)
def test_what_no_model_has_is_refused(tampered, path, value, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        tampered(put(path, value))
    assert str(caught.value).isprintable()


def test_irreps_of_many_parts_are_refused(tampered):
    with pytest.raises(CheckpointError, match=r"interactions\.0\.linear\.irreps_in is .* needed irreps"):
        tampered(put("interactions.0.linear.irreps_in", "+".join(["1x0e"] * 10**5)))


def test_modules_that_double_many_times_are_refused(tampered):
    def double(checkpoint):
        inner = record("torch.nn.Linear", _modules={})
        for _ in range(25):
            inner = record("torch.nn.Sequential", _modules={"a": inner, "b": inner})
        checkpoint.state["_modules"]["again"] = inner

    with pytest.raises(CheckpointError, match="or more than 30 levels or 20,000 modules"):
        tampered(double)


def test_messages_in_another_order_are_told(tampered):
    def swap(checkpoint):
        instructions = modules.at(checkpoint, "interactions.1.conv_tp.instructions")
        instructions[2], instructions[3] = instructions[3], instructions[2]

    with pytest.raises(CheckpointError, match=r"interactions\.1\.conv_tp\.instructions="):
        tampered(swap)


def test_couplings_that_differ_between_layers_are_told(tampered):
    path = "products.1.symmetric_contractions.contractions.0.U_matrix_2"
    with pytest.raises(CheckpointError, match=r"U_matrix_2: these differ, needed them to be equal"):
        tampered(lambda checkpoint: put(path, 2 * modules.at(checkpoint, path))(checkpoint))


def test_a_coupling_that_symmetry_forbids_is_told(tampered):
    path = f"{CONTRACTION}.U_matrix_1"
    with pytest.raises(CheckpointError, match=r"U_matrix_1: a coupling that symmetry forbids is 1\.0e\+00"):
        tampered(put(path, np.ones((3, 16, 1))))


def test_a_tensor_that_nothing_reads_is_told(tampered):
    lora = record("mace.modules.lora.LoRADenseLinear", _parameters={"weight": np.ones(2)})
    with pytest.raises(CheckpointError, match=r"interactions\.0\.lora\.weight: 0 rules match"):
        tampered(lambda c: modules.at(c, "interactions.0").state["_modules"].update(lora=lora))


def test_a_file_from_before_an_option_existed_means_its_default(tampered, files):
    later = {
        "": (*mace.SUPPORTED, "heads", "use_reduced_cg", "apply_cutoff", "lammps_mliap"),
        "radial_embedding": ("apply_cutoff",),
        "readouts.1": ("num_heads",),
        **{f"interactions.{i}": ("cueq_config", "oeq_config", "radial_MLP", "edge_irreps") for i in (0, 1)},
        **{f"interactions.{i}.reshape": ("cueq_config",) for i in (0, 1)},
        **{f"products.{i}": ("cueq_config", "oeq_config", "use_agnostic_product") for i in (0, 1)},
    }

    def forget(checkpoint):
        for path, names in later.items():
            module = modules.at(checkpoint, path) if path else checkpoint
            for name in names:
                module.state.pop(name, None)

    today = convert_file(files["density"])
    before = tampered(forget)
    assert before.model.config == today.model.config
    jax.tree.map(np.testing.assert_array_equal, before.params, today.params)


def test_a_model_class_that_is_not_known_is_named(tmp_path):
    file = made.write(tmp_path / "dipole.model", made.call("mace.modules.models", "AtomicDipolesMACE"))
    with pytest.raises(CheckpointError, match=r"the model=mace\.modules\.models\.AtomicDipolesMACE \(needed"):
        convert_file(file)


def test_a_state_dict_in_place_of_a_model_is_refused(tmp_path):
    file = made.save(tmp_path / "state.model", {"interactions.0.linear_up.weight": np.ones(4)})
    with pytest.raises(CheckpointError, match=r"a bare state dict of 1 tensors.*for mace, a whole module"):
        convert_file(file)


def test_modules_that_hold_themselves_are_refused(tampered):
    def loop(checkpoint):
        checkpoint.state["_modules"]["again"] = checkpoint

    with pytest.raises(CheckpointError, match="holds itself"):
        tampered(loop)


def replaced(source: Path, target: Path, old: bytes, new: bytes) -> Path:
    """The file `source` with other bytes in its pickle."""
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(target, "w") as after:
        for name in before.namelist():
            content = before.read(name)
            if name.endswith("/data.pkl"):
                assert old in content
                content = content.replace(old, new)
            after.writestr(name, content)
    return target


EMBEDDING = b"cmace.modules.blocks\nLinearNodeEmbeddingBlock\n"


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            b"ccuequivariance_torch.operations.linear\nLinear\n",
            "layout of cuequivariance.*mace_cueq_to_e3nn FILE",
        ),
        (b"copenequivariance.tp\nTensorProduct\n", "layout of openequivariance.*convert_oeq_e3nn"),
        (b"cyour_package\nBlock\n", r"holds a your_package\.Block, of a package whose files are not read"),
    ],
)
def test_a_model_of_an_accelerating_library_is_told_with_the_way_back(files, tmp_path, other, words):
    file = replaced(files["density"], tmp_path / "fast.model", EMBEDDING, other)
    with pytest.raises(CheckpointError, match=words) as caught:
        convert_file(file)
    assert "trust" not in str(caught.value)


def test_an_export_for_lammps_is_told_as_such(tmp_path):
    export = made.call("mace.calculators.lammps_mliap_mace", "LAMMPS_MLIAP_MACE")
    with pytest.raises(CheckpointError, match=r"an export for LAMMPS.*Take the \.model file"):
        convert_file(made.write(tmp_path / "x-mliap_lammps.pt", export))


@pytest.mark.parametrize("gate", ["tanh", None])
def test_a_gate_other_than_silu_is_named(tampered, gate):
    act = "readouts.1.non_linearity.acts.0"
    value = type(gate, (Record,), {"__qualname__": f"torch.{gate}"}) if gate else None
    change = put(f"{act}.f", value) if gate else lambda c: put_none(c, act)
    with pytest.raises(
        CheckpointError, match=rf"the gate .*={f'torch.{gate}' if gate else None} \(needed .*silu"
    ):
        tampered(change)


def put_none(checkpoint, path: str) -> None:
    above, _, name = path.rpartition(".")
    modules.at(checkpoint, above).state["_modules"][name] = None


@pytest.mark.parametrize("hostile", [b"cos\nsystem\n", b"cbuiltins\neval\n", b"c__builtin__\nexec\n"])
def test_a_hostile_class_in_a_model_is_refused_by_its_name(files, tmp_path, hostile):
    file = replaced(files["density"], tmp_path / "hostile.model", EMBEDDING, hostile)
    name = hostile[1:-1].replace(b"\n", b".").decode()
    with pytest.raises(CheckpointError, match=rf"asks to load {name}.*nothing was run"):
        convert_file(file)


def test_compiled_code_in_a_model_is_not_looked_at(files, tmp_path):
    # Compiled code lies in the pickle as bytes. Zeros in its place change nothing.
    checkpoint = torch_zip.read(files["density"])
    linear = modules.at(checkpoint, "interactions.0.linear_up")
    code = linear.state["__codegen__"]
    assert any(isinstance(value, bytes) and value.startswith(b"PK") for value in code.values())
    linear.state["__codegen__"] = dict.fromkeys(code, pickle.dumps(None))
    assert mace.config(checkpoint) == convert_file(files["density"]).model.config
