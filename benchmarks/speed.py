"""How much faster than the original package: energies and forces, and full Hessians?

    python -m benchmarks.speed --peer chgnet [--peer-python PYTHON]
    python -m benchmarks.speed --peer matgl [--model m3gnet-matpes-pbe-2025.1]
    python -m benchmarks.speed --peer mace [--model FILE.model]
    python -m benchmarks.speed --peer mattersim [--model FILE.pth]
    python -m benchmarks.speed --peer matgl4 [--model matgl4-random-chgnet]

Everything that the model predicts for rattled rock-salt NaCl, neighbours included, float32; and the Hessian
of 64 atoms (MACE: 32), against one reverse sweep of torch for each row (timed for some rows and multiplied,
as the rows cost the same). MACE, MatterSim and the networks of matgl since version 4 are compared with random
weights, in a file or a folder that the worker makes. The peer runs in a process of its own, with PYTHON if it
is installed elsewhere, with one thread and with all cores, and the better of both counts. The sides take
turns; ratios are within a turn.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro
from ase import Atoms
from ase.build import bulk

import jaxmlip
from jaxmlip.system.console import say
from jaxmlip.system.files import cache_folder
from jaxmlip.system.tables import Table, show
from weights_convert.published import MODELS

ROWS = 6  # of the peer's Hessian; all of them cost the same
REST = 0.5  # s after which the peer's threads no longer wait for work, which takes a core as work does


class Opponent(NamedTuple):
    """A package to compare with, and how its worker benchmarks/peer_NAME.py is told which model to load."""

    model: str  # ours, unless another is asked for
    told: Callable[[str], str]
    predicts: str
    hessian: tuple[int, int, int] = (2, 2, 2)  # cubic cells of 8 atoms
    makes_weights: bool = False  # random ones, where our cache has no such file


def matgl_folder(model: str) -> str:
    """The folder of the published files, which matgl reads too, in JAXMLIP_WEIGHTS; others by their name."""
    if model not in MODELS:
        return model
    name = MODELS[model].origin.folder
    for folder in sorted(Path(os.environ.get("JAXMLIP_WEIGHTS", ".")).rglob(name)):
        return str(folder)
    raise SystemExit(
        f"the environment variable JAXMLIP_WEIGHTS names no folder with {name} in it, which matgl reads too."
    )


OPPONENTS = {
    "chgnet": Opponent("chgnet-0.3.0", lambda model: model.removeprefix("chgnet-"), "E, F, σ, m"),
    "matgl": Opponent("m3gnet-mp-2021.2.8", matgl_folder, "E, F, σ"),
    "mace": Opponent("mace-128x0e-128x1o.model", str, "E, F, σ", (2, 2, 1), makes_weights=True),
    "mattersim": Opponent("mattersim-1m-random.pth", str, "E, F, σ", makes_weights=True),
    "matgl4": Opponent("matgl4-random-m3gnet", matgl_folder, "E, F, σ", makes_weights=True),
}


@dataclass(frozen=True)
class Settings:
    """What to compare, and how often."""

    peer: Literal["chgnet", "matgl", "mace", "mattersim", "matgl4"] = "chgnet"
    model: str | None = None  # ours, with the same weights at the peer; default: by peer
    peer_python: Annotated[str, tyro.conf.arg(help="interpreter that has the peer installed")] = (
        sys.executable
    )
    repeats: tuple[int, ...] = (1, 2, 3, 4)  # cubic cells of 8 atoms along each axis
    hessian: tuple[int, int, int] | None = None  # cubic cells of the Hessian's crystal; default: by peer
    dtypes: tuple[Literal["float32", "float64"], ...] = ("float32", "float64")  # of the Hessians
    rounds: int = 5


class PeerError(RuntimeError):
    """The original package's process ended before it answered."""


