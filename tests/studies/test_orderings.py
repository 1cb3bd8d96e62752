"""Orderings: as many as are known, each once."""

import numpy as np
import pytest
from ase.build import bulk

from experiments.softening.orderings import orderings


def rock_salt(cells: int):
    return list(orderings(bulk("MgO", "rocksalt", 4.2), "Mg", ("Mg", "Ca"), cells))


@pytest.mark.parametrize(("cells", "known"), [(1, 2), (2, 2), (3, 6), (4, 19), (5, 28), (6, 80)])
def test_their_number_on_fcc_is_that_of_hart_and_forcade(cells, known):
    assert len(rock_salt(cells)) == known


def test_pymatgen_tells_all_of_them_apart():
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.io.ase import AseAtomsAdaptor

    # Two atoms of Mg in a wurtzite cell: more than one sublattice, and screw axes.
    made = orderings(bulk("MgO", "wurtzite", 3.2, 5.2), "Mg", ("Mg", "Ca"), 2)
    structures = [AseAtomsAdaptor.get_structure(crystal) for crystal, _ in made]
    matcher = StructureMatcher(primitive_cell=False, scale=False)
    assert len(structures) == 10
    assert len(matcher.group_structures(structures)) == 10


def test_counts_volume_and_neighbours_are_those_of_the_parent():
    for crystal, (magnesium, calcium) in rock_salt(4):
        assert (magnesium, calcium) == ((crystal.symbols == "Mg").sum(), (crystal.symbols == "Ca").sum())
        assert crystal.get_volume() == pytest.approx(4 * 4.2**3 / 4)
        d = crystal.get_all_distances(mic=True)
        assert np.min(d + 10 * np.eye(len(d))) == pytest.approx(2.1)


def test_what_cannot_be_listed_is_refused():
    crystal = bulk("MgO", "rocksalt", 4.2)
    with pytest.raises(ValueError, match="no Ca to replace"):
        next(orderings(crystal, "Ca", ("Mg", "Ca"), 2))
    with pytest.raises(ValueError, match="labellings, needed at most"):
        next(orderings(crystal, "Mg", ("Mg", "Ca"), 30))
