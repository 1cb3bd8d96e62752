"""Crystals side by side have the phonons that each has alone."""

import threading
import warnings

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from crystals import triclinic

from jaxmlip.crystals.batching import BatchShape
from jaxmlip.derivatives import linear_map, together
from jaxmlip.derivatives.memory_plan import MemoryLimitError
from jaxmlip.mechanics.elasticity import NotAtRestWarning
from jaxmlip.phonons import NAC, Lattice, bloch, lattices

# The crystals of these tests are not at rest in a random network.
pytestmark = pytest.mark.filterwarnings("ignore::jaxmlip.mechanics.elasticity.NotAtRestWarning")
# Of all calls, so that few programs are compiled; small enough that crystals do not all fit into one.
SHAPE = BatchShape(14, 32, 96, 320, crystals=14)
ALONE = SHAPE._replace(crystals=1)
CELL = [[3.2, 0, 0], [-1.6, 1.6 * 3**0.5, 0], [0, 0, 0]]


def several() -> list[Atoms]:
    """Of one atom to five, with and without symmetry; a slab, a molecule, and atoms without bonds."""
    zinc_oxide = bulk("ZnO", "wurtzite", a=3.2, c=5.2, u=0.38)
    salt = bulk("NaCl", "rocksalt", 5.0)
    masses = salt.get_masses()
    masses[1] = 36.97
    salt.set_masses(masses)
    slab = Atoms("MgO", [[0, 0, 0.3], [1.6, 1.6 / 3**0.5, 0]], cell=CELL, pbc=[True, True, False])
    water = Atoms("OHH", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    helium = Atoms("He", cell=[9, 9, 9], pbc=True)
    return [zinc_oxide, bulk("Cu"), triclinic(), slab, salt, water, helium]


def waves(k: int, atoms: Atoms) -> np.ndarray:
    """Different wave vectors, and numbers of them, for each crystal."""
    q = np.random.default_rng(k).uniform(-0.5, 0.5, (1 + 2 * k % 5, 3))
    q[0] = 0
    return q * atoms.pbc


def collected(potential, crystals, work, **options) -> list:
    found = dict(lattices(potential, crystals, work, shapes=[SHAPE], **options))
    assert sorted(found) == list(range(len(crystals)))
    return [found[k] for k in range(len(crystals))]


def same(found, expected, relative=1e-12) -> None:
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * max(scale, 1e-2))


@pytest.mark.slow
def test_crystals_side_by_side_have_the_dynamical_matrices_that_each_has_alone(architecture):
    crystals = several()
    found = collected(architecture, crystals, lambda k, lattice: lattice.exact(waves(k, lattice.atoms)))
    for k, (D, atoms) in enumerate(zip(found, crystals, strict=True)):
        alone = bloch.dynamical_matrix(architecture, atoms, waves(k, atoms), symmetry=True, shape=ALONE)
        assert atoms.symbols[0] == "He" or np.abs(alone).max() > 1e-4
        same(D, alone)


def test_the_waves_of_one_crystal_are_not_those_of_its_neighbour(any_potential):
    """Two of the same, with opposite waves, and both with each wave of the other."""
    q, crystal = np.array([[0.13, -0.41, 0.27]]), triclinic()
    one, other = collected(any_potential, [crystal] * 2, lambda k, lattice: lattice.exact((1 - 2 * k) * q))
    assert np.abs(one.imag).max() > 1e-3 * np.abs(one).max()
    same(other, one.conj())


def results(k: int, lattice: Lattice) -> dict[str, np.ndarray]:
    """What a user asks for."""
    modes = lattice.mesh((5, 5, 5))
    bands = lattice.bands(points=6)
    return {
        "mesh": modes.frequencies,
        "weights": modes.weights,
        "bands": bands.modes.frequencies,
        "constants": lattice.constants((2, 1, 1)).phi,
        "stress": lattice.stress,
        "force": np.array(lattice.max_force),
    }


