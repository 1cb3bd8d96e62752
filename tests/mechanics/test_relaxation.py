"""Relaxation: the same minimum by every way, one crystal or many, and words where there is none.

Most laws are proved on a pair potential with a known minimum, which no random network has.
"""

import warnings
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms
from ase.io import read, write
from commands import complaint
from commands import jaxmlip as command
from conftest import QUICK, public, small_potential

import jaxmlip.potential
from jaxmlip.crystals import batches
from jaxmlip.crystals.graph import Cutoffs, bond_vectors
from jaxmlip.mechanics.optimisers import LBFGS
from jaxmlip.mechanics.relaxation import (
    BatchDescent,
    NotConvergedWarning,
    RelaxationOptions,
    Seen,
    at_rest,
    relax,
    relax_many,
)
from jaxmlip.models import safe
from jaxmlip.models.basis import polynomial_envelope
from jaxmlip.models.network import Network
from jaxmlip.potential import Potential
from jaxmlip.units import GPA_PER_EV_PER_A3

GOOD, NO_NUMBER, FLEES = "Cu", "Au", "Xe"
WAYS = {
    "L-BFGS": relax,
    "FIRE": partial(relax, optimiser="FIRE"),
    "ASE's BFGS": partial(relax, optimiser="BFGS"),
}


class Morse(Network):
    """Morse pairs, cut off smoothly at 5.5 Å; an element can be without their attraction."""

    cutoffs = Cutoffs(5.5)

    @nn.compact
    def __call__(self, graph):
        attraction = self.param("attraction", nn.initializers.ones, (100,))
        r = safe.norm(bond_vectors(graph))
        x = jnp.exp(-1.6 * (r - 2.6))
        pair = 0.4 * (x**2 - 2 * attraction[graph.species[graph.first]] * x) * polynomial_envelope(r, 5.5, 6)
        pair = jnp.where(r > 0, pair, 0.0) / 2  # one half for each end
        energy = jnp.zeros(len(graph.species)).at[graph.first].add(pair).at[graph.second].add(pair)
        return {"site_energies": jnp.where(graph.is_atom, energy, 0.0)}


@pytest.fixture(scope="module")
def morse() -> Potential:
    attraction, reference = np.ones(100), np.zeros(100)
    attraction[Atoms(FLEES).numbers], reference[Atoms(NO_NUMBER).numbers] = 0.0, np.nan
    params = {"network": {"attraction": attraction}, "reference_energies": reference}
    return Potential("Morse", Morse(), params, tuple(range(1, 100)), {}, "float64")


def rattled(symbol: str = GOOD, repeat=(1, 1, 1), seed: int = 0, cubic: bool = True, a: float = 3.6) -> Atoms:
    """A face-centred cubic crystal, its atoms displaced and its cell strained by a few per cent."""
    atoms = bulk(symbol, "fcc", a=a, cubic=cubic) * repeat
    rng = np.random.default_rng(seed)
    strain = rng.uniform(-0.03, 0.03, (3, 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain + strain.T), scale_atoms=True)
    atoms.positions += rng.normal(scale=0.06, size=atoms.positions.shape)
    return atoms


def several() -> list[Atoms]:
    shapes = [
        ((1, 1, 1), True),
        ((1, 1, 1), False),
        ((2, 1, 1), True),
        ((2, 2, 1), False),
        ((1, 3, 1), False),
    ]
    return [rattled(GOOD, repeat, seed, cubic) for seed, (repeat, cubic) in enumerate(shapes)]


def residuals(potential, atoms, pressure: float = 0.0):
    """The largest force (eV/Å) and component of σ + p (GPa) by a fresh prediction."""
    p = potential.predict(atoms)
    stress = p["stress"] * GPA_PER_EV_PER_A3 + pressure * np.eye(3)
    return np.linalg.norm(p["forces"], axis=1).max(), np.abs(stress).max()


