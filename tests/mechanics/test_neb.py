"""Bands: forces are ASE's, saddles are where they are known to be, many bands at once are as each alone."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from stand_in import StandIn

from jaxmlip.mechanics.calculator import Calculator
from jaxmlip.mechanics.neb import (
    approximate_bands,
    band,
    bands,
    barriers,
    in_order_of,
    interpolated,
    path_length,
    vacancy_hop,
)
from jaxmlip.mechanics.relaxation import NotConvergedWarning

HEIGHT, TILT = 0.7, 0.1  # eV


class DoubleWell(StandIn):
    """Atom 0 in E = h (x² - 1)² + t x + y² + z² about x = 5 Å, the others tied."""

    cutoff = 3.0

    def predict_one(self, species, positions, cell):
        x, y, z = positions[0] - (5, 5, 5)
        e = HEIGHT * (x**2 - 1) ** 2 + TILT * x + y**2 + z**2 + np.sum((positions[1:] - 1) ** 2)
        forces = -2 * (positions - 1)
        forces[0] = -np.array([4 * HEIGHT * x * (x**2 - 1) + TILT, 2 * y, 2 * z])
        return {"energy": float(e), "forces": forces, "stress": np.zeros((3, 3))}


def places(x: float) -> Atoms:
    return Atoms("HHe", [[5 + x, 5.2, 5], [1, 1, 1.1]], cell=[10, 10, 10], pbc=True)


def extrema() -> np.ndarray:
    """x of the left minimum, the saddle and the right minimum."""
    return np.sort(np.roots([4 * HEIGHT, 0, -4 * HEIGHT, TILT]).real)


def energy(x: float) -> float:
    return HEIGHT * (x**2 - 1) ** 2 + TILT * x


@pytest.mark.parametrize("optimiser", ["FIRE", "LBFGS"])
def test_the_climbing_image_ends_on_a_saddle_that_is_known(optimiser):
    # An even number of images: none of them starts on the saddle.
    found = band(DoubleWell(), places(-0.9), places(0.9), images=4, fmax=1e-3, optimiser=optimiser)
    left, top, right = extrema()
    assert found.converged
    assert found.forward == pytest.approx(energy(top) - energy(left), abs=1e-5)
    assert found.reverse == pytest.approx(energy(top) - energy(right), abs=1e-5)
    assert found.kra == pytest.approx((found.forward + found.reverse) / 2, abs=1e-9)
    assert found.images[found.saddle].positions[0] == pytest.approx([5 + top, 5, 5], abs=1e-3)
    assert found.path[-1] == pytest.approx(right - left, abs=1e-2)


def test_held_images_relax_around_the_mobile_atom_alone():
    (found,) = approximate_bands(DoubleWell(), [(places(-0.9), places(0.9))], [0], images=3, fmax=1e-3)
    # Linear places of the mobile atom between the minima; y has gone to 0 at the ends, so in between too.
    x = np.linspace(*extrema()[[0, 2]], 5)
    assert found.energies == pytest.approx([energy(k) for k in x], abs=1e-4)


def test_a_band_that_runs_out_of_steps_says_so_and_stops_no_other():
    rest = Atoms("HHe", [[5 + extrema()[0], 5, 5], [1, 1, 1]], cell=[10, 10, 10], pbc=True)
    with pytest.warns(NotConvergedWarning, match=r"1 of 2 bands .*after 3 steps"):
        short, done = bands(
            DoubleWell(),
            [[places(-0.9), places(0.9)], [rest, rest, rest]],
            images=4,
            fmax=1e-2,
            steps=3,
        )
    assert not short.converged
    assert done.converged


def test_side_by_side_forces_are_those_of_ase_image_by_image(any_potential):
    from ase.mep import NEB

    crystal = bulk("Cu", cubic=True)
    crystal.symbols[3] = "Mg"
    moved = crystal.copy()
    moved.positions[3] += [0.5, 0.3, -0.2]
    shifted = moved.copy()
    shifted.positions[0] += [0.1, 0.0, 0.2]
    paths = [[crystal, moved], [crystal, shifted]]
    with pytest.warns(NotConvergedWarning):
        found = bands(any_potential, paths, images=2, climb=False, relax_ends=False, steps=0, fmax=1e-9)
    calculator = Calculator(any_potential)
    for path, made in zip(paths, found, strict=True):
        images = interpolated(*path, 2)
        for image in images:
            results = {
                "energy": calculator.get_potential_energy(image),
                "forces": calculator.get_forces(image),
            }
            image.calc = SinglePointCalculator(image, **results)
        its = NEB(images, k=0.1, method="improvedtangent").get_forces()
        assert made.max_force == pytest.approx(np.linalg.norm(its, axis=1).max(), rel=1e-6)
        assert made.energies == pytest.approx([image.get_potential_energy() for image in images])


def test_atoms_are_put_back_in_order_across_the_boundary():
    crystal = bulk("NaCl", "rocksalt", 5.6, cubic=True)
    mixed = crystal[[3, 1, 2, 0, 7, 5, 6, 4]]
    mixed.positions += 0.3
    mixed.positions[2] -= mixed.cell[0]
    again = in_order_of(mixed, crystal)
    assert (again.numbers == crystal.numbers).all()
    assert path_length([crystal, again])[-1] == pytest.approx(0.3 * np.sqrt(24))


def test_barriers_do_not_depend_on_the_zero_of_energy():
    assert barriers([5.0, 5.5, 5.2]) == pytest.approx((0.5, 0.3, 0.4))


def test_a_vacancy_hop_moves_one_atom_onto_the_empty_site():
    crystal = bulk("MgO", "rocksalt", 4.2, cubic=True)
    start, end = vacancy_hop(crystal, 0, 2)
    assert len(start) == 7
    assert np.flatnonzero(np.abs(end.positions - start.positions).max(axis=1) > 0).tolist() == [1]
    assert end.positions[1] == pytest.approx(crystal.positions[0])
    with pytest.raises(ValueError, match="two atoms of one element"):
        vacancy_hop(crystal, 0, 1)


def test_crystals_that_do_not_belong_together_are_refused():
    potential = DoubleWell()
    a = bulk("NaCl", "rocksalt", 5.6)
    with pytest.raises(ValueError, match="same atoms at both ends"):
        band(potential, a, bulk("MgO", "rocksalt", 5.6))
    with pytest.raises(ValueError, match="different orders"):
        band(potential, a, a[[1, 0]])
    with pytest.raises(ValueError, match="cells of a path"):
        band(potential, a, bulk("NaCl", "rocksalt", 5.7))
    with pytest.raises(ValueError, match="its two ends"):
        band(potential, a)
