"""The YAML file of a sweep."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmlip.training.config import ConfigError, from_mapping, read_mapping
from jaxmlip.training.sweeps.sweep import Run, check

MOST = 10_000  # runs
EXAMPLE = """\
# The configuration that all runs share: keys of `jaxmlip train --example`, or the path of such a file.
base:
  model: {architecture: m3gnet}
  data: {train: [crystals.extxyz]}
  epochs: 50
# A run for each combination of these values.
vary:
  seed: [0, 1, 2]
  optimizer.learning_rate: [1e-3, 1e-4]
# Instead of vary, or combined with it: a list of changes.
# runs:
#   - {name: narrow, model.hyperparameters.features: 32}
#   - {name: wide, model.hyperparameters.features: 128, batch_size: 16}
"""


def read_sweep(path: str | Path) -> list[Run]:
    """The runs of a YAML file with `base` and `vary`, `runs`, or both; see EXAMPLE.

    `vary` has a list of values for each of its keys, and each combination is a run. Each entry of `runs` has
    changes, and may have a name. Paths are relative to the folder that the command is started in. Raises
    ConfigError, naming the run, as `read_config` does, and if two runs would be the same.
    """
    found = read_mapping(path, "`jaxmlip sweep --example`")
    try:
        return _runs(found)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _runs(found: Mapping[str, Any]) -> list[Run]:
    unknown = [key for key in found if key not in ("base", "vary", "runs")]
    if unknown:
        raise ConfigError(
            f"{unknown[0]} is no key of a sweep, needed base, vary or runs. Keys of a run go below base."
        )
    base = found.get("base")
    if isinstance(base, str):
        base = read_mapping(base, "`jaxmlip train --example`")
    if not isinstance(base, dict):
        raise ConfigError("base: needed the keys of a configuration, or the path of a file with them.")
    axes, entries = _axes(found.get("vary")), _entries(found.get("runs"))
    count = len(entries) * math.prod(len(values) for values in axes.values())
    if count > MOST:
        raise ConfigError(f"found {count:,} runs, needed {MOST:,} at most.")
    short = _short([*axes, *(key for changes in entries for key in changes)])
    runs = []
    for changes, values in itertools.product(entries, itertools.product(*axes.values())):
        own = {key: value for key, value in changes.items() if key != "name"}
        varied = dict(zip(axes, values, strict=True))
        if both := own.keys() & varied.keys():
            raise ConfigError(f"found {both.pop()} in vary and in runs, needed it in only one of them.")
        told = [f"{short[key]}={_told(value)}" for key, value in varied.items()]
        if "name" in changes:
            told.insert(0, changes["name"])
        else:
            told = [f"{short[key]}={_told(value)}" for key, value in own.items()] + told
        name = ",".join(told) or "base"
        try:
            runs.append(Run(name, from_mapping(base, own | varied).checked()))
        except (ConfigError, ValueError) as error:
            raise ConfigError(f"run {name}: {error}") from None
    check(runs)
    names: dict[str, str] = {}
    for run in runs:
        if (other := names.setdefault(run.digest, run.name)) != run.name:
            raise ConfigError(f"runs {other} and {run.name} compute the same; leave out one of them.")
    return runs


def _axes(vary: Any) -> dict[str, list[Any]]:
    if vary is None:
        return {}
    if not isinstance(vary, dict):
        raise ConfigError("vary: needed keys with lists of values, such as seed: [0, 1, 2].")
    for key, values in vary.items():
        if not isinstance(key, str) or not isinstance(values, list) or not values:
            raise ConfigError(
                f"vary.{key}: found {values!r:.60}, needed a list of values, such as seed: [0, 1, 2], "
                "or with a section optimizer.learning_rate: [1e-3, 1e-4]."
            )
    return vary


def _entries(runs: Any) -> list[dict[str, Any]]:
    if runs is None:
        return [{}]
    if not isinstance(runs, list) or not runs:
        raise ConfigError("runs: needed a list of changes, such as - {name: wide, batch_size: 64}.")
    for k, changes in enumerate(runs):
        if not isinstance(changes, dict) or not all(isinstance(key, str) for key in changes):
            raise ConfigError(
                f"runs[{k}]: found {changes!r:.60}, needed keys with values, such as {{batch_size: 64}}."
            )
        if not isinstance(changes.get("name", ""), str):
            raise ConfigError(f"runs[{k}].name: found {changes['name']!r:.60}, needed text.")
    return runs


def _short(keys: list[str]) -> dict[str, str]:
    """The last part of each key, or the whole key if others end in the same part."""
    last = {key: key.rpartition(".")[2] for key in keys}
    return {key: its if list(last.values()).count(its) == 1 else key for key, its in last.items()}


def _told(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(_told, value))
    return "none" if value is None else str(value)
