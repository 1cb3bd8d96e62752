"""How fine a mesh must be, from lines of wave vectors."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from jaxmlip.crystals.symmetry import identity, space_group
from jaxmlip.phonons.lines import Lines, apart


def read(lines: Lines, planes: np.ndarray) -> None:
    """Tells `lines` of a crystal with ω² = Σ_m planes[m] (2 - 2 cos 2π m q) along each vector."""
    distances = np.arange(1, len(planes) + 1)
    matrices = []
    for q in lines.q_points:
        waves = 2 - 2 * np.cos(2 * np.pi * np.outer(q.sum(axis=1), distances))
        matrices.append((waves @ planes)[:, None, None] * np.eye(3) + 0j)
    lines.read(matrices, lambda D: np.sqrt(np.abs(np.linalg.eigvalsh(D))))


@pytest.mark.parametrize("reach", [1, 2, 3])
def test_a_mesh_has_a_wave_vector_for_each_plane_that_forces_reach(reach):
    lines = Lines(Atoms("Cu", cell=[3.0, 3.0, 3.0], pbc=True), identity(1))
    assert not lines.known
    read(lines, 4.0 ** -np.arange(reach))
    assert lines.known
    # Of an even number of points the last plane is as far to either side, which is enough.
    assert set(lines.mesh(1e-9)) <= {2 * reach, 2 * reach + 1}
    assert set(lines.mesh(1e3)) == {1}


def test_lattice_vectors_that_symmetry_mixes_have_meshes_of_as_many_points():
    cubic = bulk("NaCl", "rocksalt", 5.6)
    assert len(Lines(cubic, space_group(cubic)).axes) == 1
    hexagonal = bulk("ZnO", "wurtzite", a=3.2, c=5.2, u=0.38)
    lines = Lines(hexagonal, space_group(hexagonal))
    assert lines.axes == [0, 2]
    read(lines, np.array([1.0, 0.1, 0.01]))
    first, second, third = lines.mesh(1e-4)
    assert first == second
    assert max(third, first) <= max(lines.numbers)


def test_vectors_that_do_not_repeat_have_one_point():
    slab = Atoms("Cu", cell=[3.0, 3.0, 12.0], pbc=(True, True, False))
    lines = Lines(slab, identity(1))
    assert lines.numbers[2] == 1
    read(lines, np.array([1.0, 0.2]))
    assert lines.mesh(1e-6)[2] == 1


def test_soft_modes_are_compared_by_their_squares():
    assert apart(np.array([1.01]), np.array([1.0])) == pytest.approx(0.01, rel=0.01)
    # 0.03 THz in place of none: by its square, as if at 0.1 THz.
    assert apart(np.array([0.03]), np.array([0.0])) == pytest.approx(0.03**2 / 0.2)
    assert apart(np.array([-0.03]), np.array([0.03])) == pytest.approx(2 * 0.03**2 / 0.2)
