"""Writes checkpoints as torch does, and as an attacker would, without torch.

A pickle is put together from pieces: each function here returns the bytes that leave one object on the stack.
"""

from __future__ import annotations

import itertools
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from weights_convert.original_mattersim import constants as mattersim_constants

STORAGE_NAMES = {
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.int32): "IntStorage",
    np.dtype(np.int16): "ShortStorage",
    np.dtype(np.int8): "CharStorage",
    np.dtype(np.uint8): "ByteStorage",
    np.dtype(np.bool_): "BoolStorage",
}


def plain(value: Any) -> bytes:
    """Numbers, text, and tuples, lists and dictionaries of them."""
    return pickle.dumps(value, 2)[2:-1]  # without the protocol and the stop


def name(module: str, attribute: str) -> bytes:
    return b"c" + f"{module}\n{attribute}\n".encode()


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def dict_of(items: Mapping[Any, bytes]) -> bytes:
    return b"}(" + b"".join(plain(key) + value for key, value in items.items()) + b"u"


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    return name(module, attribute) + tuple_of(*arguments) + b"R"


def with_state(thing: bytes, state: bytes) -> bytes:
    return thing + state + b"b"


def storage(key: str, kind: str, count: int) -> bytes:
    pieces = (plain("storage"), name("torch", kind), plain(key), plain("cpu"), plain(count))
    return tuple_of(*pieces) + b"Q"


def tensor(stored: bytes, offset: int, size: tuple, stride: tuple) -> bytes:
    hooks = call("collections", "OrderedDict")
    rest = (plain(offset), plain(size), plain(stride), plain(False), hooks)
    return call("torch._utils", "_rebuild_tensor_v2", stored, *rest)


