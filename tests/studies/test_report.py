"""The report of all experiments: everything is there, hostile strings do nothing, what is broken is named."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from experiments.report import SCRIPT, Settings, collect, main, markdown, page
from jaxmlip.studies.study import Study, StudyError
from jaxmlip.system.tables import Estimate, Table

HOSTILE = "<script>alert(1)</script> \"quoted\" 'too' | a pipe | ![x](http://x.example/y.png)\n# new & `code`"
VOID = {"meta", "img"}
FIELDS = [
    *("experiment", "question", "tables", "figures", "findings", "title", "columns", "rows", "digits"),
    *("note", "file", "caption", "value", "low", "high", "failed", "minutes", "settings"),
]


class Page(HTMLParser):
    """Tags that do not close, and what a browser would run, fetch or show."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.shown, self.attributes = [], [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.shown += data


@dataclass(frozen=True)
class Trial:
    """Is it so?"""

    out: Path
    model: tuple[str, ...] = ("a",)


def result(folder: Path, name: str, question: str = "Is it so?", text: str = "found") -> None:
    """What an experiment leaves."""
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1])
    table = Table(text, ("a", text), [[Estimate(0.51, 0.25, 0.75), text], [3, None]], 2, note=text)
    study = Study(name, Trial(folder, (text,)))
    study.question = question
    study.fail(text, text)
    study.write([table], {"figure.png": (text, figure)}, [text])


@pytest.fixture
def results(tmp_path, capsys) -> Path:
    for name in ("zeta", "alpha", "cure", "softening_forces"):
        result(tmp_path / "deep" / name, name, f"Question of {name}?")
    result(tmp_path / "again", "cure", "Question of cure?")
    capsys.readouterr()
    return tmp_path


def test_one_page_holds_all_results_in_the_order_of_the_study(results, capsys):
    (results / "deep/bad").mkdir()
    (results / "deep/bad/record.json").write_text("{")
    (results / "deep/other").mkdir()
    (results / "deep/other/record.json").write_text('{"experiment": "x", "question": "q", "tables": [3]}')
    out = results / "out"
    main(Settings((results / "deep", results / "again", results), out))
    text = (out / "report.html").read_text()
    parsed = Page(text)
    assert not parsed.open
    shown = re.findall(r"<h2>(Question of \w+\?)</h2>", text)
    assert shown == [f"Question of {name}?" for name in ("softening_forces", "cure", "cure", "alpha", "zeta")]
    assert f"cure ({results / 'again'})" in parsed.shown  # two runs of one are told apart
    assert text.count('src="data:image/png;base64,') == 5
    assert "0.51 (0.25 to 0.75)" in parsed.shown
    assert 'data-v="0.51"' in text
    told = capsys.readouterr()
    for name in ("bad", "other"):
        assert f"skipped: {results}/deep/{name}/record.json: " in told.err
        assert f"deep/{name}/record.json" in parsed.shown
    assert "5 results" in told.out
    summary = (out / "report.md").read_text()
    for target in re.findall(r"!\[.*\]\((.*)\)", summary):
        assert (out / target).read_bytes().startswith(b"\x89PNG")
    assert summary.count("](figures/") == 5


def test_the_page_asks_for_nothing_from_outside(results):
    records, _ = collect([results])
    parsed = Page(page(records))
    links = [value for _, name, value in parsed.attributes if name in ("src", "href")]
    assert links
    assert all(link.startswith(("#e", "data:image/png;base64,")) for link in links)
    assert "link" not in parsed.tags
    assert "url(" not in page(records)


