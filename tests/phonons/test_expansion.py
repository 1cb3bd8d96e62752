"""Thermal expansion is what finite strains give; a quasi-harmonic fit has the same limit; the command."""

import contextlib
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.io import write
from commands import complaint, here
from pairs import potential

from jaxmlip.cli import main
from jaxmlip.crystals.batching import BatchShape, close_shape_for
from jaxmlip.crystals.symmetry import space_group
from jaxmlip.mechanics.elasticity import NotAtRestWarning
from jaxmlip.mechanics.relaxation import relax, relax_many
from jaxmlip.phonons.density import thermodynamics
from jaxmlip.phonons.expansion import expansion, grueneisen_tensors, symmetric_strains
from jaxmlip.phonons.imaginary import ImaginaryModesError
from jaxmlip.phonons.lattice import Lattice
from jaxmlip.phonons.nac import NAC
from jaxmlip.phonons.quasi_harmonic import quasi_harmonic
from jaxmlip.units import GPA_PER_EV_PER_A3, J_PER_MOL_PER_EV, THZ_PER_ROOT_EV_PER_A2_U

Q = np.array([[0.13, -0.41, 0.27], [0.5, 0.2, -0.35]])
T = np.array([30.0, 100.0, 400.0])
MESH = (2, 2, 2)
STEP = 1e-3
SIX = symmetric_strains(None)


@pytest.fixture(scope="module")
def pair():
    return potential()


def rest(pair, atoms: Atoms) -> Atoms:
    found = relax(pair, atoms, fix_symmetry=True, fmax=1e-8, smax=1e-7, steps=2000)
    atoms = found.atoms.copy()
    atoms.set_constraint()
    return atoms


@pytest.fixture(scope="module")
def copper(pair) -> Atoms:
    return rest(pair, bulk("Cu", "fcc", 3.7))


@pytest.fixture(scope="module")
def magnesium(pair) -> Atoms:
    return rest(pair, bulk("Mg", "hcp", 2.6, c=4.25))


@pytest.fixture(scope="module")
def monoclinic(pair) -> Atoms:
    """Four elements at the sites of copper: space group Cm, and coordinates that symmetry leaves free."""
    atoms = make_supercell(bulk("Cu", "fcc", 3.7), [[2, 1, 0], [0, 1, 0], [1, 0, 2]])
    return rest(pair, Atoms([29, 12, 40, 22], atoms.positions, cell=atoms.cell, pbc=True))


@pytest.fixture(scope="module")
def shape(pair, monoclinic) -> BatchShape:
    """One for all crystals, so that they share programs."""
    dense = monoclinic.copy()
    dense.set_cell(0.98 * dense.cell.array, scale_atoms=True)
    return close_shape_for([pair.graph(dense)])


@pytest.fixture(scope="module")
def strained(pair, monoclinic, shape):
    """Differences of fourth order, for six strains of the crystal whose atoms are at rest in each."""
    steps, crystals = STEP * np.array([-2, -1, 1, 2]), []
    for eps in SIX:
        for s in steps:
            crystals.append(monoclinic.copy())
            crystals[-1].set_cell(monoclinic.cell.array @ (np.eye(3) + s * eps), scale_atoms=True)
    found = relax_many(pair, crystals, cell=False, fmax=1e-10, steps=2000)
    assert all(its.converged for its in found)
    D, stress, heat = [], [], []
    for its in found:
        lattice = Lattice(pair, its.atoms.copy(), method="exact", symmetry=False, shape=shape)
        D.append(lattice.exact(Q))
        heat.append(thermodynamics(lattice.mesh(MESH), T))
        stress.append(np.einsum("sij,ij->s", SIX, lattice.stress))

    def slope(values):
        y = np.reshape(values, (6, 4, *np.shape(values)[1:]))
        return (8 * (y[:, 2] - y[:, 1]) - (y[:, 3] - y[:, 0])) / (12 * STEP)

    return SimpleNamespace(
        D=slope(D),  # (6, q, 12, 12), eV/Å²
        stiffness=slope(stress) / GPA_PER_EV_PER_A3,  # (6, 6)
        free_energy=slope([h.free_energy for h in heat]) * 1e3 / J_PER_MOL_PER_EV,  # (6, t)
        entropy=slope([h.entropy for h in heat]) / J_PER_MOL_PER_EV,
        heat_capacity=slope([h.heat_capacity for h in heat]),
    )


@pytest.fixture(scope="module")
def found(pair, monoclinic, shape):
    return expansion(pair, monoclinic, mesh=MESH, temperatures=T, shape=shape)


