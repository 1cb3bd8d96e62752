"""Thermal conductivity: what phono3py computes is handed on whole, kept, and refused where there is none."""

from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk
from springs import springs

from jaxmlip.phonons.cells import Cells, import_phono3py
from jaxmlip.phonons.imaginary import ImaginaryModesError
from jaxmlip.phonons.isotopes import isotope_linewidths, mass_variances
from jaxmlip.phonons.modes import split
from jaxmlip.phonons.phono3py_files import to_phono3py
from jaxmlip.phonons.third import SecondOrder
from jaxmlip.phonons.transport import conductivity, linewidths_by_phonons, shared_coherences

phono3py = pytest.importorskip("phono3py")
VOIGT = (0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)
MESH = (3, 3, 3)


@pytest.fixture(scope="module")
def blende():
    return springs(bulk("ZnS", "zincblende", 5.4), (3, 3, 3), reach=1.7)


def solved(third, second):
    """phono3py with these constants and the phonons of its mesh."""
    ph3 = to_phono3py(third, second)
    ph3.mesh_numbers = MESH
    ph3.init_phph_interaction(symmetrize_tetrahedra=True, average_degenerate_weights=True)
    ph3.run_phonon_solver()
    return ph3


def of_phonopy(monkeypatch):
    """Takes phonopy's constants of nature in place of ours, which differ in the seventh digit."""
    from phonopy.physical_units import get_physical_units

    units = get_physical_units()
    monkeypatch.setattr("jaxmlip.phonons.three_waves.KELVIN_PER_EV", 1 / units.KB)
    monkeypatch.setattr("jaxmlip.phonons.three_waves.EV_PER_THZ", units.THzToEv)
    rates = np.pi / 16 * units.THzToEv * units.DefaultToTHz**6
    monkeypatch.setattr("jaxmlip.phonons.transport.THZ_OF_RATES", rates)


@pytest.mark.parametrize(("transport", "its"), [("wigner", "SMM19"), ("particles", None)])
@pytest.mark.parametrize("isotopes", [True, False])
def test_the_parts_add_up_to_what_phono3py_computes_at_once(blende, transport, its, isotopes, monkeypatch):
    of_phonopy(monkeypatch)
    temperatures = (100.0, 300.0)
    found = conductivity(
        *blende, mesh=MESH, temperatures=temperatures, transport=transport, isotopes=isotopes
    )
    ph3 = solved(*blende)
    ph3.run_thermal_conductivity(temperatures=temperatures, transport_type=its, is_isotope=isotopes)
    whole = ph3.thermal_conductivity
    tensor = np.stack([found.kappa[:, a, b] for a, b in VOIGT], axis=-1)
    scale = np.abs(tensor).max()
    np.testing.assert_allclose(tensor, whole.kappa[0], rtol=0, atol=1e-9 * scale)
    np.testing.assert_allclose(found.particles + found.coherences, found.kappa, rtol=0, atol=1e-12 * scale)
    if its:
        between = np.stack([found.coherences[:, a, b] for a, b in VOIGT], axis=-1)
        np.testing.assert_allclose(between, whole.kappa_inter[0], rtol=0, atol=1e-9 * scale)
        assert np.abs(between).max() > 1e-3
    assert found.weights.sum() == np.prod(MESH)
    np.testing.assert_array_equal(found.q_points, whole.qpoints)
    gamma = whole.gamma[0] + (whole.gamma_isotope[0] if isotopes else 0)
    np.testing.assert_allclose(1 / found.lifetimes[..., 3:], 4 * np.pi * gamma[..., 3:], rtol=1e-9)


def test_isotopes_scatter_the_same_whatever_eigenvectors_equal_frequencies_have(blende):
    ph3 = solved(*blende)
    variances = mass_variances(blende[0].cells)
    points = np.arange(3)
    before = isotope_linewidths(ph3, points, variances)
    thz, vectors, _ = ph3.get_phonon_data()
    slope = np.random.default_rng(0).normal(size=vectors.shape)
    turned = split(thz, vectors, slope + slope.swapaxes(1, 2))
    assert np.abs(turned - vectors).max() > 0.1
    vectors[:] = turned
    np.testing.assert_allclose(isotope_linewidths(ph3, points, variances), before, rtol=1e-9, atol=1e-14)


