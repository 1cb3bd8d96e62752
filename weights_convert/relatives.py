"""Harmless files that hold these potentials in an unsupported form: names each form, and says what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from weights_convert.modules import class_of
from weights_convert.torch_zip import Record

# A tensor that each of these networks has; its name identifies a state dict without a layout.
SIGNS = {
    "composition_model.fc.weight": "CHGNet",
    "node_embedding.linear.weight": "MACE",
    "model.embedding.layer_node_embedding.weight": "M3GNet",
    "model.atom_bond_weights.weight": "CHGNet of matgl",
    "atom_embedding.mlp.0.linear.weight": "MatterSim",
}
ADVICE = {
    "CHGNet": "Save both from Python: torch.save({'model': model.as_dict()}, FILE).",
    "MACE": (
        "Kinds of blocks and avg_num_neighbors, a number of the training data, are in no tensor. Take "
        "the .model file that mace_run_train writes when it ends. If the run was interrupted, call it again "
        "with the same options, --restart_latest and --max_num_epochs N, for the N in the name …_epoch-N.pt: "
        "it writes that file without another step."
    ),
    "M3GNet": "Give the folder that it lies in, with model.json: matgl saves both.",
    "CHGNet of matgl": "Give the folder that it lies in, with model.json: matgl saves both.",
    "MatterSim": "Save both from Python: Potential(model).save(FILE).",
}


def remedy(checkpoint: Any) -> str:
    """A description of `checkpoint` with a remedy; empty if it has none of the known forms."""
    if isinstance(checkpoint, Record):
        return _of_module(checkpoint)
    if not isinstance(checkpoint, Mapping):
        return ""
    inner = checkpoint.get("model")
    if isinstance(inner, Record) and class_of(inner).startswith("mace."):
        return (
            "it holds a whole MACE under the key 'model'. Save it alone: torch.save(torch.load(FILE, "
            "weights_only=False)['model'], NEW)."
        )
    if isinstance(inner, Record):
        return _of_module(inner)
    if {"state_dict", "model_args"} <= set(checkpoint):
        return (
            "it holds what CHGNet.as_dict() gives, needed that under the key 'model': torch.save({'model': "
            "torch.load(FILE)}, NEW)."
        )
    for state in (checkpoint, inner):
        name = next((SIGNS[sign] for sign in SIGNS if isinstance(state, Mapping) and sign in state), None)
        if name and isinstance(next(iter(state.values())), np.ndarray):
            kind = "a bare state dict" if state is checkpoint else "a state dict"
            return (
                f"it holds {kind} of {len(state)} tensors of a {name}, without the options of the network. "
                + ADVICE[name]
            )
    return ""


def _of_module(module: Record) -> str:
    """Does the same as `remedy` for a whole module as torch.save pickles it."""
    package, *_, name = class_of(module).split(".")
    if package == "chgnet":
        return (
            f"it holds a whole {name} of chgnet as one object, needed its weights and options. Save them "
            "where chgnet is: torch.save({'model': model.as_dict()}, FILE)."
        )
    if package == "matgl" and name in ("M3GNet", "CHGNet", "Potential"):
        return (
            f"it holds a whole {name} of matgl as one object, needed the folder that its Potential's save "
            "method writes, with state.pt and model.json."
        )
    if package == "mattersim":
        return (
            f"it holds a whole {name} of mattersim as one object, needed its weights and options, as its "
            "Potential's save method writes them."
        )
    if package == "matgl":
        return (
            f"it holds a {name} of matgl, which is not read here; of matgl M3GNets and CHGNets are, as "
            "folders with state.pt and model.json."
        )
    return f"it holds a {class_of(module)} as one object, of no known architecture. " + (
        "Needed a file or folder of the trainers of chgnet, matgl, mace-torch or mattersim."
    )