def close(found, expected, relative=1e-6) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * np.abs(expected).max())


@pytest.mark.slow
def test_grueneisen_tensors_are_slopes_of_the_branches_of_strained_crystals_at_rest(
    pair, monoclinic, shape, strained
):
    assert len(space_group(monoclinic).rotations) == 2
    thz, gamma = grueneisen_tensors(pair, monoclinic, Q, shape=shape)
    lattice = Lattice(pair, monoclinic, shape=shape)
    root = np.sqrt(np.repeat(monoclinic.get_masses(), 3))
    squares, vectors = np.linalg.eigh(lattice.exact(Q) / root[:, None] / root)
    moved = vectors / root[:, None]
    close(thz, np.sqrt(squares) * THZ_PER_ROOT_EV_PER_A2_U)
    assert np.diff(thz).min() > 0.01  # no degenerate modes
    slopes = np.einsum("qim,sqij,qjm->sqm", moved.conj(), strained.D, moved).real
    close(np.einsum("qmij,sij->sqm", gamma, SIX), -slopes / (2 * squares))
    # One direction at a time, the atoms following or not, is what `Lattice.grueneisen` has.
    close(np.trace(gamma, axis1=2, axis2=3) / 3, lattice.grueneisen(Q)[1], 1e-9)
    clamped = lattice.grueneisen(Q, relaxed=False)[1]
    assert np.abs(clamped - np.trace(gamma, axis1=2, axis2=3) / 3).max() > 0.01


def test_traces_of_grueneisen_tensors_are_thrice_the_parameters_of_all_modes(pair, monoclinic, shape, found):
    thz, gamma = grueneisen_tensors(pair, monoclinic, Q[:2], shape=shape)
    its, wanted = Lattice(pair, monoclinic, shape=shape).grueneisen(Q[:2])
    close(thz, its)
    close(np.trace(gamma, axis1=2, axis2=3) / 3, wanted, 1e-9)


def test_expansion_is_that_of_strained_crystals(found, strained, monoclinic):
    """Of a monoclinic crystal, whose α has four components; no derivative by strain is used here."""
    volume = monoclinic.get_volume()

    def in_strain(pull):
        return np.einsum("st,sij->tij", np.linalg.solve(strained.stiffness, pull) / volume, SIX)

    close(found.alpha, in_strain(strained.entropy))
    close(found.strain, in_strain(-strained.free_energy))
    close(found.stress, np.einsum("st,sij->tij", strained.free_energy, SIX) / volume * GPA_PER_EV_PER_A3)
    close(found.heat_capacity_slope, np.einsum("st,sij->tij", strained.heat_capacity, SIX))
    assert found.alpha[1][0, 0] != pytest.approx(found.alpha[1][1, 1], rel=0.1)
    assert abs(found.alpha[1][0, 2]) > 1e-6
    np.testing.assert_allclose(found.beta, np.trace(found.alpha, axis1=1, axis2=2), rtol=1e-12)
    np.testing.assert_allclose(found.cells, monoclinic.cell.array @ (np.eye(3) + found.strain), rtol=1e-12)
    # α = K⁻¹ : C γ / V
    pull = np.einsum("ijkl,tkl->tij", found.stiffness / GPA_PER_EV_PER_A3, found.alpha) * volume
    heat = found.heat_capacity_v[:, None, None] / J_PER_MOL_PER_EV
    close(pull, heat * found.mean_grueneisen, 1e-9)


def test_the_heat_capacity_is_the_curvature_of_the_gibbs_energy(pair, monoclinic, shape):
    step = 0.5
    around = 90 + step * np.arange(-2, 3)
    its = expansion(pair, monoclinic, mesh=MESH, temperatures=around, shape=shape)
    weights = np.array([-1, 16, -30, 16, -1]) / (12 * step**2)
    assert its.heat_capacity_p[2] == pytest.approx(-90 * weights @ its.gibbs * J_PER_MOL_PER_EV, rel=1e-6)
    assert its.heat_capacity_p[2] - its.heat_capacity_v[2] > 1
    # α : K : α is not all of it: the heat capacity at constant volume is that of another cell.
    assert np.abs(np.einsum("tij,tij->t", its.heat_capacity_slope, its.strain))[2] > 0.1


