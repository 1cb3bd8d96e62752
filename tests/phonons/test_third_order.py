"""Third-order force constants: symmetry, checks, methods, files, and what goes wrong."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from crystals import rutile
from embedded import third_derivatives
from stand_in import Morse

from jaxmlip.crystals import batching
from jaxmlip.derivatives.hessian import hessian_columns
from jaxmlip.derivatives.memory_plan import MemoryLimitError
from jaxmlip.derivatives.streaming import stream_hessian
from jaxmlip.phonons.cells import Cells
from jaxmlip.phonons.coupling import couplings, grueneisen_of
from jaxmlip.phonons.lattice import Lattice
from jaxmlip.phonons.phono3py_files import (
    check_same_crystal,
    read_second_order,
    read_third_order,
    to_phono3py,
    write_third_order,
)
from jaxmlip.phonons.phonopy_files import as_ase
from jaxmlip.phonons.third import (
    SecondOrder,
    SmallSupercellWarning,
    ThirdOrder,
    checked,
    projected,
    second_order,
    third_order,
)
from jaxmlip.phonons.triplets import Column, Pairs, completed, plan, space_group_error

# Supercells of tests are small.
pytestmark = pytest.mark.filterwarnings("ignore::jaxmlip.phonons.third.SmallSupercellWarning")
CUBIC = [[-1, 1, 1], [1, -1, 1], [1, 1, -1]]  # the cube of a face-centred cell


def turned(atoms: Atoms) -> Atoms:
    """No axis of the crystal lies along x, y or z."""
    atoms.rotate(37, (1, 2, 3), rotate_cell=True)
    return atoms


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


def test_second_order_comes_with_third_order(any_potential, shape, blende):
    wanted = second_order(any_potential, BLENDE, (2, 1, 1), shape=shape).fc2
    assert np.abs(wanted).max() > 0.1
    for found in (blende, third_order(any_potential, BLENDE, (2, 1, 1), symmetry=False, shape=shape)):
        np.testing.assert_allclose(found.second.fc2, wanted, rtol=0, atol=1e-9)


def test_second_order_comes_with_third_order_in_any_crystal(any_potential):
    crystals = [SYMMETRIC[name][:2] for name in ("turned blende in a cube", "wurtzite", "rutile")]
    supercells = [Cells.of(*each).supercell for each in crystals]
    room = batching.BatchShape.covering(batching.exact_shape([any_potential.graph(s)]) for s in supercells)
    for atoms, supercell in crystals:
        found = third_order(any_potential, atoms, supercell, shape=room).second.fc2
        wanted = second_order(any_potential, atoms, supercell, shape=room).fc2
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)


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


WIDE, FAR, LONG = bulk("ZnS", "zincblende", 6.5), (3, 3, 3), (6, 1, 1)  # bonds are few; as far as atoms see


@pytest.fixture(scope="module")
def of_cells(any_potential) -> batching.BatchShape:
    """For the cells of the next two tests."""
    return covering(any_potential, WIDE, zigzag())


@pytest.fixture(scope="module")
def of_supercells(any_potential) -> batching.BatchShape:
    """For their supercells."""
    return covering(any_potential, WIDE.repeat(FAR), zigzag().repeat(LONG))


def covering(potential, *crystals) -> batching.BatchShape:
    sizes = [batching.exact_shape([potential.graph(crystal)]) for crystal in crystals]
    return batching.close(batching.BatchShape.covering(sizes))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::jaxmlip.mechanics.elasticity.NotAtRestWarning")
def test_grueneisen_parameters_follow_from_third_order(any_potential, of_cells, of_supercells):
    """test_laws.py has the third derivatives of every model, and test_bloch.py its slopes by strain."""
    wire, strain = zigzag(), np.diag([1.0, 0, 0])
    q = np.array([[0.13, 0, 0], [0.37, 0, 0]])
    third = third_order(any_potential, wire, LONG, shape=of_supercells)
    fc2 = second_order(any_potential, wire, LONG, shape=of_supercells)
    assert third.checks.boundary < 1e-9 * third.checks.largest
    lattice = Lattice(any_potential, wire, shape=of_cells)
    expected_thz, expected = lattice.grueneisen(q, strain, relaxed=False)
    thz, gamma = grueneisen_of(third, fc2, q, strain, relaxed=False)
    np.testing.assert_allclose(thz, expected_thz, rtol=0, atol=1e-6 * np.abs(thz).max())
    gaps = np.pad(np.abs(np.diff(thz, axis=1)), ((0, 0), (1, 1)), constant_values=np.inf)
    alone = np.minimum(gaps[:, 1:], gaps[:, :-1]) > 2e-3  # modes that are no mixtures, THz
    assert alone.mean() > 0.8
    scale = np.abs(expected[alone]).max()
    np.testing.assert_allclose(gamma[alone], expected[alone], rtol=0, atol=1e-6 * scale)


@pytest.mark.filterwarnings("ignore::jaxmlip.mechanics.elasticity.NotAtRestWarning")
def test_atoms_follow_a_strain_in_grueneisen_parameters_from_third_order(
    any_potential, of_cells, of_supercells
):
    """In a crystal so wide that bonds are few, and sheared, so that its two lattices move apart."""
    strain = np.array([[0.3, 0.2, 0.0], [0.2, 0.1, 0.4], [0.0, 0.4, -0.2]])
    q = np.array([[0.13, 0.27, -0.4], [0.5, 0, 0]])
    # phonopy would choose other vectors of the same lattice, to which q would belong.
    third = third_order(any_potential, WIDE, FAR, primitive="P", shape=of_supercells)
    fc2 = second_order(any_potential, WIDE, FAR, primitive="P", shape=of_supercells)
    assert third.checks.boundary < 1e-9 * third.checks.largest
    lattice = Lattice(any_potential, WIDE, shape=of_cells)
    thz, expected = lattice.grueneisen(q, strain)
    still = lattice.grueneisen(q, strain, relaxed=False)[1]
    scale = np.abs(expected).max()
    assert np.abs(expected - still).max() > 0.01 * scale
    for relaxed, wanted in ((True, expected), (False, still)):
        found_thz, found = grueneisen_of(third, fc2, q, strain, relaxed)
        np.testing.assert_allclose(found_thz, thz, rtol=0, atol=1e-6 * np.abs(thz).max())
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * scale)


def test_the_energy_along_modes_has_the_third_derivative_of_their_coupling(any_potential, shape, blende):
    """Along a mode at Γ, and of two modes at the border of the zone with it."""
    cells = blende.cells
    half = next(q for q in np.linalg.inv(cells.matrix).T if (q != q.round()).any())  # fits the supercell
    q = np.array([half, half, [0, 0, 0]])
    found = couplings(blende, second(cells), q)
    atom, R = cells.places
    waves = (found.patterns[:, :, atom] * np.exp(2j * np.pi * q @ R.T)[:, None, :, None]).real
    border, other, optical = waves[0, 4], waves[1, 2], waves[2, 5]

    def pull(moved: np.ndarray, along: np.ndarray) -> float:
        atoms = cells.supercell.copy()
        atoms.positions += moved
        (predicted,) = any_potential.predict_graphs([any_potential.graph(atoms)], shape)
        return -np.sum(predicted["forces"] * along) / 2  # of two cells

    def bend(u: np.ndarray, along: np.ndarray, step: float) -> float:
        return (pull(step * u, along) - 2 * pull(0 * u, along) + pull(-step * u, along)) / step**2

    def twice(u: np.ndarray, along: np.ndarray) -> float:
        return (4 * bend(u, along, 0.01) - bend(u, along, 0.02)) / 3  # without the fifth derivative

    alone = couplings(blende, second(cells), np.zeros((3, 3))).bare[5, 5, 5].real
    scale = np.abs(found.bare).max()
    assert abs(alone) > 0.01 * scale
    assert twice(optical, optical) == pytest.approx(alone, abs=1e-5 * scale)
    assert twice(border, optical) == pytest.approx(found.bare[4, 4, 5].real, abs=1e-5 * scale)
    mixed = (twice(border + other, optical) - twice(border - other, optical)) / 4
    assert mixed == pytest.approx(found.bare[4, 2, 5].real, abs=1e-5 * scale)
    assert twice(border, border) == pytest.approx(0, abs=1e-5 * scale)  # whose waves do not add up


@pytest.mark.slow
def test_both_methods_approach_the_exact_constants_of_every_architecture(architecture):
    """As the two tests of one potential show, with the square of the step."""
    pytest.importorskip("phono3py")
    moved = BLENDE.repeat((2, 1, 1))
    moved.positions[0] += 0.3
    room = batching.padded_shape(batching.exact_shape([architecture.graph(moved)]), 0.2)
    exact = third_order(architecture, BLENDE, (2, 1, 1), shape=room)
    for method, steps, nearly in (("differences", (0.01, 0.02), 0.1), ("displaced", (0.01, 0.02), 0.2)):
        off = []
        for step in steps:
            found = third_order(architecture, BLENDE, (2, 1, 1), method=method, step=step, shape=room)
            off.append(np.abs(found.fc3 - exact.fc3).max())
        assert off[0] < 0.05 * exact.checks.largest
        assert np.log2(off[1] / off[0]) == pytest.approx(2, abs=nearly)


def test_a_memory_limit_is_kept_or_what_is_needed_is_said(any_potential, shape, blende, monkeypatch):
    monkeypatch.setattr("jaxmlip.derivatives.response.resident", lambda: 10**8)  # of the process
    found = third_order(any_potential, BLENDE, (2, 1, 1), shape=shape, memory_limit=2e10)
    np.testing.assert_allclose(found.fc3, blende.fc3, rtol=0, atol=1e-9)
    with pytest.raises(MemoryLimitError, match=r"alone needs [\d.e+-]+ GB for 4 atoms"):
        third_order(any_potential, BLENDE, (2, 1, 1), memory_limit=1e3)


def test_phono3py_approaches_the_exact_constants_with_the_square_of_its_displacements(any_potential, blende):
    pytest.importorskip("phono3py")
    off = []
    for step in (0.01, 0.02):
        found = third_order(any_potential, BLENDE, (2, 1, 1), method="displaced", step=step)
        assert "phono3py" in found.method
        off.append(np.abs(found.fc3 - blende.fc3).max())
    assert off[0] < 0.02 * blende.checks.largest
    assert np.log2(off[1] / off[0]) == pytest.approx(2, abs=0.2)


def test_displaced_second_order_is_what_phono3py_makes_of_the_displacements_in_its_larger_supercell():
    pytest.importorskip("phono3py")
    morse = Morse("Morse")
    found = second_order(morse, BLENDE, (2, 2, 1), method="displaced", step=0.02)
    ph3 = Cells.of(BLENDE, (1, 1, 1)).to_phono3py(phonon_supercell_matrix=np.diag((2, 2, 1)))
    ph3.generate_displacements(distance=0.02)
    moved = [as_ase(cell) for cell in ph3.phonon_supercells_with_displacements]
    ph3.phonon_forces = np.array([p["forces"] for p in morse.predict(moved)])
    ph3.produce_fc2()
    ph3.symmetrize_fc2()
    assert np.abs(ph3.fc2).max() > 1
    np.testing.assert_allclose(found.fc2, ph3.fc2, rtol=0, atol=1e-10)


def test_second_order_says_which_methods_and_steps_there_are():
    for options, words in (
        ({"method": "guessed"}, "'guessed', needed 'exact' or 'displaced'"),
        ({"step": 0.01}, r"step=0\.01 for method='exact'"),
        ({"method": "displaced", "step": -0.01}, r"step=-0\.01"),
        ({"method": "displaced", "block_size": 2}, "block_size for method='displaced'"),
    ):
        with pytest.raises(ValueError, match=words):
            second_order(Morse("Morse"), BLENDE, (1, 1, 1), **options)


def hand_made(name: str = "diamond") -> ThirdOrder:
    """Constants that no network computes."""
    atoms, supercell, _ = SYMMETRIC[name]
    cells = Cells.of(atoms, supercell)
    phi = np.ascontiguousarray(third_derivatives(cells.supercell)[cells.p2s])
    return ThirdOrder(cells, phi, "by hand", checked(phi, cells))


def second(cells: Cells) -> SecondOrder:
    rng = np.random.default_rng(0)
    return SecondOrder(cells, rng.normal(size=(len(cells.primitive), len(cells.supercell), 3, 3)))


def test_phono3py_reads_what_is_written_for_it(tmp_path):
    phono3py = pytest.importorskip("phono3py")
    constants = hand_made("rutile")
    larger = second(Cells.of(SYMMETRIC["rutile"][0], (1, 2, 2)))
    written = write_third_order(constants, tmp_path / "for [phono3py]", larger)
    assert {path.name for path in (tmp_path / "for [phono3py]").iterdir()} == set(written)
    folder = tmp_path / "for [phono3py]"
    files = {"fc3_filename": folder / "fc3.hdf5", "fc2_filename": folder / "fc2.hdf5"}
    for name in ("phono3py_params.yaml", "phono3py_disp.yaml"):
        ph3 = phono3py.load(folder / name, **files)
        np.testing.assert_array_equal(ph3.fc3, constants.fc3)
        np.testing.assert_array_equal(ph3.fc2, larger.fc2)
        np.testing.assert_array_equal(ph3.primitive.p2s_map, constants.cells.p2s)
        np.testing.assert_allclose(ph3.supercell.positions, constants.cells.supercell.positions, atol=1e-12)
    again = read_third_order(folder)
    np.testing.assert_array_equal(again.fc3, constants.fc3)
    np.testing.assert_array_equal(read_second_order(folder / "fc2.hdf5", larger.cells).fc2, larger.fc2)


def test_constants_between_all_atoms_are_read_in_the_compact_layout(tmp_path):
    import h5py

    atoms, supercell, _ = SYMMETRIC["turned blende in a cube"]
    cells = Cells.of(atoms, supercell)
    whole = third_derivatives(cells.supercell)
    with h5py.File(tmp_path / "fc3.hdf5", "w") as file:
        file["fc3"] = whole
    cells.to_phonopy().save(tmp_path / "phono3py_disp.yaml")
    found = read_third_order(tmp_path / "fc3.hdf5")
    np.testing.assert_array_equal(found.fc3, whole[cells.p2s])
    assert max(found.checks.permutation, found.checks.space_group) < 1e-12


def shengbte(path) -> dict[tuple, np.ndarray]:
    """The 27 constants of each three atoms and cells."""
    numbers = path.read_text().split()
    count, rest = int(numbers[0]), np.array(numbers[1:], float).reshape(-1, 1 + 6 + 3 + 27 * 4)
    assert len(rest) == count
    np.testing.assert_array_equal(rest[:, 0], np.arange(count) + 1)
    keys = [(*row[7:10].astype(int), *row[1:7].round(6)) for row in rest]
    return dict(zip(keys, rest[:, 10:].reshape(-1, 27, 4)[:, :, 3].reshape(-1, 3, 3, 3), strict=True))


def test_shengbte_has_all_constants_each_in_the_nearest_images(tmp_path):
    constants = hand_made()
    write_third_order(constants, tmp_path)
    blocks = shengbte(tmp_path / "FORCE_CONSTANTS_3RD")
    cells, total = constants.cells, np.zeros((2, 2, 2, 3, 3, 3))
    for (i, j, k, *_), block in blocks.items():
        total[i - 1, j - 1, k - 1] += block
    atom, _ = cells.places
    for j in range(2):
        for k in range(2):
            expected = constants.fc3[:, atom == j][:, :, atom == k].sum(axis=(1, 2))
            np.testing.assert_allclose(total[:, j, k], expected, atol=1e-7)
    lattice = cells.primitive.cell.array
    for key in blocks:
        R = np.array(key[3:]).reshape(2, 3) @ np.linalg.inv(lattice)
        np.testing.assert_allclose(R, R.round(), atol=1e-5)
        x = cells.primitive.positions[np.array(key[:3]) - 1]
        apart = x[1:] + np.array(key[3:]).reshape(2, 3) - x[0]
        assert np.linalg.norm(apart, axis=1).max() < cells.images.distance.max() + 1e-4
    near = write_third_order(constants, tmp_path / "near", cutoff=3.0)
    assert len(shengbte(tmp_path / "near" / near[1])) < len(blocks) / 2


def test_what_a_wave_sees_is_the_hessian_of_the_nearest_images(any_potential):
    """second_order has phonopy's order, whichever cell is given."""
    cubic = bulk("ZnS", "zincblende", 5.2, cubic=True)
    shape = batching.padded_shape(batching.exact_shape([any_potential.graph(cubic)]), 0.2)
    found = second_order(any_potential, cubic, (1, 1, 1), shape=shape)
    whole = hessian_columns(any_potential, found.cells.supercell, np.arange(24), shape=shape)
    whole = whole.reshape(8, 3, 8, 3).swapaxes(1, 2)
    np.testing.assert_allclose(found.fc2, whole[found.cells.p2s], rtol=0, atol=1e-9)
    D = found.matrices([[0, 0, 0], [0.5, 0.5, 0]])
    np.testing.assert_allclose(D, D.conj().swapaxes(1, 2), atol=1e-9)


