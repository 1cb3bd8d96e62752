"""What every experiment shares: rows outlive a kill, and what does not fit together is refused."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import small_potential

from jaxmlip.studies.study import Estimate, MissingDataError, Study, StudyError, Table, bootstrap, data_file


@dataclass(frozen=True)
class Settings:
    """Is it so?

    More of it.
    """

    out: Path
    model: tuple[str, ...] = ("a",)
    fmax: float = 0.05


def study(tmp_path, potentials=None, **settings) -> Study:
    return Study("trial", Settings.__doc__, Settings(tmp_path / "out", **settings), potentials or {})


def test_rows_that_are_there_are_not_computed_again_and_half_a_line_is_dropped(tmp_path):
    calls = []

    def measure(key):
        calls.append(key)
        return {"x": np.float32(len(calls)), "nothing": np.nan, "several": np.arange(2)}

    first = study(tmp_path).each("trying", ["Si", "NaCl"], measure)
    with (tmp_path / "out/rows.jsonl").open("a") as file:
        file.write('{"key": "MgO", "row": {"x"')
    again = study(tmp_path).each("trying", ["Si", "NaCl", "MgO"], measure)
    assert calls == ["Si", "NaCl", "MgO"]
    assert {key: again[key] for key in first} == first
    assert first["Si"] == {"x": 1.0, "nothing": None, "several": [0, 1]}
    assert list(study(tmp_path).rows) == ["Si", "NaCl", "MgO"]


def test_a_material_that_fails_is_a_row_with_its_reason_and_is_counted(tmp_path, capsys):
    def measure(key):
        if key == "Xx":
            raise ValueError("no such element")
        return {"x": 1}

    trial = study(tmp_path)
    rows = trial.each("trying", ["Si", "Xx"], measure)
    assert rows["Xx"] == {"failed": "no such element"}
    trial.write([Table("t", ("a",), [[1.0]])], {})
    assert "1 of 2 rows failed (Xx: no such element)" in capsys.readouterr().out
    record = json.loads((tmp_path / "out/record.json").read_text())
    assert record["question"] == "Is it so?"
    assert record["rows"] == rows


def test_a_folder_of_other_settings_or_weights_is_refused_but_another_model_may_join(tmp_path):
    study(tmp_path, {"m": small_potential("chgnet-0.3")})
    with pytest.raises(StudyError, match=r"fmax: 0\.05 there, 0\.1 here"):
        study(tmp_path, fmax=0.1)
    with pytest.raises(StudyError, match=r"other settings or weights \(m: "):
        study(tmp_path, {"m": small_potential("m3gnet-smooth")})
    study(tmp_path, {"n": small_potential("m3gnet-smooth")}, model=("n",))
    study(tmp_path, {"m": small_potential("chgnet-0.3"), "n": small_potential("m3gnet-smooth")})


def test_the_interval_holds_the_mean_of_a_known_distribution_19_times_in_20():
    rng = np.random.default_rng(0)
    held = [
        low < 3 < high
        for _, low, high in (bootstrap(rng.normal(3, 1, 40), resamples=400) for _ in range(200))
    ]
    assert 0.88 < np.mean(held) < 0.99
    alone = bootstrap([2.0])
    assert alone.value == 2
    assert np.isnan(alone.low)


def test_cells_show_intervals_and_leave_out_what_is_not_there():
    table = Table("t", ("a", "b"), [[Estimate(0.5, 0.25, 0.75), None], [3, float("nan")]], digits=2)
    assert table.markdown().splitlines()[-2:] == ["| 0.50 (0.25 to 0.75) | - |", "| 3 | - |"]


def test_missing_data_say_where_they_are_published_and_where_to_put_them(tmp_path):
    with pytest.raises(MissingDataError, match=r"mlearn/Si\.extxyz\.gz is not in .*github\.com/.*--data"):
        data_file(tmp_path, "mlearn/Si.extxyz.gz")
