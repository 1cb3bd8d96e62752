"""Crystals with all labels, made up."""

import numpy as np

from jaxmlip.data.dataset import Example
from jaxmlip.data.labels import Labels

REFERENCES = np.linspace(-3, -1, 120)


def labelled(potential, crystals, seed=0) -> list[Example]:
    """Crystals with all labels, made up."""
    rng = np.random.default_rng(seed)
    found = []
    for atoms in crystals:
        n = len(atoms)
        labels = Labels(
            energy=REFERENCES[atoms.numbers].sum() + rng.normal(),
            forces=rng.normal(size=(n, 3)),
            stress=0.01 * rng.normal(size=(3, 3)),
            magmoms=rng.normal(size=n) ** 2,
            columns=np.array([0, 3 * n - 1]),
            hessian=rng.normal(size=(2, n, 3)),
            pairs=np.array([[1, 3 * n - 2], [0, 0]]),
            third=rng.normal(size=(2, n, 3)),
            weight=rng.uniform(0.5, 2),
            weights={"energy": 0.25 + n, "forces": 3.0 / n},
        )
        found.append(Example(potential.graph(atoms), labels.check(n, "made up")))
    return found