def test_symfc_changes_symmetric_constants_by_rounding_alone_and_mends_others():
    constants = hand_made("turned blende in a cube")
    found = projected(constants)
    scale = constants.checks.largest
    np.testing.assert_allclose(found.fc3, constants.fc3, rtol=0, atol=1e-9 * scale)
    noisy = constants.fc3 + 0.01 * scale * np.random.default_rng(0).normal(size=constants.fc3.shape)
    assert checked(noisy, constants.cells).space_group > 0.01 * scale
    mended = projected(replace(constants, fc3=noisy))
    assert mended.checks.projected > 0.01 * scale
    assert checked(mended.fc3, mended.cells).permutation < 1e-9 * scale
    assert np.abs(mended.fc3 - constants.fc3).max() < 0.5 * np.abs(noisy - constants.fc3).max()


def test_an_interrupted_run_goes_on_with_the_columns_that_it_has(
    any_potential, blende, tmp_path, monkeypatch
):
    kept = tmp_path / "kept [columns]"
    calls = []

    def stop(potential, crystal, path, *args, **options):
        if calls:
            raise KeyboardInterrupt
        calls.append(path)
        return stream_hessian(potential, crystal, path, *args, **options)

    monkeypatch.setattr("jaxmlip.phonons.third.stream_hessian", stop)
    with pytest.raises(KeyboardInterrupt):
        third_order(any_potential, BLENDE, (2, 1, 1), path=kept)
    monkeypatch.undo()
    before = calls[0].stat().st_mtime_ns
    found = third_order(any_potential, BLENDE, (2, 1, 1), path=kept)
    assert calls[0].stat().st_mtime_ns == before
    np.testing.assert_allclose(found.fc3, blende.fc3, rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match=r"columns-0x\.npy.*positions"):
        third_order(any_potential, bulk("ZnS", "zincblende", 5.1), (2, 1, 1), path=kept)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "displaced", "step": -0.1}, r"step=-0\.1"),
        ({"step": 0.01}, r"step=0\.01.*exact"),
        ({"method": "finite"}, "finite"),
        ({"method": "differences", "path": "kept"}, "kept"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(any_potential, options, words):
    with pytest.raises(ValueError, match=words):
        third_order(any_potential, SALT, (1, 1, 1), **options)


@pytest.mark.filterwarnings("default::jaxmlip.phonons.third.SmallSupercellWarning")
def test_a_supercell_that_is_too_small_is_said_by_how_much(any_potential, shape):
    with pytest.warns(SmallSupercellWarning, match=r"7\.07 Å.*reach 4 Å.*0\.93 Å"):
        third_order(any_potential, bulk("Ar", "fcc", 5.0), (2, 2, 2), shape=shape)


def test_constants_of_other_cells_are_refused_with_both_named(tmp_path):
    constants = hand_made()
    folder = tmp_path / "run"
    write_third_order(constants, folder)
    (folder / "phono3py_params.yaml").unlink(missing_ok=True)
    constants.cells.to_phonopy().save(folder / "phono3py_disp.yaml")
    np.testing.assert_array_equal(read_third_order(folder).fc3, constants.fc3)
    with pytest.raises(ValueError, match=r"Na.*Cl.*Si2"):
        check_same_crystal(constants, second(Cells.of(SALT, (2, 2, 2))))
    stretched = SYMMETRIC["diamond"][0].copy()
    stretched.set_cell(1.01 * stretched.cell.array, scale_atoms=True)
    with pytest.raises(ValueError, match=r"Si2.*0\.0\d+ Å"):
        write_third_order(constants, tmp_path / "other", second(Cells.of(stretched, (2, 2, 2))))
    assert not (tmp_path / "other").exists()
    Cells.of(SALT, (2, 1, 1)).to_phonopy().save(folder / "phono3py_disp.yaml")
    with pytest.raises(ValueError, match=r"fc3\.hdf5.*\(2, 16, 16, 3, 3, 3\).*\(2, 4, 4, 3, 3, 3\)"):
        read_third_order(folder)
    (folder / "phono3py_disp.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"phono3py_disp\.yaml"):
        read_third_order(folder)
    (folder / "fc3.hdf5").write_text("nothing")
    with pytest.raises(ValueError, match=r"fc2\.hdf5|fc3\.hdf5"):
        read_second_order(folder / "fc3.hdf5", constants.cells)


def test_without_phono3py_its_name_is_said_and_files_are_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "phono3py", None)
    constants = hand_made()
    with pytest.raises(ImportError, match=r"jaxmlip\[phono3py\]"):
        to_phono3py(constants)
    folder = tmp_path / "for [others]"
    larger = second(Cells.of(SYMMETRIC["diamond"][0], (3, 2, 2)))
    written = write_third_order(constants, folder, larger)
    assert written == ["fc3.hdf5", "FORCE_CONSTANTS_3RD", "fc2.hdf5", "phonopy.yaml"]
    assert {path.name for path in folder.iterdir()} == set(written)
    again = read_third_order(folder)
    np.testing.assert_array_equal(again.fc3, constants.fc3)
    np.testing.assert_allclose(
        again.cells.supercell.positions, constants.cells.supercell.positions, atol=1e-12
    )
    np.testing.assert_array_equal(read_second_order(folder / "fc2.hdf5", larger.cells).fc2, larger.fc2)
