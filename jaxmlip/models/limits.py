"""Limits of hyperparameters: above those of any published model, and below those that take minutes to build.

Tracing a network takes time for each block and each coupling, however small its parameters are. A file with a
few wrong digits could keep it busy for ever. Meaningless numbers, such as a cutoff that is NaN, are caught
here too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import ml_dtypes
import numpy as np

from jaxmlip.crystals.graph import ELEMENTS
from jaxmlip.models.activations import ACTIVATIONS
from jaxmlip.models.layers import NORMS
from jaxmlip.models.mace import BLOCKS, MACEConfig
from jaxmlip.system.borders import brief, listed

LONGEST_TUPLE = 32  # of blocks, of layers
SPECIES = 16 * ELEMENTS  # elements times functionals

# Hyperparameters of all architectures by name, with the least and the most; for a tuple, of each item.
WHOLE: dict[str, tuple[int, int]] = {
    **dict.fromkeys(
        ("features", "hidden", "channels", "readout", "radial_widths", "edge_channels", "density_width"),
        (1, 4096),
    ),
    **dict.fromkeys(
        ("bond_features", "angle_features", "atom_hidden", "bond_hidden", "angle_hidden"), (1, 4096)
    ),
    **dict.fromkeys(("radial", "angular"), (1, 1024)),
    "blocks": (1, 32),
    "envelope": (1, 64),
    "elements": (1, SPECIES),
    "hidden_l": (0, 5),
    "harmonics_l": (0, 5),
    "correlation": (1, 4),
    "paths": (0, 10_000),
}
LENGTHS = {"bond_cutoff", "angle_cutoff", "cutoff"}
LONGEST_LENGTH = 20.0  # Å
POSITIVE = {"average_neighbours": 1e6, "activation_scale": 100.0, "gate_scale": 100.0}  # with the most
LARGEST = float(np.finfo(np.float32).max)  # of weights: potentials compute in float32 by default
MOST_COUPLINGS = 150_000  # entries of the largest coupling tensor of MACE, whose symmetric part is sought


def check(config: Any, names: Mapping[str, str] | None = None, error: type[ValueError] = ValueError) -> None:
    """Raises `error`, naming each hyperparameter of `config` that is out of its limits, and those limits.

    `names` maps our names to those of a file, if they differ.
    """
    wrong = list(_wrong(config, names or {})) or list(_wrong_together(config))
    if wrong:
        raise error(f"options beyond those of any model: {listed(wrong)}.")


@contextlib.contextmanager
def told(error: type[ValueError]) -> Iterator[None]:
    """Turns the ValueError of a configuration whose options do not fit each other into an `error`."""
    try:
        yield
    except error:
        raise
    except ValueError as wrong:
        raise error(f"options beyond those of any model: {wrong}") from wrong


def fault_of(tensor: np.ndarray) -> str:
    """The reason why the numbers of `tensor` cannot be weights; empty if they can."""
    if tensor.dtype.kind != "f" and tensor.dtype != ml_dtypes.bfloat16:
        return f"found {tensor.dtype}, needed floating-point numbers"
    if tensor.dtype == ml_dtypes.bfloat16:
        tensor = tensor.astype(np.float32)
    if tensor.size and not float(np.max(np.abs(tensor))) <= LARGEST:  # NaN compares false, too
        found = np.isnan(tensor).any()
        return f"found {'NaN' if found else 'infinity, or numbers beyond float32'}, needed finite numbers"
    return ""


def _wrong(config: Any, names: Mapping[str, str]) -> Iterator[str]:
    for field in fields(config):
        name, found = field.name, getattr(config, field.name)
        needed = _needed(config, name, str(field.type), found)
        if needed:
            yield f"{names.get(name, name)}={brief(found)} (needed {needed})"


def _needed(config: Any, name: str, kind: str, found: Any) -> str:
    """The requirement that the hyperparameter called `name` fails; empty if it is met."""
    if kind == "bool":
        return "" if isinstance(found, bool) else "true or false"
    if kind.endswith(" | None") and found is None:
        return ""
    if name == "activation":
        return "" if isinstance(found, str) and found in ACTIVATIONS else f"one of {', '.join(ACTIVATIONS)}"
    if name == "norms":
        known = isinstance(found, tuple) and len(found) == 3 and all(map(NORMS.__contains__, found))
        return "" if known else f"three of {', '.join(NORMS)}"
    if name == "blocks" and isinstance(config, MACEConfig):
        known = isinstance(found, tuple) and 1 <= len(found) <= LONGEST_TUPLE and set(found) <= set(BLOCKS)
        return "" if known else f"1 to {LONGEST_TUPLE} of {', '.join(BLOCKS)}"
    if name in LENGTHS:
        sound = _is_number(found) and 0 < found <= LONGEST_LENGTH
        return "" if sound else f"a length above 0, up to {LONGEST_LENGTH:g} Å"
    if name in POSITIVE:
        sound = _is_number(found) and 0 < found <= POSITIVE[name]
        return "" if sound else f"a number above 0, up to {POSITIVE[name]:g}"
    least, most = WHOLE[name]
    if kind.startswith("int"):
        return "" if _is_whole(found, least, most) else f"a whole number from {least} to {most}"
    longest = most if name == "elements" else LONGEST_TUPLE
    sound = isinstance(found, tuple) and len(found) <= longest
    if sound and all(_is_whole(item, least, most) for item in found):
        return ""
    return f"up to {longest} whole numbers from {least} to {most}"


def _wrong_together(config: Any) -> Iterator[str]:
    """Faults that single hyperparameters do not show."""
    if getattr(config, "angle_cutoff", 0) > getattr(config, "bond_cutoff", 0):
        yield f"angle_cutoff={config.angle_cutoff} (needed at most bond_cutoff={config.bond_cutoff})"
    if not isinstance(config, MACEConfig):
        return
    species = config.elements
    if not species or len(set(species)) != len(species):
        yield f"elements={brief(species)} (needed different ones)"
    if _entries(config) > MOST_COUPLINGS:
        yield (
            f"hidden_l={config.hidden_l}, harmonics_l={config.harmonics_l} and correlation="
            f"{max(config.correlation)} (needed ones with at most {MOST_COUPLINGS:,} couplings)"
        )
    elif config.paths and len(config.paths) != len(config.couplings()):
        yield f"{len(config.paths)} of paths (needed {len(config.couplings())}, one for each coupling)"


def _entries(config: MACEConfig) -> int:
    return (config.hidden_l + 1) ** 2 * (config.harmonics_l + 1) ** (2 * max(config.correlation))


def _is_number(found: Any) -> bool:
    return type(found) in (int, float)


def _is_whole(found: Any, least: int, most: int) -> bool:
    return type(found) is int and least <= found <= most
