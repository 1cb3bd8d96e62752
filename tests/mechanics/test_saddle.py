"""Saddles: where they are known to be, one imaginary mode, fewer force calls than without exact Hessians."""

import json

import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pairs
import pytest
from ase import Atoms
from ase.build import add_adsorbate, fcc100
from ase.constraints import FixAtoms, FixCartesian
from commands import complaint, here

from jaxmlip import hessian
from jaxmlip.cli.vibrations import top_of
from jaxmlip.mechanics.calculator import Calculator
from jaxmlip.mechanics.neb import interpolated
from jaxmlip.mechanics.relaxation import NotConvergedWarning
from jaxmlip.mechanics.saddle import rational, saddle, updated
from jaxmlip.potential import Potential

HEIGHT, TILT, ACROSS = 0.7, 0.1, 8.0  # eV, eV/Å, eV/Å²


def well(graph):
    """Atoms of hydrogen in E = h (x² - 1)² + t x + k (y² + z²) / 2; others feel nothing."""
    x, y, z = graph.nodes["positions"].T
    energy = HEIGHT * (x**2 - 1) ** 2 + TILT * x + ACROSS * (y**2 + z**2) / 2
    energy = jnp.where(graph.nodes["numbers"] == 1, energy, 0.0)
    owner = jnp.repeat(jnp.arange(len(graph.n_node)), graph.n_node, total_repeat_length=len(x))
    return jax.ops.segment_sum(energy, owner, len(graph.n_node))


@pytest.fixture(scope="module")
def double_well() -> Potential:
    return Potential.from_energy(well, 2.0, ["H", "He"], dtype="float64")


@pytest.fixture(scope="module")
def potential() -> Potential:
    return pairs.potential()


def at(x: float, y: float = 0.3) -> Atoms:
    """An atom in the well, and one far away that is held, so that nothing is projected out."""
    return Atoms("HHe", [[x, y, -0.2], [20, 0, 0]], constraint=FixAtoms([1]))


def extrema() -> np.ndarray:
    """x of the left minimum, the saddle and the right minimum."""
    return np.sort(np.roots([4 * HEIGHT, 0, -4 * HEIGHT, TILT]).real)


def energy(x: float) -> float:
    return HEIGHT * (x**2 - 1) ** 2 + TILT * x


@pytest.fixture(scope="module")
def hop() -> Atoms:
    """An atom on a slab, somewhere near the bridge between two of its places; the lower layer is held."""
    slab = fcc100("Cu", (3, 3, 2), a=3.7, vacuum=7.0, periodic=False)
    slab.pbc = [True, True, False]
    add_adsorbate(slab, "Ni", 1.9, "bridge", offset=(1, 1))
    slab.positions[-1] += [0.15, 0.2, 0.1]
    slab.info.clear()
    slab.set_constraint(FixAtoms(range(9)))
    return slab


@pytest.mark.parametrize("x", [0.0, -0.4, 0.45, -0.9, extrema()[0]])
def test_a_known_saddle_is_found_from_near_and_from_a_minimum(double_well, x):
    found = saddle(double_well, at(x, 0.0 if x == extrema()[0] else 0.3), fmax=1e-6, minima=x == 0)
    left, top, right = extrema()
    assert found.converged
    assert found.reason == ""
    assert found.atoms.positions[0] == pytest.approx([top, 0, 0], abs=1e-5)
    assert found.atoms.positions[1].tolist() == [20, 0, 0]
    assert found.energy == pytest.approx(energy(top), abs=1e-9)
    assert found.vibrations.imaginary == 1
    curvature = 12 * HEIGHT * top**2 - 4 * HEIGHT
    assert found.vibrations.hessian[0, 0] == pytest.approx(curvature, abs=1e-4)
    assert found.atoms.get_potential_energy() == found.energy
    assert found.force_calls == len(found.history) < 25
    if x == 0:
        ends = sorted(found.barriers)
        assert ends == pytest.approx(sorted(energy(top) - energy(e) for e in (left, right)), abs=1e-5)


def test_a_direction_says_which_side_is_first_and_which_mode_is_followed(double_well):
    for sign in (1, -1):
        along = np.array([[sign, 0.1, 0], [0, 0, 0]])
        found = saddle(double_well, at(-0.3), direction=along, minima=True)
        assert found.mode[0, 0] * sign > 0
        first, last = (side.atoms.positions[0, 0] * sign for side in found.minima)
        assert first < 0 < last


