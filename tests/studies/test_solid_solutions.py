"""Mixing: what a potential labelled itself is found again, with energies of mixing that are known."""

import json

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import small_potential
from stand_in import StandIn

import experiments.softening.solid_solutions as solid_solutions
from experiments.softening.solid_solutions import Settings, main, ordered_oxides, rank_correlation, statistics

OXIDE, ALLOY = 0.9, -0.4  # eV times x (1 - x), per MO and per atom
STIFF = 0.05  # eV/Å⁶ per atom


class Mixture(StandIn):
    """E / N = c x (1 - x) + k (V / N - v)², v a mean over elements; eV and Å³."""

    name = "mixture"

    def predict_one(self, species, positions, cell):
        n, volume = len(species), abs(np.linalg.det(cell))
        cations = species[species != 8]
        x = np.mean(cations == cations.max()) if len(set(cations)) > 1 else 0.0
        size = np.mean([{8: 0.0, 12: 19.0, 20: 28.0, 42: 15.9, 74: 16.2}[int(z)] for z in species])
        c = OXIDE / 2 if 8 in species else ALLOY
        off = volume / n - size
        energy = n * (c * x * (1 - x) + STIFF * off**2 - np.mean(species))
        stress = 2 * STIFF * off * np.eye(3)  # dE/dV
        return {"energy": float(energy), "forces": np.zeros((n, 3)), "stress": stress}


def labelled(potential, crystals):
    for crystal, p in zip(crystals, potential.predict(crystals), strict=True):
        crystal.calc = SinglePointCalculator(
            crystal, energy=p["energy"], forces=p["forces"], stress=p["stress"]
        )
    return crystals


def write_alloys(potential, folder, strains=(0.0,)) -> None:
    """MoW in the layout of maml, in cells of four atoms."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    size = {"Mo": 15.9, "W": 16.2}
    bulks = [
        bulk(element, "bcc", a=(2 * volume) ** (1 / 3) * (1 + e), cubic=True)
        for element, volume in size.items()
        for e in strains
    ]
    frames = []
    for k in range(16):
        tungsten = 1 + k % 3
        volume = (1 - tungsten / 4) * size["Mo"] + tungsten / 4 * size["W"]
        atoms = bulk("Mo", "bcc", a=(2 * volume) ** (1 / 3), cubic=True).repeat((2, 1, 1))
        atoms.numbers[rng.permutation(4)[:tungsten]] = 74
        if k % 2:
            atoms.rattle(0.03, seed=k)
        atoms.info["tags"] = ("relax", "unrelax")[k % 2]
        frames.append(atoms)
    labelled(potential, bulks + frames)  # in one call: one program with the experiment
    n = len(strains)
    ase.io.write(folder / "Mo_Elastic.extxyz", bulks[:n])
    ase.io.write(folder / "W_Elastic.extxyz", bulks[n:])
    ase.io.write(folder / "MoW_SS.extxyz.gz", frames, format="extxyz")


def tables(folder) -> list[list]:
    return [t["rows"] for t in json.loads((folder / "record.json").read_text())["tables"]]


@pytest.mark.one_model
@pytest.mark.parametrize("name", ["chgnet-0.3", "m3gnet-smooth", "mace-density"])
def test_a_potential_agrees_with_the_energies_it_labelled_itself(name, tmp_path):
    potential = small_potential(name, "float32")
    potential.save(tmp_path / name)
    write_alloys(potential, tmp_path / "data/maml_MoNbTaW")
    main(Settings((str(tmp_path / name),), tmp_path / "data", tmp_path / "out", relax=0, orderings=0))
    ((unrelaxed, relaxed),) = tables(tmp_path / "out")
    for line in (unrelaxed, relaxed):
        assert line[3] == 8
        assert line[4]["value"] == pytest.approx(1, abs=1e-3)
        assert line[5]["value"] == pytest.approx(0, abs=0.1)  # meV/atom
    assert unrelaxed[7]["value"] == pytest.approx(1, abs=0.05)


def test_known_energies_of_mixing_come_out_relaxed_too_and_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(solid_solutions, "load_models", lambda names: {"mixture": Mixture()})
    monkeypatch.setattr(solid_solutions, "CELLS", (2, 4))
    write_alloys(Mixture(), tmp_path / "data/maml_MoNbTaW", strains=(0.02, 0.0, -0.01))
    settings = Settings(("mixture",), tmp_path / "data", tmp_path / "out", relax=5, fmax=0.01)
    main(settings)
    alloys, oxides = tables(tmp_path / "out")
    assert [line[3] for line in alloys] == [8, 8, 5]
    assert [line[4]["value"] for line in alloys] == pytest.approx([1, 1, 1], abs=1e-3)
    for _, of_cations, x, *_, mean, low, high in oxides[:-4]:
        known = 2 * OXIDE * float(of_cations) * (1 - float(of_cations))
        assert float(x) == 2 * float(of_cations)
        assert [mean["value"], low, high] == pytest.approx([known] * 3, abs=1e-3)
    assert "left out: MoNb, MoTa, NbTa, NbW, TaW" in capsys.readouterr().out
    for figure in ("alloys", "parity", "oxide"):
        assert (tmp_path / f"out/solid_solutions_{figure}.png").stat().st_size > 1e4

    before = (tmp_path / "out/solid_solutions.md").read_text()
    monkeypatch.setattr(solid_solutions, "_relaxed", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr(Mixture, "predict", lambda *_: pytest.fail("computed again"))
    main(settings)
    assert (tmp_path / "out/solid_solutions.md").read_text() == before


def test_a_shift_of_each_composition_leaves_slope_and_ranks_of_ordering():
    rng = np.random.default_rng(1)
    x = np.repeat([0.25, 0.5, 0.75], 20)
    dft = rng.normal(size=60) - 10 * x * (1 - x)
    mixing, _, error, ordering, ranks = statistics(x, dft, 0.8 * dft + 3 * x)
    assert ordering.value == pytest.approx(0.8)
    assert ranks.value == pytest.approx(1)
    assert mixing.value != pytest.approx(0.8, abs=0.05)
    assert error.value == pytest.approx(1e3 * np.mean(3 * x - 0.2 * dft))
    assert rank_correlation(np.column_stack([x, dft, -dft])) == pytest.approx(-1)


def test_no_composition_has_more_orderings_than_asked_for():
    found = ordered_oxides(6, seed=0)
    assert list(found) == [k / 8 for k in range(1, 8)]
    assert all(len(crystals) == 6 for crystals in found.values())
    assert len(ordered_oxides(1000, seed=0)[0.5]) == 2 + 5 + 94


def test_without_alloys_the_oxides_are_computed_and_what_is_missing_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(solid_solutions, "load_models", lambda names: {"mixture": Mixture()})
    monkeypatch.setattr(solid_solutions, "CELLS", (2,))
    main(Settings(("mixture",), tmp_path / "data", tmp_path / "out"))
    assert "maml_MoNbTaW/MoNb_SS.extxyz.gz is not in" in capsys.readouterr().out
