"""What every experiment keeps: its command is the one that it names, and missing data name their source."""

import importlib
import re
from pathlib import Path

import pytest
from conftest import small_potential

from experiments.datasets import MissingDataError, data_file, where_there

ROOT = Path(__file__).parents[2]
# By module: the file that is looked for first, where it is published, and settings besides.
DATA = {
    "softening.forces": ("mlearn", "materialsvirtuallab/mlearn", {}),
    "softening.phonons": ("phonondb_PBE_103", "MPA2suite/k_SRME", {}),
    "softening.surfaces": ("mlearn/Li.extxyz.gz", "materialsvirtuallab/mlearn", {}),
    "softening.defects": ("mlearn/Li.extxyz.gz", "materialsvirtuallab/mlearn", {}),
    "softening.solid_solutions": (
        "maml_MoNbTaW/MoNb_SS.extxyz.gz",
        "materialsvirtuallab/maml",
        {"orderings": 0},
    ),
    "softening.migration": ("emmet_testfiles", "materialsproject/emmet", {"hosts": ()}),
    "softening.elastic": (
        "matcalc_benchmark/mp-binary-pbe-elasticity-2025.1.json.gz",
        "materialsvirtuallab/matcalc",
        {},
    ),
    "softening.force_constants": ("phonopy_examples_PBE/NaCl", "phonopy/phonopy", {}),
    "softening.cure": ("mlearn/Si.extxyz.gz", "materialsvirtuallab/mlearn", {}),
    "transfer.energy_references": ("matcalc_elemental_refs_PBE_r2SCAN", "materialsvirtuallab/matcalc", {}),
    "training.from_scratch": ("maml_MoNbTaW/Mo_AIMD.extxyz.gz", "materialsvirtuallab/maml", {}),
    "training.hessian_columns": ("phonopy_examples_PBE", "phonopy/phonopy", {}),
}
COMMANDS = (*DATA, "transfer.methods", "transfer.scaling_law", "transfer.teacher_set.make")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    small_potential("chgnet-0.3", "float32").save(folder / "small")
    return str(folder / "small")


@pytest.mark.parametrize("name", DATA)
def test_missing_data_say_what_to_put_where_and_leave_nothing_behind(name, model, tmp_path, monkeypatch):
    monkeypatch.delenv("JAXMLIP_DATA", raising=False)
    experiment = importlib.import_module(f"experiments.{name}")
    file, source, settings = DATA[name]
    known = experiment.Settings.__dataclass_fields__
    if "model" in known:
        settings = settings | {"model": model if name == "training.hessian_columns" else (model,)}
    pattern = rf"(?s){re.escape(file)}\S* is not in .*{source}.*--data"
    with pytest.raises((MissingDataError, RuntimeError), match=pattern):
        experiment.main(experiment.Settings(data=tmp_path, out=tmp_path / "out", **settings))
    # Those two have crystals of their own to go on with.
    assert (tmp_path / "out").exists() == (name in ("softening.solid_solutions", "softening.migration"))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_called_as_its_file_says_and_asks_the_question_of_its_settings(name):
    experiment = importlib.import_module(f"experiments.{name}")
    assert f"python -m experiments.{name} " in experiment.__doc__
    assert experiment.Settings.__doc__.strip().splitlines()[0].endswith("?")


def test_every_command_of_the_pages_exists():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "experiments/README.md"]
    named = {m for page in pages for m in re.findall(r"-m (experiments[\w.]+)", page.read_text())}
    assert {f"experiments.{name}" for name in COMMANDS} <= named
    for name in named:
        assert (ROOT / f"{name.replace('.', '/')}.py").is_file(), name


def test_missing_files_say_where_they_are_published_and_where_to_put_them(tmp_path):
    with pytest.raises(MissingDataError, match=r"mlearn/Si\.extxyz\.gz is not in .*github\.com/.*--data"):
        data_file(tmp_path, "mlearn/Si.extxyz.gz")
    (tmp_path / "maml_MoNbTaW").mkdir()
    there, (absent,) = where_there(tmp_path, ("maml_MoNbTaW", "mlearn"))
    assert there == {"maml_MoNbTaW": tmp_path / "maml_MoNbTaW"}
    assert "mlearn is not in" in absent
