"""Text is text: names with brackets stay whole, and nothing that is printed steers the terminal."""

import ast
import gzip
import io
import json
from pathlib import Path

import pytest
from ase.build import bulk
from ase.data import chemical_symbols
from ase.io import write
from rich.table import Table as RichTable

from jaxmlip.cli import main
from jaxmlip.system.console import PlainConsole, Telling, console, keep_silent, say, telling_as_before
from jaxmlip.system.tables import Table

ROOT = Path(__file__).parents[2]
NAMES = ["run[seed=1]", "o[/x]", "[red]x[bold].cif", "[link=http://x]y[/link]", ":smile:", "a [1]"]


def shown(*what, **options) -> str:
    out = io.StringIO()
    PlainConsole(file=out, width=200, **options).print(*what)
    return out.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_brackets_stay_in_lines_and_in_every_part_of_a_table(name):
    assert name in shown(f"written to {name}")
    table = Table(f"title {name}", (f"head {name}",), [[f"cell {name}, a wide one"]], note=f"caption {name}")
    text = shown(table)
    for part in ("title", "head", "caption", "cell"):
        assert f"{part} {name}" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_control_characters_are_shown_and_steer_nothing(terminal):
    evil = "a\x1b[31mred\x07\x9b2J\r\x7f\u202eb\udcff"
    told = r"a\x1b[31mred\x07\x9b2J\r\x7f\u202eb\udcff"
    table = RichTable(evil, title=evil, caption=evil, title_style="", caption_style="", header_style="")
    table.add_row(evil)
    for what in (evil, table):
        text = shown(what, force_terminal=terminal, color_system=None)
        assert told in text
        assert not set(evil) - set(told) & set(text)
        assert all(c.isprintable() or c in "\n" for c in text)
    assert shown("two\nlines") == "two\nlines\n"


def test_a_long_name_is_broken_by_nobody(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    say("written to " + "x" * 100 + " or so")
    say("error: " + "y z" * 50, stderr=True, style="red")
    said = capsys.readouterr()
    assert said.out == "written to " + "x" * 100 + " or so\n"
    assert said.err == "error: " + "y z" * 50 + "\n"


def test_a_process_that_another_speaks_for_still_tells_errors(monkeypatch, capsys):
    monkeypatch.setattr("jaxmlip.system.console._silent", False)  # again after the test
    keep_silent()
    say("a result")
    say("an error", stderr=True)
    assert tuple(capsys.readouterr()) == ("", "an error\n")


@pytest.mark.parametrize("given", ["QUIET", "VERBOSE", "of an older version", None])
def test_a_process_says_as_much_as_the_one_that_started_it(given, monkeypatch):
    monkeypatch.delenv("JAXMLIP_TELLING", raising=False)
    if given is not None:
        monkeypatch.setenv("JAXMLIP_TELLING", given)
    usual = given not in Telling.__members__
    assert telling_as_before() == (Telling.USUAL if usual else Telling[given])


def test_a_console_that_is_no_terminal_has_the_width_that_is_asked_for(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert console(width=120).width == 120
    assert console().width == 40


def test_errors_and_warnings_of_commands_show_names_whole_and_steer_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, told in (
        *((name, name) for name in NAMES if "/" not in name),
        ("\x1b[31m.cif", r"\x1b[31m.cif"),
    ):
        with pytest.raises(SystemExit):
            main(["predict", name, "--model", "m"])
        said = capsys.readouterr().err
        assert said.startswith(f"error: {told} is not a file")
        Path(name).write_text("no crystal")
        with pytest.raises(SystemExit):
            main(["predict", name, "--skip-bad", "--model", "m"])
        said = capsys.readouterr().err
        assert f"can read {told};" in said
        assert "\x1b" not in said


def test_results_of_commands_show_the_names_of_files_and_models_whole(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    golden = ROOT / "tests" / "golden" / "mace" / "one-layer.model.gz"
    Path("[b]mace[i].model").write_bytes(gzip.decompress(golden.read_bytes()))
    main(["convert", "[b]mace[i].model", "o[/x]", "--name", "m[seed=1]"])
    said = capsys.readouterr().out
    assert said.startswith("m[seed=1]: ")
    assert said.endswith("written to o[/x]\n")
    element = json.loads(Path("o[/x]/manifest.json").read_text())["elements"][0]
    write("[red]x[bold].cif", bulk(chemical_symbols[element], "fcc", 4.0))
    main(["predict", "[red]x[bold].cif", "--model", "o[/x]"])
    said = capsys.readouterr().out
    assert "m[seed=1], float32" in said
    assert "[red]x[bold].cif" in said


def test_nothing_else_makes_a_console_or_reads_markup():
    for folder in ("jaxmlip", "experiments", "weights_convert", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            if path == ROOT / "jaxmlip" / "system" / "console.py":
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module in ("rich", "rich.console"):
                    names = {alias.name for alias in node.names}
                    assert not names & {"Console", "console", "print", "get_console"}, f"{path}: {names}"
                if isinstance(node, ast.Call):
                    given = {keyword.arg for keyword in node.keywords}
                    assert not given & {"markup", "highlight"}, f"{path}:{node.lineno}"
                    assert ast.unparse(node.func) != "Text.from_markup", f"{path}:{node.lineno}"


def test_what_is_printed_otherwise_is_json_an_example_or_a_name_of_our_own():
    fixed = ("json.dumps(", "EXAMPLE", "to_yaml(EXAMPLE)", "f'jaxmlip {__version__}'")
    for folder in ("jaxmlip", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
                    assert ast.unparse(node.args[0]).startswith(fixed), f"{path}:{node.lineno}"