def test_an_atom_hops_over_one_imaginary_mode(potential, hop):
    found = saddle(potential, hop, fmax=1e-4, minima=True)
    assert found.converged
    assert found.vibrations.imaginary == 1
    assert found.imaginary_per_cm < -20
    assert np.abs(found.atoms.get_forces()).max() < 1e-4  # after the constraint
    assert (found.atoms.positions[:9] == hop.positions[:9]).all()
    # Both places are alike.
    assert found.barriers[0] == pytest.approx(found.barriers[1], abs=1e-4)
    assert found.barriers[0] > 0.2
    assert found.hessians <= 4
    assert found.force_calls <= 8
    # Another Hessian than that of the search.
    free = found.vibrations.coordinates
    np.testing.assert_allclose(
        hessian(potential, found.atoms, coordinates=free), found.vibrations.hessian, atol=1e-9
    )


def test_a_molecule_neither_drifts_nor_turns(potential):
    # Four atoms attract each other into a tetrahedron; it turns inside out through a flat rhombus.
    bent = Atoms("Mg4", [[1.05, 0, 0], [-0.95, 0, 0], [0, 1.59, 0.2], [0, -1.59, 0.15]])
    found = saddle(pairs.potential(0.8), bent, fmax=1e-5)
    assert found.converged
    assert found.vibrations.rigid.shape[1] == 6
    assert len(found.vibrations.thz) == 6
    np.testing.assert_allclose(found.atoms.positions.mean(axis=0), bent.positions.mean(axis=0), atol=1e-8)
    a, b, c = np.diff(found.atoms.positions, axis=0)
    across = np.cross(a, c)
    assert across @ b == pytest.approx(0, abs=1e-2)
    rise = found.mode @ across / np.linalg.norm(across)
    np.testing.assert_allclose(rise * rise[0], [1, 1, -1, -1], atol=1e-2)
    with pytest.raises(ValueError, match="can only move as a whole"):
        saddle(potential, Atoms("O"))


def test_a_start_on_a_saddle_of_higher_order_is_left_downhill(potential, hop):
    top = hop.copy()
    top.positions[-1] = top.positions[13] + [0, 0, 2.4]
    found = saddle(potential, top)
    assert found.converged
    assert found.energy == pytest.approx(saddle(potential, hop).energy, abs=1e-5)  # the bridge again
    assert np.linalg.norm(found.atoms.positions[-1] - top.positions[-1]) > 1


def test_what_does_not_converge_says_why(double_well, hop, potential):
    with pytest.warns(
        NotConvergedWarning, match=r"HHe did not .*a force of \d.* eV/Å was left after 1 steps"
    ):
        found = saddle(double_well, at(-0.5), steps=1)
    assert not found.converged
    assert found.minima is None
    held = at(-0.6, 0.0)
    held.positions[0, 2] = 0
    held.set_constraint([FixAtoms([1]), FixCartesian(0, [True, False, False])])
    with pytest.warns(
        NotConvergedWarning, match="0 modes below -0.1 THz, needed one, were found after 0 steps"
    ):
        saddle(double_well, held, steps=0)
    for wrong in ({"fmax": 0}, {"trust": 0.5}, {"renew": 0}, {"steps": -1}):
        with pytest.raises(ValueError, match="needed fmax above 0"):
            saddle(double_well, at(0), **wrong)
    with pytest.raises(ValueError, match=r"direction of shape \(3, 3\), needed \(2, 3\)"):
        saddle(double_well, at(0), direction=np.ones((3, 3)))


def test_the_step_goes_up_along_one_mode_and_down_along_the_others():
    value, gradient = np.array([-1.0, -0.5, 2.0]), np.array([0.2, 0.3, -0.4])
    step = rational(value, gradient, 0)
    assert np.sign(step).tolist() == [1, -1, 1]
    # Near a stationary point it is Newton's step.
    small = rational(np.array([-1.0, 2.0]), 1e-6 * np.array([1.0, 1.0]), 0)
    np.testing.assert_allclose(small, [1e-6, -0.5e-6], rtol=1e-6)
    assert rational(np.array([-1.0]), np.array([0.1]), 0) > 0


def test_an_updated_hessian_gives_the_change_that_was_seen():
    rng = np.random.default_rng(0)
    A, B = (x + x.T for x in rng.normal(size=(2, 5, 5)))
    step = rng.normal(size=5)
    found = updated(A, step, B @ step)
    np.testing.assert_allclose(found @ step, B @ step, atol=1e-12)
    np.testing.assert_allclose(found, found.T, atol=1e-12)
    assert updated(A, step, A @ step) == pytest.approx(A)


