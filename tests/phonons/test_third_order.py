"""Third-order force constants: symmetry, checks, methods, files, and what goes wrong."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from crystals import rutile
from embedded import third_derivatives

from jaxmlip.crystals import batching
from jaxmlip.phonons.cells import Cells
from jaxmlip.phonons.lattice import Lattice
from jaxmlip.phonons.third_order import ThirdOrder, checked, third_order
from jaxmlip.phonons.triplets import Column, Pairs, completed, plan, space_group_error

# Supercells of tests are small.
pytestmark = pytest.mark.filterwarnings("ignore::jaxmlip.phonons.third_order.SmallSupercellWarning")
CUBIC = [[-1, 1, 1], [1, -1, 1], [1, 1, -1]]  # the cube of a face-centred cell


def turned(atoms: Atoms) -> Atoms:
    """No axis of the crystal lies along x, y or z."""
    atoms.rotate(37, (1, 2, 3), rotate_cell=True)
    return atoms


CELLS = {"chgnet-0.3": 10, "m3gnet-smooth": 8, "mace-density": 10}  # of a wire: as far as atoms see
SALT = bulk("NaCl", "rocksalt", 5.0)
BLENDE = bulk("ZnS", "zincblende", 5.0)
# The crystal, its supercell, and how many columns give all.
SYMMETRIC = {
    "salt": (SALT, (2, 2, 2), 16),
    "blende of cubes": (bulk("ZnS", "zincblende", 5.2, cubic=True), (1, 1, 2), 42),
    "turned blende in a cube": (turned(bulk("ZnS", "zincblende", 5.2)), CUBIC, 8),
    "salt with few operations left": (SALT, (3, 2, 1), 32),
    "wurtzite": (bulk("ZnO", "wurtzite", a=3.2, c=5.2, u=0.38), (2, 2, 1), 32),
    "rutile": (rutile(), (1, 1, 2), 29),
    "diamond": (turned(bulk("Si")), (2, 2, 2), 7),
}


def by_hand(cells: Cells, rows: list[Column], phi: np.ndarray) -> dict[Column, np.ndarray]:
    """Columns out of all third derivatives of a supercell."""
    return {c: phi[cells.p2s[c.atom], c.number // 3, :, c.axis, c.number % 3] for c in rows}


@pytest.mark.parametrize("name", SYMMETRIC)
def test_few_columns_give_all_constants_of_a_supercell(name):
    atoms, supercell, enough = SYMMETRIC[name]
    cells = Cells.of(atoms, supercell)
    whole = third_derivatives(cells.supercell)
    chosen = plan(cells, cells.group())
    rows = [Column(*w, number) for w, numbers in chosen.wanted.items() for number in numbers]
    assert len(rows) == enough
    found, off = completed(chosen, by_hand(cells, rows, whole))
    scale = np.abs(whole).max()
    assert scale > 1e-3
    np.testing.assert_allclose(found, whole[cells.p2s], rtol=0, atol=1e-12 * scale)
    assert off < 1e-12 * scale
    assert found.flags.c_contiguous
    checks = checked(found, cells)
    assert max(checks.permutation, checks.sum_rule) < 1e-12 * scale
    assert space_group_error(found, Pairs(cells, cells.group())) < 1e-12 * scale


def test_a_column_that_lacks_the_symmetry_of_the_others_shows():
    """So that the test above could fail."""
    atoms, supercell, _ = SYMMETRIC["wurtzite"]
    cells = Cells.of(atoms, supercell)
    whole = third_derivatives(cells.supercell)
    chosen = plan(cells, cells.group())
    rows = by_hand(cells, [Column(*w, k) for w, its in chosen.wanted.items() for k in its], whole)
    moved = rows[next(iter(rows))]
    moved += 0.01 * np.random.default_rng(0).normal(size=moved.shape)
    found, off = completed(chosen, rows)
    assert off > 1e-3
    assert checked(found, cells).sum_rule > 1e-3


@pytest.fixture(scope="module")
def shape(any_potential) -> batching.BatchShape:
    """For every supercell that a network computes here."""
    moved = BLENDE.repeat((2, 1, 1))
    moved.positions[0] += 0.3
    return batching.padded_shape(batching.exact_shape([any_potential.graph(moved)]), 0.2)


@pytest.fixture(scope="module")
def blende(any_potential, shape) -> ThirdOrder:
    return third_order(any_potential, BLENDE, (2, 1, 1), shape=shape)


def test_a_network_has_the_symmetry_that_saves_columns(any_potential, shape, blende):
    every = third_order(any_potential, BLENDE, (2, 1, 1), symmetry=False, shape=shape)
    assert every.checks.columns == every.checks.of == 72
    assert blende.checks.columns < 20
    assert blende.checks.largest > 0.1
    np.testing.assert_allclose(blende.fc3, every.fc3, rtol=0, atol=1e-9)
    for checks in (blende.checks, every.checks):
        assert max(checks.permutation, checks.space_group) < 1e-9
        assert checks.sum_rule < 1e-8


def test_differences_of_hessian_columns_approach_the_exact_constants_with_the_square_of_the_step(
    any_potential, shape, blende
):
    steps, off = np.array([0.01, 0.02]), []
    for step in steps:
        found = third_order(any_potential, BLENDE, (2, 1, 1), method="differences", step=step, shape=shape)
        assert f"{step:g} Å" in found.method
        off.append(np.abs(found.fc3 - blende.fc3).max())
    assert off[0] < 0.01 * blende.checks.largest
    assert np.log2(off[1] / off[0]) == pytest.approx(2, abs=0.1)


def zigzag() -> Atoms:
    """A wire of two atoms whose supercell can be longer than atoms see, and has few of them."""
    cell = [[3.9, 0, 0], [0, 20, 0], [0, 0, 20]]
    return Atoms("MgO", [[0, 0, 0], [2.1, 1.0, 0.3]], cell=cell, pbc=[True, False, False])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::jaxmlip.mechanics.elasticity.NotAtRestWarning")
def test_grueneisen_parameters_follow_from_third_order(architecture):
    wire, strain = zigzag(), np.diag([1.0, 0, 0])
    q = np.array([[0.13, 0, 0], [0.37, 0, 0]])
    found = third_order(architecture, wire, (CELLS[architecture.name], 1, 1))
    assert found.checks.boundary < 1e-9 * found.checks.largest
    slope = found.strained(strain).matrices(q)
    lattice = Lattice(architecture, wire)
    thz, expected = lattice.grueneisen(q, strain, relaxed=False)
    root = np.sqrt(np.repeat(wire.get_masses(), 3))
    squares, e = np.linalg.eigh(lattice.exact(q) / (root[:, None] * root))
    along = np.einsum("qim,qij,qjm->qm", e.conj(), slope / (root[:, None] * root), e).real
    gamma = -along / (2 * squares)
    assert np.abs(np.diff(thz, axis=1)).min() > 0.01  # each mode is one, not a mixture
    np.testing.assert_allclose(gamma, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_phono3py_approaches_the_exact_constants_with_the_square_of_its_displacements(any_potential, blende):
    pytest.importorskip("phono3py")
    off = []
    for step in (0.01, 0.02):
        found = third_order(any_potential, BLENDE, (2, 1, 1), method="displaced", step=step)
        assert "phono3py" in found.method
        off.append(np.abs(found.fc3 - blende.fc3).max())
    assert off[0] < 0.02 * blende.checks.largest
    assert np.log2(off[1] / off[0]) == pytest.approx(2, abs=0.2)