@pytest.mark.parametrize("way", WAYS)
def test_every_way_finds_the_perfect_crystal_and_leaves_the_start_as_it_was(morse, way):
    start = rattled()
    before = start.copy()
    found = WAYS[way](morse, start)
    assert found.converged, found.reason
    force, stress = residuals(morse, found.atoms)
    assert force < 1e-3
    assert stress < 0.01
    np.testing.assert_allclose([found.max_force, found.max_stress], [force, stress], rtol=1e-6, atol=1e-12)
    assert (found.start_space_group, found.space_group) == ("P1 (1)", "Fm-3m (225)")
    assert start == before
    assert start.calc is None
    np.testing.assert_allclose(found.start_energy, morse.predict(start)["energy"])
    np.testing.assert_allclose(found.energy, morse.predict(found.atoms)["energy"])
    assert found.energy < found.start_energy
    # A minimum is flat: the energies of all ways agree much better than the forces vanish.
    perfect = relax(morse, bulk(GOOD, "fcc", a=3.6, cubic=True), fmax=1e-6, smax=1e-5)
    np.testing.assert_allclose(found.energy, perfect.energy, atol=1e-5)
    assert found.volume_change == pytest.approx(perfect.atoms.cell.volume / start.cell.volume - 1, abs=1e-3)


def test_many_crystals_end_where_each_ends_alone(morse):
    crystals = several()
    together = relax_many(morse, crystals)
    for crystal, one in zip(crystals, together, strict=True):
        (alone,) = relax_many(morse, [crystal])
        assert one.converged
        assert one.steps == alone.steps
        assert one.energy < one.start_energy
        np.testing.assert_allclose(one.atoms.positions, alone.atoms.positions, atol=1e-8)
        np.testing.assert_allclose(one.atoms.cell, alone.atoms.cell, atol=1e-8)
        np.testing.assert_allclose(one.energy, alone.energy, rtol=1e-10)


def test_a_network_relaxes_many_crystals_as_it_relaxes_each_and_keeps_a_fixed_space_group(any_potential):
    """Few steps are enough: random parameters need have no minimum."""
    crystals = [bulk("ZnO", "wurtzite", a=3.25, c=5.2), bulk("MgO", "rocksalt", 4.2)]
    together = relax_many(any_potential, crystals, fix_symmetry=True, steps=3, fmax=1e-9)
    (alone,) = relax_many(any_potential, crystals[:1], fix_symmetry=True, steps=3, fmax=1e-9)
    np.testing.assert_allclose(together[0].atoms.positions, alone.atoms.positions, atol=1e-7)
    np.testing.assert_allclose(together[0].atoms.cell, alone.atoms.cell, atol=1e-7)
    assert [one.space_group for one in together] == ["P6_3mc (186)", "Fm-3m (225)"]
    for one in together:
        assert one.energy < one.start_energy
        assert one.volume_change != 0


@pytest.mark.parametrize("way", WAYS)
def test_a_relaxed_crystal_needs_no_step(morse, way):
    relaxed = WAYS[way](morse, rattled())
    again = WAYS[way](morse, relaxed.atoms)
    assert (again.converged, again.steps) == (True, 0)
    np.testing.assert_array_equal(again.atoms.positions, relaxed.atoms.positions)


@pytest.mark.parametrize("way", WAYS)
def test_a_fixed_cell_stays_exactly_what_it_was(morse, way):
    start = rattled(repeat=(2, 1, 1))
    found = WAYS[way](morse, start, cell=False)
    assert found.converged
    assert residuals(morse, found.atoms)[0] < 1e-3
    np.testing.assert_array_equal(found.atoms.cell, start.cell)
    assert found.max_stress > 0.1, "the cell was strained, so stress must be left"


@pytest.mark.parametrize("way", WAYS)
def test_under_pressure_the_stress_is_minus_the_pressure(morse, way):
    free, pressed = relax(morse, rattled()), WAYS[way](morse, rattled(), pressure=5.0)
    assert pressed.converged
    assert residuals(morse, pressed.atoms, pressure=5.0)[1] < 0.01
    assert pressed.pressure == pytest.approx(5.0, abs=0.01)
    assert pressed.atoms.cell.volume < free.atoms.cell.volume


def test_force_is_minus_the_derivative_of_the_enthalpy_by_the_coordinates(morse):
    goal = RelaxationOptions(pressure=20.0, steps=1)
    atoms = rattled(cubic=False, repeat=(2, 1, 1))
    descent = BatchDescent(atoms, goal, LBFGS())
    rng = np.random.default_rng(1)
    there = descent.coordinates + rng.normal(scale=0.05, size=descent.coordinates.shape)
    there[-3:] = (there[-3:] + there[-3:].T) * 2  # large, so that exp(U) is far from 1 + U

    def enthalpy(x):
        descent.place(x)
        volume = descent.atoms.cell.volume
        return morse.predict(descent.atoms)["energy"] + 20.0 / GPA_PER_EV_PER_A3 * volume

    descent.place(there)
    descent.seen = Seen.of(descent.atoms, morse.predict(descent.atoms), goal, descent.along)
    force, step = descent.force(), 1e-5
    for _ in range(6):
        towards = rng.normal(size=there.shape)
        towards[-3:] += towards[-3:].T
        slope = (enthalpy(there + step * towards) - enthalpy(there - step * towards)) / (2 * step)
        np.testing.assert_allclose(np.vdot(force, towards), -slope, rtol=1e-6)


