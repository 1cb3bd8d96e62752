"""The graph of a crystal: each bond and angle once, in the cell that it is said to be in; clear refusals."""

import warnings

import ase.io
import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor

from jaxmlip import from_atoms
from jaxmlip.crystals import batching
from jaxmlip.crystals.atoms import as_atoms, check_crystal
from jaxmlip.crystals.graph import BondEnds, CrystalGraph, Cutoffs, bond_vectors
from jaxmlip.crystals.structures import read_crystal, read_crystals

CUTOFFS = Cutoffs(4.0, 3.0)


@st.composite
def cells(draw):
    """Crystals of 1 to 4 atoms in any cell: skewed, flat, left-handed, atoms outside of it."""
    seed = draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    n = draw(st.integers(1, 4))
    lengths = rng.uniform(1.8, 6.0, size=3)
    cell = np.diag(lengths) + rng.uniform(-1.5, 1.5, size=(3, 3)) * draw(st.sampled_from([0.0, 0.5, 1.0]))
    if abs(np.linalg.det(cell)) < 6:
        cell = np.diag(lengths)
    if draw(st.booleans()):
        cell = cell[[1, 0, 2]]
    return Atoms("H" * n, cell=cell, pbc=True, scaled_positions=rng.uniform(-2, 3, size=(n, 3)))


def brute_force(atoms: Atoms, cutoff: float) -> list[tuple]:
    """All directed bonds (i, j, S), by trying every image that could be near enough."""
    cell = atoms.cell.array
    heights = np.abs(np.linalg.det(cell)) / np.linalg.norm(np.cross(cell[[1, 2, 0]], cell[[2, 0, 1]]), axis=1)
    frac = atoms.get_scaled_positions(wrap=False)
    reach = np.ceil(cutoff / heights + np.ptp(frac, axis=0)).astype(int)
    grid = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), -1).reshape(-1, 3)
    found = []
    for i in range(len(atoms)):
        for j in range(len(atoms)):
            r = np.linalg.norm(atoms.positions[j] + grid @ cell - atoms.positions[i], axis=1)
            near = (r < cutoff) & ~((i == j) & (grid == 0).all(axis=1))
            found += [(i, j, *s) for s in grid[near].tolist()]
    return sorted(found)


def padded(graph: CrystalGraph) -> CrystalGraph:
    """In one of few shapes, so that one program serves many."""
    return batching.pack([graph], batching.close_shape_for([graph]))


@settings(max_examples=60, deadline=None)
@given(cells())
def test_each_bond_is_stored_once_and_seen_from_both_ends(atoms):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random atoms may be close
        graph = from_atoms(atoms, CUTOFFS)
    shifts = graph.shifts.astype(int)
    forward = np.c_[graph.first, graph.second, shifts]
    reverse = np.c_[graph.second, graph.first, -shifts]
    assert sorted(map(tuple, np.concatenate([forward, reverse]).tolist())) == brute_force(atoms, 4.0)


@settings(max_examples=60, deadline=None)
@given(cells())
def test_angles_are_all_ordered_pairs_of_short_bonds_at_an_atom(atoms):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = from_atoms(atoms, CUTOFFS)
    short = brute_force(atoms, 3.0)
    assert 2 * graph.short == len(short)
    first, second, s = graph.first[: graph.short], graph.second[: graph.short], graph.shifts[: graph.short]
    directed = np.concatenate([np.c_[first, second, s], np.c_[second, first, -s]]).astype(int)
    found = {
        (tuple(directed[a]), tuple(directed[b]))
        for a, b in zip(graph.angle_from, graph.angle_to, strict=True)
    }
    expected = {(a, b) for a in short for b in short if a[0] == b[0] and a != b}
    assert found == expected
    assert len(graph.angle_from) == len(expected)