def test_a_coherence_is_shared_by_heat_capacities():
    pairs = np.zeros((1, 1, 2, 2, 6))
    pairs[0, 0, 0, 1, 0] = pairs[0, 0, 1, 0, 0] = 5.0
    pairs[0, 0, 0, 0, 0] = 7.0
    found = shared_coherences(pairs, np.array([[[3.0, 1.0]]]))
    np.testing.assert_allclose(found[0, 0, :, 0], [7.5, 2.5], rtol=1e-15)
    np.testing.assert_array_equal(shared_coherences(pairs, np.zeros((1, 1, 2)))[0, 0, :, 0], [5, 5])


def test_a_boundary_ends_what_phonons_can_go(blende):
    found = conductivity(*blende, mesh=MESH, transport="particles", boundary=1e-3)
    assert 0.9 < found.mean_free_paths.max() < 1.0  # nm
    free = conductivity(*blende, mesh=MESH, transport="particles")
    assert found.kappa[0, 0, 0] < 0.1 * free.kappa[0, 0, 0]


def test_an_interrupted_calculation_goes_on_with_the_wave_vectors_that_it_has(blende, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxmlip.phonons.transport.TOGETHER", 1)
    path = tmp_path / "kept[1]"
    first = conductivity(*blende, mesh=MESH, path=path)
    parts = sorted(path.glob("*.npz"))
    assert len(parts) == len(first.weights)
    parts[1].unlink()
    runs = []
    solve = "jaxmlip.phonons.transport.linewidths_by_phonons"
    monkeypatch.setattr(solve, lambda *given: (runs.append(given[2]), linewidths_by_phonons(*given))[1])
    again = conductivity(*blende, mesh=MESH, path=path)
    assert len(runs) == 1
    np.testing.assert_allclose(again.kappa, first.kappa, rtol=1e-12)
    np.testing.assert_array_equal(again.q_points, first.q_points)
    with pytest.raises(ValueError, match=r"boundary: begun with None, found 2"):
        conductivity(*blende, mesh=MESH, boundary=2.0, path=path)
    softer = SecondOrder(blende[1].cells, 0.9 * blende[1].fc2)
    with pytest.raises(ValueError, match="constants: begun with"):
        conductivity(blende[0], softer, mesh=MESH, path=path)


def test_imaginary_modes_are_refused_with_their_wave_vector(blende):
    third, second = blende
    q = np.array([[1, 0, 0]]) / 3
    lowest = np.linalg.eigvalsh(second.matrices(q)[0])[0]
    # An attraction of every atom to its place, and none at Γ: only what is away from Γ falls.
    away = SecondOrder(second.cells, second.fc2.copy())
    away.fc2[np.arange(2), second.cells.p2s] -= 2 * lowest * np.eye(3)
    away.fc2[:] += (
        2 * lowest * np.eye(3) * (second.cells.s2p == second.cells.p2s[:, None])[..., None, None] / 27
    )
    with pytest.raises(ImaginaryModesError, match=r"q = \(.*0\.3333") as caught:
        conductivity(third, away, mesh=MESH)
    assert caught.value.thz < -1
    assert np.abs(caught.value.q_point).max() == pytest.approx(1 / 3)


def test_an_atom_with_another_mass_than_its_element_counts_as_one_isotope():
    atoms = bulk("Si")
    natural = mass_variances(Cells.of(atoms, (1, 1, 1)))
    np.testing.assert_allclose(natural, 2.01e-4, rtol=0.01)  # Tamura, Phys. Rev. B 27, 858 (1983)
    atoms.set_masses([27.977, atoms.get_masses()[1]])
    np.testing.assert_allclose(mass_variances(Cells.of(atoms, (1, 1, 1))), [0, natural[1]], rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperatures": (0.0,)}, r"temperatures=\[0.0\]"),
        ({"temperatures": ()}, r"temperatures=\[\]"),
        ({"transport": "waves"}, "transport='waves', needed wigner or particles"),
        ({"boundary": -1.0}, "boundary=-1.0"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(blende, options, words):
    with pytest.raises(ValueError, match=words):
        conductivity(*blende, mesh=MESH, **options)


def test_second_order_of_the_same_supercell_is_the_one_that_came_with_third_order(blende):
    third, second = blende
    with pytest.raises(ValueError, match=r"\(springs\).*phonons\.second_order"):
        conductivity(third, mesh=MESH)
    found = conductivity(replace(third, second=second), mesh=MESH)
    np.testing.assert_array_equal(found.kappa, conductivity(third, second, mesh=MESH).kappa)


def test_an_old_phono3py_is_named_with_the_version_that_is_needed(monkeypatch):
    monkeypatch.setattr(phono3py, "__version__", "3.30.1")
    with pytest.raises(ImportError, match=r"phono3py 3\.30\.1, needed 4\.8"):
        import_phono3py()
