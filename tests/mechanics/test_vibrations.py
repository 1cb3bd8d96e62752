"""Vibrations: frequencies are those of ASE's differences, rigid motions are gone, files' masses are used."""

import json

import ase.io
import ase.units
import numpy as np
import pairs
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.constraints import FixAtoms, FixBondLength, FixCartesian
from ase.thermochemistry import HarmonicThermo, HinderedThermo, IdealGasThermo
from ase.vibrations import Vibrations as AseVibrations
from ase.vibrations import VibrationsData
from commands import complaint, here
from conftest import QUICK, small_potential

from jaxmlip.cli.vibrations import chosen_atoms
from jaxmlip.cli.vibrations import rested as at_rest
from jaxmlip.crystals.structures import read_crystal
from jaxmlip.derivatives.response import Response
from jaxmlip.mechanics.calculator import Calculator
from jaxmlip.mechanics.elasticity import NotAtRestWarning
from jaxmlip.mechanics.relaxation import relax
from jaxmlip.mechanics.vibrations import Vibrations, geometry, rotations, vibrations
from jaxmlip.mechanics.vibrations_report import as_record, thermochemistry

CLOSE = 0.5  # cm⁻¹, to differences of forces with ASE's step of 0.005 Å


@pytest.fixture(scope="module")
def potential():
    return pairs.potential()


def rested(potential, atoms: Atoms) -> Atoms:
    found = relax(potential, atoms, fmax=1e-7, cell=False, steps=2000).atoms.copy()
    found.set_constraint(atoms.constraints)
    return found


@pytest.fixture(scope="module")
def triangle(potential) -> Atoms:
    """Three different atoms, bent."""
    return rested(potential, Atoms("MgOK", [[0, 0, 0], [2.4, 0.1, 0], [1.1, 2.2, 0.1]]))


@pytest.fixture(scope="module")
def smaller():
    """In which the ends of three atoms in a line see each other."""
    return pairs.potential(0.8)


@pytest.fixture(scope="module")
def line(smaller) -> Atoms:
    """Stationary by symmetry, not stable: its ends attract each other, and bend it."""
    x = np.array([1.0, 2.0, 2.0]) / 3
    return rested(smaller, Atoms("OMgO", [-1.9 * x, 0 * x, 1.9 * x]))


@pytest.fixture(scope="module")
def adsorbed(potential) -> Atoms:
    """Two atoms on a slab whose lower layer is held."""
    slab = fcc111("Cu", (2, 2, 2), a=3.7, vacuum=7.0, periodic=False)
    slab.pbc = [True, True, False]
    hollow = slab.positions[4:].mean(axis=0)
    slab += Atoms("OK", hollow + np.array([[0.2, 0.1, 1.9], [0.9, 0.4, 4.0]]))
    slab.set_constraint(FixAtoms(range(4)))
    return rested(potential, slab)


def by_differences(potential, atoms: Atoms, indices, folder) -> np.ndarray:
    """Wavenumbers by ASE, all 3n of them; imaginary ones are negative."""
    atoms = atoms.copy()
    atoms.calc = Calculator(potential)
    found = AseVibrations(atoms, indices=list(indices), delta=0.005, name=str(folder / "differences"))
    found.run()
    e = found.get_energies() / ase.units.invcm
    return np.sort(np.where(np.abs(e.imag) > e.real, -e.imag, e.real))


def columns_of(monkeypatch) -> list[int]:
    """The numbers of Hessian columns that responses compute from here on."""
    computed, columns = [], Response.columns

    def counted(self, numbers, *others):
        computed.append(len(numbers))
        return columns(self, numbers, *others)

    monkeypatch.setattr(Response, "columns", counted)
    return computed


