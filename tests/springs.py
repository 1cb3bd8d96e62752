"""Force constants of springs between nearest neighbours: crystals that are stable, at rest and anharmonic."""

import numpy as np
from ase import Atoms

from jaxmlip.phonons.cells import Cells
from jaxmlip.phonons.third import SecondOrder, ThirdOrder, checked


def springs(
    atoms: Atoms, supercell, stiffness: float = 3.0, cubic: float = -15.0, reach: float = 1.1
) -> tuple[ThirdOrder, SecondOrder]:
    """Constants of the energy Σ k (r - r₀)²/2 + g (r - r₀)³/6 of the pairs within `reach` times the shortest.

    `stiffness` k is in eV/Å², `cubic` g in eV/Å³; every pair is at its r₀.
    """
    cells = Cells.of(atoms, supercell)
    n, N = len(cells.primitive), len(cells.supercell)
    fc2, fc3 = np.zeros((n, N, 3, 3)), np.zeros((n, N, N, 3, 3, 3))
    images, (atom, _) = cells.images, cells.places
    cell, x, one = cells.primitive.cell.array, cells.primitive.positions, np.eye(3)
    near = images.distance[images.distance > 0.1].min() * reach
    for i, j in np.argwhere((images.distance > 0.1) & (images.distance < near)):
        for weight, R in zip(images.weight[i, j], images.cell[i, j], strict=True):
            if not weight:
                continue
            assert weight == 1, "the supercell is too small to tell neighbours apart"
            apart = R @ cell + x[atom[j]] - x[i]
            r = np.linalg.norm(apart)
            u = apart / r
            second = stiffness * np.outer(u, u)
            third = cubic * np.einsum("a,b,c->abc", u, u, u)
            mixed = np.einsum("a,bc->abc", u, one)
            mixed = mixed + mixed.transpose(1, 0, 2) + mixed.transpose(1, 2, 0)
            third += stiffness / r * (mixed - 3 * np.einsum("a,b,c->abc", u, u, u))
            own = cells.p2s[i]
            fc2[i, j] -= second
            fc2[i, own] += second
            # A derivative by the first atom is minus one by the vector; by the other atom it is plus one.
            for b, c in np.ndindex(2, 2):
                fc3[i, (own, j)[b], (own, j)[c]] += -((-1) ** (b + c == 1)) * third
    return ThirdOrder(cells, fc3, "springs", checked(fc3, cells)), SecondOrder(cells, fc2)