def test_the_calculator_gives_the_whole_hessian(potential, hop):
    calculator = Calculator(potential)
    with pytest.raises(ValueError, match=r"found no atoms, needed get_hessian\(atoms\)"):
        calculator.get_hessian()
    found = calculator.get_hessian(hop)
    np.testing.assert_allclose(found, hessian(potential, hop), atol=1e-9)
    assert (found.shape, found.dtype) == ((57, 57), np.float64)
    assert (found == found.T).all()
    moved = hop.copy()
    moved.calc = calculator
    moved.get_potential_energy()
    np.testing.assert_allclose(calculator.get_hessian(), found, atol=1e-12)
    h, step = 1e-4, np.zeros(hop.positions.shape)
    step[18, 2] = h
    up, down = (potential.predict(_shifted(hop, s * step))["forces"] for s in (1, -1))
    np.testing.assert_allclose(found[18 * 3 + 2], (down - up).ravel() / (2 * h), atol=1e-5)


def _shifted(atoms: Atoms, by: np.ndarray) -> Atoms:
    moved = atoms.copy()
    moved.set_positions(atoms.positions + by, apply_constraint=False)
    return moved


def test_sella_takes_the_hessian_and_needs_more_force_calls(potential, hop):
    sella = pytest.importorskip("sella")
    calls = {}
    for exact in (False, True):
        atoms, calculator = hop.copy(), Calculator(potential)
        atoms.calc = calculator
        count = _Counted(calculator)
        options = {"hessian_function": calculator.get_hessian} if exact else {}
        assert sella.Sella(atoms, logfile=None, internal=False, **options).run(fmax=1e-3, steps=100)
        calls[exact] = count.number
        ours = saddle(potential, hop, fmax=1e-3)
        assert atoms.get_potential_energy() == pytest.approx(ours.energy, abs=1e-5)
    assert ours.force_calls < calls[True] < calls[False]


class _Counted:
    def __init__(self, calculator: Calculator):
        self.number, self._calculate = 0, calculator.calculate
        calculator.calculate = self

    def __call__(self, *arguments, **options):
        self.number += 1
        return self._calculate(*arguments, **options)


def test_the_highest_image_of_a_band_and_its_tangent_are_the_start(double_well):
    left, _, right = extrema()
    images = interpolated(at(left, 0), at(right, 0), images=4, method="linear")
    number, along = top_of(double_well, images)
    assert number == int(np.argmax([energy(a.positions[0, 0]) for a in images]))
    assert along[0] == pytest.approx(images[number + 1].positions[0] - images[number - 1].positions[0])
    assert top_of(double_well, images[:1]) == (0, None)
    with pytest.raises(ValueError, match="highest of 2 images is an end of the band, number 1"):
        top_of(double_well, images[:2])
    with pytest.raises(ValueError, match="needed the same atoms at both ends"):
        top_of(double_well, [images[0], Atoms("HeHe", images[0].positions)])


@pytest.fixture
def folder(tmp_path, monkeypatch, potential, hop):
    """The hop, and the stand-in under the names of all models."""
    monkeypatch.setattr("jaxmlip.zoo.load.load", lambda *_, **__: potential)
    ase.io.write(tmp_path / "near [1].extxyz", hop)
    return tmp_path


def test_the_command_writes_what_it_found(folder, monkeypatch, capsys):
    words = ("saddle", "near [1].extxyz", "--out", "of [1]", "--minima")
    done = here(folder, monkeypatch, capsys, *words)
    assert done.returncode == 0, done.stderr
    assert "10 of 19 atoms move (30 of 57 coordinates), the others are held in place by" in done.stdout
    record = json.loads((folder / "of [1]" / "saddle.json").read_text())
    assert record["converged"]
    assert record["imaginary_modes"] == 1
    assert record["lowest_mode_per_cm"] < -20
    assert record["force_calls"] == len(record["history"]["energy_eV"])
    assert [0.2 < side["barrier_eV"] < 0.3 for side in record["minima"]] == [True, True]
    assert len(ase.io.read(folder / "of [1]" / "saddle.extxyz", ":")) == 3
    assert len(ase.io.read(folder / "of [1]" / "mode.extxyz", ":")) == 20
    assert (folder / "of [1]" / "saddle.png").stat().st_size > 5_000
    (folder / "of [1]" / "saddle.extxyz").rename(folder / "band.extxyz")
    told = complaint(folder, monkeypatch, capsys, *words[:-1], "--steps", "1")
    assert "no saddle was reached: a force of" in told
    done = here(folder, monkeypatch, capsys, "saddle", "band.extxyz", "--out", "again")
    assert "the highest of 3 images is number 1, from 0 on" in done.stdout
    assert json.loads((folder / "again" / "saddle.json").read_text())["force_calls"] == 1
