"""Mixing: what a potential labelled itself is found again, with energies of mixing that are known."""

import numpy as np
import pytest
from conftest import QUICK
from small_studies import go
from small_studies.softening import STAND_INS

from experiments.softening.solid_solutions import Settings, ordered_oxides, rank_correlation, statistics


def test_a_network_agrees_with_the_energies_it_labelled_itself(ran):
    (table,) = ran("softening.solid_solutions", QUICK).record["tables"]
    unrelaxed, relaxed = table["rows"]
    for line in (unrelaxed, relaxed):
        assert line[3] == 8
        assert line[4]["value"] == pytest.approx(1, abs=1e-3)
        assert line[5]["value"] == pytest.approx(0, abs=0.1)  # meV/atom
    assert unrelaxed[7]["value"] == pytest.approx(1, abs=0.05)


def test_known_energies_of_mixing_come_out_relaxed_too(ran):
    done = ran("softening.solid_solutions")
    alloys, oxides = (table["rows"] for table in done.record["tables"])
    assert [line[3] for line in alloys] == [8, 8, 5]
    assert [line[4]["value"] for line in alloys] == pytest.approx([1, 1, 1], abs=1e-3)
    for _, of_cations, x, *_, mean, low, high in oxides[:-4]:
        known = 2 * STAND_INS["mixture"].oxide * float(of_cations) * (1 - float(of_cations))
        assert float(x) == 2 * float(of_cations)
        assert [mean["value"], low, high] == pytest.approx([known] * 3, abs=1e-3)
    assert "left out: MoNb, MoTa, NbTa, NbW, TaW" in done.text
    figures = {f"solid_solutions_{name}.png" for name in ("alloys", "parity", "oxide")}
    assert {p.name for p in done.out.glob("*.png")} == figures


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


def test_without_alloys_the_oxides_are_computed_and_what_is_missing_is_said(tmp_path, capsys):
    go("softening.solid_solutions", Settings(("mixture",), tmp_path / "data", tmp_path / "out"))
    assert "maml_MoNbTaW/MoNb_SS.extxyz.gz is not in" in capsys.readouterr().out