def strain_of(start: Atoms, end: Atoms) -> np.ndarray:
    """The logarithm U, symmetric up to a rotation, of the deformation from one cell to another."""
    F = np.linalg.solve(start.cell.array, end.cell.array)
    value, vector = np.linalg.eigh(F @ F.T)
    return (vector * np.log(value) / 2) @ vector.T


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[pytest.mark.slow] if way == "ASE's BFGS" else []) for way in WAYS]
)
def test_the_cell_follows_the_strains_that_are_allowed_and_no_other(morse, way):
    start = rattled()
    at_volume = WAYS[way](morse, start, constant_volume=True)
    shaped = WAYS[way](morse, start, hydrostatic_strain=True)
    masked = WAYS[way](morse, start, mask=[True, False, False, False, False, True])
    free = WAYS[way](morse, start)
    assert all(r.converged for r in (at_volume, shaped, masked, free))
    assert at_volume.volume_change == pytest.approx(0, abs=1e-9)
    assert at_volume.pressure == pytest.approx(residual_pressure(morse, at_volume.atoms))
    U = strain_of(start, shaped.atoms)
    np.testing.assert_allclose(U, np.eye(3) * U[0, 0], atol=1e-9)
    assert shaped.pressure == pytest.approx(0, abs=0.01)
    U = strain_of(start, masked.atoms)
    if way != "ASE's BFGS":  # its filter also turns the cell
        np.testing.assert_allclose(U[[1, 2, 1, 0], [1, 2, 2, 2]], 0, atol=1e-9)
    stress = morse.predict(masked.atoms)["stress"] * GPA_PER_EV_PER_A3
    assert np.abs(stress[0, :2]).max() < 0.01
    assert max(r.energy for r in (at_volume, shaped, masked)) < at_volume.start_energy
    assert min(r.energy for r in (at_volume, shaped, masked)) > free.energy - 1e-5


def residual_pressure(potential, atoms) -> float:
    return -np.trace(potential.predict(atoms)["stress"]) / 3 * GPA_PER_EV_PER_A3


@pytest.mark.parametrize("way", WAYS)
def test_a_slab_relaxes_in_its_plane_and_a_molecule_without_a_cell(morse, way):
    slab = rattled(repeat=(1, 1, 2))
    slab.pbc = [True, True, False]
    found = WAYS[way](morse, slab)
    assert found.converged
    normal = np.cross(*slab.cell.array[:2])
    np.testing.assert_allclose(found.atoms.cell.array[:2] @ normal, 0, atol=1e-8)
    assert residuals(morse, found.atoms)[1] < 0.01
    assert found.energy < slab_energy_in_its_cell(morse, slab)
    assert np.isnan(found.pressure)
    molecule = slab.copy()
    molecule.pbc, molecule.cell = False, None
    found = WAYS[way](morse, molecule)
    assert found.converged
    assert np.linalg.norm(morse.predict(found.atoms)["forces"], axis=1).max() < 1e-3
    assert np.isnan(found.volume_change)
    slab.cell[2] = 0
    for crystal, options, words in (
        (slab, {}, r"volume 0 Å³.*height"),
        (molecule, {"pressure": 2.0}, "pressure=2"),
        (molecule, {"fix_symmetry": True}, "fix_symmetry=True"),
    ):
        with pytest.raises(ValueError, match=words):
            WAYS[way](morse, crystal, **options)


def slab_energy_in_its_cell(potential, slab) -> float:
    return relax(potential, slab, cell=False).energy