def test_at_zero_temperature_the_zero_point_strain_is_left(pair, magnesium, shape):
    its = expansion(pair, magnesium, mesh=MESH, temperatures=[1.0], shape=shape)
    np.testing.assert_allclose(its.strain[0], its.zero_point_strain, atol=1e-9)
    assert np.trace(its.zero_point_strain) > 0.01
    assert its.pressure[0] > 0
    assert its.heat_capacity_p[0] == pytest.approx(0, abs=1e-3)
    assert its.adiabatic_bulk_modulus[0] == pytest.approx(its.bulk_modulus, rel=1e-6)
    frozen = expansion(pair, magnesium, mesh=MESH, temperatures=[0.01], shape=shape)
    assert (frozen.beta[0], frozen.heat_capacity_p[0]) == (0, 0)
    assert np.isnan(frozen.gamma[0])
    gamma = its.grueneisen[np.abs(its.modes.q_points).max(axis=1) == 0][0]
    assert (np.abs(gamma).max(axis=(1, 2)) == 0).sum() == 3  # the shifts


@pytest.mark.parametrize("isotopes", [False, True], ids=["alike", "isotopes"])
def test_symmetry_saves_work_and_changes_nothing(pair, magnesium, shape, isotopes):
    crystal = magnesium.copy()
    if isotopes:
        crystal.set_masses([24.0, 48.0])
    asked = {"mesh": (3, 3, 2), "temperatures": T, "shape": shape}
    with_it = expansion(pair, crystal, **asked)
    without = expansion(pair, crystal, symmetry=False, **asked)
    assert len(with_it.modes.weights) < len(without.modes.weights) / 1.5
    for name in ("alpha", "strain", "mean_grueneisen", "heat_capacity_slope", "gibbs", "heat_capacity_p"):
        close(getattr(with_it, name), getattr(without, name), 1e-7)
    assert with_it.bulk_modulus == pytest.approx(without.bulk_modulus, rel=1e-9)
    # The tensor of a mode is the mean over its star, whose trace is that of each.
    expected = Lattice(pair, crystal, shape=shape).grueneisen(with_it.modes.q_points[1:3])[1].sum(axis=1)
    traces = np.trace(with_it.grueneisen, axis1=2, axis2=3)[1:3].sum(axis=1) / 3
    np.testing.assert_allclose(traces, expected, rtol=1e-8)


@pytest.mark.slow
def test_the_long_range_part_of_polar_crystals_expands_as_well(pair, monoclinic, shape, found):
    charges = np.array([0.6, -0.6, 0.3, -0.3])[:, None, None] * np.eye(3)
    asked = {"mesh": MESH, "temperatures": T, "shape": shape, "nac": NAC(charges, 6.0 * np.eye(3), (3, 3, 3))}
    polar, without = (expansion(pair, monoclinic, **asked, symmetry=use) for use in (True, False))
    close(polar.alpha, without.alpha, 1e-7)
    assert len(polar.modes.weights) < len(without.modes.weights)
    assert np.abs(polar.alpha - found.alpha).max() > 1e-3 * np.abs(found.alpha).max()


def test_a_mesh_that_breaks_the_symmetry_is_warned_of(pair, copper, shape):
    with pytest.warns(UserWarning, match="mesh 2 x 2 x 1 keeps 8 of the 48 rotations of Cu"):
        its = expansion(pair, copper, mesh=(2, 2, 1), temperatures=T, shape=shape)
    assert np.ptp(np.diagonal(its.alpha[1])) > 1e-7


@pytest.mark.parametrize("name", ["copper", "magnesium"])
def test_a_quasi_harmonic_fit_has_the_same_limit(pair, shape, request, name):
    """Heavier atoms at lower temperatures: all vibrations get smaller by one factor."""
    pytest.importorskip("phonopy")
    crystal, apart = request.getfixturevalue(name).copy(), []
    masses, static = crystal.get_masses(), None
    for factor, span in ((1, (-0.02, 0.05)), (100, (-0.01, 0.015))):
        crystal.set_masses(factor * masses)
        asked = {"mesh": MESH, "temperatures": T / factor**0.5}
        its = expansion(pair, crystal, **asked, shape=shape)
        fit = quasi_harmonic(pair, crystal, **asked, volumes=9, span=span, method="exact")
        static = pair.predict(crystal)["energy"] if static is None else static
        change = [x.volume / crystal.get_volume() - 1 for x in (its, fit)]
        apart.append(
            [
                fit.beta / its.beta - 1,
                change[1] / change[0] - 1,
                (fit.gibbs - static) / its.free_energy - its.gibbs / its.free_energy,
                fit.bulk_modulus / its.bulk_modulus - 1,
                fit.gamma / its.gamma - 1,
            ]
        )
    large, small = np.array(apart)
    # Both are of first order in the vibrations, of which a tenth is left.
    limit = (10 * small - large) / 9
    assert np.abs(limit).max(axis=1) == pytest.approx(np.zeros(5), abs=0.01), limit
    assert np.abs(small).max() < 0.03
    assert np.abs(large[0]).min() > 0.04


