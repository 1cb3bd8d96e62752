"""Where a conductivity lies, and the meshes that it is computed on."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from springs import springs

from jaxmlip.crystals.symmetry import keeping_mesh, space_group
from jaxmlip.phonons.cells import Cells, check_masses
from jaxmlip.phonons.meshes import check_mesh
from jaxmlip.phonons.spectrum import cumulative, spectrum
from jaxmlip.phonons.supercell import repeat_distance, repeats_beyond
from jaxmlip.phonons.transport import Conductivity, conductivity
from jaxmlip.phonons.transport_report import draw

pytest.importorskip("phono3py")
WURTZITE = bulk("ZnO", "wurtzite", a=3.25, c=5.2, u=0.38)


@pytest.fixture(scope="module")
def constants():
    return springs(bulk("ZnS", "zincblende", 5.4), (3, 3, 3), reach=1.7)


@pytest.fixture(scope="module")
def found(constants) -> Conductivity:
    return conductivity(*constants, mesh=(4, 4, 4), temperatures=(100.0, 300.0))


def test_a_spectrum_adds_up_to_the_conductivity(found):
    for t, temperature in enumerate(found.temperatures):
        for options in ({}, {"width": 0.2}):
            each = spectrum(found, temperature=temperature, **options)
            whole = np.trapezoid(each.kappa, each.thz, axis=0)
            scale = found.kappa[t].max()
            np.testing.assert_allclose(whole, found.kappa[t], rtol=0, atol=3e-3 * scale)


def test_a_spectrum_lies_where_the_modes_do(found):
    """Up to each frequency it has what the modes below have, but for the steps of a coarse mesh."""
    each = spectrum(found)
    steps = cumulative(found, x=each.thz)
    mine = np.cumsum(each.kappa[:, 0, 0]) * np.diff(each.thz)[0]
    assert np.abs(mine - steps.kappa[:, 0, 0]).mean() < 0.05 * found.kappa[1, 0, 0]
    assert np.abs(mine[::-1] - steps.kappa[:, 0, 0]).mean() > 0.5 * found.kappa[1, 0, 0]


@pytest.mark.parametrize("by", ["frequency", "mean_free_path"])
def test_a_sum_of_modes_ends_with_all_of_them_and_has_at_each_place_those_below(found, by):
    upto = cumulative(found, by, temperature=100.0)
    np.testing.assert_allclose(upto.kappa[-1], found.kappa[0], rtol=0, atol=1e-12 * found.kappa.max())
    values = found.thz if by == "frequency" else found.mean_free_paths[0]
    for k in (0, 100, 250, 399):
        below = found.modes[0][values <= upto.x[k]].sum(axis=0) / found.weights.sum()
        np.testing.assert_allclose(upto.kappa[k], below, rtol=0, atol=1e-12 * found.kappa.max())
    assert cumulative(found, by, [upto.half()], temperature=100.0).kappa[0, 0, 0] >= found.kappa[0, 0, 0] / 2


def test_lifetimes_are_drawn_of_modes_that_vibrate(found):
    """At Γ the crystal moves as a whole: what rounding says of that is not drawn."""
    still = np.abs(found.thz) < 1e-2
    assert still.sum() == 3
    its = replace(
        found,
        thz=np.where(still, 1e-6, found.thz),
        linewidths=np.where(still, 1e-40, found.linewidths),
        isotope_linewidths=np.where(still, 0.0, found.isotope_linewidths),
        boundary=None,
    )
    across = {by: cumulative(its, by, temperature=100.0) for by in ("frequency", "mean_free_path")}
    figure = draw(its, spectrum(its, temperature=100.0), across, "springs")
    (axes,) = (a for a in figure.axes if a.get_ylabel() == "lifetime (ps)")
    assert axes.lines[0].get_ydata().max() < 1e9


def test_what_was_not_computed_is_refused(found):
    with pytest.raises(ValueError, match="temperature=200, needed one of those that were computed: 100, 300"):
        spectrum(found, temperature=200)
    with pytest.raises(ValueError, match="by='colour'"):
        cumulative(found, "colour")
    with pytest.raises(ValueError, match="width=0"):
        spectrum(found, width=0)
    other = replace(found, weights=found.weights[::-1])
    with pytest.raises(ValueError, match="8 wave vectors that are not the 8 irreducible ones of a 4 x 4 x 4"):
        spectrum(other)


@pytest.mark.parametrize(
    ("atoms", "mesh", "better"),
    [
        (bulk("NaCl", "rocksalt", 5.0), (19, 19, 15), "19 x 19 x 19"),
        (bulk("NaCl", "rocksalt", 5.0, cubic=True), (5, 5, 4), "5 x 5 x 5"),
        (WURTZITE, (19, 18, 15), "19 x 19 x 15"),
    ],
)
def test_a_mesh_that_breaks_symmetry_is_refused_and_one_that_keeps_it_is_named(atoms, mesh, better):
    cells = Cells.of(atoms, (1, 1, 1))
    with pytest.raises(ValueError, match=f"mesh {' x '.join(map(str, mesh))}.* rotations.*{better}"):
        check_mesh(cells, mesh)
    kept = tuple(map(int, better.split(" x ")))
    assert check_mesh(cells, kept) == kept


def test_a_conductivity_on_such_a_mesh_is_refused(constants):
    with pytest.raises(ValueError, match="mesh 4 x 4 x 3"):
        conductivity(*constants, mesh=(4, 4, 3))


@pytest.mark.parametrize(
    "atoms",
    [
        bulk("NaCl", "rocksalt", 5.64),
        WURTZITE,
        Atoms("Ti", cell=[[-2, 2, 3.1], [2, -2, 3.1], [2, 2, -3.1]], pbc=True),  # body-centred tetragonal
        Atoms("Ti", cell=[[0, 2, 3.1], [1.7, 0, 3.1], [1.7, 2, 0]], pbc=True),  # face-centred orthorhombic
    ],
    ids=["salt", "wurtzite", "body-centred", "face-centred"],
)
def test_a_length_gives_a_mesh_that_keeps_symmetry_and_phono3pys_where_that_does(atoms):
    from phonopy.phonon.grid import length2mesh

    cells = Cells.of(atoms, (1, 1, 1))
    mesh, group = check_mesh(cells, 40.0), space_group(cells.primitive)
    assert len(keeping_mesh(mesh, group).rotations) == len(group.rotations)
    its = tuple(length2mesh(40.0, cells.primitive.cell.array, group.rotations).tolist())
    if len(keeping_mesh(its, group).rotations) == len(group.rotations):
        assert mesh == its
    with pytest.raises(ValueError, match="mesh=-1"):
        check_mesh(cells, -1)


def test_the_smallest_supercell_that_keeps_symmetry_is_found():
    for atoms, distance, expected in (
        (bulk("NaCl", "rocksalt", 5.64, cubic=True), 10.0, (2, 2, 2)),
        (bulk("NaCl", "rocksalt", 5.64), 12.0, (4, 4, 4)),
        (WURTZITE, 10.0, (4, 4, 2)),
    ):
        assert repeats_beyond(atoms, distance) == expected
        assert repeat_distance(atoms.cell.array, expected) >= distance


def test_masses_that_phono3py_would_take_as_equal_are_refused():
    atoms = bulk("Si")
    check_masses(atoms)
    atoms.set_masses([28.0, 28.0])
    check_masses(atoms)
    atoms.set_masses([28.0, 29.0])
    with pytest.raises(ValueError, match="Si2 with masses that keep 24 of the 48 operations"):
        check_masses(atoms)
    zincblende = bulk("ZnS", "zincblende", 5.4)
    zincblende.set_masses([64.0, 34.0])
    check_masses(zincblende)


def test_constants_that_cancel_in_a_small_supercell_are_refused(constants):
    third, second = constants
    with pytest.raises(ValueError, match=r"at most 3e-17 eV/Å³.*repeats after 11\.4"):
        conductivity(replace(third, fc3=np.full_like(third.fc3, 3e-17)), second, mesh=(4, 4, 4))