def test_meshes_bands_and_constants_of_many_crystals_are_those_of_one_by_one(any_potential):
    """Fourier sums, with the long-range part and isotopes; and without symmetry."""
    salt, copper = several()[4], bulk("Cu")
    assert salt.get_masses()[1] == 36.97
    nac = [NAC(np.array([np.eye(3), -np.eye(3)]), 2.3 * np.eye(3), (3, 3, 3)), None]
    sums, exact = {"method": "fourier", "tolerance": 0.3}, {"symmetry": False, "method": "exact"}
    for crystals, options in (([salt, copper], sums), ([salt, triclinic()], exact)):
        found = collected(any_potential, crystals, results, nac=nac, **options)
        for k, (its, atoms) in enumerate(zip(found, crystals, strict=True)):
            alone = results(k, Lattice(any_potential, atoms, nac=nac[k], shape=ALONE, **options))
            for name, expected in alone.items():
                # The square root of a number near 0 multiplies rounding errors.
                same(its[name], expected, 1e-6 if name in ("mesh", "bands") else 1e-11)


@pytest.mark.slow
def test_velocities_and_grueneisen_parameters_of_many_crystals_are_those_of_one_by_one(any_potential):
    """Each model tells crystals of one graph apart, as dynamical matrices show; the slopes are ours."""
    q = np.array([[0.13, -0.41, 0.27], [0.5, 0.2, -0.35]])
    shear = np.array([[0, 0.3, 0], [0.3, 0.5, 0.1], [0, 0.1, -0.2]])

    def work(k, lattice):
        return *lattice.velocities(q[: 1 + k % 2]), *lattice.grueneisen(q, shear if k else None)

    crystals = [crystal for crystal in several() if crystal.pbc.all()][:4]
    for k, its in enumerate(collected(any_potential, crystals, work)):
        alone = work(k, Lattice(any_potential, crystals[k], shape=ALONE))
        for found, expected in zip(its, alone, strict=True):
            same(found, expected, 1e-9)


def test_a_crystal_that_fails_is_named_and_harms_no_other(any_potential):
    broken = triclinic()
    broken.positions[1] = np.nan
    twice = Atoms("Cs2", cell=[5, 5, 5], pbc=True)
    large = triclinic().repeat((5, 4, 4))
    crystals = [bulk("Cu"), Atoms("Am", cell=[3, 3, 3], pbc=True), broken, twice, large, Atoms(), bulk("Si")]

    def work(k, lattice):
        if k == 6:
            raise KeyError("mine")
        return lattice.exact(np.array([[0.1, 0.2, 0.3]]))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of atoms in one place
        found = collected(any_potential, crystals, work, memory_limit=1e6)
    assert isinstance(found[4], MemoryLimitError)
    for k, name in ((1, "found Am"), (2, "atom 1 "), (3, "no symmetry of Cs2"), (5, "at least one atom")):
        assert isinstance(found[k], ValueError), k
        assert name in str(found[k])
    assert isinstance(found[6], KeyError)
    same(found[0], Lattice(any_potential, bulk("Cu"), shape=ALONE).exact(np.array([[0.1, 0.2, 0.3]])))


def test_a_computation_that_fails_fails_for_the_crystal_that_makes_it_fail(any_potential, monkeypatch):
    linearise = linear_map.linearise

    def refusing(energy, params, graph):
        if (np.asarray(graph.species) == 29).any():
            raise RuntimeError("no copper")
        return linearise(energy, params, graph)

    monkeypatch.setattr(linear_map, "linearise", refusing)
    q = np.array([[0.1, 0.2, 0.3]])
    crystals = [bulk("Si"), bulk("Cu"), triclinic()]
    found = collected(any_potential, crystals, lambda k, lattice: lattice.exact(q))
    assert str(found[1]) == "no copper"
    monkeypatch.undo()
    for k in (0, 2):
        same(found[k], Lattice(any_potential, crystals[k], shape=ALONE).exact(q))