def test_a_molecule_vibrates_as_by_ase_without_its_rigid_motions(potential, triangle, tmp_path):
    found = vibrations(potential, triangle)
    wanted = by_differences(potential, triangle, range(3), tmp_path)
    assert found.rigid.shape == (9, 6)
    assert np.abs(wanted[:6]).max() < 5
    np.testing.assert_allclose(found.per_cm, wanted[6:], atol=CLOSE)
    np.testing.assert_allclose(found.per_cm, found.mev / ase.units.invcm / 1e3, rtol=1e-6)
    assert found.zero_point_energy == pytest.approx(found.mev.sum() / 2e3)
    e = found.eigenvectors.reshape(3, 9)
    np.testing.assert_allclose(e @ e.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(e @ found.rigid, 0, atol=1e-12)


def test_an_adsorbate_vibrates_as_by_ase_and_costs_its_own_columns(
    potential, adsorbed, tmp_path, monkeypatch
):
    computed = columns_of(monkeypatch)
    found = vibrations(potential, adsorbed, indices=[8, 9])
    assert computed == [6]
    np.testing.assert_allclose(
        found.per_cm, by_differences(potential, adsorbed, [8, 9], tmp_path), atol=CLOSE
    )
    assert not found.eigenvectors[:, :8].any()
    free = vibrations(potential, adsorbed)  # what the constraint leaves
    assert computed == [6, 18]
    assert (free.indices == range(4, 10)).all()
    assert (len(free.thz), free.frozen, free.rigid.shape[1]) == (18, 12, 0)
    np.testing.assert_allclose(found.hessian, free.hessian[12:, 12:], atol=1e-10)
    predicted = potential.predict(adsorbed)
    assert free.energy == pytest.approx(predicted["energy"], abs=1e-9)
    largest = np.linalg.norm(predicted["forces"][4:], axis=1).max()
    assert free.max_force == pytest.approx(largest, rel=1e-9)


def test_energy_and_forces_come_with_the_hessian_and_no_other_program_is_run(
    potential, triangle, monkeypatch
):
    monkeypatch.setattr("jaxmlip.potential._predict", None)
    with pytest.raises(TypeError):
        potential.predict(triangle)
    assert np.isfinite(vibrations(potential, triangle).energy)


def test_directions_that_are_held_do_not_move_and_other_constraints_are_said(potential, triangle):
    held = triangle.copy()
    held.set_constraint([FixAtoms([0]), FixCartesian(1, [True, False, True]), FixBondLength(1, 2)])
    with pytest.warns(UserWarning, match="FixBondLengths are not used"):
        found = vibrations(potential, held)
    assert found.coordinates.tolist() == [4, 6, 7, 8]
    assert len(found.thz) == 4
    with pytest.raises(ValueError, match="atom 1 of KMgO is held along some directions"):
        found.to_ase()


def test_a_linear_molecule_keeps_four_modes_and_an_atom_none(potential, smaller, line):
    found = vibrations(smaller, line)
    assert (found.geometry, found.rigid.shape[1], len(found.thz)) == ("linear", 5, 4)
    bend = found.per_cm[:2]
    assert bend[0] == pytest.approx(bend[1], abs=1e-6)
    alone = vibrations(potential, Atoms("Mg"))
    assert (alone.geometry, alone.rigid.shape[1], len(alone.thz)) == ("monatomic", 3, 0)
    assert alone.zero_point_energy == 0
    assert alone.ideal_gas(spin=0).get_entropy(300, 1e5, verbose=False) > 0
    with pytest.raises(ValueError, match="has no mode"):
        alone.harmonic()


def test_rigid_motions_are_those_of_what_repeats(potential):
    salt = bulk("NaCl", "rocksalt", 4.6)
    assert len(vibrations(potential, salt).thz) == 3
    wire = Atoms("NaClK", [[0, 0, 0], [2.3, 0.4, 0], [4.4, 0, 0.5]], cell=[7, 0, 0], pbc=[True, False, False])
    found = vibrations(potential, rested(potential, wire))
    assert found.rigid.shape[1] == 4  # it turns about its axis, too
    turned = vibrations(potential, found.atoms).hessian @ (
        found.rigid / np.repeat(found.atoms.get_masses() ** 0.5, 3)[:, None]
    )
    np.testing.assert_allclose(turned, 0, atol=1e-6)


def test_isotopes_of_a_file_vibrate_with_their_own_masses(potential, tmp_path):
    pair = rested(potential, Atoms("H2", [[0, 0, 0], [2.4, 0, 0]]))
    heavy = pair.copy()
    heavy.set_masses([2.014, 2.014])
    ase.io.write(tmp_path / "D2.extxyz", heavy)
    light, both = vibrations(potential, pair), vibrations(potential, ase.io.read(tmp_path / "D2.extxyz"))
    ratio = np.sqrt(pair.get_masses()[0] / 2.014)
    assert both.thz[0] / light.thz[0] == pytest.approx(ratio, rel=1e-8)
    mixed = pair.copy()
    mixed.set_masses([pair.get_masses()[0], 2.014])
    assert [rotations(a) for a in (pair, heavy, mixed)] == [2, 2, 1]


def test_data_of_ase_comes_back_as_it_went(potential, triangle, adsorbed):
    for found in (vibrations(potential, triangle), vibrations(potential, adsorbed, indices=[4, 9])):
        data = found.to_ase()
        again = Vibrations.from_ase(data).to_ase()
        assert (again.get_hessian_2d() == found.hessian).all()
        assert (again.get_indices() == data.get_indices()).all()
        assert again.get_atoms() == found.atoms
        if found.frozen:
            energies, modes = data.get_energies_and_modes(all_atoms=True)
            np.testing.assert_allclose(found.ase_energies, energies, atol=1e-9)
            np.testing.assert_allclose(np.abs(found.displacements), np.abs(modes), atol=1e-6)
    mixed = VibrationsData(adsorbed, np.arange(36.0).reshape(2, 3, 2, 3), indices=[9, 4])
    assert Vibrations.from_ase(mixed).hessian[0].tolist() == [21, 22, 23, 18, 19, 20]


def test_thermochemistry_is_that_of_ase(potential, triangle, adsorbed):
    gas = vibrations(potential, triangle)
    energies = gas.mev / 1e3
    wanted = IdealGasThermo(
        energies, "nonlinear", gas.energy, triangle, symmetrynumber=1, spin=0.5
    ).get_gibbs_energy(400, 2e5, verbose=False)
    assert gas.ideal_gas(spin=0.5).get_gibbs_energy(400, 2e5, verbose=False) == pytest.approx(wanted)
    record = thermochemistry(gas, 400, 2e5, 0.5, None)
    assert record["gibbs_energy_eV"] == pytest.approx(wanted)
    assert record["symmetry_number"] == 1
    bound = vibrations(potential, adsorbed, indices=[8, 9])
    wanted = HarmonicThermo(bound.mev / 1e3, bound.energy).get_helmholtz_energy(300, verbose=False)
    assert bound.harmonic().get_helmholtz_energy(300, verbose=False) == pytest.approx(wanted)
    barriers = {"trans_barrier": 0.1, "rot_barrier": 0.05, "site_density": 1e15, "rotational_minima": 6}
    m = adsorbed.get_masses()[[8, 9]]
    bond = adsorbed.get_distance(8, 9, mic=True, vector=True)
    across = np.linalg.norm(bond[:2])
    wanted = HinderedThermo(
        bound.mev / 1e3, 0.1, 0.05, 1e15, 6, bound.energy, mass=m.sum(),
        inertia=m[0] * m[1] / m.sum() * across**2,
    ).get_helmholtz_energy(300, verbose=False)  # fmt: skip
    assert bound.hindered(**barriers).get_helmholtz_energy(300, verbose=False) == pytest.approx(wanted)
    with pytest.raises(ValueError, match="an ideal gas is of free molecules"):
        bound.ideal_gas(spin=0)
    with pytest.raises(ValueError, match="stands upright"):
        bound.hindered(**barriers, normal=bond)


def test_imaginary_modes_are_negative_and_have_no_thermochemistry(smaller, line):
    found = vibrations(smaller, line)
    assert found.imaginary == 2
    assert (found.thz[:2] < 0).all()
    assert found.zero_point_energy == pytest.approx(found.mev[2:].sum() / 2e3)
    record = thermochemistry(found, 300, 1e5, 0, None)
    assert record["model"] is None
    assert "2 imaginary modes, down to -" in record["reason"]
    with pytest.warns(UserWarning, match="2 imag modes removed"):
        found.ideal_gas(spin=0, ignore_imag_modes=True)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *(("H2O", 2), ("NH3", 3), ("CH4", 12), ("C6H6", 12), ("CO2", 2), ("CO", 1), ("C2H6", 6)),
        *(("CH3OH", 1), ("COF2", 2), ("C4H4NH", 2), ("C60", 60)),
    ],
)
def test_rotational_symmetry_numbers_are_those_of_textbooks(name, number):
    assert rotations(molecule(name)) == number
    turned = molecule(name)
    turned.rotate(50, (1, 2, 3))
    turned.rattle(1e-3, seed=0)
    assert rotations(turned) == number


