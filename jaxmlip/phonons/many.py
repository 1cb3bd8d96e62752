"""Phonons of many crystals at once: small ones, of which none fills a device, lie side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypeVar

from jaxmlip.crystals import batching
from jaxmlip.derivatives.together import Respond, together
from jaxmlip.phonons.lattice import Lattice

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

    from jaxmlip.crystals.symmetry import Symmetry
    from jaxmlip.phonons.nac import NAC
    from jaxmlip.potential import Potential

T = TypeVar("T")


def lattices(
    potential: Potential,
    crystals: Iterable[Atoms | Structure | Symmetry],
    work: Callable[[int, Lattice], T],
    *,
    nac: Sequence[NAC | None] | None = None,
    shapes: Sequence[batching.BatchShape] = (),
    **options: Any,
) -> Iterator[tuple[int, T | Exception]]:
    """The phonons of many crystals, computed side by side: (number, result of `work` or error) of each.

    `work(number, lattice)` is called once for each crystal, with its number from 0 on. It asks its `Lattice`
    for whatever it needs, and returns anything. Many of these calls are under way at once; where they need
    second derivatives they wait, and are served together: crystals of similar need lie side by side in one
    graph, each with its own wave vectors. All find what a `Lattice` alone finds, to rounding. Crystals too
    large to gain by that are computed alone.

    Crystals come out as they end, not in the order given. An exception raised by `work`, or for a crystal
    that makes no lattice, takes the place of its result, and harms no other. Warnings of a crystal are given
    just before its result: warnings.catch_warnings(record=True) around next() keeps those of one crystal.
    `crystals` are taken when there is room for them; closing the iterator ends all work under way. `work`
    must not hold warnings.catch_warnings open while it asks. A lattice that `work` returns can be used later:
    what it lacks is then computed alone.

    `nac` has an entry for each crystal; `options` are those of `Lattice`, without `shape`. A memory limit is
    for crystals that are computed alone. `shapes` are as in `together`.
    """

    def task(k: int, crystal: Atoms | Structure | Symmetry, its: NAC | None, respond: Respond) -> T:
        return work(k, Lattice(potential, crystal, nac=its, respond=respond, **options))

    if "shape" in options:
        raise TypeError("found shape, which one lattice has; needed shapes, which several lattices share.")
    charges = repeat(None) if nac is None else nac
    tasks = (partial(task, k, *pair) for k, pair in enumerate(zip(crystals, charges, strict=nac is not None)))
    yield from together(potential, tasks, shapes)
