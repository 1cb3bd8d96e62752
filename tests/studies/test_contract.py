"""What every experiment does: each claim is proved for each of them, over small_studies.TABLE."""

import json
import re
import runpy
import shutil
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import pytest
from conftest import QUICK, small_potential
from PIL import Image
from small_studies import TABLE, Ran, alone, go, module, on_a_small_scale, softening
from stand_in import StandIn

from experiments.datasets import MissingDataError
from jaxmlip.potential import Potential
from jaxmlip.studies.study import Study, StudyError, run
from jaxmlip.system.tables import Estimate, Table

ROOT = Path(__file__).parents[2]
COMMANDS = [*TABLE, "report"]
LONG = ("training.hessian_columns", "training.from_scratch", "transfer.methods")  # compile for long


def but_slowly(*slow: str, of=TABLE):
    """Each of the experiments; the slow ones take too long for the default selection."""
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in of]
    )


SLOW = (
    *LONG,
    "learn_phonons",
    "conductivity",
    "softening.elastic",
    "transfer.scaling_law",
    "transfer.teacher_set.make",
)
every = but_slowly(*SLOW)


@contextmanager
def idle():
    """Whatever evaluates or trains a potential, or keeps a row, fails."""

    def never(*args, **kwargs):
        raise AssertionError("computed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Potential, "arrays", property(never))
        patch.setattr(Potential, "precision", never)
        patch.setattr(StandIn, "predict_graphs", lambda _, graphs, shape: never() if graphs else [])
        patch.setattr(Study, "keep", never)
        for trains in ("jaxmlip.training.loop.fit", "jaxmlip.training.run.train_in"):
            patch.setattr(trains, never)
        yield


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_called_as_its_file_says_and_asks_the_question_of_its_settings(name):
    experiment = module(name)
    assert f"python -m experiments.{name} " in experiment.__doc__
    assert experiment.Settings.__doc__.strip().splitlines()[0].endswith("?")


@pytest.mark.parametrize("name", TABLE)
def test_help_asks_the_question_and_names_every_setting(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(module(name).__file__, run_name="__main__")
    assert end.value.code == 0
    told = capsys.readouterr().out
    settings = module(name).Settings
    assert settings.__doc__.strip().split()[0] in told
    for setting in fields(settings):
        assert f"--{setting.name.replace('_', '-')}" in told, setting.name


def test_every_command_of_the_pages_exists_and_every_command_is_in_the_pages():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "experiments/README.md"]
    named = {m for page in pages for m in re.findall(r"-m (experiments[\w.]+)", page.read_text())}
    assert {f"experiments.{name}" for name in COMMANDS} <= named
    for name in named:
        assert (ROOT / f"{name.replace('.', '/')}.py").is_file(), name


def models_of(name: str, *folders: str) -> dict:
    """The setting that names these potentials; nothing where the experiment has none."""
    which = TABLE[name].models
    if which is None:
        return {}
    only_one = isinstance(module(name).Settings.__dataclass_fields__[which].default, str)
    return {which: folders[0] if only_one else folders}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A potential that no test here evaluates."""
    folder = tmp_path_factory.mktemp("model")
    small_potential("m3gnet-smooth", "float32").save(folder / "small")
    return str(folder / "small")


@pytest.mark.parametrize("name", [name for name, experiment in TABLE.items() if experiment.missing])
def test_missing_data_say_what_to_put_where_and_leave_nothing_behind(name, model, tmp_path, monkeypatch):
    monkeypatch.delenv("JAXMLIP_DATA", raising=False)
    file, source, more = TABLE[name].missing
    settings = {"data": tmp_path, "out": tmp_path / "out", **models_of(name, model), **more}
    pattern = rf"(?s){re.escape(file)}\S* is not in .*{source}.*--data"
    with pytest.raises((MissingDataError, RuntimeError), match=pattern):
        module(name).main(module(name).Settings(**settings))
    # Some have crystals of their own to go on with.
    assert (tmp_path / "out").exists() == TABLE[name].goes_on


@every
def test_a_mistake_is_named_before_anything_is_computed_and_leaves_nothing_behind(name, ran, tmp_path):
    changed, words = TABLE[name].mistake
    wrong = replace(ran(name).settings, out=tmp_path / "out", **changed)
    with idle(), pytest.raises(ValueError, match=words):
        go(name, wrong)
    assert not (tmp_path / "out").exists()


@every
def test_as_a_command_it_says_a_mistake_in_one_line(name, ran, tmp_path, monkeypatch, capsys):
    changed, words = TABLE[name].mistake
    wrong = replace(ran(name).settings, out=tmp_path / "out", **changed)
    monkeypatch.setattr("tyro.cli", lambda settings: wrong)
    capsys.readouterr()  # what the small run said, if it was made here
    with idle(), on_a_small_scale(name), pytest.raises(SystemExit) as end:
        run(module(name).main, module(name).Settings)
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert re.match(rf"error: .*{words}", said)
    assert "Traceback" not in said


@every
def test_a_file_where_the_folder_should_be_is_refused_before_anything_is_computed(name, ran, tmp_path):
    (tmp_path / "out").write_text("mine")
    settings = replace(ran(name).settings, out=tmp_path / "out")
    with idle(), pytest.raises(OSError, match="out"):
        go(name, settings)
    assert (tmp_path / "out").read_text() == "mine"


@every
def test_the_record_says_what_was_asked_and_what_lies_beside_it(name, ran):
    done = ran(name)
    record = done.record
    assert record["question"] == module(name).Settings.__doc__.strip().splitlines()[0]
    assert record["settings"]["out"] == str(done.out)
    for setting in fields(done.settings):
        assert setting.name in record["settings"]
    assert record["rows"]
    assert record["minutes"] > 0
    if TABLE[name].models:
        named = getattr(done.settings, TABLE[name].models)
        assert len(record["weights"]) == (1 if isinstance(named, str) else len(named))
    for table in record["tables"]:
        assert table["rows"]
        assert {len(line) for line in table["rows"]} == {len(table["columns"])}
        assert f"### {table['title']}" in done.text
    for finding in record["findings"]:
        assert finding in done.text
    failed = [row["failed"] for row in record["rows"].values() if "failed" in row]
    told = f"{len(failed)} of {len(record['rows'])} rows failed"
    assert (told in done.text) == bool(failed)
    assert all(failed)
    assert {f["file"] for f in record["figures"]} == {p.name for p in done.out.glob("*.png")}
    for figure in record["figures"]:
        assert figure["caption"].strip()
        assert (done.out / figure["file"]).stat().st_size > 10_000
        assert min(Image.open(done.out / figure["file"]).size) > 300


@pytest.fixture(scope="module")
def again(ran):
    """What a second run hands to `Study.write`, which may compute nothing: the tables and the figures."""
    known = {}

    def second(name: str):
        if name not in known:
            done = ran(name)
            before, text = done.record, done.text
            with pytest.MonkeyPatch.context() as patch, alone(done.out.parent), idle():
                write = Study.write

                def noted(study, tables, figures, findings=()):
                    known[name] = (before, text, tables, figures)
                    write(study, tables, figures, findings)

                patch.setattr(Study, "write", noted)
                go(name, done.settings)
        return known[name]

    return second


@every
def test_a_second_run_computes_nothing_and_says_the_same(name, ran, again):
    before, text, *_ = again(name)
    assert ran(name).text == text
    assert ran(name).record["tables"] == before["tables"]
    assert ran(name).rows == before["rows"]


# Counts, ratios and the like. Whatever else is a number has a unit: in its column, the title or its line.
UNIT = re.compile(
    r"/ ?(eV|meV|Å|GPa|THz|J/m²|W/m/K|s\b|mJ|µ|%|1/|MeV|kJ)|\((eV|meV|Å|GPa|THz|μB)|1/s|crystals/s"
)
BARE = re.compile(
    r"slope|ratio|share|r²|ρ|number|model / DFT|model / PBE|fraction|Deming|median|frames|materials|steps|"
    r"minutes|parameters|of the RMS force|exponent|crystals|FLOP|norm|explained|1 - cMAE|atoms|ω_|rank|"
    r"inverse|shrinkage|Σ model / Σ DFT|SRME",
    re.IGNORECASE,
)


@every
def test_numbers_of_tables_have_a_unit_or_are_ratios_and_counts(name, again):
    tables: list[Table] = again(name)[2]
    assert any(table.rows for table in tables)
    without = []
    for table in tables:
        for k, column in enumerate(table.columns):
            said, numbers = f"{column} {table.title}", [row for row in table.rows if is_number(row[k])]
            in_lines = all(any(UNIT.search(x) for x in row if isinstance(x, str)) for row in numbers)
            if not in_lines and not UNIT.search(said) and not BARE.search(said):
                without.append(f"{table.title}: {column}")
    assert not without, "\n".join(without)


def is_number(cell) -> bool:
    return isinstance(cell, float | Estimate)


@every
def test_both_axes_of_every_panel_are_labelled(name, again):
    figures = again(name)[3]
    assert figures
    for file, (_, figure) in figures.items():
        figure.canvas.draw()
        shown = [ax for ax in figure.axes if ax.axison]
        assert shown
        for ax in shown:
            across = [ax, *ax.get_shared_x_axes().get_siblings(ax)]
            # A label at the left is that of the whole line of panels.
            along = [ax, *ax.get_shared_y_axes().get_siblings(ax), *of_the_same_line(ax)]
            assert any(labelled(other.xaxis) for other in across), f"{file}: {ax.get_title()}, x"
            assert any(labelled(other.yaxis) for other in along), f"{file}: {ax.get_title()}, y"


def labelled(axis) -> bool:
    """Whether it has a label, or names of categories, which need none; powers of ten are no names."""
    names = (text.get_text().strip() for text in axis.get_ticklabels())
    return bool(axis.get_label_text()) or any(re.match(r"[^\W\d_]", name) for name in names)


def of_the_same_line(ax) -> list:
    lines = {other: other.get_subplotspec().rowspan for other in ax.figure.axes}
    return [other for other in lines if lines[other] == lines[ax]]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@every
def test_a_folder_of_other_settings_is_refused_by_their_names_and_stays_as_it_was(name, ran, tmp_path):
    done = ran(name)
    shutil.copytree(done.out, tmp_path / "out", symlinks=True)
    before = contents(tmp_path / "out")
    ((setting, value),) = TABLE[name].other.items()
    was, now = (json.loads(json.dumps(x, default=str)) for x in (getattr(done.settings, setting), value))
    words = re.escape(f"other settings or weights ({setting}: {was} there, {now} here)")
    with idle(), pytest.raises(StudyError, match=words):
        go(name, replace(done.settings, out=tmp_path / "out", **TABLE[name].other))
    assert contents(tmp_path / "out") == before


@but_slowly(*SLOW, of=[name for name in TABLE if TABLE[name].models])
def test_a_potential_that_knows_no_element_is_named_with_what_is_left_out(name, ran, tmp_path, monkeypatch):
    settings, which = ran(name).settings, TABLE[name].models
    if isinstance(getattr(settings, which), tuple) and set(getattr(settings, which)) <= set(
        softening.STAND_INS
    ):
        helium = softening.Morse("helium")
        helium.elements = (2,)
        monkeypatch.setitem(softening.STAND_INS, "helium", helium)
        folder = "helium"
    else:
        folder = str(tmp_path / "helium")
        replace(small_potential(QUICK, "float32"), name="helium", elements=(2,)).save(folder)
    with pytest.raises(RuntimeError, match=r"Nothing could be computed.* helium does not know all elements"):
        go(name, replace(settings, out=tmp_path / "out", **models_of(name, folder)))
    record = json.loads((tmp_path / "out/record.json").read_text())
    assert all("failed" in row for row in record["rows"].values())
    assert not list((tmp_path / "out").glob("*.png"))


def killed(name: str, settings, after: int) -> None:
    """Runs it until `after` rows are kept, and ends it as Ctrl-C would where the next one is ready."""
    keep, kept = Study.keep, []

    def until(study, key, row):
        if len(kept) == after:
            raise KeyboardInterrupt
        kept.append(key)
        keep(study, key, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Study, "keep", until)
        with pytest.raises(KeyboardInterrupt):
            go(name, settings)
    assert len(kept) == after


def alike(one, other, without: tuple[str, ...]):
    """The two, if numbers differ no more than those of another batch do; times are left out."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one.keys() - set(without):
            alike(one[key], other[key], without)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            alike(a, b, without)
    elif isinstance(one, float):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4)
    else:
        assert one == other


@but_slowly(*SLOW, "softening.force_constants", "softening.anharmonicity")
def test_a_run_that_is_killed_goes_on_with_the_rows_it_has_and_ends_with_the_same(name, ran, tmp_path):
    done = ran(name)
    settings = replace(done.settings, out=tmp_path / "out")
    half = len(done.rows) // 2
    killed(name, settings, half)
    assert not (tmp_path / "out/record.json").exists()
    with (tmp_path / "out/rows.jsonl").open("a") as file:
        file.write('{"key": "half a li')
    before = (tmp_path / "out/rows.jsonl").read_text().splitlines()[:half]
    go(name, settings)
    assert (tmp_path / "out/rows.jsonl").read_text().splitlines()[:half] == before
    again = Ran(name, settings)
    assert list(again.rows) == list(done.rows)
    alike(done.rows, again.rows, TABLE[name].times)