def test_expansion_under_pressure_is_that_of_a_fit_under_pressure(pair, copper, shape):
    pytest.importorskip("phonopy")
    crystal = copper.copy()
    crystal.set_cell(0.99 * copper.cell.array, scale_atoms=True)
    crystal.set_masses(400 * copper.get_masses())
    asked = {"mesh": MESH, "temperatures": T / 20}
    with pytest.warns(NotAtRestWarning, match="Grüneisen parameters and elastic constants"):
        its = expansion(pair, crystal, **asked, shape=shape)
    pressure = -np.trace(its.modes.stress) / 3
    assert pressure > 0.025 * its.bulk_modulus  # by two thirds of it K is more than ∂²E/∂ε∂ε / V
    fit = quasi_harmonic(pair, crystal, **asked, span=(-0.01, 0.015), pressure=pressure, method="exact")
    np.testing.assert_allclose(fit.beta, its.beta, rtol=0.01)
    np.testing.assert_allclose(fit.bulk_modulus, its.bulk_modulus, rtol=0.01)


@pytest.mark.parametrize(
    ("pbc", "temperatures", "said"),
    [
        ([True, True, False], [300], r"pbc=\[True, True, False\], but thermal expansion coefficients need"),
        ([False] * 3, [300], "repeats in three directions"),
        ([True] * 3, [], r"found temperatures \[\], needed one or more numbers above 0"),
        ([True] * 3, [300, 0], r"found temperatures \[300, 0\]"),
        ([True] * 3, [-5.0], "above 0"),
        ([True] * 3, [np.nan], "above 0"),
    ],
)
@pytest.mark.parametrize("compute", [expansion, quasi_harmonic])
def test_what_makes_no_sense_is_refused(pair, copper, compute, pbc, temperatures, said):
    crystal = copper.copy()
    crystal.pbc = pbc
    with pytest.raises(ValueError, match=said):
        compute(pair, crystal, mesh=MESH, temperatures=temperatures)


def test_imaginary_modes_are_refused(pair, copper, shape):
    crystal = copper.copy()
    crystal.set_cell(1.15 * copper.cell.array, scale_atoms=True)
    with pytest.raises(ValueError, match=r"elastic constant of -.* GPa, needed one above 0"):
        expansion(pair, crystal, mesh=MESH, temperatures=T, shape=shape)
    square = bulk("Cu", "bcc", 2.9)
    square = rest(pair, square)
    with pytest.raises(
        ImaginaryModesError, match=r"imaginary modes of Cu at .* needed frequencies above zero"
    ):
        expansion(pair, square, mesh=MESH, temperatures=T, shape=shape)


def test_a_fit_refuses_few_volumes_and_names_the_volume_that_is_wrong(pair, copper):
    pytest.importorskip("phonopy")
    asked = {"mesh": MESH, "temperatures": [100.0]}
    with pytest.raises(ValueError, match="found 4 volumes, needed 5 or more"):
        quasi_harmonic(pair, copper, volumes=4, **asked)
    with pytest.raises(ValueError, match=r"found the span \(0.1, 0.0\)"):
        quasi_harmonic(pair, copper, span=(0.1, 0.0), **asked)
    with pytest.raises(ValueError, match="found equation='bulk'"):
        quasi_harmonic(pair, copper, equation="bulk", **asked)
    with pytest.raises(ImaginaryModesError, match=r"imaginary modes of Cu at 1\.\d+ times its volume at"):
        quasi_harmonic(pair, copper, span=(0.0, 0.8), volumes=5, **asked)
    with pytest.warns(UserWarning, match=r"volume of Cu at 100 K, .* is outside of those of the fit"):
        quasi_harmonic(pair, copper, span=(-0.03, 0.0), volumes=5, **asked)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, copper):
    here = tmp_path_factory.mktemp("work [1]")
    cubic = make_supercell(copper, [[-1, 1, 1], [1, -1, 1], [1, 1, -1]])
    write(here / "Cu [fcc].cif", cubic)
    write(here / "near.vasp", bulk("Cu", "fcc", 3.68))
    isotopes = copper.copy()
    isotopes.set_masses([65.0])
    write(here / "isotopes.traj", isotopes)
    layer = copper.copy()
    layer.pbc = [True, True, False]
    write(here / "layer.xyz", layer, format="extxyz")
    write(here / "stretched.vasp", bulk("Cu", "bcc", 2.9))
    return here


