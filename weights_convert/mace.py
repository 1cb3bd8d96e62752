"""MACE `.model` files: whole modules of mace-torch, pickled by torch.save."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from jaxmlip.models import limits, symmetric
from jaxmlip.models.mace import NONLINEAR, MACEConfig, message_paths
from jaxmlip.system.borders import CheckpointError, brief, cut, listed
from weights_convert.modules import at, children, class_of, contents, get, irreps, number, tensor, walk
from weights_convert.modules import tensors as registered
from weights_convert.rules import Rule
from weights_convert.torch_zip import Record

CONVENTION = (
    "Batatia et al. 2022, as mace-torch 0.3 computes it. Weights are as e3nn keeps them, before the division "
    "by √(fan-in), and those of layers of torch as they act; U tensors are summed over the orders of their "
    "indices."
)
LAYOUT = "a whole module of mace-torch, its .model"

MODELS = {"mace.modules.models.MACE": False, "mace.modules.models.ScaleShiftMACE": True}  # True: it scales
BLOCKS = {
    "mace.modules.blocks.RealAgnosticInteractionBlock": "agnostic",
    "mace.modules.blocks.RealAgnosticResidualInteractionBlock": "residual",
    "mace.modules.blocks.RealAgnosticDensityInteractionBlock": "density",
    "mace.modules.blocks.RealAgnosticDensityResidualInteractionBlock": "density-residual",
    "mace.modules.blocks.RealAgnosticResidualNonLinearInteractionBlock": NONLINEAR,
}
# Forms of a model made for other programs and libraries, by the beginning of the names of their classes.
LAMMPS = ("mace.calculators.lammps", "lammps.")
ACCELERATED = {
    "cuequivariance": "mace_cueq_to_e3nn FILE --output_model NEW",
    "openequivariance": "python -m mace.cli.convert_oeq_e3nn FILE --output_model NEW",
}
PRODUCT = "mace.modules.blocks.EquivariantProductBasisBlock"
LINEAR_READOUT = "mace.modules.blocks.LinearReadoutBlock"
READOUT = "mace.modules.blocks.NonLinearReadoutBlock"
BESSEL = "mace.modules.radial.BesselBasis"
CUTOFF = "mace.modules.radial.PolynomialCutoff"
AGNESI = "mace.modules.radial.AgnesiTransform"
SOFT = "mace.modules.radial.SoftTransform"
SILU = "torch.nn.functional.silu"
SIGMOID = "torch.nn.functional.sigmoid"
GATE = "mace.modules.gate.GatedEquivariantBlock"  # since mace-torch 0.3.15
EARLIER_GATE = "e3nn.nn._gate.Gate"
# What is between two linear layers of the radial network of a non-linear block, and such a layer.
NORM, ACTIVATION, LINEAR = (
    f"torch.nn.modules.{name}" for name in ("normalization.LayerNorm", "activation.SiLU", "linear.Linear")
)
MOST_HEADS = 100
RESIDUE = 1e-5  # bound of sums of float32 numbers of order one that should vanish

# Attributes of the model that fix the architecture, with the only value supported here. A file that was saved
# before the attribute existed means that value, too.
SUPPORTED: dict[str, Any] = {
    "use_so3": False,
    "use_last_readout_only": False,
    "embedding_specs": None,
}


NAMES = {
    "cutoff": "r_max",
    "radial": "radial_embedding.bessel_fn.bessel_weights",
    "envelope": "radial_embedding.cutoff_fn.p",
    "average_neighbours": "avg_num_neighbors",
    "radial_widths": "radial_MLP",
    "activation_scale": "the constant of the activations",
    "agnostic_product": "use_agnostic_product",
    "edge_channels": "edge_irreps",
    "gate_scale": "the constant of the gates",
}  # our names of what is read, if they differ


def recognises(checkpoint: Any) -> bool:
    """True if `checkpoint` is a module of mace-torch."""
    return isinstance(checkpoint, Record) and class_of(checkpoint).split(".")[0] == "mace"


def heads(checkpoint: Any) -> tuple[str, ...]:
    """The names of the heads, which share all except reference energies, readouts, scales and shifts."""
    found = get(checkpoint, "heads", None) or ["Default"]
    names = list(found) if isinstance(found, list | tuple) and len(found) <= MOST_HEADS else []
    if not names or not all(isinstance(name, str) and len(name) <= 100 for name in names):
        raise CheckpointError(f"heads={brief(found)}, needed a list of at most {MOST_HEADS} names.")
    if len(set(names)) != len(names):
        raise CheckpointError(f"heads={brief(found)}, needed different names.")
    return tuple(names)


def tensors(checkpoint: Any, head: str) -> dict[str, np.ndarray]:
    """The tensors of the model with one `head`, by path; a model without scale and shift gets 1 and 0.

    Empty tensors, which e3nn registers for biases that a layer lacks, are left out.
    """
    found = {name: array for name, array in registered(checkpoint).items() if array.size}
    if not MODELS.get(class_of(checkpoint), True):
        found |= {"scale_shift.scale": np.ones(()), "scale_shift.shift": np.zeros(())}
    names = heads(checkpoint)
    place, count, channels = names.index(head), len(names), _channels(checkpoint)
    for name, array in found.items():
        try:
            found[name] = _of_head(name, array, place, count, channels)
        except ValueError as error:
            raise CheckpointError(f"{name}: {error}; needed a part for each of {count} heads.") from None
    return found


def _of_head(name: str, array: np.ndarray, place: int, count: int, channels: int) -> np.ndarray:
    """The part of the tensor called `name` for the head at `place` of `count`."""
    if name.startswith("readouts.") and count == 1:
        return array
    match name.split("."):
        case ["scale_shift", _]:
            return np.broadcast_to(np.ravel(array), count)[place]
        case ["atomic_energies_fn", _]:
            return np.reshape(array, (count, -1))[place]
        case ["readouts", _, "linear", "weight"]:
            return np.reshape(array, (-1, count))[:, place]
        # The last readout masks its hidden features, except for a block that belongs to the head.
        case ["readouts", _, "linear_1", "weight"]:
            return np.reshape(array, (channels, count, -1))[:, place]
        case ["readouts", _, "linear_2", "weight"]:
            # e3nn divides by √(hidden features of all heads); for one head only its own features count.
            return np.reshape(array, (count, -1, count))[place, :, place] / np.sqrt(count)
    return array


def config(checkpoint: Any) -> MACEConfig:
    """The architecture of the model. Raises CheckpointError, naming the option, if it is unknown."""
    if remedy := _made_for_others(checkpoint):
        raise CheckpointError(remedy)
    _raise("this MACE has options that are not supported", _unsupported(checkpoint))
    found = _config(checkpoint)
    _raise("this MACE is not put together as mace-torch does it", _differences(_layout(checkpoint, found)))
    return found


def _made_for_others(model: Any) -> str:
    """A sentence on a model made for another program or library, and on its original; empty for others."""
    if class_of(model).startswith(LAMMPS):
        return (
            f"this is an export for LAMMPS ({class_of(model)}). Take the .model file that it was made from, "
            "without -mliap_lammps.pt in its name."
        )
    for path, module in walk(model):
        package = class_of(module).split(".")[0].removesuffix("_torch")
        if package in ACCELERATED:
            return (
                f"this MACE is in the layout of {package} ({cut(path, 40)}). Turn it back where mace-torch "
                f"is: {ACCELERATED[package]}"
            )
    return ""


def elements(checkpoint: Any) -> tuple[int, ...]:
    """The atomic numbers that the model was made for."""
    return tuple(sorted(map(int, tensor(checkpoint, "atomic_numbers"))))


def _raise(what: str, wrong: Sequence[tuple[str, Any, Any]]) -> None:
    if wrong:
        shown = listed(f"{path}={_show(found)} (needed {_show(needed)})" for path, found, needed in wrong)
        raise CheckpointError(f"{what}: {shown}")


def _show(value: Any) -> str:
    return cut(value, 100) if isinstance(value, str) else brief(value)


def _differences(triples) -> list[tuple[str, Any, Any]]:
    return [(path, found, needed) for path, found, needed in triples if found != needed]


def _channels(checkpoint: Any) -> int:
    weight, numbers = (
        tensor(checkpoint, name) for name in ("node_embedding.linear.weight", "atomic_numbers")
    )
    if not numbers.size or not weight.size:
        raise CheckpointError("node_embedding.linear.weight or atomic_numbers is empty, needed some of each.")
    return weight.size // numbers.size


def _unsupported(model: Any) -> list[tuple[str, Any, Any]]:
    """The classes of the model that are not supported; if there are none, its unsupported options."""
    kind = class_of(model)
    if kind not in MODELS:
        return [("the model", kind, " or ".join(MODELS))]
    return _differences(_classes(model)) or _differences(_options(model))


def _classes(model: Any) -> Iterator[tuple[str, Any, Any]]:
    """Paths, the classes of the modules there, and the supported classes."""
    for path, needed in (("bessel_fn", BESSEL), ("cutoff_fn", CUTOFF)):
        yield f"radial_embedding.{path}", class_of(at(model, f"radial_embedding.{path}")), needed
    transform = _class_at(model, "radial_embedding.distance_transform")
    known = transform in (None, AGNESI, SOFT)
    yield "radial_embedding.distance_transform", transform, transform if known else f"{AGNESI} or {SOFT}"
    yield "joint_embedding", _class_at(model, "joint_embedding"), None
    for path in children(model, "interactions"):
        kind = class_of(at(model, path))
        yield path, kind, kind if kind in BLOCKS else " or ".join(BLOCKS)
        if BLOCKS.get(kind) == NONLINEAR:
            gate = class_of(at(model, f"{path}.equivariant_nonlin"))
            known = gate in (GATE, EARLIER_GATE)
            yield f"{path}.equivariant_nonlin", gate, gate if known else f"{GATE} or {EARLIER_GATE}"
    for path in children(model, "products"):
        yield path, class_of(at(model, path)), PRODUCT
    first, *others = children(model, "readouts")
    yield first, class_of(at(model, first)), LINEAR_READOUT
    for path in others:
        yield path, class_of(at(model, path)), READOUT if path == others[-1] else LINEAR_READOUT


def _class_at(model: Any, path: str) -> str | None:
    found = get(model, path, None)
    return None if found is None else class_of(found)


def _options(model: Any) -> Iterator[tuple[str, Any, Any]]:
    """Paths, the options found there, and the supported ones."""
    for name, needed in SUPPORTED.items():
        yield name, get(model, name, needed), needed
    yield "spherical_harmonics.normalize", at(model, "spherical_harmonics.normalize"), True
    yield "spherical_harmonics.normalization", at(model, "spherical_harmonics.normalization"), "component"
    for path in children(model, "interactions"):
        yield f"{path}.conv_fusion", get(model, f"{path}.conv_fusion", None), None
        yield from _acceleration(model, path)
        yield from _acceleration(model, f"{path}.reshape")
        if _block(model, path) == NONLINEAR:
            yield from _nonlinear(model, path)
            continue
        yield from _network(model, f"{path}.conv_tp_weights")
        if _block(model, path).startswith("density"):
            yield from _network(model, f"{path}.density_fn")
    agnostic = get(model, "use_agnostic_product", False)
    for path in children(model, "products"):
        yield f"{path}.use_agnostic_product", get(model, f"{path}.use_agnostic_product", False), agnostic
        yield from _acceleration(model, path)
    for path in children(model, "readouts")[1:][-1:]:
        yield f"{path}.num_heads", get(model, f"{path}.num_heads", 1), len(heads(model))
        acts = [_function(model, act) for act in children(model, f"{path}.non_linearity.acts")]
        yield f"the gate ({path}.non_linearity)", ", ".join(acts), SILU


def _block(model: Any, path: str) -> str:
    """Our name of the interaction block at `path`."""
    return BLOCKS[class_of(at(model, path))]


def _nonlinear(model: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """What a non-linear block requires of its networks and gates."""
    yield "radial_embedding.apply_cutoff", get(model, "radial_embedding.apply_cutoff", True), False
    for name in ("transpose_mul_ir", "transpose_ir_mul"):
        yield f"{path}.{name}", _class_at(model, f"{path}.{name}"), None
    for name in ("conv_tp_weights", "density_fn"):
        parts = _parts_of(model, f"{path}.{name}")
        yield f"the number of layers of {path}.{name}.net", len(parts), 1 + len(parts) // 3 * 3
        for part, needed in zip(parts, itertools.cycle((LINEAR, NORM, ACTIVATION)), strict=False):
            kind = class_of(at(model, part))
            yield part, kind, needed
            if kind == needed == NORM:
                yield f"{part}.eps", number(model, f"{part}.eps"), 1e-5
    for kind, (functions, _) in _gates(model, path).items():
        needed = SILU if kind == "scalars" else SIGMOID
        yield f"the gate ({path}.equivariant_nonlin), {kind}", ", ".join(sorted(set(functions))), needed


def _parts_of(model: Any, path: str) -> list[str]:
    """The paths of the layers of the RadialMLP at `path`: linear ones, layer norms and activations."""
    inside = contents(at(model, f"{path}.net"))
    return [f"{path}.net.{k}" for k in sorted(int(name) for name in inside if name.isdecimal())]


def _gates(model: Any, path: str) -> dict[str, tuple[list[str], list[float]]]:
    """The functions on scalars and on gates of the non-linear block at `path`, with their constants."""
    here, found = f"{path}.equivariant_nonlin", {}
    for kind, one in (("scalars", "scalar"), ("gates", "gate")):
        if class_of(at(model, here)) == GATE:
            functions = [class_of(at(model, f"{here}._act_{one}"))]
            constants = [number(model, f"{here}._{one}_cst")]
        else:
            acts = children(model, f"{here}.act_{kind}.acts")
            functions = [_function(model, act) for act in acts]
            constants = [number(model, f"{act}.cst") for act in acts if at(model, act) is not None]
        found[kind] = (functions, [float(constant) for constant in constants])
    return found


def _acceleration(model: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Options of libraries that compute the same faster, with the weights in an order of their own."""
    for name in ("cueq_config", "oeq_config"):
        found = get(model, f"{path}.{name}", None)
        yield f"{path}.{name}.enabled", found is not None and get(found, "enabled", True), False
        yield f"{path}.{name}.layout_str", get(found, "layout_str", "mul_ir"), "mul_ir"