def test_hostile_strings_are_shown_as_they_are_and_do_nothing(tmp_path, capsys):
    result(tmp_path / "a", HOSTILE.replace("/", ""), HOSTILE, HOSTILE)
    records, _ = collect([tmp_path])
    text = page(records, [HOSTILE])
    parsed = Page(text)
    assert not parsed.open
    assert parsed.tags.count("script") == 1
    assert "<script>alert" not in text
    assert "<script>alert(1)</script> \"quoted\" 'too' | a pipe" in parsed.shown
    assert all(not name.startswith("on") for _, name, _ in parsed.attributes)
    summary = markdown(records, [HOSTILE], tmp_path / "a")
    assert not re.search(r"(?<!\\)<script|(?<!\\)!?\[x\]|^# new", summary, re.MULTILINE)
    rows = [line for line in summary.splitlines() if line.startswith("| 0.51")]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in rows] == [3]


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=8)
        | st.sampled_from(["record", "../../etc/passwd", 10**400, float("nan")]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(FIELDS),
                inner,
                max_size=8,
            )
        ),
        max_leaves=30,
    ),
    st.data(),
)
def test_any_json_is_either_a_record_or_skipped_with_words(tmp_path_factory, anything, data):
    folder = tmp_path_factory.mktemp("any")
    known = {
        "experiment": "x",
        "question": "q?",
        "tables": [{"title": "t", "columns": ["a"], "rows": [[1.0]]}],
        "figures": [{"file": "f.png", "caption": ""}],
        "findings": ["f"],
        "minutes": 1.0,
    }
    spoilt = known | {data.draw(st.sampled_from(sorted(known))): anything}
    for raw in (anything, spoilt):
        (folder / "record.json").write_text(json.dumps(raw))
        records, skipped = collect([folder])
        assert len(records) + len(skipped) == 1
        assert not Page(page(records, skipped)).open
        markdown(records, skipped, folder)


def test_halves_of_characters_and_endless_nesting_do_not_stop_the_report(tmp_path, capsys):
    result(tmp_path / "a", "x")
    path = tmp_path / "a/record.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"findings": ["half \ud800 of it"]}))
    (tmp_path / "b").mkdir()
    deep = json.dumps(raw | {"settings": None}).replace(
        '"settings": null', f'"settings": {900 * "[" + 900 * "]"}'
    )
    (tmp_path / "b/record.json").write_text(deep)
    main(Settings((tmp_path,), tmp_path / "out"))
    assert "half ? of it" in (tmp_path / "out/report.html").read_text()
    assert "b/record.json: it is nested more than" in capsys.readouterr().err


def test_figures_that_are_missing_elsewhere_or_no_pictures_are_not_shown(tmp_path, capsys):
    result(tmp_path / "a/b", "x")
    path = tmp_path / "a/b/record.json"
    raw = json.loads(path.read_text())
    (tmp_path / "a/secret.png").write_bytes((tmp_path / "a/b/figure.png").read_bytes())
    (tmp_path / "a/b/text.png").write_text("secret")
    (tmp_path / "a/b/link.png").symlink_to(tmp_path / "a/secret.png")
    names = ["gone.png", "../secret.png", str(tmp_path / "a/secret.png"), "text.png", "link.png", "", "."]
    raw["figures"] = [{"file": name, "caption": "c"} for name in names]
    path.write_text(json.dumps(raw))
    (record,), _ = collect([tmp_path])
    assert [content for _, _, content in record.figures] == [None] * len(names)
    text = page([record])
    assert "data:image" not in text
    assert "gone.png is not there." in text


def test_where_there_is_no_result_the_command_says_what_it_needs(tmp_path):
    with pytest.raises(StudyError, match=r"no record\.json .*needed folders"):
        main(Settings((tmp_path,), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_click_sorts_numbers_by_value_with_gaps_at_the_end(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node to run the page's script")
    harness = """
    let click; const document = {addEventListener: (_, f) => click = f, querySelectorAll: () => []};
    const addEventListener = () => {};
    const cell = (text, v) => ({textContent: text, dataset: v === undefined ? {} : {v}});
    const body = {rows: [cell('10.0 (9 to 11)', '10.0'), cell('-'), cell('-2.0', '-2.0'), cell('9.5', '9.5')]
      .map(c => ({cells: [c]})), append(...rows) { this.rows = rows; }};
    const head = {cellIndex: 0, closest: () => ({tBodies: [body]}), at: {},
      getAttribute(n) { return this.at[n]; }, setAttribute(n, v) { this.at[n] = v; },
      removeAttribute(n) { delete this.at[n]; }};
    head.parentElement = {cells: [head]};
    const event = {target: {closest: () => ({parentElement: head})}};
    %s
    for (const _ of [1, 2]) {
      click(event);
      console.log(body.rows.map(r => r.cells[0].textContent[0]).join(''));
    }
    """
    script = tmp_path / "sort.js"
    script.write_text(harness % SCRIPT)
    done = subprocess.run([node, script], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.split() == ["-91-", "19--"]