def write(
    path: Path,
    content: bytes,
    storages: Mapping[str, bytes] | None = None,
    stop: bytes = b".",
    **options: Any,
) -> Path:
    """A zip checkpoint around the pickle `content`, which ends with `stop`; `options` go to zipfile."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + content + stop)
        archive.writestr("archive/byteorder", "little")
        for key, raw in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", raw)
        archive.writestr("archive/version", "3\n")
    return path


def save(path: Path, value: Any) -> Path:
    """Writes dictionaries of arrays and plain values as torch.save writes dictionaries of tensors."""
    storages: dict[str, bytes] = {}

    def piece(value: Any) -> bytes:
        if isinstance(value, np.ndarray):
            key = str(len(storages))
            storages[key] = np.ascontiguousarray(value).tobytes()
            stride = tuple(step // value.itemsize for step in np.empty_like(value, order="C").strides)
            return tensor(storage(key, STORAGE_NAMES[value.dtype], value.size), 0, value.shape, stride)
        if isinstance(value, Mapping):
            return dict_of({key: piece(item) for key, item in value.items()})
        return plain(value)

    return write(path, piece(value), storages)


def small_chgnet(norm: bool = True, output_bias: bool = False) -> dict[str, Any]:
    """A checkpoint in chgnet's layout of a tiny network, each number in it different from the others.

    Lithium and oxygen occurred in its training; hydrogen did not; it stops at oxygen.
    """
    f, radial, angular, blocks, elements = 4, 5, 3, 3, 94
    shapes: dict[str, tuple[int, ...]] = {
        "composition_model.fc.weight": (1, elements),
        "atom_embedding.embedding.weight": (elements, f),
        "bond_basis_expansion.rbf_expansion_ag.frequencies": (radial,),
        "bond_basis_expansion.rbf_expansion_bg.frequencies": (radial,),
        "bond_embedding.weight": (f, radial),
        "bond_weights_ag.weight": (f, radial),
        "bond_weights_bg.weight": (f, radial),
        "angle_basis_expansion.fourier_expansion.frequencies": (angular // 2,),
        "angle_embedding.weight": (f, angular),
        "site_wise.weight": (1, f),
        "site_wise.bias": (1,),
        "mlp.layers.0.weight": (f, f),
        "mlp.layers.0.bias": (f,),
        "mlp.layers.3.weight": (1, f),
        "mlp.layers.3.bias": (1,),
    }
    if norm:
        shapes |= {"readout_norm.weight": (f,), "readout_norm.bias": (f,)}

    def gated(prefix: str, inputs: int, hidden: bool) -> None:
        first = 0 if hidden else 1
        for gate in ("core", "gate"):
            shapes[f"{prefix}.mlp_{gate}.layers.{first}.weight"] = (f, inputs)
            shapes[f"{prefix}.mlp_{gate}.layers.{first}.bias"] = (f,)
            if hidden:
                shapes[f"{prefix}.mlp_{gate}.layers.3.weight"] = (f, f)
                shapes[f"{prefix}.mlp_{gate}.layers.3.bias"] = (f,)
        for n in (1, 2) if norm else ():
            shapes[f"{prefix}.bn{n}.weight"] = shapes[f"{prefix}.bn{n}.bias"] = (f,)

    for t in range(blocks):
        layers = [("atom_conv_layers", "twoBody_atom", 3)]
        if t < blocks - 1:
            layers += [("bond_conv_layers", "twoBody_bond", 4), ("angle_layers", "twoBody_bond", 4)]
        for layer, gate, inputs in layers:
            gated(f"{layer}.{t}.{gate}", inputs * f, hidden=layer != "angle_layers")
            if layer != "angle_layers":
                shapes[f"{layer}.{t}.mlp_out.layers.1.weight"] = (f, f)
                if output_bias:
                    shapes[f"{layer}.{t}.mlp_out.layers.1.bias"] = (f,)

    state, start = {}, 1
    for key, shape in shapes.items():
        count = int(np.prod(shape))
        state[key] = np.arange(start, start + count, dtype=np.float32).reshape(shape) / 64
        start += count
    arguments = {
        **dict.fromkeys(("atom_fea_dim", "bond_fea_dim", "angle_fea_dim"), f),
        **dict.fromkeys(("atom_conv_hidden_dim", "bond_conv_hidden_dim"), f),
        **dict.fromkeys(("gMLP_norm", "readout_norm"), "layer" if norm else None),
        "num_radial": radial,
        "num_angular": angular,
        "n_conv": blocks,
        "mlp_hidden_dims": [f],
        "atom_graph_cutoff": 5,
        "bond_graph_cutoff": 3,
        "cutoff_coeff": 8,
        "update_bond": True,
    }
    squares = np.zeros((elements, f), np.float32)
    squares[[2, 7]] = 1e-9
    return {
        "model": {"state_dict": state, "model_args": arguments},
        "optimizer": {"state": {1: {"step": 3, "exp_avg_sq": squares}}, "param_groups": []},
    }


def small_m3gnet(smooth: bool = True) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """state.pt and model.json in matgl's layout of a tiny network, each number different from the others.

    Its elements are oxygen, hydrogen and magnesium, in this order.
    """
    f, hidden, radial, angular, blocks = 4, 3, 2, 3, 2
    h = radial if smooth else radial * angular
    shapes: dict[str, tuple[int, ...]] = {
        "data_std": (),
        "element_refs.property_offset": (3,),
        "model.embedding.layer_node_embedding.weight": (3, f),
    }

    def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def gated(name: str, *widths: int, bias: bool = True) -> None:
        for side in ("layers", "gates"):
            for k, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
                linear(f"{name}.{side}.{2 * k}", inputs, outputs, bias)

    linear("model.embedding.layer_edge_embedding.layers.0", h, f)
    for t in range(blocks):
        three_body, conv = f"model.three_body_interactions.{t}", f"model.graph_layers.{t}.conv"
        linear(f"{three_body}.update_network_atom.layers.0", f, radial * angular)
        gated(f"{three_body}.update_network_bond", radial * angular, f, bias=False)
        for kind in ("edge", "node"):
            gated(f"{conv}.{kind}_update_func", 3 * f, hidden, hidden, f)
            linear(f"{conv}.{kind}_weight_func", h, f, bias=False)
    gated("model.final_layer.gated", f, f, hidden, hidden, 1)

    state, start = {}, 1
    for key, shape in shapes.items():
        count = int(np.prod(shape))
        state[key] = np.asarray(np.arange(start, start + count, dtype=np.float32).reshape(shape) / 64)
        start += count
    state |= {
        "data_mean": np.zeros((), np.float32),
        "element_refs.onehot": np.eye(3, dtype=np.float32),
        "model.bond_expansion.rbf.cutoff": np.array(5, np.float32),
        "model.basis_expansion.sbf.cutoff": np.array(5, np.float32),
    }
    options = {
        "element_types": ["O", "H", "Mg"],
        **dict.fromkeys(("dim_node_embedding", "dim_edge_embedding"), f),
        "units": hidden,
        "max_n": radial,
        "max_l": angular,
        "nblocks": blocks,
        "cutoff": 5.0,
        "threebody_cutoff": 4.0,
        "use_smooth": smooth,
        "use_phi": False,
        "include_state": False,
        "is_intensive": False,
        "readout_type": "weighted_atom",
        "field": "node_feat",
        "rbf_type": "SphericalBessel",
        "activation_type": "swish",
        "task_type": "regression",
        "ntargets": 1,
    }
    network = {"@class": "M3GNet", "@model_version": 2, "init_args": options}
    return state, {"@class": "Potential", "kwargs": {"model": network, "calc_repuls": False}}


def small_matgl_chgnet() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """state.pt and model.json of a tiny CHGNet of matgl in its older layout, each number a different one.

    Its elements are oxygen, hydrogen and magnesium, in this order.
    """
    f, radial, angular, blocks = 4, 3, 2, 3
    shapes: dict[str, tuple[int, ...]] = {
        "data_std": (),
        "element_refs.property_offset": (3,),
        "model.bond_expansion.frequencies": (radial,),
        "model.threebody_bond_expansion.frequencies": (radial,),
        "model.angle_expansion.frequencies": (angular + 1,),
        "model.atom_embedding.weight": (3, f),
        "model.bond_embedding.layers.0.weight": (f, radial),
        "model.angle_embedding.layers.0.weight": (f, 2 * angular + 1),
        "model.sitewise_readout.weight": (1, f),
        "model.sitewise_readout.bias": (1,),
        **{f"model.{kind}_bond_weights.weight": (f, radial) for kind in ("atom", "bond", "threebody")},
    }

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (f,)

    def layers(name: str, *widths: int) -> None:
        for k, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            shapes[f"{name}.layers.{k}.weight"] = (outputs, inputs)
            shapes[f"{name}.layers.{k}.bias"] = (outputs,)

    def gated(name: str, *widths: int) -> None:
        for side in ("layers", "gates"):
            layers(f"{name}.{side}", *widths)
            norm(f"{name}.{side}.norm_layers.0")

    for t in range(blocks):
        atoms, bonds = f"model.atom_graph_layers.{t}", f"model.bond_graph_layers.{t}.conv_layer"
        for kind in ("node", "edge"):
            gated(f"{atoms}.conv_layer.{kind}_update_func", 3 * f, f, f)
        shapes[f"{atoms}.conv_layer.node_out_func.weight"] = (f, f)
        norm(f"{atoms}.atom_norm")
        norm(f"{atoms}.bond_norm")
        if t < blocks - 1:
            gated(f"{bonds}.node_update_func", 4 * f, f, f)
            shapes[f"{bonds}.node_out_func.weight"] = (f, f)
            gated(f"{bonds}.edge_update_func", 4 * f, f)
    layers("model.final_layer", f, 5, 1)
    state, start = {}, 1
    for key, shape in shapes.items():
        count = int(np.prod(shape))
        state[key] = np.asarray(np.arange(start, start + count, dtype=np.float32).reshape(shape) / 64)
        start += count
    state |= {"data_mean": np.zeros((), np.float32), "element_refs.onehot": np.eye(3, dtype=np.float32)}
    options = {
        "element_types": ["O", "H", "Mg"],
        **dict.fromkeys(("dim_atom_embedding", "dim_bond_embedding", "dim_angle_embedding"), f),
        **dict.fromkeys(("dim_state_embedding", "dim_state_feats", "layer_bond_weights")),
        **dict.fromkeys(("non_linear_bond_embedding", "non_linear_angle_embedding"), False),
        "cutoff": 5.0,
        "threebody_cutoff": 3.0,
        "cutoff_exponent": 5,
        "max_n": radial,
        "max_f": angular,
        "learn_basis": False,
        "num_blocks": blocks,
        "shared_bond_weights": "both",
        "atom_conv_hidden_dims": [f],
        "bond_update_hidden_dims": [f],
        "bond_conv_hidden_dims": [f],
        "angle_update_hidden_dims": [],
        "conv_dropout": 0.0,
        "final_mlp_type": "mlp",
        "final_hidden_dims": [5],
        "final_dropout": 0.0,
        "pooling_operation": "sum",
        "readout_field": "atom_feat",
        "activation_type": "swish",
        "normalization": "layer",
        "normalize_hidden": False,
        "is_intensive": False,
        "num_targets": 1,
        "num_site_targets": 1,
        "task_type": "regression",
    }
    network = {
        "@class": "CHGNet",
        "@module": "matgl.models._chgnet",
        "@model_version": 1,
        "init_args": options,
    }
    return state, {"@class": "Potential", "kwargs": {"model": network, "calc_repuls": False}}


def small_mattersim() -> dict[str, Any]:
    """A checkpoint in mattersim's layout of a tiny network of five elements, with different numbers."""
    f, count, blocks, elements = 4, 2, 2, 5
    shapes: dict[str, tuple[int, ...]] = {
        "atom_embedding.mlp.0.linear.weight": (f, elements + 1),
        "edge_encoder.mlp.0.linear.weight": (f, count),
        "normalizer.scale": (elements + 1,),
        "normalizer.shift": (elements + 1,),
    }

    def gated(name: str, *widths: int, bias: bool = True) -> None:
        for side in ("g", "sigma"):
            for k, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
                shapes[f"{name}.{side}.{k}.linear.weight"] = (outputs, inputs)
                if bias:
                    shapes[f"{name}.{side}.{k}.linear.bias"] = (outputs,)

    for t in range(blocks):
        block = f"graph_conv.{t}"
        for kind in ("atom", "edge"):
            gated(f"{block}.gated_mlp_{kind}", 3 * f, f, f)
            shapes[f"{block}.edge_layer_{kind}.linear.weight"] = (f, count)
        shapes[f"{block}.three_body.atom_mlp.linear.weight"] = (count**2, f)
        shapes[f"{block}.three_body.atom_mlp.linear.bias"] = (count**2,)
        gated(f"{block}.three_body.edge_gate_mlp", count**2, f, bias=False)
    gated("final", f, f, f, 1)
    state, start = {}, 1
    for key, shape in shapes.items():
        size = int(np.prod(shape))
        state[key] = np.arange(start, start + size, dtype=np.float32).reshape(shape) / 64
        start += size
    known = {name: x.astype(np.float32) for name, x in mattersim_constants(count, 5.0).items()}
    options = {
        "num_blocks": blocks,
        "units": f,
        "max_l": count,
        "max_n": count,
        "cutoff": 5.0,
        "max_z": elements,
        "threebody_cutoff": 4.0,
    }
    return {
        "model_name": "m3gnet",
        "model": state | known,
        "model_args": options,
        "optimizer": {"state": {}, "param_groups": []},
        "ema": {"decay": 0.99, "num_updates": 0, "collected_params": None},
        "scheduler": {"step_size": 10},
        "last_epoch": 3,
        "validation_metrics": {"loss": 0.1},
        "description": "tiny",
    }


def save_matgl(folder: Path, state: Mapping[str, np.ndarray], options: Any) -> Path:
    """Writes the two files of a network of matgl into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "state.pt", state)
    (folder / "model.json").write_text(json.dumps(options))
    return folder
