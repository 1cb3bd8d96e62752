"""Few compiled programs for any number of crystals, and none too many for the process."""

from collections import Counter

import jax
import numpy as np
import pytest
from ase.build import bulk

import jaxmlip
from jaxmlip import potential
from jaxmlip.crystals import batching
from jaxmlip.crystals.graph import Cutoffs, from_atoms
from jaxmlip.derivatives import linear_map
from jaxmlip.system import programs
from jaxmlip.system.programs import Programs, mapped

pytestmark = pytest.mark.usefixtures("real_shapes")

CUTOFFS = {
    "chgnet": Cutoffs(6.0, 3.0, True),
    "m3gnet": Cutoffs(5.0, 4.0, False),
    "mace": Cutoffs(6.0, 0.0, True),
}
LATTICES = ("rocksalt", "zincblende", "cesiumchloride", "wurtzite", "fluorite")


@pytest.fixture(scope="module")
def library():
    """Different crystals of 1 to 20 atoms, from dense to loose."""
    rng = np.random.default_rng(0)
    found = []
    while len(found) < 100:
        lattice = LATTICES[rng.integers(len(LATTICES))]
        atoms = bulk("MgO" if lattice != "fluorite" else "MgOO", lattice, rng.uniform(4, 7))
        if rng.random() < 0.2:
            atoms = bulk("Cu", "fcc", rng.uniform(3, 5.5))
        atoms *= rng.integers(1, 4, size=3)
        if len(atoms) <= 20:
            atoms.rattle(0.02, rng=rng)
            found.append(atoms)
    return found


@pytest.fixture
def compiled():
    """Counts the programs that JAX compiles, by name; what tests before compiled is forgotten."""
    jax.clear_caches()
    counts: Counter = Counter()

    def hear(event, duration, **about):
        if event.endswith("backend_compile_duration"):
            counts[about.get("fun_name")] += 1

    jax.monitoring.register_event_duration_secs_listener(hear)
    yield counts
    jax.monitoring.unregister_event_duration_listener(hear)


@pytest.mark.parametrize("name", CUTOFFS)
def test_a_hundred_small_crystals_take_less_than_ten_shapes(library, name):
    graphs = [from_atoms(atoms, CUTOFFS[name]) for atoms in library]
    shapes = Counter(batching.shape_for([graph]) for graph in graphs)
    assert 1 < len(shapes) < 10
    for graph in graphs:
        assert batching.shape_for([graph]).fits(batching.exact_shape([graph]))


@pytest.mark.slow
def test_energies_and_hessians_of_a_library_compile_one_program_for_each_shape(
    any_potential, library, compiled
):
    some = [atoms for atoms in library if len(atoms) < 4][:12]
    shapes = {batching.shape_for([any_potential.graph(atoms)]) for atoms in some}
    assert len(shapes) < 5
    for atoms in some:
        any_potential.predict(atoms)
        jaxmlip.hessian(any_potential, atoms)
    for program in (potential._predict, linear_map.linearise, linear_map.columns):
        assert compiled[f"jit({program.__name__})"] <= len(shapes), program
    assert compiled.total() > 0


def test_programs_are_dropped_before_a_process_maps_too_much_and_it_is_said_once(capfd, monkeypatch):
    triple = jax.jit(lambda x: 3 * x)
    assert triple(2.0) == 6
    full = Programs(limit=1000)
    held = [271, 100, 271, 100]
    monkeypatch.setattr(programs, "mapped", lambda: held.pop(0))
    full.make_room()
    assert triple._cache_size() == 0
    assert "271 pieces" in capfd.readouterr().err
    full.make_room()  # nothing was compiled, so nothing is counted
    assert len(held) == 2
    assert triple(2.0) == 6
    full.note("/jax/core/compile/backend_compile_duration", 0.1)
    full.make_room()
    assert triple._cache_size() == 0
    assert capfd.readouterr().err == ""
    assert not held


def test_what_others_map_does_not_drop_programs_each_time(monkeypatch):
    triple = jax.jit(lambda x: 3 * x)
    full = Programs(limit=1000)
    monkeypatch.setattr(programs, "mapped", lambda: 400)
    full.make_room()
    triple(2.0)
    full.note("/jax/core/compile/backend_compile_duration", 0.1)
    full.make_room()
    assert triple._cache_size() == 1


def test_a_process_counts_what_it_maps_and_what_is_compiled(any_potential, crystal):
    if not mapped():
        pytest.skip("only Linux tells what a process maps")
    assert 100 < mapped() < programs.most_mapped()
    watched = programs.programs()
    jax.jit(lambda x: 5 * x)(2.0)
    assert watched.compiled
    any_potential.predict(crystal)
    with any_potential.precision():
        assert not watched.compiled