def test_a_crystal_at_rest_keeps_all_but_places_and_is_free_of_forces_though_some_atoms_were_held(morse):
    start = rattled(repeat=(2, 1, 1))
    start.set_masses(np.arange(60.0, 68.0))
    start.set_tags(range(8))
    start.set_initial_magnetic_moments(np.linspace(-1, 1, 8))
    start.info["name"] = "mine"
    start.set_constraint(FixAtoms([1, 4]))
    with pytest.warns(UserWarning, match=r"Cu8 .*FixAtoms"):
        found = at_rest(morse, start)
    force, stress = residuals(morse, found)
    assert force < 1e-3
    assert stress < 0.01
    np.testing.assert_array_equal(found.get_masses(), start.get_masses())
    np.testing.assert_array_equal(found.get_tags(), start.get_tags())
    np.testing.assert_array_equal(found.get_initial_magnetic_moments(), start.get_initial_magnetic_moments())
    assert found.info["name"] == "mine"
    assert [c.todict() for c in found.constraints] == [c.todict() for c in start.constraints]
    assert found.calc is None
    assert len(start.constraints) == 1


@pytest.mark.parametrize("way", WAYS)
def test_fixed_symmetry_keeps_the_space_group_that_the_minimum_has_not(morse, way):
    """Morse's simple cubic crystal is a saddle: sheared ever so little, it becomes a close-packed one."""
    start = bulk(GOOD, "sc", a=2.5)
    start.set_cell(start.cell.array + 0.002 * (1 - np.eye(3)), scale_atoms=True)
    fixed, free = (WAYS[way](morse, start, fix_symmetry=fix) for fix in (True, False))
    assert fixed.converged
    assert fixed.start_space_group == fixed.space_group == "Pm-3m (221)"
    assert fixed.atoms.constraints == []
    assert free.space_group == "Fm-3m (225)"
    assert free.energy < fixed.energy


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cell", [True, False])
def test_constraints_of_the_atoms_are_respected_and_kept(morse, way, cell):
    start = rattled(repeat=(2, 1, 1))
    start.set_constraint(FixAtoms([1, 4]))
    found = WAYS[way](morse, start, cell=cell)
    assert found.converged
    moved = found.atoms.get_scaled_positions(wrap=False) - start.get_scaled_positions(wrap=False)
    np.testing.assert_allclose(moved[[1, 4]], 0, atol=1e-12)
    assert np.abs(moved[[0, 2, 3, 5, 6, 7]]).min(axis=1).max() > 1e-3
    assert [c.todict() for c in found.atoms.constraints] == [c.todict() for c in start.constraints]
    # What holds the atoms is a force that is left to the potential and not to the constraint.
    assert residuals(morse, found.atoms)[0] > found.max_force
    np.testing.assert_allclose(found.atoms.get_forces()[[1, 4]], 0)


def test_a_crystal_without_numbers_and_one_that_flies_apart_disturb_no_other(morse):
    good = several()
    with warnings.catch_warnings():  # the results say it
        warnings.simplefilter("error")
        found = relax_many(morse, [*good[:2], rattled(NO_NUMBER), *good[2:], rattled(FLEES)])
    without_number, flown = found.pop(2), found.pop(-1)
    for one, alone in zip(found, relax_many(morse, good), strict=True):
        assert one.converged
        np.testing.assert_allclose(one.atoms.positions, alone.atoms.positions, atol=1e-8)
    assert (without_number.converged, without_number.steps) == (False, 0)
    assert "not finite" in without_number.reason
    assert not flown.converged
    assert "volume was 3" in flown.reason
    assert np.isfinite(flown.atoms.positions).all()
    assert flown.energy < flown.start_energy


@pytest.mark.parametrize(("symbol", "words"), [(NO_NUMBER, "not finite"), (FLEES, "its volume was")])
def test_one_crystal_that_cannot_be_relaxed_is_reported_with_the_reason(morse, symbol, words):
    with pytest.warns(NotConvergedWarning, match=words):
        found = relax(morse, rattled(symbol))
    assert not found.converged


@pytest.mark.filterwarnings("ignore:atoms 0 .* are 0.000 Å apart")
def test_atoms_on_top_of_each_other_are_no_minimum(morse):
    """There the forces between them vanish, if only because they have no direction."""
    twice = bulk(GOOD, "fcc", a=3.6) + bulk(GOOD, "fcc", a=3.6)
    with pytest.warns(NotConvergedWarning, match="closer than 0.5 Å"):
        found = relax(morse, twice, cell=False)
    assert not found.converged
    assert found.max_force < 1e-3


@pytest.mark.filterwarnings("ignore::jaxmlip.mechanics.relaxation.NotConvergedWarning")
@pytest.mark.parametrize("way", WAYS)
def test_too_few_steps_are_said_with_what_is_left(morse, way):
    found = WAYS[way](morse, rattled(), steps=2)
    assert (found.converged, found.steps) == (False, 2)
    assert "after 2 steps" in found.reason
    assert f"{found.max_force:.2g} eV/Å" in found.reason


