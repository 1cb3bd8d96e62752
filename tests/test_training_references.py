"""Reference energies by least squares."""

import numpy as np
import pytest

from jaxmlip.training.references import refit

ENERGIES = np.zeros(95)
ENERGIES[[8, 12, 26]] = -5.0, -1.5, -8.0


def crystals(seed: int, elements=(8, 12, 26)) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.choice(elements, size=rng.integers(2, 12)) for _ in range(40)]


def test_reference_energies_that_made_the_data_are_found_whatever_those_before_were():
    species, rng = crystals(0), np.random.default_rng(1)
    noise = [0.01 * rng.normal() * len(s) for s in species]
    for before in (np.zeros(95), rng.normal(size=95)):
        residual = [ENERGIES[s].sum() - before[s].sum() + e for s, e in zip(species, noise, strict=True)]
        found = refit(species, np.array(residual), before)
        np.testing.assert_allclose(found.energies[[8, 12, 26]], ENERGIES[[8, 12, 26]], atol=0.05)
        assert found.fitted == (8, 12, 26)
        assert not found.ridge
        assert found.rmse == pytest.approx(0.01, rel=0.4)


def test_elements_that_the_data_do_not_have_keep_their_energies():
    before = np.full(95, 0.25)
    species = crystals(2, elements=(8, 12))
    found = refit(species, np.array([ENERGIES[s].sum() - before[s].sum() for s in species]), before)
    assert found.energies[26] == 0.25
    assert 26 in found.kept
    np.testing.assert_allclose(found.energies[[8, 12]], ENERGIES[[8, 12]], atol=1e-9)


def test_one_composition_alone_stays_close_to_the_energies_before_and_says_so():
    """MgO can tell the sum of two energies and nothing of their difference."""
    species = [np.array([12, 8] * k) for k in (1, 2, 3)]
    before = np.zeros(95)
    before[[12, 8]] = -2.0, -5.5
    found = refit(species, np.array([1.0 * len(s) for s in species]), before)
    assert found.ridge
    assert "close to the old" in str(found)
    np.testing.assert_allclose(found.energies[[12, 8]], [-1.0, -4.5], atol=1e-4)


def test_reference_energies_of_nothing_are_refused():
    with pytest.raises(ValueError, match="needed some"):
        refit([], np.zeros(0), np.zeros(95))
