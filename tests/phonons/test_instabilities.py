"""Unstable modes lead to stable crystals: directions are those of the tables, predictions those visited."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pairs
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read, write
from commands import complaint, here
from hypothesis import given
from hypothesis import strategies as st

import jaxmlip
from jaxmlip.crystals import batching
from jaxmlip.crystals.symmetry import Symmetry
from jaxmlip.derivatives.line import _along, derivatives_along
from jaxmlip.mechanics.relaxation import at_rest
from jaxmlip.phonons.instabilities import Expansion, follow, instabilities
from jaxmlip.phonons.order_parameter import OrderParameter, commensurate
from jaxmlip.potential import Potential, _predict
from jaxmlip.studies.stabilise import apart

PEROVSKITE = Atoms(
    "CaTiO3",
    scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
    cell=[3.9] * 3,
    pbc=True,
)


@pytest.fixture(scope="module")
def pair():
    return pairs.potential()


@pytest.fixture(scope="module")
def cubic(pair):
    """Simple cubic, which pairs make unstable."""
    return at_rest(pair, bulk("Al", "sc", 2.6))


@pytest.fixture(scope="module")
def unstable(pair, cubic):
    return instabilities(pair, cubic, cells=4, mesh=(4, 4, 4))


@pytest.fixture(scope="module")
def wells(pair, unstable):
    return follow(pair, unstable[0], cells=4)


def test_derivatives_along_a_line_are_those_of_energies_on_it(pair):
    atoms = bulk("NaCl", "rocksalt", 4.4, cubic=True)
    w = np.random.default_rng(0).normal(size=(2, 8, 3))
    x = 0.004 * np.arange(-4, 5)
    for found, one in zip(derivatives_along(pair, atoms, w), w, strict=True):
        frames = [atoms.copy() for _ in x]
        for frame, step in zip(frames, x, strict=True):
            frame.positions += step * one
        E = np.array([each["energy"] for each in pair.predict(frames)])
        fit = np.polynomial.Polynomial.fit(x, E, 8).convert().coef[:5] * [1, 1, 2, 6, 24]
        np.testing.assert_allclose(found, fit, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"\(2, 7, 3\), needed \(k, 8, 3\)"):
        derivatives_along(pair, atoms, w[:, :7])


@pytest.mark.slow
def test_the_second_derivative_along_a_line_is_that_of_the_hessian(architecture, crystal):
    w = np.random.default_rng(1).normal(size=(1, len(crystal), 3))
    found = derivatives_along(architecture, crystal, w)[0]
    assert found[2] == pytest.approx(w.ravel() @ jaxmlip.hessian(architecture, crystal) @ w.ravel(), rel=1e-8)
    assert found[1] == pytest.approx(-np.sum(architecture.predict(crystal)["forces"] * w), rel=1e-8)


@pytest.mark.usefixtures("real_shapes")
def test_a_crystal_farther_along_the_line_shares_the_program(any_potential):
    rest = bulk("NaCl", "rocksalt", 5.64).repeat(2)
    farther, w = rest.copy(), np.random.default_rng(5).normal(size=(1, len(rest), 3))
    farther.positions += 0.1 * w[0]
    shapes = {batching.shape_for([any_potential.graph(atoms)]) for atoms in (rest, farther)}
    assert len(shapes) == 2, "what has to be shared is not different"
    before = _along._cache_size()
    for atoms in (rest, farther):
        derivatives_along(any_potential, atoms, w)
    assert _along._cache_size() == before + 1


@pytest.mark.usefixtures("real_shapes")
def test_energies_along_a_mode_and_the_relaxation_after_them_share_a_program(pair, unstable):
    _predict.clear_cache()
    wells = follow(pair, unstable[0], cells=4)
    assert any(well.relaxed is not None for well in wells), "nothing was relaxed"
    assert _predict._cache_size() == 1


@given(st.lists(st.tuples(*[st.sampled_from([0, 1 / 2, 1 / 3, 1 / 4, 2 / 3])] * 3), min_size=1, max_size=3))
def test_the_smallest_supercell_holds_the_waves_and_no_smaller_one_does(q_points):
    q = np.array(q_points)
    matrix = commensurate(q)
    turns = q @ matrix.T
    np.testing.assert_allclose(turns, np.rint(turns), atol=1e-9)
    # The wave vectors make a group with as many elements as the supercell has cells.
    times = np.array(np.meshgrid(*[np.arange(12)] * len(q))).reshape(len(q), -1).T
    made = np.unique(times @ np.rint(12 * q).astype(int) % 12, axis=0)
    assert round(abs(np.linalg.det(matrix))) == len(made)


def test_waves_that_fit_no_small_supercell_are_refused():
    with pytest.raises(ValueError, match="denominator up to 12"):
        commensurate(np.array([0.1234, 0, 0]))


@pytest.mark.parametrize(
    ("q", "moves", "groups"),
    [
        # Tilts of octahedra, in phase and out of phase, and a polar shift: C. J. Howard and H. T. Stokes,
        # Acta Cryst. B 54, 782 (1998); H. T. Stokes and D. M. Hatch, Phys. Rev. B 30, 4962 (1984)
        ([0.5, 0.5, 0], [{3: (1, 0, 0), 4: (0, -1, 0)}], {127, 139, 204}),
        (
            [0.5, 0.5, 0.5],
            [
                {3: (1, 0, 0), 4: (0, -1, 0)},
                {2: (1, 0, 0), 4: (0, 0, -1)},
                {2: (0, 1, 0), 3: (0, 0, -1)},
            ],
            {140, 74, 167},
        ),
        ([0, 0, 0], [{1: (1, 0, 0)}, {1: (0, 1, 0)}, {1: (0, 0, 1)}], {99, 38, 160}),
    ],
)
def test_directions_have_the_space_groups_of_the_tables(q, moves, groups):
    modes = np.zeros((15, len(moves)), complex)
    for k, move in enumerate(moves):
        for atom, way in move.items():
            modes[3 * atom : 3 * atom + 3, k] = way
    modes /= np.linalg.norm(modes, axis=0)
    space = OrderParameter.of(PEROVSKITE, np.array(q), modes, 8, 1e-5)
    found = set()
    for components in space.directions():
        moved = space.supercell.copy()
        moved.positions += 0.1 * space.distortion(components)
        found.add(Symmetry(moved).dataset().number)
        assert np.linalg.norm(space.distortion(components), axis=1).max() == pytest.approx(1)
    assert found == groups


def test_masses_break_the_symmetry_of_a_star():
    layers = bulk("Al", "fcc", 4.0, cubic=True)
    q, every = np.array([0, 0.5, 0.5]), np.eye(12, dtype=complex)
    assert len(OrderParameter.of(layers, q, every, 4, 1e-5).arms) == 3
    layers.set_masses([26.98, 30.0, 30.0, 26.98])  # heavy every second layer along z
    assert len(OrderParameter.of(layers, q, every, 4, 1e-5).arms) == 2


def test_simple_cubic_pairs_fall_at_the_edge_of_the_zone(unstable, cubic):
    assert unstable[0].thz < -3
    assert sorted(np.abs(unstable[0].q_point)) == [0, 0.5, 0.5]
    assert unstable[0].cells == 2
    # As in the supercell that the wave fits.
    thz = np.linalg.eigvalsh(jaxmlip.hessian(pairs.potential(), cubic.repeat(2)).reshape(24, 24))[0]
    assert unstable[0].thz == pytest.approx(-np.sqrt(-thz / cubic.get_masses()[0]) * 15.633302, rel=1e-5)


def test_a_stable_crystal_has_no_instability(pair):
    assert instabilities(pair, at_rest(pair, bulk("Al", "fcc", 3.6)), cells=2, mesh=(4, 4, 4)) == []


def test_the_well_that_derivatives_predict_is_the_one_that_is_visited(wells):
    assert {well.space_group for well in wells} == {"P4/nmm (129)", "I4/mcm (140)", "I-43m (217)"}
    for well in wells:
        assert well.at_rest.bottom[1] == pytest.approx(well.bottom[1], rel=0.35)
        assert well.misfit < 0.01
        near = int(np.abs(well.amplitudes - well.bottom[0]).argmin())
        assert well.energies[near] == pytest.approx(well.bottom[1], rel=0.02)
        assert well.relaxed.converged
        assert well.relaxed.energy < well.energy + well.bottom[1] + 1e-9
    gains = [well.gain for well in wells]
    assert gains == sorted(gains, reverse=True)


def test_a_bottom_with_no_energy_near_it_is_not_called_exact(wells):
    alone = replace(wells[0], amplitudes=np.array([0.0]), energies=np.array([0.0]))
    assert np.isnan(alone.misfit)


def test_an_expansion_has_the_minimum_of_its_polynomial():
    found = Expansion(0.1, np.array([0.5, 0, -2, 0, 24.0]))
    x = np.linspace(-1, 1, 20001)
    assert found.bottom[1] == pytest.approx(found(x).min(), abs=1e-7)
    assert Expansion(0, np.array([0, 0, -1, 0, -1.0])).bottom is None


def test_the_bottom_of_an_expansion_lies_on_its_own_side_of_the_crest():
    """About a point of one of two alike wells an odd error can make the other one the deeper."""
    whole = np.polynomial.Polynomial([0, 0, -9.0, 0, 600.0])  # minima at ±0.0866
    there = 0.1
    derivatives = np.array([whole.deriv(n)(there) if n else whole(there) for n in range(5)])
    derivatives[3] += 200.0
    found = Expansion(there, derivatives)
    x = np.linspace(-0.3, 0.3, 6001)
    assert x[found(x).argmin()] < -0.1
    assert found.bottom[0] == pytest.approx(0.0866, abs=0.01)
    assert found.bottom[1] < 0


def test_energies_that_fall_are_said_to_even_without_a_bottom_of_fourth_order(wells):
    lost = replace(wells[0], at_bottom=None)
    assert lost.falls
    assert lost.bottom is None
    assert lost.lowest == pytest.approx(wells[0].bottom[0], rel=0.15)
    # A narrow well is one if it is predicted, and else a ripple.
    near = replace(lost, amplitudes=np.array([0, 0.03, 0.06]), energies=np.array([0, -1.0, 1.0]))
    for bottom, falls in ((0.027, True), (0.004, False)):
        quartic = np.array([0, 0, -1.0, 0, 6 / bottom**2])  # of -x²/2 + x⁴/4b²
        told = replace(near, at_rest=Expansion(0.0, quartic))
        assert told.at_rest.bottom[0] == pytest.approx(bottom) or told.at_rest.bottom[0] == pytest.approx(
            -bottom
        )
        assert told.falls == falls


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=9))
def test_names_of_crystals_are_moved_apart_around_where_they_were(energies):
    placed = sorted(energies)
    found = apart(placed, 0.1)
    assert (np.diff(found) > 0.1 - 1e-9).all()
    assert found.mean() == pytest.approx(np.mean(placed), abs=1e-9)
    far = [float(k) for k in range(len(placed))]
    np.testing.assert_allclose(apart(far, 0.1), far)


def test_a_rough_potential_is_told_from_an_unstable_crystal(pair):
    """A ripple of 0.01 Å on every bond: curvature is negative at its crest; energies rise."""
    atoms = at_rest(pair, bulk("Al", "fcc", 3.6))
    r = atoms.cell.lengths()[0]

    def rippled(params, graph):
        owner = jnp.zeros(len(graph.senders), int)
        there = jnp.einsum("ek,ekx->ex", graph.edges["shifts"], graph.globals["cell"][owner])
        x = graph.nodes["positions"]
        square = jnp.sum((x[graph.senders] + there - x[graph.receivers]) ** 2, axis=1)
        near = (square > 0.25) & (square < (1.2 * r) ** 2)
        length = jnp.sqrt(jnp.where(near, square, 1.0))
        crest = jnp.where(near, 1e-4 * jnp.cos(2 * jnp.pi * (length - r) / 0.01) / 2, 0)
        return pairs.pairs(params, graph) + jnp.zeros(len(graph.n_edge)).at[0].add(crest.sum())

    params = pair.params["network"]
    rough = Potential.from_energy(rippled, pairs.REACH, pairs.ELEMENTS, params, dtype="float64")
    found = instabilities(rough, atoms, cells=2, mesh=(2, 2, 2))
    assert found
    assert found[0].thz < -1
    assert not any(well.falls for well in follow(rough, found[0], cells=4))


def test_a_wave_too_long_for_the_cells_allowed_is_refused_with_its_cells(pair, unstable):
    with pytest.raises(ValueError, match=r"repeats after 2 cells of Al \(2 atoms\), and at most 1"):
        follow(pair, unstable[0], cells=1)


@pytest.mark.parametrize(
    ("options", "words"), [({"threshold": 0.1}, "threshold=0.1"), ({"cells": 0}, "cells=0, needed 1")]
)
def test_arguments_that_make_no_sense_are_refused(pair, cubic, options, words):
    with pytest.raises(ValueError, match=words):
        instabilities(pair, cubic, **options)


def test_the_command_ends_in_a_stable_crystal(pair, cubic, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxmlip.zoo.load.load", lambda *_, **__: pair)
    write(tmp_path / "Al [sc].vasp", cubic)
    words = ("stabilise", "Al [sc].vasp", "--cells", "2", "--branches", "1", "--mesh", "4", "4", "4")
    done = here(tmp_path, monkeypatch, capsys, *words)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "stabilise" / "stabilise.json").read_text())
    first, last = record["crystals"][0], record["crystals"][record["lowest"]]
    assert first["space_group"] == "Pm-3m (221)"
    assert record["lowest_is"] == "stable"
    assert last["energy_eV_per_atom"] < first["energy_eV_per_atom"] - 0.3
    assert not last["unstable_modes"]
    written = read(tmp_path / "stabilise" / f"{record['lowest']}.cif")
    energy = pair.predict(written)["energy"] / len(written)
    assert energy == pytest.approx(last["energy_eV_per_atom"], abs=1e-5)
    assert (tmp_path / "stabilise" / "stabilise.png").stat().st_size > 10_000
    lines = done.stdout.splitlines()
    modes, wells, children = (
        next(k for k, line in enumerate(lines) if words in line)
        for words in ("-fold; repeats after", "  along ", "  → 1: ")
    )
    assert modes < wells < children
    assert sum("  → 1: " in line for line in lines) == 1


def test_what_was_found_before_a_command_stops_is_kept(pair, cubic, tmp_path, monkeypatch, capsys):
    def stopped(*_, **__):
        raise RuntimeError("out of time")

    monkeypatch.setattr("jaxmlip.zoo.load.load", lambda *_, **__: pair)
    monkeypatch.setattr("jaxmlip.studies.stabilise.follow", stopped)
    write(tmp_path / "sc.vasp", cubic)
    words = ("stabilise", "sc.vasp", "--cells", "2", "--mesh", "2", "2", "2")
    done = here(tmp_path, monkeypatch, capsys, *words)
    assert done.returncode == 1
    assert "out of time" in done.stderr
    record = json.loads((tmp_path / "stabilise" / "stabilise.json").read_text())
    (first,) = record["crystals"]
    assert (first["state"], record["lowest_is"]) == ("unstable", "unstable")
    assert first["unstable_modes"]
    assert len(read(tmp_path / "stabilise" / "0.cif")) == 1


def test_a_command_with_a_mistake_says_what_is_needed(pair, cubic, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxmlip.zoo.load.load", lambda *_, **__: pair)
    write(tmp_path / "Al.vasp", cubic)
    said = complaint(tmp_path, monkeypatch, capsys, "stabilise", "Al.vasp", "--cells", "0")
    assert "cells" in said
    assert not (tmp_path / "stabilise").exists()
