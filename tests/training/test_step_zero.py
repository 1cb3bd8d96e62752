"""Before its first step a transferred potential is its source plus a shift of reference energies.

The functional's shift is tens of eV per atom; what training begins with must have it to the last digit
(arXiv:2504.05565, eq. 3).
"""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms

from jaxmlip.data.dataset import MemorySplit
from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.training.evaluate import compare
from jaxmlip.training.references import refit
from jaxmlip.training.run import fit_references

ELEMENTS = np.array([1, 8, 12, 13])


@pytest.fixture(scope="module")
def crystals() -> list[Atoms]:
    """Compositions that determine the energies of all four elements."""
    rng = np.random.default_rng(0)
    cell = np.array([[3.6, 0.3, 0.0], [-0.5, 4.1, 0.4], [0.6, 0.2, 4.4]])
    places = np.array([[0, 0, 0], [0.5, 0.5, 0.1], [0.5, 0.0, 0.5]])
    drawn = [rng.choice(ELEMENTS, size=3) for _ in range(10)]
    return [
        Atoms(z, cell=cell, pbc=True, scaled_positions=places + 0.02 * rng.normal(size=(3, 3))) for z in drawn
    ]


def split(architecture, crystals, energies) -> MemorySplit:
    """Forces and stresses of zero: what is compared with them is what the potential says."""
    labels = [Labels(float(e), np.zeros((3, 3)), np.zeros((3, 3))) for e in energies]
    labelled = [LabelledCrystal(a, own) for a, own in zip(crystals, labels, strict=True)]
    return MemorySplit.from_crystals(labelled, architecture.cutoffs)


def predicted(potential, crystals) -> dict[str, np.ndarray]:
    """Energies (eV per atom), forces and stresses."""
    compared = compare(potential, split(potential, crystals, np.zeros(len(crystals))))
    return {
        name: np.array([pair.model for pair in compared[name]]) for name in ("energy", "forces", "stress")
    }


def transferred(architecture, crystals, energies):
    found = fit_references(architecture, split(architecture, crystals, energies))
    return replace(architecture, params={**architecture.params, "reference_energies": found.energies}), found


def test_a_transferred_potential_is_its_source_plus_the_shift_of_reference_energies(architecture, crystals):
    source = predicted(architecture, crystals)
    rng = np.random.default_rng(1)
    shift = np.zeros(119)
    shift[ELEMENTS] = -13.6, -432.1, 58.3, 7.7  # eV
    own = 3 * source["energy"]  # eV
    moved = np.array([shift[a.numbers].sum() for a in crystals])

    # A functional that differs in the energies of elements alone is met before training.
    after = predicted(transferred(architecture, crystals, own + moved)[0], crystals)
    np.testing.assert_allclose(after["energy"], source["energy"] + moved / 3, rtol=0, atol=1e-6)
    for name in ("forces", "stress"):
        np.testing.assert_array_equal(after[name], source[name])

    # Eq. (3): E_source + E_ref(target) - E_ref(source), each fitted to its own energies of the same crystals.
    labels = own + moved + 3 * rng.normal(size=len(crystals))
    target, found = transferred(architecture, crystals, labels)
    zero, species = np.zeros(119), [a.numbers for a in crystals]
    of_target, of_source = (refit(species, e, zero).energies for e in (labels, own))
    before = architecture.params["reference_energies"]
    equation = before[ELEMENTS] + of_target[ELEMENTS] - of_source[ELEMENTS]
    assert not found.ridge
    np.testing.assert_allclose(found.energies[ELEMENTS], equation, rtol=0, atol=1e-6)
    moved = np.array([(of_target - of_source)[z].sum() for z in species])
    after = predicted(target, crystals)
    np.testing.assert_allclose(after["energy"], source["energy"] + moved / 3, rtol=0, atol=1e-6)
    for name in ("forces", "stress"):
        np.testing.assert_array_equal(after[name], source[name])
