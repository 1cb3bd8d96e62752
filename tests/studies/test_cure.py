"""The cure of softening, on data whose softening is known: DFT's part is played by 1.25 times the network."""

from dataclasses import replace

import pytest
from conftest import FIRST
from small_studies import Ran, go
from small_studies.softening import STIFFER

import jaxmlip


@pytest.mark.slow
def test_one_frame_gives_the_factor_that_the_forces_lack_and_with_it_every_family(ran):
    done = ran("softening.cure", FIRST)
    soft, cured = done.rows.values()
    families = {"hot crystal, held out", "melt", "vacancy", "strained", "surfaces"}
    assert set(soft) == families
    for family in families - {"surfaces"}:
        assert soft[family]["slope"] == pytest.approx(1 / STIFFER, abs=2e-3), family
        assert cured[family]["slope"] == pytest.approx(1, abs=2e-3), family
    assert cured["surfaces"]["mae"] < 0.05 * soft["surfaces"]["mae"]
    assert "in other families" in done.text
    assert {p.suffix for p in done.out.iterdir() if p.is_file()} == {".json", ".jsonl", ".md", ".png"}
    (left,) = (done.out / "runs").iterdir()
    assert float(jaxmlip.load(left / "model").params["scale"]) == pytest.approx(STIFFER, rel=2e-3)


@pytest.mark.slow
def test_training_the_readout_for_a_moment_moves_the_slope(ran, tmp_path):
    """Of one architecture: that training is the same for all is proved in test_training_loop."""
    settings = replace(
        ran("softening.cure").settings, methods=("readout",), seeds=1, epochs=3, out=tmp_path / "trained"
    )
    go("softening.cure", settings)
    rows = Ran("softening.cure", settings).rows
    soft, trained = (row["hot crystal, held out"]["slope"] for row in rows.values())
    assert trained != pytest.approx(soft, abs=1e-5)


def test_too_few_frames_are_said_before_anything_is_computed(ran, tmp_path):
    with pytest.raises(ValueError, match="found 4 frames of hot Si, needed twice 3"):
        go("softening.cure", replace(ran("softening.cure").settings, sizes=(3,), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
