"""One network for several functionals at once, with parameters of each for every element.

Each functional has its own species: in the crystals of functional k, an atom of atomic number Z has the
species Z + 118 k. Embeddings, reference energies and all other parameters that a network has for each element
exist for every species; the rest is shared. Networks need no change for this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import flax.linen as nn
import flax.traverse_util
import numpy as np

from jaxmlip.crystals.graph import ELEMENTS
from jaxmlip.data.labels import functional_name
from jaxmlip.potential import ARCHITECTURES, Potential, architecture_of, parameter_shapes


def join(potential: Potential, functionals: Sequence[str]) -> Potential:
    """`potential` extended to several functionals; before training, all predict the same as `potential`.

    Train it on crystals that state their functional; `select` then gives potentials to use. Raises ValueError
    unless there are two or more different names, and `potential` has one functional.
    """
    names = tuple(map(functional_name, functionals))
    if potential.functionals:
        raise ValueError(
            f"{potential.name} already has the functionals {', '.join(potential.functionals)}, needed a "
            "potential of one functional; `select` makes one."
        )
    if architecture_of(potential.model) not in ARCHITECTURES:
        raise ValueError(
            f"{potential.name} is made from an energy function or has dispersion, needed a network of this "
            f"library alone: {', '.join(ARCHITECTURES)}. Only their parameters can be extended."
        )
    if len(set(names)) < max(2, len(names)) or not all(names):
        raise ValueError(f"found the functionals {list(names)}, needed two or more different names.")
    model = _several(potential.model, len(names))
    flat = _flat(potential)
    for each in _tables(potential.model, model, len(names)):
        made = np.zeros(each.shapes[1], flat[each.name].dtype)
        for rows in each.rows:
            made[rows] = flat[each.name][each.rows[0]]
        flat[each.name] = made
    manifest = {k: v for k, v in potential.manifest.items() if k != "functional"}
    return replace(
        potential,
        model=model,
        params=flax.traverse_util.unflatten_dict(flat, sep="/"),
        elements=tuple(z + ELEMENTS * k for k in range(len(names)) for z in potential.elements),
        manifest=manifest | {"functionals": list(names)},
    )


def select(potential: Potential, functional: str) -> Potential:
    """An ordinary potential of one functional, taken from a joined one.

    Raises ValueError if it has no such functional.
    """
    names, functional = potential.functionals, functional_name(functional)
    if functional not in names:
        raise ValueError(
            f"found the functional {functional!r}, needed one of those that {potential.name} has: "
            f"{', '.join(names) or 'none, it is of one functional alone'}."
        )
    k = names.index(functional)
    model = _one(potential.model, len(names))
    flat = _flat(potential)
    for each in _tables(model, potential.model, len(names)):
        made = np.zeros(each.shapes[0], flat[each.name].dtype)
        made[each.rows[0]] = flat[each.name][each.rows[k]]
        flat[each.name] = made
    own = range(ELEMENTS * k + 1, ELEMENTS * (k + 1) + 1)
    manifest = {key: value for key, value in potential.manifest.items() if key != "functionals"}
    return replace(
        potential,
        name=f"{potential.name}-{functional}",
        model=model,
        params=flax.traverse_util.unflatten_dict(flat, sep="/"),
        elements=tuple(z - ELEMENTS * k for z in potential.elements if z in own),
        manifest=manifest | {"functional": functional},
    )


class _Table(NamedTuple):
    """A parameter with a row for each element."""

    name: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]  # for one functional, and for several
    rows: list[slice]  # of each functional


def _tables(one: nn.Module, several: nn.Module, count: int) -> Iterator[_Table]:
    """The parameters that grow with the number of species."""
    by_number = isinstance(one.config.elements, int)
    few, many = parameter_shapes(one), parameter_shapes(several)
    for name in few:
        if few[name] != many[name]:
            padding = name == "reference_energies"  # its first entry is that of padding
            rows = few[name][0]
            step = ELEMENTS if by_number or padding else rows
            slices = [slice(padding + step * k, rows + step * k) for k in range(count)]
            yield _Table(name, (few[name], many[name]), slices)


def _several(model: nn.Module, count: int) -> nn.Module:
    elements = model.config.elements
    if isinstance(elements, int):
        elements += ELEMENTS * (count - 1)
    else:
        elements = tuple(z + ELEMENTS * k for k in range(count) for z in elements)
    return type(model)(replace(model.config, elements=elements))


def _one(model: nn.Module, count: int) -> nn.Module:
    elements = model.config.elements
    if isinstance(elements, int):
        elements -= ELEMENTS * (count - 1)
    else:
        elements = elements[: len(elements) // count]
    return type(model)(replace(model.config, elements=elements))


def _flat(potential: Potential) -> dict[str, np.ndarray]:
    flat = flax.traverse_util.flatten_dict(dict(potential.params), sep="/")
    return {name: np.asarray(x) for name, x in flat.items()}
