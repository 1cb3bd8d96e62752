"""Reference energies by least squares."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import write_springs
from rich.console import Console

from jaxmlip.system.parallel import make_mesh
from jaxmlip.training.config import DataConfig, ModelConfig, TrainConfig
from jaxmlip.training.losses import LossConfig
from jaxmlip.training.references import of_isolated, refit
from jaxmlip.training.run import prepare

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


def test_energies_of_isolated_atoms_are_taken_as_they_are_or_the_lack_of_one_is_named():
    before = np.full(95, 0.25)
    found = of_isolated([(8, -1.5), (12, -0.1), (12, -0.1), (26, -3.0)], [8, 12], before)
    np.testing.assert_array_equal(found.energies[[8, 12, 26]], [-1.5, -0.1, 0.25])
    assert (found.fitted, 26 in found.kept) == ((8, 12), True)
    assert str(found) == "reference energies of isolated atoms for O Mg"
    with pytest.raises(ValueError, match="no isolated atom of Mg, Fe with an energy"):
        of_isolated([(8, -1.5)], [8, 12, 26], before)
    with pytest.raises(ValueError, match=r"isolated atoms of O with -1\.5 and -1\.4"):
        of_isolated([(8, -1.5), (8, -1.4)], [8], before)


@pytest.mark.usefixtures("quick")
@pytest.mark.filterwarnings("ignore:(?s).*left out 1 isolated atom")
def test_a_run_begins_with_the_energies_of_the_isolated_atoms_in_its_files(tmp_path):
    write_springs(tmp_path, 4)
    path = tmp_path / "springs.extxyz"
    frames = path.read_text()
    properties = "Properties=species:S:1:pos:R:3 energy=-0.8 config_type=IsolatedAtom"
    alone = f'1\n{properties} pbc="F F F"\nSi 0 0 0\n'
    path.write_text(alone + frames)
    config = TrainConfig(
        model=ModelConfig(architecture="m3gnet", hyperparameters={"features": 4}),
        data=DataConfig(train=(str(path),), split_by="crystal", fractions=(1, 0, 0)),
        loss=LossConfig(stress=0.0, magmoms=0.0),
        reference_energies="isolated",
    ).checked()
    begun = config, tmp_path / "run", make_mesh(1), Console(quiet=True)
    potential, splits, _ = prepare(*begun)
    assert len(splits["train"]) == 4
    assert potential.params["reference_energies"][14] == pytest.approx(-0.8)
    path.write_text(alone.replace("Si", "Ge") + frames)
    with pytest.raises(ValueError, match="no isolated atom of Si"):
        prepare(*begun)
    path.write_text(frames)
    with pytest.raises(ValueError, match="no isolated atom in"):
        prepare(*begun)
    refitted = replace(config, reference_energies="refit")
    path.write_text(alone + frames)  # the isolated atom is in no fit
    potential, _, _ = prepare(refitted, *begun[1:])
    assert potential.params["reference_energies"][14] > 0