def test_linear_is_told_by_the_inertia_tensor():
    assert geometry(molecule("C2H2")) == "linear"
    bent = molecule("CO2")
    bent.rotate(33, "x")
    assert geometry(bent) == "linear"
    bent.positions[0] += [0.1, 0, 0]
    assert geometry(bent) == "nonlinear"


def test_forces_that_remain_and_a_molecule_in_a_periodic_box_are_warned_of(potential, triangle):
    boxed = triangle.copy()
    boxed.center(vacuum=6)
    boxed.pbc = True
    with pytest.warns(
        UserWarning, match=r"pbc=\[True, True, True\], but no atom sees an image.*no ideal gas"
    ):
        found = vibrations(potential, boxed)
    assert len(found.thz) == 6
    across = boxed.copy()  # the same molecule, cut by the boundary
    across.positions += 0.45 * across.cell.sum(axis=0)
    across.wrap()
    with pytest.warns(UserWarning, match="but no atom sees an image"):
        vibrations(potential, across)
    moved = triangle.copy()
    moved.positions[0] += [0.1, 0, 0]
    with pytest.warns(NotAtRestWarning, match=r"KMgO is not at rest: forces up to \d"):
        vibrations(potential, moved)


def test_what_cannot_vibrate_is_refused(potential, triangle):
    held = triangle.copy()
    held.set_constraint(FixAtoms(range(3)))
    with pytest.raises(ValueError, match="all 3 atoms of KMgO are held in place"):
        vibrations(potential, held)
    for wrong, said in (([3], "found atom 3 among"), ([-1], "found atom -1"), ([], "found no atom")):
        with pytest.raises(ValueError, match=rf"{said}.*needed numbers from 0 to 2"):
            vibrations(potential, triangle, indices=wrong)