@settings(max_examples=60, deadline=None)
@given(cells())
def test_a_bond_seen_from_an_end_lies_where_its_image_says_and_angles_join_ends_at_one_atom(atoms):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = from_atoms(atoms, CUTOFFS)
    cell, r = graph.cell[0], atoms.positions
    vectors = r[graph.second] + graph.shifts @ cell - r[graph.first]
    middle = r[graph.first] + vectors / 2  # of each bond, where it is kept
    packed = padded(graph)
    ends = BondEnds(*map(np.asarray, jax.jit(CrystalGraph.short_ends)(packed)))
    real = ends.bond < graph.short
    fetched = middle[ends.bond[real]] + ends.image[real, :3] @ cell
    seen = r[ends.atom[real]] + ends.sign[real, None] * vectors[ends.bond[real]] / 2
    np.testing.assert_allclose(fetched, seen, atol=1e-4)  # float32 images of a few cells
    assert real.sum() == 2 * graph.short
    np.testing.assert_array_equal(ends.atom[packed.angle_from], ends.atom[packed.angle_to])
    of_angles = packed.angle_from[: len(graph.angle_from)]
    assert real[of_angles].all()


def test_a_pymatgen_structure_gives_the_graph_of_the_same_atoms():
    atoms = bulk("GaN", "wurtzite", a=3.19, c=5.19)
    structure = AseAtomsAdaptor.get_structure(atoms)
    found, wanted = (jax.tree.leaves(from_atoms(x, Cutoffs(5.0, pairs=9.0))) for x in (structure, atoms))
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-12)


def test_a_distance_alone_gives_a_graph_without_angles():
    graph = from_atoms(bulk("Cu"), 5.0)
    assert graph.short == 0
    assert len(graph.angle_from) == 0
    assert 2 * len(graph.first) == 12 + 6 + 24  # shells of fcc within 5 Å


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda a: a[:0], "empty structure"),
        (lambda a: a.set_cell(np.zeros((3, 3))) or a, "volume of 0"),
        (lambda a: a.set_pbc([1, 0, 1]) or a.set_cell([[3, 0, 0], [0, 3, 0], [6, 0, 0]]) or a, "area of 0"),
        (
            lambda a: a.set_pbc([0, 1, 0]) or a.set_cell([3, 0, 3]) or a,
            r"\[False, True, False\].*length of 0",
        ),
        (lambda a: a.set_cell([[3, 0, 0], [6, 0, 0], [0, 0, 3]]) or a, "volume of 0"),
        (lambda a: a.positions.__setitem__((1, 2), np.nan) or a, r"atom 1 \(Cl\)"),
        (lambda a: a.set_cell(np.full((3, 3), np.inf)) or a, "finite"),
    ],
    ids=["empty", "no cell", "flat slab", "short wire", "flat cell", "NaN position", "infinite cell"],
)
def test_what_is_no_crystal_is_refused_with_the_reason(spoil, words):
    with pytest.raises(ValueError, match=words):
        from_atoms(spoil(bulk("NaCl", "rocksalt", 5.64)), 5.0)


@given(
    atoms=st.integers(1, 7),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    boxed=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=100, deadline=None)
def test_bonds_are_those_of_ase_for_any_vectors_that_repeat(atoms, pbc, boxed, seed):
    rng, pbc = np.random.default_rng(seed), np.array(pbc)
    cell = np.diag(rng.uniform(2, 9, 3)) + rng.uniform(-0.7, 0.7, (3, 3))
    positions = rng.uniform(-1, 2, (atoms, 3)) @ cell + 30 * rng.integers(-1, 2, 3) @ (cell * ~pbc[:, None])
    crystal = Atoms("Si" * atoms, positions, cell=cell * (boxed | pbc)[:, None], pbc=pbc)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some atoms are close
        graph = from_atoms(crystal, 4.0)
    packed = padded(graph)
    with jax.enable_x64(True):
        found = np.linalg.norm(jax.jit(bond_vectors)(packed), axis=1)[packed.first < atoms]
    both_ways = neighbor_list("d", crystal, 4.0)
    np.testing.assert_allclose(np.sort(found), np.sort(both_ways)[::2], atol=1e-9)
    assert not graph.shifts[:, ~pbc].any()