class Peer:
    """A process that runs benchmarks/peer_NAME.py, a worker that times the original package."""

    def __init__(self, python: str, name: str, *arguments: str):
        script = Path(__file__).with_name(f"peer_{name}.py")
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process
        self.process = subprocess.Popen(
            [python, str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.versions = self._answer(
            f"{python} cannot run benchmarks/peer_{name}.py; install the package there, or name an "
            "interpreter that has it with --peer-python."
        )

    def _answer(self, without: str) -> Any:
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            last = self.errors.read().strip().rpartition("\n")[2]
            raise PeerError(f"{without} It said: {last}" if last else without)
        return json.loads(line)

    def ask(self, task: str, threads: int, **request: Any) -> list[float]:
        """The result of the worker's function for `task`."""
        with contextlib.suppress(BrokenPipeError):  # nor will it answer
            self.process.stdin.write(json.dumps({"task": task, "threads": threads, **request}) + "\n")
            self.process.stdin.flush()
        answer = self._answer(f"the peer died of {task!r}, for want of memory if it said nothing.")
        time.sleep(REST)
        return answer

    def times(self, task: str, atoms: Atoms, repeats: int, threads: int) -> list[float]:
        return self.ask(task, threads, repeats=repeats, **plain(atoms))

    def best(self, seconds: Callable[[int], float]) -> float:
        """The least of seconds(threads) for one thread and for all cores."""
        return min(seconds(threads) for threads in sorted({1, os.cpu_count() or 1}))

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.errors.close()


def plain(atoms: Atoms) -> dict[str, Any]:
    """A crystal as lists for JSON."""
    return {
        "cell": atoms.cell.array.tolist(),
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
    }


def peer_of(settings, model: str, dtype: str) -> Peer:
    """The worker that `settings` name, with the weights that we call `model`."""
    return Peer(settings.peer_python, settings.peer, OPPONENTS[settings.peer].told(model), dtype)


def salt(*cells: int) -> Atoms:
    """Rock-salt NaCl, `cells` cubic cells along x, y and z, rattled by 0.05 Å."""
    atoms = bulk("NaCl", "rocksalt", 5.64, cubic=True) * cells
    atoms.rattle(0.05, seed=1)
    return atoms


def seconds(f: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def compare(ours: Callable[[], float], theirs: Callable[[], float], rounds: int):
    """Medians of both times and of their ratio, from rounds in which they take turns."""
    ours(), theirs()  # compile, warm up
    pairs = np.array([(ours(), theirs()) for _ in range(rounds)])
    ratios = pairs[:, 1] / pairs[:, 0]
    return *np.median(pairs, axis=0), np.median(ratios), ratios.min(), ratios.max()


def main(settings: Settings) -> None:
    opponent = OPPONENTS[settings.peer]
    model = settings.model or opponent.model
    if opponent.makes_weights:
        model = str(cache_folder() / model)
    rows = []

    def row(task: str, atoms: Atoms, result) -> None:
        ours, theirs, *ratios = result
        rows.append((task, len(atoms), 1e3 * ours, 1e3 * theirs, *ratios))
        say(f"{task}, {len(atoms)} atoms: {ratios[0]:.1f} times as fast")

    peer = peer_of(settings, model, "float32")  # first, because it may make the file
    potential = jaxmlip.load(model)
    for n in settings.repeats:
        atoms = salt(n, n, n)
        repeats = 20 if len(atoms) < 100 else 5
        result = compare(
            lambda atoms=atoms, repeats=repeats: seconds(lambda: potential.predict(atoms), repeats),
            lambda atoms=atoms, repeats=repeats: peer.best(
                lambda threads: float(np.median(peer.times("predict", atoms, repeats, threads)))
            ),
            settings.rounds,
        )
        row(f"{opponent.predicts} float32", atoms, result)
    peer.close()

    atoms = salt(*(settings.hessian or opponent.hessian))

    def all_rows(peer: Peer, threads: int) -> float:
        forces, *rows = peer.times("hessian", atoms, ROWS, threads)
        return forces + 3 * len(atoms) * float(np.median(rows))

    for dtype in settings.dtypes:
        potential, peer = potential.astype(dtype), peer_of(settings, model, dtype)
        result = compare(
            lambda potential=potential: seconds(lambda: jaxmlip.hessian(potential, atoms), 1),
            lambda peer=peer: peer.best(lambda threads: all_rows(peer, threads)),
            max(2, settings.rounds // 2),
        )
        row(f"Hessian {dtype}", atoms, result)
        peer.close()
    columns = ("task", "atoms", "ours / ms", f"{settings.peer} / ms", "ratio", "lowest", "highest")
    show(Table(f"{model}, median of {settings.rounds} rounds", columns, rows, 1))
    say(f"{os.cpu_count()} cores, jaxmlip {jaxmlip.__version__}, torch {peer.versions['torch']}")
    say(f"The peer's Hessian is extrapolated from {ROWS} of its {3 * len(atoms)} rows.")


if __name__ == "__main__":
    main(tyro.cli(Settings))