def test_the_command_writes_what_the_library_computes(
    folder, pair, copper, shape, monkeypatch, capsys, tmp_path
):
    pytest.importorskip("phonopy")
    monkeypatch.setattr("jaxmlip.zoo.load.load", lambda *_, **__: pair)
    out = tmp_path / "out [1]"
    words = ("Cu [fcc].cif", "--relax", "--mesh", "2", "2", "2", "--temperatures", "100", "300")
    done = here(folder, monkeypatch, capsys, "expansion", *words, "--volumes", "7", "--out", str(out))
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "expansion.json").read_text())
    its = expansion(pair, copper, mesh=MESH, temperatures=(100, 300), shape=shape)
    for name, expected in {
        "alpha_per_K": its.alpha,
        "volume_A3": its.volume,
        "heat_capacity_p_J_per_K_mol": its.heat_capacity_p,
        "gibbs_energy_eV": its.gibbs + pair.predict(copper)["energy"],
        "adiabatic_bulk_modulus_GPa": its.adiabatic_bulk_modulus,
    }.items():
        np.testing.assert_allclose(record[name], expected, rtol=1e-4, atol=1e-9)
    fit = record["quasi_harmonic"]
    assert len(fit["volumes_A3"]) == 7
    np.testing.assert_allclose(fit["beta_per_K"], its.beta, rtol=0.25)
    assert f"{1e6 * its.alpha[1][0, 0]:.2f}" in done.stdout
    for words in ("Cu4 is 4 primitive cells", "metals alone", "1 strain that", "of 2 x 2 x 2", "zero-point"):
        assert words in done.stdout
    assert "--volumes 11 shows" in done.stdout
    assert (out / "expansion.png").stat().st_size > 20_000


def test_masses_of_a_file_count(folder, pair, copper, shape, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("jaxmlip.zoo.load.load", lambda *_, **__: pair)
    monkeypatch.setattr("jaxmlip.potential._predict", None)  # the energy comes with the derivatives
    words = ("isotopes.traj", "--mesh", "2", "2", "2", "--temperatures", "300", "--out", str(tmp_path))
    done = here(folder, monkeypatch, capsys, "expansion", *words)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "expansion.json").read_text())
    natural = expansion(pair, copper, mesh=MESH, temperatures=[300], shape=shape).zero_point_strain
    lighter = (copper.get_masses()[0] / 65) ** 0.5
    close(record["zero_point_strain"], lighter * natural)
    assert record["quasi_harmonic"] is None
    monkeypatch.undo()
    assert record["crystal"]["static_energy_eV"] == pytest.approx(pair.predict(copper)["energy"], abs=1e-9)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["layer.xyz"], "pbc=[True, True, False], but thermal expansion coefficients need"),
        (["Cu [fcc].cif", "--temperatures", "0"], "--temperatures 0.0, needed a number above 0"),
        (["Cu [fcc].cif", "--temperatures"], "found no temperature"),
        (["Cu [fcc].cif", "--volumes", "3"], "--volumes 3, needed 5 or more"),
        (["Cu [fcc].cif", "--mesh", "0", "2", "2"], "--mesh 0 2 2"),
        (["stretched.vasp", "--relax", "--mesh", "2", "2", "2"], "found imaginary modes of Cu at"),
        (["nothing.cif"], "nothing.cif"),
    ],
    ids=lambda x: " ".join(x[:2]) if isinstance(x, list) else None,
)
def test_a_mistake_is_told(folder, pair, monkeypatch, capsys, tmp_path, words, said):
    monkeypatch.setattr("jaxmlip.zoo.load.load", lambda *_, **__: pair)
    out = tmp_path / "out"
    assert said in complaint(folder, monkeypatch, capsys, "expansion", *words, "--out", str(out))
    assert not out.exists()


def test_a_fit_that_fails_leaves_what_needs_no_fit(folder, pair, monkeypatch, tmp_path):
    def fails(*_, **__):
        raise RuntimeError("phonopy cannot fit")

    monkeypatch.setattr("jaxmlip.zoo.load.load", lambda *_, **__: pair)
    monkeypatch.setattr("jaxmlip.studies.expansion.quasi_harmonic", fails)
    words = ["--mesh", "2", "2", "2", "--temperatures", "300", "--volumes", "7", "--out", str(tmp_path)]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit):
        main(["expansion", str(folder / "isotopes.traj"), *words])
    assert "there is no quasi-harmonic fit: phonopy cannot fit" in said.getvalue()
    assert json.loads((tmp_path / "expansion.json").read_text())["alpha_per_K"]
