"""The record of a training run: a folder with its settings, its versions and its results."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxmlip.data.labels import PROPERTIES
from jaxmlip.derivatives.memory_plan import gb
from jaxmlip.system.begun import changes, described
from jaxmlip.system.files import is_remain, write_whole
from jaxmlip.system.locks import LOCK
from jaxmlip.system.versions import versions
from jaxmlip.training.config import ConfigError, TrainConfig, flat, read_config, to_yaml
from jaxmlip.training.loop import (
    Compiled,
    Event,
    NotSaved,
    Resumed,
    Saved,
    Stopped,
    Trained,
    Validated,
    taken,
)
from jaxmlip.training.losses import UNITS

CONFIG, VERSIONS, METRICS, RESULTS = "config.yaml", "versions.json", "metrics.jsonl", "results.json"
PACKAGES = ("jaxmlip", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "ase")
# Settings that may differ when a run goes on: they do not change what is computed.
FREE = ("devices", "tensorboard", "wandb", "final", "checkpoint_every", "keep", "report_every")
LENGTH = ("epochs", "steps")  # these may grow once a run has taken all of its steps
EVERY = 10.0  # seconds between lines if there is no terminal


class RunFolderError(ValueError):
    """A run cannot use a folder. The message says what was found and what to do."""


def check_folder(folder: str | Path, config: TrainConfig) -> None:
    """Raises RunFolderError if `folder` holds something else, or a run with another configuration.

    A run that has taken all of its steps may now have more `epochs` or `steps`.
    """
    folder, config = Path(folder), config.absolute()
    begun = folder / CONFIG
    if begun.is_file():
        before = read_config(begun)
        changed = changes(flat(before), flat(config), FREE)
        done = taken(folder)
        longer = changed.keys() <= set(LENGTH) and _grows(before, config, done)
        # Without start/ it never came to the first step.
        if changed and (folder / "start").exists() and not (longer and done is not None):
            why = (
                "More epochs or steps are possible once a run has taken all of its own; this one was "
                "interrupted, or stopped by patience. Go on"
                if longer
                else "A finished run can get more epochs or steps if all else is the same. Go on"
            )
            raise RunFolderError(
                f"{folder} holds a run with another configuration. {why} with its own configuration (jaxmlip "
                f"train {begun} --out {folder}), or give another folder:\n  {described(changed)}"
            )
    elif folder.exists() and (
        not folder.is_dir() or any(p.name != LOCK and not is_remain(p) for p in folder.iterdir())
    ):
        raise RunFolderError(
            f"{folder} is {'not empty' if folder.is_dir() else 'a file'} and not the folder of a run (it has "
            f"no {CONFIG}); give a new one."
        )


def _grows(before: TrainConfig, now: TrainConfig, done: int | None) -> bool:
    """True if a run has taken all of its `done` steps and is to get more."""
    if now.steps is None:
        return before.steps is None and now.epochs > before.epochs
    return now.steps > (before.steps or done or 0)


def open_folder(folder: str | Path, config: TrainConfig) -> Path:
    """Makes the folder of a run, unless it exists, and writes the configuration and versions.

    Raises RunFolderError as `check_folder` does.
    """
    check_folder(folder, config)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / CONFIG, to_yaml(config.absolute()))
    starts = []
    with suppress(OSError, ValueError):
        starts = json.loads((folder / VERSIONS).read_text())["starts"]
    write_whole(
        folder / VERSIONS,
        json.dumps({"starts": [*starts, {"seed": config.seed, **circumstances()}]}, indent=1) + "\n",
    )
    return folder


def circumstances() -> dict[str, Any]:
    """The circumstances of a run: versions, commit, devices, command line, time."""
    import jax

    devices = jax.devices()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "packages": versions(*PACKAGES),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": _commit(),
        "devices": {"number": len(devices), "kind": devices[0].device_kind, "platform": devices[0].platform},
        "processes": jax.process_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _commit() -> dict[str, Any] | None:
    """The commit of the checkout that this code runs from, and whether its files differ; None without one."""
    package = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(package), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # fails for a package inside another checkout
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "."))}
    except (OSError, subprocess.SubprocessError):
        return None


class Records:
    """Writes the events of a run to metrics.jsonl, TensorBoard, wandb, and a progress bar or lines.

    Use it as a context manager, and call it with each event. If a run goes on, the lines of steps that are
    done again are removed.
    """

    def __init__(
        self, folder: Path, config: TrainConfig, steps: int, say: Callable[[str], None] | None = None
    ):
        from jaxmlip.system.console import Telling, console, tells

        self.folder, self.config, self.steps = folder, config, steps
        self._console = console(stderr=True, quiet=not tells(Telling.USUAL))
        self._say = say or (lambda line: self._console.print(line, soft_wrap=True))
        self._live = self._bar = self._task = self._lines = self._board = self._wandb = None
        self._told = -math.inf
        self._news: dict[str, tuple[int, str]] = {}  # by training and validation: the step, and the text

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        for sink in (self._lines, self._board):
            if sink is not None:
                sink.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __call__(self, event: Event) -> None:
        if self._lines is None:
            self._open(event.step if isinstance(event, Resumed) else -1)
        match event:
            case Compiled():
                needs = event.needs._asdict()
                self._write("compiled", event, {**needs, "seconds": event.seconds})
                self._say(
                    f"a step: {gb(event.needs.memory)} besides the {gb(event.needs.held)} of the process, "
                    f"{event.needs.flops / 1e9:.3g} GFLOP; compiled in {event.seconds:.0f} s"
                )
            case Trained():
                speed = {
                    "crystals_per_s": event.crystals_per_second,
                    "atoms_per_s": event.atoms_per_second,
                    "waiting": event.waiting,
                }
                self._write("train", event, {**event.metrics, **speed})
                self._tell("train", event.step, _train_words(event))
            case Validated():
                self._write("validation", event, {**event.metrics, "best": event.best})
                words = _validation_words(event.metrics) + (" (best)" if event.best else "")
                self._tell("validation", event.step, words)
            case Saved():
                self._write("saved", event, {"path": str(event.path.relative_to(self.folder.absolute()))})
            case NotSaved():
                self._write("not saved", event, {"message": event.message})
            case Resumed():
                self._write("resumed", event, {})
                self._say(f"going on after step {event.step} of {self.steps}")
            case Stopped():
                self._write("stopped", event, {"reason": event.reason})
                self._show(event.step, last=True)
                self._say(f"stopped after step {event.step}: {event.reason}")

    def _open(self, step: int) -> None:
        path = self.folder / METRICS
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
        self._lines = path.open("a", encoding="utf-8")
        if self.config.tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)
        if self.config.wandb:
            self._wandb = _wandb(self.folder, self.config)
        if self._console.is_terminal:
            from rich.live import Live
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

            self._bar = Progress(
                MofNCompleteColumn(), BarColumn(40), TimeRemainingColumn(), console=self._console
            )
            self._task = self._bar.add_task("", total=self.steps, completed=max(step, 0))
            self._live = Live(self._bar, console=self._console, refresh_per_second=4)
            self._live.start()

    def _write(self, kind: str, event: Event, values: Mapping[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"kind": kind, "step": event.step}
        if hasattr(event, "epoch"):
            line["epoch"] = event.epoch
        line |= {"time": now} | {name: _finite(x) for name, x in values.items()}
        self._lines.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        self._lines.flush()
        numbers = {
            f"{kind}/{name}": x
            for name, x in line.items()
            if name not in ("step", "best") and isinstance(x, int | float)
        }
        if self._board is not None:
            for name, x in numbers.items():
                self._board.add_scalar(name, x, event.step)
        if self._wandb is not None and numbers:
            self._wandb.log(numbers, step=event.step)

    def _tell(self, what: str, step: int, words: str) -> None:
        self._news[what] = step, words
        self._show(step)

    def _show(self, step: int, last: bool = False) -> None:
        """Shows the news on a terminal; elsewhere prints a line from time to time, and the last one."""
        words = [
            words if of == step else f"step {of}: {words}"
            for of, words in (self._news[what] for what in ("train", "validation") if what in self._news)
        ]
        if self._live is not None:
            from rich.console import Group
            from rich.text import Text

            self._bar.update(self._task, completed=step)
            self._live.update(Group(self._bar, *map(Text, words)))
        elif words and (last or time.monotonic() - self._told >= EVERY):
            self._news, self._told = {}, time.monotonic()
            self._say("; ".join([f"step {step}/{self.steps}", *words]))


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl up to the first one that was cut off, for example by a full disk."""
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    found = []
    for line in raw.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int) or "kind" not in entry:
            break
        found.append(entry)
    return found


