"""What every experiment shares: rows outlive a kill, and what does not fit together is refused."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK, small_potential
from rich.console import Console

from jaxmlip.studies.study import Study, StudyError, bootstrap
from jaxmlip.system.tables import Estimate, Table


@dataclass(frozen=True)
class Settings:
    """Is it so?

    More of it.
    """

    out: Path
    model: tuple[str, ...] = ("a",)
    fmax: float = 0.05


def study(tmp_path, potentials=None, **settings) -> Study:
    return Study("trial", Settings(tmp_path / "out", **settings), potentials)


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
    assert rows == trial.done() == {"Si": {"x": 1}}
    assert trial.rows["Xx"] == {"failed": "no such element"}
    trial.write([Table("t", ("a",), [[1.0]])], {})
    assert "1 of 2 rows failed (Xx: no such element)" in capsys.readouterr().out
    record = json.loads((tmp_path / "out/record.json").read_text())
    assert record["question"] == "Is it so?"
    assert record["rows"] == trial.rows


def test_materials_of_unknown_elements_are_left_out_and_named_and_nothing_at_all_is_an_error(
    tmp_path, capsys
):
    salt = replace(small_potential(QUICK), elements=(11, 17))
    trial = study(tmp_path, {"salt": salt})
    materials = {"NaCl": [11, 17], "Si": [14], "MgO": [12, 8]}
    rows = trial.ask("trying", materials, lambda numbers: numbers, lambda p, numbers: {"n": len(numbers)})
    assert rows == {"salt": {"NaCl": {"n": 2}}}
    assert trial.done() == {"salt: NaCl": {"n": 2}}
    trial.write(
        [Table.of("t", ({"model": m, **x["NaCl"]} for m, x in rows.items())), Table.of("none", [])], {}
    )
    record = json.loads((tmp_path / "out/record.json").read_text())
    assert record["tables"] == [
        {"title": "t", "columns": ["model", "n"], "rows": [["salt", 2]], "digits": 3, "note": ""}
    ]
    assert (
        "salt does not know all elements of 2 materials, which are left out: Si, MgO." in record["findings"]
    )
    nothing = Study("trial", Settings(tmp_path / "other"), {"salt": salt})
    nothing.known("salt", {"Si": [14], "MgO": [12, 8]}, list)
    nothing.fail("salt: C", "no")
    with pytest.raises(RuntimeError, match=r"(?s)Nothing could be computed.*Si, MgO.*salt: C: no"):
        nothing.write([], {})


def test_a_table_prints_its_cells_with_numbers_flush_right():
    table = Table("t", ("solid", "ω"), [["NaCl", 1.5], ["MgO", 10.25]], digits=2, note="of two")
    console = Console(width=60)
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    assert any(re.fullmatch(r" ?NaCl +1\.50", line) for line in lines)
    assert any(re.fullmatch(r" ?MgO +10\.25", line) for line in lines)
    assert any("of two" in line for line in lines)


def test_a_folder_of_other_settings_or_weights_is_refused_but_another_model_may_join(tmp_path):
    study(tmp_path, {"m": small_potential(QUICK)})
    with pytest.raises(StudyError, match=r"fmax: 0\.05 there, 0\.1 here"):
        study(tmp_path, fmax=0.1)
    with pytest.raises(StudyError, match=r"other settings or weights \(m: "):
        study(tmp_path, {"m": small_potential("m3gnet-smooth")})
    study(tmp_path, {"n": small_potential("m3gnet-smooth")}, model=("n",))
    study(tmp_path, {"m": small_potential(QUICK), "n": small_potential("m3gnet-smooth")})


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
