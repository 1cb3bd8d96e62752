"""A screening with pairs of atoms in place of a network, which are quick to compile.

python killed_screen.py FOLDER [K N]

is a process that carries on the screening in FOLDER, in the place of `jaxmlip.studies.screen.worker`.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.potential import Potential
from jaxmlip.studies.screen import library, worker
from jaxmlip.studies.screen.folder import ASKED, Screening
from jaxmlip.studies.screen.properties import ScreenOptions
from jaxmlip.system.jobs import end_with_parent
from jaxmlip.zoo import load

REACH = 4.5  # Å
ELEMENTS = range(1, 60)
PROPERTIES = ("relax", "elastic", "phonons")
WORKER = (sys.executable, str(Path(__file__).absolute()))
library.CHUNK = {"cpu": (20_000, 3)}  # so that a few crystals are several chunks


def pairs(params, graph):
    """Morse pairs that end smoothly at REACH (eV); each element has its own size."""
    owner = jnp.repeat(jnp.arange(len(graph.n_edge)), graph.n_edge, total_repeat_length=len(graph.senders))
    there = jnp.einsum("ek,ekx->ex", graph.edges["shifts"], graph.globals["cell"][owner])
    x, size = graph.nodes["positions"], params["size"][graph.nodes["species"]]
    square = jnp.sum((x[graph.senders] + there - x[graph.receivers]) ** 2, axis=1)
    inside = square < REACH**2
    r = jnp.sqrt(jnp.where(inside, square, 1.0))
    decay = jnp.exp(-1.4 * (r - size[graph.senders] - size[graph.receivers]))
    bond = 0.4 * (decay**2 - 2 * decay) * (1 - (r / REACH) ** 2) ** 3 / 2  # each bond is there twice
    return jax.ops.segment_sum(jnp.where(inside, bond, 0.0), owner, len(graph.n_edge))


def potential(scale: float = 1.0) -> Potential:
    sizes = scale * (1.2 + 0.004 * np.array(ELEMENTS))  # Å
    return Potential.from_energy(pairs, REACH, ELEMENTS, {"size": sizes}, name="pairs", dtype="float64")


def screening(folder: Path, properties=PROPERTIES, scale: float = 1.0, **options) -> Screening:
    options = {"mesh": (1, 1, 1), **options}
    return Screening(potential(scale), folder, properties, ScreenOptions(**options))


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0])
    if (folder / ASKED).exists():  # the command began it
        load.load = lambda *_, **__: potential()
        worker.main(arguments)
    else:
        end_with_parent()
        screening(folder).work()


if __name__ == "__main__":
    main(sys.argv[1:])