def test_numbers_that_are_not_finite_stay_with_their_crystal(any_potential, monkeypatch):
    """Two atoms of caesium in one place, whose derivatives are not numbers; the crystal between is whole."""
    apart = Atoms("CsCs", [[0, 0, 0], [1e-200, 0, 0]], cell=[5, 5, 5], pbc=True)
    q = np.array([[0.1, 0.2, 0.3]])
    crystals = [triclinic(), apart, bulk("Si")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collected(any_potential, crystals, lambda k, lattice: lattice.exact(q), symmetry=False)
    for k in (0, 2):
        same(found[k], bloch.dynamical_matrix(any_potential, crystals[k], q, shape=ALONE))


@pytest.mark.filterwarnings("default::jaxmlip.mechanics.elasticity.NotAtRestWarning")
def test_warnings_come_with_the_crystal_that_they_are_of(any_potential):
    crystals = [triclinic(), bulk("NaCl", "rocksalt", 5.0, cubic=True), bulk("Cu")]
    ways = lattices(
        any_potential, crystals, lambda k, lattice: lattice.modes(np.zeros((1, 3))), shapes=[SHAPE]
    )
    told = {}
    while True:
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            found = next(ways, None)
        if found is None:
            break
        told[found[0]] = [str(one.message) for one in given if one.category is not DeprecationWarning]
    for k, texts in told.items():
        for text in texts:
            assert crystals[k].get_chemical_formula() in text
    assert ["4 primitive cells" in text for text in told[1]].count(True) == 1
    assert len(told[0]) == 1  # it is not at rest
    assert NotAtRestWarning.__name__


def test_other_crystals_of_the_same_shapes_compile_nothing(any_potential):
    q = np.array([[0.1, 0.2, 0.3], [0, 0, 0.5]])
    programs = linear_map.linearise, linear_map.waves

    def run(crystals):
        collected(any_potential, crystals, lambda k, lattice: lattice.exact(q[: 1 + k]))
        return [program._cache_size() for program in programs]

    assert run([bulk("Cu"), bulk("Si")]) == run([triclinic(), bulk("NaCl", "rocksalt", 5.0), bulk("Al")])


def test_a_lattice_that_was_returned_holds_what_it_has_and_computes_the_rest_alone(
    any_potential, monkeypatch
):
    salt, mesh = bulk("NaCl", "rocksalt", 5.0), (2, 2, 2)
    (lattice,) = collected(any_potential, [salt], lambda k, lattice: (lattice.constants(mesh), lattice)[1])
    expected = Lattice(any_potential, salt, shape=ALONE)
    same(lattice.exact(np.full((1, 3), 0.1)), expected.exact(np.full((1, 3), 0.1)))
    assert lattice.max_force == pytest.approx(expected.max_force, abs=1e-12)
    monkeypatch.setattr(linear_map, "linearise", None)
    monkeypatch.setattr(type(lattice.response), "find", None)
    same(lattice.constants(mesh).phi, expected.constants(mesh).phi)


def test_leaving_the_iterator_ends_all_work(any_potential, monkeypatch):
    monkeypatch.setattr(together, "UNDER_WAY", 4)
    before, ended = threading.active_count(), []

    def crystals():
        while True:
            yield bulk("Cu")

    def work(k, lattice):
        try:
            lattice.exact(np.full((1 + (k > 0), 3), 0.1))
        finally:
            ended.append(k)

    ways = lattices(any_potential, crystals(), work, shapes=[SHAPE])
    assert next(ways)[1] is None  # what `work` returns
    assert threading.active_count() > before
    ways.close()
    assert threading.active_count() == before
    assert sorted(ended) == list(range(len(ended)))


def test_crystals_that_cannot_be_had_end_the_iterator_with_their_error(any_potential):
    def crystals():
        yield bulk("Cu")
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(lattices(any_potential, crystals(), lambda k, lattice: lattice.exact(np.zeros((1, 3)))))
    with pytest.raises(TypeError, match="needed shapes"):
        next(lattices(any_potential, [bulk("Cu")], lambda k, lattice: None, shape=None))
    assert list(lattices(any_potential, [], lambda k, lattice: None)) == []