PARTLY = """data_x
_cell_length_a 6.02
_cell_length_b 6.02
_cell_length_c 6.02
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'F m -3 m'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
X Te 0 0 0 1
"""


@pytest.mark.filterwarnings("ignore:.*No _symmetry_equiv_pos_as_xyz")  # pymatgen on this file
@pytest.mark.parametrize(
    ("sites", "words"),
    [
        ("M1 Ge .5 .5 .5 .4\nM2 Sb .5 .5 .5 .4", "0.4 Ge, 0.4 Sb, 0.2 empty"),
        ("M1 Ge .5 .5 .5 .5", "0.5 Ge, 0.5 empty"),
    ],
)
def test_a_site_that_is_partly_occupied_is_refused_with_its_occupancies(tmp_path, sites, words):
    (tmp_path / "mixed.cif").write_text(PARTLY + sites + "\n")
    by_ase = ase.io.read(tmp_path / "mixed.cif").repeat((1, 1, 2))
    by_pymatgen = Structure.from_file(tmp_path / "mixed.cif", occupancy_tolerance=2)
    for crystal in (by_ase, by_pymatgen):
        with pytest.raises(ValueError, match=rf"site \d+ of \S.* \({words}\)"):
            from_atoms(crystal, 5.0)
    with pytest.raises(ValueError, match=words):
        check_crystal(read_crystals(tmp_path / "mixed.cif")[0])
    del by_ase.info["occupancy"]
    from_atoms(by_ase, 5.0)


def test_a_site_that_is_fully_occupied_is_taken_whatever_the_format_says_of_it(tmp_path):
    (tmp_path / "full.cif").write_text(PARTLY + "M1 Ge .5 .5 .5 1.0\n")
    atoms = read_crystal(tmp_path / "full.cif")
    assert atoms.info["occupancy"]
    from_atoms(atoms, 5.0)
    atoms.set_array("occupancies", np.where(np.arange(8) == 5, 0.75, 1.0))
    with pytest.raises(ValueError, match=r"site 5 .*0\.75 Ge"):
        from_atoms(atoms, 5.0)


def test_deuterium_and_tritium_keep_their_masses(tmp_path):
    poscar = tmp_path / "POSCAR"
    poscar.write_text("LiD\n1.0\n0 2.04 2.04\n2.04 0 2.04\n2.04 2.04 0\nLi D\n1 1\nDirect\n0 0 0\n.5 .5 .5\n")
    assert read_crystal(poscar).get_masses() == pytest.approx([6.94, 2.014], abs=2e-3)
    found = as_atoms(Structure(np.eye(3) * 4, ["T", "H", "O"], np.eye(3) / 2))
    assert found.numbers.tolist() == [1, 1, 8]
    assert found.get_masses() == pytest.approx([3.016, 1.008, 15.999], abs=2e-3)


def test_what_is_no_structure_is_refused_with_its_type():
    with pytest.raises(TypeError, match=r"builtins\.str"):
        from_atoms("NaCl.cif", 5.0)


def test_an_unknown_element_is_named_with_its_site(any_potential):
    atoms = bulk("NaCl", "rocksalt", 5.64)
    atoms.numbers[1] = 95
    with pytest.raises(ValueError, match=r"Am \(Z = 95\) at site 1"):
        any_potential.predict(atoms)


def test_atoms_closer_than_half_an_ångström_give_a_warning_that_names_them():
    atoms = Atoms("MgO", [[0, 0, 0], [0, 0, 0.3]], cell=[8, 8, 8], pbc=True)
    with pytest.warns(UserWarning, match=r"0 \(Mg\) and 1 \(O\).*0\.300 Å"):
        from_atoms(atoms, 5.0)