def _train_words(event: Trained) -> str:
    m = event.metrics
    parts = [f"epoch {event.epoch:.1f}", f"loss {m['loss']:.4g}", f"lr {m['learning_rate']:.1e}"]
    if event.crystals_per_second is not None:
        parts += [
            f"{event.crystals_per_second:.3g} structures/s",
            f"{event.atoms_per_second:.4g} atoms/s",
            f"waiting {event.waiting:.0%}",
        ]
    return ", ".join(parts)


def _validation_words(metrics: Mapping[str, float]) -> str:
    known = [f"{p} {metrics[f'{p}_mae']:.3g} {UNITS[p]}" for p in PROPERTIES if f"{p}_mae" in metrics]
    return "validation MAE: " + ", ".join(known)


def _finite(x: Any) -> Any:
    return None if isinstance(x, float) and not math.isfinite(x) else x


def _wandb(folder: Path, config: TrainConfig):
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            "wandb: true needs the package wandb: pip install wandb, or leave it out."
        ) from None
    import yaml

    path = folder.absolute()
    return wandb.init(
        project="jaxmlip",
        name=path.name,
        id=hashlib.sha256(str(path).encode()).hexdigest()[:16],  # stays the same when the run goes on
        resume="allow",
        dir=str(folder),
        config=yaml.safe_load(to_yaml(config, described=False)),
    )