def _network(model: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Requires a FullyConnectedNet with SiLU except after the last layer, and e3nn's usual variances."""
    layers = _layers(model, path)
    for layer in layers:
        yield f"{layer}.act", _function(model, f"{layer}.act"), "None" if layer == layers[-1] else SILU
        for name in ("var_in", "var_out"):
            yield f"{layer}.{name}", get(model, f"{layer}.{name}", 1), 1


def _function(model: Any, path: str) -> str:
    """The name of the activation function at `path`, which e3nn wraps to normalise it; "None" without one."""
    return "None" if at(model, path) is None else class_of(at(model, f"{path}.f"))


def _layers(model: Any, path: str) -> list[str]:
    """The paths of the layers of the FullyConnectedNet at `path`."""
    inside = contents(at(model, path))
    return [f"{path}.layer{k}" for k in range(len(inside)) if f"layer{k}" in inside]


def _config(model: Any) -> MACEConfig:
    """The sizes of the model; `_layout` compares everything else with them."""
    blocks, products, readouts = (children(model, name) for name in ("interactions", "products", "readouts"))
    nonlinear = [block for block in blocks if _block(model, block) == NONLINEAR]
    acts = [
        f"{layer}.act"
        for block in blocks
        if block not in nonlinear
        for layer in _layers(model, f"{block}.conv_tp_weights")[:-1]
    ]
    width = MACEConfig.readout
    if len(readouts) > 1:
        width = tensor(model, f"{readouts[-1]}.linear_2.weight").size // len(heads(model)) ** 2
        acts += children(model, f"{readouts[-1]}.non_linearity.acts")
    gates = [_gates(model, block) for block in nonlinear]
    scales = {float(number(model, f"{act}.cst")) for act in acts}
    scales = sorted(scales.union(*(constants for its in gates for _, constants in [its["scalars"]])))
    gate_scales = sorted({constant for its in gates for constant in its["gates"][1]})
    averages = sorted({float(number(model, f"{block}.avg_num_neighbors")) for block in blocks})
    counts = (
        ("the number of products", len(products), len(blocks)),
        ("the number of readouts", len(readouts), len(blocks)),
        ("the constants of activations", scales, scales[:1]),
        ("the constants of gates", gate_scales, gate_scales[:1]),
        ("the averages of avg_num_neighbors", averages, averages[:1]),
    )
    _raise("this MACE has options that are not supported", _differences(counts))

    def highest_l(path: str) -> int:
        return len(irreps(at(model, path), path)) - 1

    correlation = [f"{path}.symmetric_contractions.contractions.0.correlation" for path in products]
    sent = tuple(_sent(model, block) for block in blocks)
    widths = [width for block in nonlinear for width in _widths(model, f"{block}.density_fn")]
    found = MACEConfig(
        elements=tuple(int(z) for z in tensor(model, "atomic_numbers")),
        channels=_channels(model),
        hidden_l=highest_l("products.0.linear.irreps_out"),
        harmonics_l=highest_l("spherical_harmonics.irreps_out"),
        correlation=tuple(int(number(model, path)) for path in correlation),
        blocks=tuple(BLOCKS[class_of(at(model, block))] for block in blocks),
        cutoff=float(number(model, "r_max")),
        radial=tensor(model, "radial_embedding.bessel_fn.bessel_weights").size,
        envelope=int(number(model, "radial_embedding.cutoff_fn.p")),
        radial_widths=_widths(model, f"{blocks[0]}.conv_tp_weights"),
        average_neighbours=averages[0],
        readout=width,
        agnesi=_class_at(model, "radial_embedding.distance_transform") == AGNESI,
        soft=_class_at(model, "radial_embedding.distance_transform") == SOFT,
        repulsion="pair_repulsion" in contents(model),
        cutoff_on_basis=bool(get(model, "radial_embedding.apply_cutoff", True)),
        activation_scale=scales[0],
        edge_channels=() if set(sent) == {_channels(model)} else sent,
        agnostic_product=get(model, "use_agnostic_product", False),
        density_width=[*widths, MACEConfig.density_width][0],
        gate_scale=[*gate_scales, MACEConfig.gate_scale][0],
    )
    limits.check(found, NAMES, CheckpointError)  # checked first: the rest takes long for large values
    sources = [_coupling(_using(found, L, nu)[0], L, nu) for L, nu in found.couplings()]
    return replace(found, paths=tuple(tensor(model, path).shape[-1] for path in sources))


def _widths(model: Any, path: str) -> tuple[int, ...]:
    """The hidden widths of the network at `path`, of either kind."""
    if "net" in contents(at(model, path)):
        layers = [tensor(model, f"{layer}.weight") for layer in _parts_of(model, path)[::3]]
        return tuple(len(weight) for weight in layers[:-1])
    return tuple(tensor(model, f"{layer}.weight").shape[1] for layer in _layers(model, path)[:-1])


def _sent(model: Any, block: str) -> int:
    """The number of channels of what neighbours send in the interaction at `block`."""
    path = f"{block}.conv_tp.irreps_in1"
    (count, *_), *_ = irreps(at(model, path), path)
    return count


def _layout(model: Any, c: MACEConfig) -> Iterator[tuple[str, Any, Any]]:
    """Paths, the layout found there, and the layout that the rules below assume."""
    f = c.channels
    ordered = sorted({z for z in c.elements if 1 <= z <= 118})
    yield "atomic_numbers", sorted(c.elements), ordered
    yield "radial_embedding.cutoff_fn.r_max", number(model, "radial_embedding.cutoff_fn.r_max"), c.cutoff
    if c.repulsion:
        yield "pair_repulsion_fn.p", number(model, "pair_repulsion_fn.p"), c.envelope

    features = [_features(f, l_max) for l_max in range(9)]
    last = len(c.blocks) - 1
    found = get(model, "edge_irreps", None)
    if found is not None and last:
        yield "edge_irreps", _spell(irreps(found, "edge_irreps")), _features(c.sent(last), c.hidden_l)
    yield from _irreps(model, "spherical_harmonics.irreps_out", _features(1, c.harmonics_l))
    for t, block in enumerate(c.blocks):
        yield from _interaction_layout(model, c, t)
        here, out_l = f"products.{t}", c.out_l(t)
        if block.endswith("residual"):
            yield f"{here}.use_sc", at(model, f"{here}.use_sc"), True
        yield from _irreps(model, f"{here}.symmetric_contractions.irreps_in", features[c.harmonics_l])
        yield from _irreps(model, f"{here}.symmetric_contractions.irreps_out", features[out_l])
        yield from _linear(model, f"{here}.linear", features[out_l], features[out_l])
        for L in range(out_l + 1):
            part = f"{here}.symmetric_contractions.contractions.{L}.correlation"
            yield part, at(model, part), c.correlation[t]

        count, here = len(heads(model)), f"readouts.{t}"
        energies = _spell([(count, 0, 1)])
        if 0 < t == last:
            hidden = _spell([(count * c.readout, 0, 1)])
            yield from _linear(model, f"{here}.linear_1", features[0], hidden)
            yield from _linear(model, f"{here}.linear_2", hidden, energies)
        else:
            yield from _linear(model, f"{here}.linear", features[out_l], energies)


def _interaction_layout(model: Any, c: MACEConfig, t: int) -> Iterator[tuple[str, Any, Any]]:
    """The part of `_layout` of the interaction of layer t."""
    here, in_l, out_l = f"interactions.{t}", c.hidden_l if t else 0, c.out_l(t)
    numbers, f, e = len(c.elements), c.channels, c.sent(t)
    A, h, sent, out = _features(f, c.harmonics_l), _features(f, in_l), _features(e, in_l), _features(f, out_l)
    paths = message_paths((in_l + 1) ** 2, c.harmonics_l)
    messages = [(e, l3, (-1) ** l3) for *_, l3 in paths]
    summed, residual = _spell(_merged(messages)), c.blocks[t].endswith("residual")
    yield from _linear(model, f"{here}.linear_up", h, sent)
    yield from _irreps(model, f"{here}.conv_tp.irreps_in1", sent)
    yield from _irreps(model, f"{here}.conv_tp.irreps_in2", _features(1, c.harmonics_l))
    yield from _irreps(model, f"{here}.conv_tp.irreps_out", _spell(messages))
    needed = [(l1, l2, k, "uvu", True, 2 * l3 + 1, (e, 1)) for k, (l1, l2, l3) in enumerate(paths)]
    yield f"{here}.conv_tp.instructions", _instructions(model, f"{here}.conv_tp"), needed
    yield from _irreps(model, f"{here}.reshape.irreps", A)
    if c.blocks[t] == NONLINEAR:
        of_elements, scalars = _spell([(numbers, 0, 1)]), _features(f, 0)
        gated = _spell(_merged([(f * (c.harmonics_l + 1), 0, 1), *_triples(f, c.harmonics_l)[1:]]))
        yield from _linear(model, f"{here}.source_embedding", of_elements, scalars)
        yield from _linear(model, f"{here}.target_embedding", of_elements, scalars)
        yield from _linear(model, f"{here}.linear_res", sent, gated)
        yield from _linear(model, f"{here}.linear_1", summed, gated)
        yield from _linear(model, f"{here}.linear_2", A, A)
        yield from _linear(model, f"{here}.skip_tp", h, out)
        yield from _gate_layout(model, f"{here}.equivariant_nonlin", f, c.harmonics_l)
        return
    yield from _linear(model, f"{here}.linear", summed, A)
    first, second = (h, out) if residual else (A, A)
    yield from _irreps(model, f"{here}.skip_tp.irreps_in1", first)
    yield from _irreps(model, f"{here}.skip_tp.irreps_in2", _spell([(numbers, 0, 1)]))
    yield from _irreps(model, f"{here}.skip_tp.irreps_out", second)
    squares = {l: round((2 * l + 1) / (f * numbers), 9) for l in _skipped(c, t)}
    needed = [(l, 0, l, "uvw", True, square, (f, numbers, f)) for l, square in squares.items()]
    yield f"{here}.skip_tp.instructions", _instructions(model, f"{here}.skip_tp"), needed


def _gate_layout(model: Any, here: str, f: int, l_max: int) -> Iterator[tuple[str, Any, Any]]:
    """Requires a gate that takes f scalars, then f gates for each l, then the tensors, and gives as many."""
    gates = _merged([(f, 0, 1)] * l_max)
    tensors = _triples(f, l_max)[1:]
    for name, needed in (
        ("irreps_scalars", [(f, 0, 1)]),
        ("irreps_gates", gates),
        ("irreps_gated", tensors),
        ("_irreps_in", _merged([(f, 0, 1), *gates, *tensors])),
        ("_irreps_out", _triples(f, l_max)),
    ):
        path = f"{here}.{name}"
        yield path, _spell(_merged(irreps(at(model, path), path))), _spell(needed)
    if class_of(at(model, here)) == GATE:
        yield f"{here}._layout_is_ir_mul", at(model, f"{here}._layout_is_ir_mul"), False
        for name, needed in (("s_start", 0), ("s_len", f), ("g_start", f), ("g_len", f * l_max)):
            yield f"{here}._{name}", at(model, f"{here}._{name}"), needed
        found = [tuple(its) for its in at(model, f"{here}._gated_info")]
        starts = [f * (l_max + l**2) for l in range(1, l_max + 1)]
        rows = enumerate(starts, start=1)
        needed = [(start, f * (2 * l + 1), 2 * l + 1, f, f * (l - 1)) for l, start in rows]
        yield f"{here}._gated_info", found, needed


def _triples(f: int, l_max: int) -> list[tuple[int, int, int]]:
    """f channels of each l with the parity of the harmonics."""
    return [(f, l, (-1) ** l) for l in range(l_max + 1)]


def _features(f: int, l_max: int) -> str:
    return _spell(_triples(f, l_max))


def _irreps(model: Any, path: str, needed: str) -> Iterator[tuple[str, Any, Any]]:
    yield path, _spell(irreps(at(model, path), path)), needed


def _linear(model: Any, path: str, inputs: str, outputs: str) -> Iterator[tuple[str, Any, Any]]:
    """Requires e3nn's Linear without bias that mixes all inputs of an irrep, in order, into all outputs."""
    ins = irreps(at(model, f"{path}.irreps_in"), f"{path}.irreps_in")
    outs = irreps(at(model, f"{path}.irreps_out"), f"{path}.irreps_out")
    yield f"{path}.irreps_in", _spell(_merged(ins)), inputs
    yield f"{path}.irreps_out", _spell(outs), outputs
    found = [record.args for record in at(model, f"{path}.instructions")]
    needed = [
        (i, o, (n, m), round(1 / sum(each for each, *its in ins if its == irrep), 9))
        for i, (n, *irrep) in enumerate(ins)
        for o, (m, *other) in enumerate(outs)
        if irrep == other
    ]
    yield f"{path}.instructions", [(i, o, shape, round(w**2, 9)) for i, o, shape, w in found], needed


def _instructions(model: Any, path: str) -> list[tuple]:
    """The instructions of a TensorProduct, with the squares of their weights."""
    found = [record.args for record in at(model, f"{path}.instructions")]
    return [(*first, round(weight**2, 9), shape) for *first, weight, shape in found]


def _spell(triples: Sequence[tuple[int, int, int]]) -> str:
    """Irreps in e3nn's notation."""
    return "+".join(f"{n}x{l}{'e' if p == 1 else 'o'}" for n, l, p in triples)


def _merged(triples: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Irreps with equal neighbours merged."""
    merged: list[tuple[int, int, int]] = []
    for n, *irrep in triples:
        if merged and [*merged[-1][1:]] == irrep:
            n += merged.pop()[0]
        merged.append((n, *irrep))
    return merged


def _skipped(c: MACEConfig, layer: int) -> range:
    """The l that the skip connection of a layer mixes: after the sum over neighbours, or around it."""
    around = min(c.hidden_l if layer else 0, c.out_l(layer))
    return range((around if c.blocks[layer].endswith("residual") else c.harmonics_l) + 1)


def _using(c: MACEConfig, L: int, nu: int) -> list[int]:
    """The layers that use the coupling (L, ν)."""
    return [t for t in range(len(c.blocks)) if c.out_l(t) >= L and c.correlation[t] >= nu]


def _coupling(layer: int, L: int, nu: int) -> str:
    return f"products.{layer}.symmetric_contractions.contractions.{L}.U_matrix_{nu}"


def rules(config: MACEConfig) -> list[Rule]:
    """The rules by which tensors become parameters; e3nn keeps those of a layer in one row, l after l."""
    c, f, numbers = config, config.channels, len(config.elements)
    made = [
        Rule(("node_embedding.linear.weight",), ("network/embedding",), partial(_reshaped, (numbers, f))),
        Rule(
            ("atomic_energies_fn.atomic_energies",), ("reference_energies",), partial(_by_number, c.elements)
        ),
        *_constants(c),
    ]
    for t in range(len(c.blocks)):
        out_l = c.out_l(t)
        made += _interaction_rules(c, t)
        source, target = f"products.{t}", f"network/product_{t}"
        for L in range(out_l + 1):
            contraction = f"{source}.symmetric_contractions.contractions.{L}"
            made.append(Rule((f"{contraction}.weights_max",), (f"{target}/l{L}_nu{c.correlation[t]}",)))
            made += [
                Rule((f"{contraction}.weights.{c.correlation[t] - 1 - nu}",), (f"{target}/l{L}_nu{nu}",))
                for nu in range(1, c.correlation[t])
            ]
        made.append(_flat(f"{source}.linear", f"{target}/linear", [(f, f)] * (out_l + 1)))

        source, target = f"readouts.{t}", f"network/readout_{t}"
        shapes = {"linear": (target, (f, 1))}
        if 0 < t == len(c.blocks) - 1:
            shapes = {
                "linear_1": (f"{target}/hidden", (f, c.readout)),
                "linear_2": (f"{target}/out", (c.readout, 1)),
            }
        made += [
            Rule((f"{source}.{layer}.weight",), (name,), partial(_reshaped, shape))
            for layer, (name, shape) in shapes.items()
        ]
    return made


def _interaction_rules(c: MACEConfig, t: int) -> list[Rule]:
    """The rules of the interaction of layer t."""
    source, target = f"interactions.{t}", f"network/interaction_{t}"
    f, e, numbers, in_l = c.channels, c.sent(t), len(c.elements), c.hidden_l if t else 0
    paths = [l3 for *_, l3 in message_paths((in_l + 1) ** 2, c.harmonics_l)]
    nonlinear = c.blocks[t] == NONLINEAR
    # In a non-linear block there are gates beside the scalars.
    outs = [f * (c.harmonics_l + 1) if nonlinear else f] + [f] * c.harmonics_l
    mixed = [(paths.count(l) * e, out) for l, out in enumerate(outs)]
    made = [_flat(f"{source}.linear_up", f"{target}/up", [(f, e)] * (in_l + 1))]
    if nonlinear:
        for name in ("source", "target"):
            shaped = partial(_reshaped, (numbers, f))
            made.append(Rule((f"{source}.{name}_embedding.weight",), (f"{target}/radial/{name}",), shaped))
        return [
            *made,
            *_normed(f"{source}.conv_tp_weights", f"{target}/radial/weights", len(c.radial_widths) + 1),
            *_normed(f"{source}.density_fn", f"{target}/radial/density", 2),
            _flat(f"{source}.linear_res", f"{target}/own", [(e, out) for out in outs[: in_l + 1]]),
            _flat(f"{source}.linear_1", f"{target}/mix", mixed),
            _flat(f"{source}.linear_2", f"{target}/out", [(f, f)] * (c.harmonics_l + 1)),
            _flat(f"{source}.skip_tp", f"{target}/skip", [(f, f) for _ in _skipped(c, t)]),
            Rule((f"{source}.alpha",), (f"{target}/offset",)),
            Rule((f"{source}.beta",), (f"{target}/slope",)),
        ]
    made += [
        Rule((f"{source}.conv_tp_weights.layer{{k}}.weight",), (f"{target}/radial/layer_{{k}}",)),
        _flat(f"{source}.linear", f"{target}/mix", mixed),
        Rule(
            (f"{source}.skip_tp.weight",),
            tuple(f"{target}/skip/l{l}" for l in _skipped(c, t)),
            partial(_by_element, [(f, numbers, f) for _ in _skipped(c, t)]),
        ),
    ]
    if c.blocks[t].startswith("density"):
        made.append(Rule((f"{source}.density_fn.layer0.weight",), (f"{target}/radial/density",)))
    return made


def _normed(source: str, target: str, layers: int) -> Iterator[Rule]:
    """The rules of a RadialMLP: linear layers, with a layer norm and an activation between two of them."""
    for k in range(layers):
        here = f"{target}_{k}"
        yield Rule((f"{source}.net.{3 * k}.weight",), (f"{here}_kernel",), np.transpose)
        yield Rule((f"{source}.net.{3 * k}.bias",), (f"{here}_bias",))
        if k:
            yield Rule((f"{source}.net.{3 * k - 2}.weight",), (f"{here}_scale",))
            yield Rule((f"{source}.net.{3 * k - 2}.bias",), (f"{here}_shift",))


def _constants(c: MACEConfig) -> list[Rule]:
    """Rules for constants of a file that training leaves alone."""
    basis, transform, zbl = (
        "radial_embedding.bessel_fn",
        "radial_embedding.distance_transform",
        "pair_repulsion_fn",
    )
    made = [
        Rule((f"{basis}.bessel_weights",), ("constants/bessel_frequencies",)),
        Rule((f"{basis}.prefactor",), ("constants/bessel_prefactor",)),
        Rule(("scale_shift.scale",), ("constants/scale",)),
        Rule(("scale_shift.shift",), ("constants/shift",)),
    ]
    if c.agnesi:
        made.append(Rule(tuple(f"{transform}.{name}" for name in "aqp"), ("constants/agnesi",), _stacked))
    if c.soft:
        made.append(Rule((f"{transform}.alpha",), ("constants/soft",)))
    if c.repulsion:
        made += [
            Rule((f"{zbl}.c",), ("constants/zbl_coefficients",)),
            Rule((f"{zbl}.a_exp", f"{zbl}.a_prefactor"), ("constants/zbl_length",), _stacked),
        ]
    parts = ((transform, c.agnesi or c.soft), (zbl, c.repulsion))
    radii = [f"{part}.covalent_radii" for part, used in parts if used]
    if radii:
        made.append(Rule(tuple(radii), ("constants/covalent_radii",), _same))
    for L, nu in c.couplings():
        sources = tuple(_coupling(t, L, nu) for t in _using(c, L, nu))
        made.append(
            Rule(sources, (f"constants/coupling/l{L}_nu{nu}",), partial(_folded, c.harmonics_l, L, nu))
        )
    return made


def set_aside(config: MACEConfig) -> dict[str, str]:
    """Patterns of tensors that are not used, each with the reason."""
    return {
        r"atomic_numbers|num_interactions|(radial_embedding\.(bessel|cutoff)_fn\.)?r_max"
        r"|(radial_embedding\.cutoff_fn|pair_repulsion_fn)\.p": "read as hyperparameters",
        r".*\.output_mask": "tells which outputs of a layer can differ from zero",
        r".*\.weights_\w+_zeroed": "tells which weights are zero; they are stored as zeros",
    }


def _flat(source: str, target: str, shapes: Sequence[tuple[int, int]]) -> Rule:
    targets = tuple(f"{target}/l{l}" for l in range(len(shapes)))
    return Rule((f"{source}.weight",), targets, partial(_parts, shapes))


def _parts(shapes: Sequence[tuple[int, ...]], weight: np.ndarray) -> tuple[np.ndarray, ...]:
    """The matrices of all l, which are stored one after the other in a flat tensor."""
    sizes = [math.prod(shape) for shape in shapes]
    if weight.shape != (sum(sizes),):
        raise ValueError(f"found shape {weight.shape}, needed ({sum(sizes)},)")
    pieces = np.split(weight, np.cumsum(sizes)[:-1])
    return tuple(piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True))


def _by_element(shapes: Sequence[tuple[int, int, int]], weight: np.ndarray) -> tuple[np.ndarray, ...]:
    """Parts as of _parts, from (channel, element, channel) to (element, channel, channel)."""
    return tuple(part.transpose(1, 0, 2) for part in _parts(shapes, weight))


def _reshaped(shape: tuple[int, ...], weight: np.ndarray) -> np.ndarray:
    if weight.size != math.prod(shape):
        raise ValueError(f"found shape {weight.shape}, needed one of {math.prod(shape)} elements")
    return weight.reshape(shape)


def _by_number(numbers: tuple[int, ...], energies: np.ndarray) -> np.ndarray:
    """The energies of the elements `numbers` as an array indexed by Z."""
    if energies.shape != (len(numbers),):
        raise ValueError(f"found shape {energies.shape}, needed ({len(numbers)},)")
    made = np.zeros(max(numbers) + 1, energies.dtype)
    made[list(numbers)] = energies
    return made


def _stacked(*numbers: np.ndarray) -> np.ndarray:
    return np.array([number.reshape(()) for number in numbers])


def _same(first: np.ndarray, *others: np.ndarray) -> np.ndarray:
    if any(not np.array_equal(first, other) for other in others):
        raise ValueError("these differ, needed them to be equal")
    return first


def _folded(l_max: int, L: int, nu: int, *tensors: np.ndarray) -> np.ndarray:
    """U_{M, i₁ … i_ν} of all layers, summed over permutations of the i, for the terms that symmetry allows.

    The result is float64 whatever the file has, because sums of float32 numbers do not fit float32.
    """
    U = _same(*tensors).astype(np.float64)
    U = U if L else U[None]
    shape = (2 * L + 1, *[(l_max + 1) ** 2] * nu)
    if U.shape[:-1] != shape:
        raise ValueError(f"found shape {U.shape[:-1]} but for the paths, needed {shape}")
    coefficients = symmetric.folded(U)
    kept = [coefficients.pop(tuple(map(int, row))) for row in symmetric.terms(l_max, L, nu)]
    residue = max((np.abs(row).max() for row in coefficients.values()), default=0.0)
    if residue > RESIDUE:
        raise ValueError(f"a coupling that symmetry forbids is {residue:.1e}, needed 0 with natural parity")
    return np.reshape(kept, (len(kept), U.shape[-1]))