def test_relaxing_many_crystals_compiles_few_programs_and_more_of_them_none(morse, monkeypatch):
    monkeypatch.setattr("jaxmlip.crystals.batches.MOVING_ON_CPU", 3000)
    before = jaxmlip.potential._predict._cache_size()
    found = relax_many(morse, several() * 6)
    assert sum(r.steps for r in found) > 100
    assert jaxmlip.potential._predict._cache_size() - before <= 2
    before = jaxmlip.potential._predict._cache_size()
    relax_many(morse, several() * 7)
    assert jaxmlip.potential._predict._cache_size() - before <= 1


def test_calls_that_are_given_one_room_share_its_program(morse):
    everything = [
        rattled(GOOD, repeat, 0, cubic) for repeat in ((1, 1, 1), (2, 1, 1)) for cubic in (True, False)
    ]
    (*_, shape) = batches.shapes_for([morse.graph(atoms) for atoms in everything], 1000, 0.3)
    before = jaxmlip.potential._predict._cache_size()
    for atoms in everything:
        assert relax_many(morse, [atoms], shape=shape)[0].converged
    assert jaxmlip.potential._predict._cache_size() - before <= 1


def test_small_crystals_fill_the_room_that_a_large_one_leaves(morse, monkeypatch):
    monkeypatch.setattr("jaxmlip.crystals.batches.MOVING_ON_CPU", 500)
    batches = []
    compute = Potential.predict_graphs
    monkeypatch.setattr(
        Potential,
        "predict_graphs",
        lambda self, graphs, shape: batches.append((len(graphs), shape)) or compute(self, graphs, shape),
    )
    relax_many(morse, [rattled(repeat=(3, 2, 2)), *(rattled(cubic=False, seed=k) for k in range(30))])
    assert max(count for count, _ in batches) > 20
    assert len({shape for _, shape in batches}) <= 2  # a shell of neighbours may come within the cutoff


def test_the_last_slow_crystals_get_a_smaller_batch(morse, real_shapes, monkeypatch):
    easy = relax(morse, rattled()).atoms
    monkeypatch.setattr("jaxmlip.crystals.batches.MOVING_ON_CPU", 100_000)
    monkeypatch.setattr("jaxmlip.crystals.batches.PATIENCE", 3)
    seen = []
    compute = Potential.predict_graphs
    monkeypatch.setattr(
        Potential,
        "predict_graphs",
        lambda self, graphs, shape: seen.append(shape) or compute(self, graphs, shape),
    )
    relax_many(morse, [easy] * 20 + [rattled(a=4.1)])
    assert len(set(seen)) == 2
    assert seen[-1].messages < seen[0].messages / 4


def test_structures_of_pymatgen_and_no_structures_are_accepted(morse):
    from pymatgen.io.ase import AseAtomsAdaptor

    structure = AseAtomsAdaptor.get_structure(rattled())
    assert relax_many(morse, []) == []
    for found in (relax(morse, structure), *relax_many(morse, [structure])):
        assert found.converged
        assert isinstance(found.atoms, Atoms)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fmax": 0.0}, "found fmax=0.0"),
        ({"smax": float("nan")}, "found smax=nan"),
        ({"steps": -1}, "found steps=-1"),
        ({"optimiser": "Newton"}, "found optimiser='Newton', needed one of"),
        ({"cell": False, "pressure": 3.0}, "3 GPa with a fixed cell"),
        ({"pressure": float("inf")}, "found pressure=inf"),
        ({"symprec": 0.0}, "found symprec=0"),
        ({"cell": False, "constant_volume": True}, "constant_volume with a fixed cell"),
        ({"hydrostatic_strain": True, "mask": [True] * 6}, "hydrostatic_strain and mask"),
        ({"mask": [False] * 6}, "xx yy zz yz xz xy"),
        ({"mask": [True] * 3}, "xx yy zz yz xz xy"),
        ({"mask": [True] * 6, "fix_symmetry": True}, "mask with fix_symmetry"),
        ({"constant_volume": True, "pressure": 3.0}, "3 GPa at constant volume"),
    ],
)
def test_a_setting_that_makes_no_sense_is_answered_in_words(morse, options, words):
    for way in (relax, lambda p, c, **o: relax_many(p, [c], **o)):
        with pytest.raises(ValueError, match=words):
            way(morse, rattled(), **options)