def test_an_animation_moves_the_atoms_of_a_mode_once_around(potential, adsorbed):
    found = vibrations(potential, adsorbed, indices=[8, 9])
    frames = found.animation(2, amplitude=0.1, frames=12)
    moved = np.array([frame.positions - adsorbed.positions for frame in frames])
    assert np.linalg.norm(moved, axis=-1).max() == pytest.approx(0.1)
    assert not moved[:, :8].any()
    np.testing.assert_allclose(moved[6], -moved[0], atol=1e-12)
    assert frames[3].info["frequency_per_cm"] == found.per_cm[2]


def test_atoms_are_chosen_by_number_slice_and_element():
    slab = Atoms("Cu4OH", np.random.default_rng(0).normal(size=(6, 3)))
    assert chosen_atoms(slab, ()) is None
    assert chosen_atoms(slab, ("H", "1", "-3:-1")) == [1, 3, 4, 5]
    assert chosen_atoms(slab, ("::2",)) == [0, 2, 4]
    for wrong in ("6", "Fe", "7:", "1-3"):
        with pytest.raises(ValueError, match=rf"--atoms {wrong}, which names no atom of HCu4O; .* 0 to 5"):
            chosen_atoms(slab, (wrong,))


def test_chosen_atoms_come_to_rest_in_the_cell_while_the_others_stay(potential, adsorbed):
    moved = adsorbed.copy()
    moved.positions[-2:] += [[0.1, 0.0, 0.05], [0.0, 0.1, 0.1]]
    found = at_rest(potential, moved, [8, 9])
    np.testing.assert_array_equal(found.positions[:8], moved.positions[:8])
    np.testing.assert_array_equal(found.cell.array, moved.cell.array)
    assert np.abs(potential.predict(found)["forces"][8:]).max() < 0.01
    assert [its.index.tolist() for its in found.constraints] == [[0, 1, 2, 3]]  # those of the file
    free = at_rest(potential, moved, None)
    assert np.abs(potential.predict(free)["forces"][4:]).max() < 0.01
    np.testing.assert_array_equal(free.positions[:4], moved.positions[:4])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("molecules")
    small_potential(QUICK).save(place / "model")
    salt = bulk("NaCl", "rocksalt", 5.64)
    salt.set_constraint(FixAtoms([0]))
    ase.io.write(place / "half [held] @1.vasp", salt)
    salt.set_constraint(FixAtoms([0, 1]))
    ase.io.write(place / "held.vasp", salt)
    return place


def test_the_command_writes_what_it_found(folder, monkeypatch, capsys):
    done = here(
        folder,
        monkeypatch,
        capsys,
        *("vibrations", "half [held] @1.vasp", "--model", "model", "--frames", "4", "--out", "of [1]"),
    )
    assert done.returncode == 0, done.stderr
    assert "1 of 2 atoms move (3 of 6 coordinates), the others are held in place by the file" in done.stdout
    record = json.loads((folder / "of [1]" / "vibrations.json").read_text())
    found = vibrations(small_potential(QUICK), read_crystal(folder / "half [held] @1.vasp"))
    np.testing.assert_allclose(record["frequencies_per_cm"], found.per_cm, rtol=1e-6)
    assert record["infrared_intensities"] is None
    assert "no dipole" in record["infrared_intensities_why_none"]
    assert record.keys() >= as_record(found, {}).keys()
    assert len(ase.io.read(folder / "of [1]" / "vibrations.extxyz", ":")) == 12
    assert (folder / "of [1]" / "vibrations.png").stat().st_size > 5_000


def test_mistakes_in_the_command_are_answered_in_words(folder, monkeypatch, capsys):
    def said(*words):
        return complaint(folder, monkeypatch, capsys, "vibrations", *words, "--model", "model")

    assert "all 2 atoms of ClNa are held in place by constraints" in said("held.vasp")
    assert "found --atoms 2, which names no atom" in said("held.vasp", "--atoms", "2")
    assert "--temperature 0" in said("held.vasp", "--temperature", "0")
