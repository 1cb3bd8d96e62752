"""Files about the package say the same: its version, its licence, its extras and its linter."""

import tomllib
from pathlib import Path

import yaml

import jaxmlip
from jaxmlip.system.doctor import EXTRAS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_version_and_licence_are_the_same_everywhere():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == jaxmlip.__version__ == str(cited["version"])
    assert PROJECT["license"] == cited["license"]
    assert (ROOT / "LICENSE").read_text().startswith(f"{cited['license']} License")


def test_the_hook_lints_with_the_linter_of_the_tests():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    (linter,) = [line for line in PROJECT["optional-dependencies"]["test"] if line.startswith("ruff")]
    assert [hook["additional_dependencies"] for hook in hooks] == [[linter], [linter]]


def test_all_is_every_extra_of_users():
    assert PROJECT["optional-dependencies"]["all"] == [f"jaxmlip[{','.join(EXTRAS)}]"]


def test_type_checkers_are_told_that_the_package_has_types():
    assert (Path(jaxmlip.__file__).parent / "py.typed").is_file()