def test_an_option_that_does_not_exist_is_named(morse):
    for way in (relax, lambda p, c, **o: relax_many(p, [c], **o)):
        with pytest.raises(TypeError, match="tolerance"):
            way(morse, rattled(), tolerance=1e-3)


def test_a_crystal_that_is_none_is_refused_before_anything_is_computed(morse, monkeypatch):
    monkeypatch.setattr(Potential, "predict_graphs", None)
    nowhere = Atoms("Cu2", [[0, 0, 0], [0, 0, 2]], pbc=True)
    with pytest.raises(ValueError, match="volume of 0"):
        relax(morse, nowhere)
    with pytest.raises(ValueError, match=r"crystal 1: .*volume of 0"):
        relax_many(morse, [rattled(), nowhere])


@pytest.mark.slow
def test_chgnet_brings_rattled_rock_salt_back_with_and_without_ase():
    potential = public("chgnet-0.3.0", "float32")
    salt = bulk("NaCl", "rocksalt", 5.7)
    salt.rattle(0.03, seed=1)
    found = [relax(potential, salt, optimiser=name) for name in ("LBFGS", "BFGS")]
    assert all(r.converged for r in found)
    np.testing.assert_allclose([r.energy for r in found], found[0].energy, atol=1e-4)
    volumes = [r.atoms.cell.volume for r in found]
    np.testing.assert_allclose(volumes, volumes[0], rtol=2e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    here = tmp_path_factory.mktemp("work")
    small_potential(QUICK, "float32").save(here / "model")
    salt = bulk("NaCl", "rocksalt", 5.64)
    salt.rattle(0.05, seed=0)
    write(here / "POSCAR", salt)
    write(here / "two.extxyz", [salt, bulk("Cu")])
    return here


def test_the_command_writes_relaxed_structures_with_their_energies_and_forces(folder):
    done = command(
        folder, "relax", "POSCAR", "two.extxyz", "--model", "model", "--fixed-cell", "--fmax", "0.01"
    )
    assert done.returncode == 0, done.stderr
    written = read(folder / "relaxed.extxyz", ":")
    assert [a.info["file"] for a in written] == ["POSCAR", "two.extxyz", "two.extxyz [1]"]
    potential = small_potential(QUICK, "float32")
    for atoms in written:
        assert atoms.info["converged"]
        expected = potential.predict(atoms)
        np.testing.assert_allclose(atoms.get_potential_energy(), expected["energy"], rtol=1e-5)
        np.testing.assert_allclose(atoms.get_forces(), expected["forces"], atol=1e-4)
        assert np.linalg.norm(expected["forces"], axis=1).max() < 0.011
    assert "ClNa" in done.stdout
    assert "space group" in done.stdout


def test_what_did_not_converge_is_written_and_marked_and_the_exit_code_says_so(folder):
    options = ["--model", "model", "--steps", "1", "--fmax", "1e-6", "--out", "poor.extxyz"]
    done = command(folder, "relax", "two.extxyz", *options)
    assert done.returncode == 1
    assert "2 of 2 structures did not converge" in done.stderr
    assert "Traceback" not in done.stderr
    assert [a.info["converged"] for a in read(folder / "poor.extxyz", ":")] == [False, False]


def test_one_structure_can_be_written_as_poscar(folder):
    options = ["--model", "model", "--fixed-cell", "--fmax", "0.001", "--out", "POSCAR_relaxed"]
    done = command(folder, "relax", "POSCAR", *options)
    assert done.returncode == 0, done.stderr
    start, end = read(folder / "POSCAR"), read(folder / "POSCAR_relaxed")
    np.testing.assert_allclose(end.cell, start.cell)
    assert np.abs(end.get_distance(0, 1, mic=True) - start.get_distance(0, 1, mic=True)) > 1e-4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["two.extxyz", "--out", "two.cif"], "2 structures are to go to two.cif"),
        (["POSCAR", "--out", "a.nonsense"], "ASE writes no format that is named as a.nonsense is"),
        (["POSCAR", "--out", "nowhere/a.cif"], "the folder of nowhere/a.cif does not exist"),
        (["POSCAR", "--fmax", "0"], "found fmax=0.0"),
        (["POSCAR", "--fixed-cell", "--pressure", "2"], "2 GPa with a fixed cell"),
    ],
)
def test_a_mistake_on_the_command_line_is_answered_in_words(folder, monkeypatch, capsys, arguments, words):
    assert words in complaint(folder, monkeypatch, capsys, "relax", *arguments, "--model", "model")
