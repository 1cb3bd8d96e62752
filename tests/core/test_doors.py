"""The front doors: `import jaxmlip` is quick, and all that it shows is there."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import jaxmlip

DOORS = ("jaxmlip", "jaxmlip.data", "jaxmlip.training")


def test_import_takes_no_other_package():
    code = "import jaxmlip, sys; print({'jax', 'numpy', 'scipy', 'ase'} & set(sys.modules))"
    root = Path(jaxmlip.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")


@pytest.mark.parametrize("name", DOORS)
def test_a_door_shows_what_is_there_and_type_checkers_see_the_same(name):
    package = importlib.import_module(name)
    for each in dir(package):
        assert getattr(package, each) is not None
    tree = ast.parse(Path(package.__file__).read_text())
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname: (alias.name, f"{line.module}.{alias.name}", line.module)
        for line in checked.body
        for alias in line.names
    }
    assert sorted(seen) == dir(package)
    for each, (own, whole, module) in seen.items():
        is_room = module == name and whole in sys.modules
        found = sys.modules[whole] if is_room else getattr(importlib.import_module(module), own)
        assert getattr(package, each) is found


def test_a_room_needs_no_import_of_its_own():
    assert jaxmlip.phonons.band_modes.__module__ == "jaxmlip.phonons.lattice"


def test_a_name_that_no_door_shows_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'jaxmlip' has no attribute 'phonon'; dir\\(jaxmlip\\) lists"):
        jaxmlip.phonon  # noqa: B018
    assert not hasattr(jaxmlip.training, "no_such_thing")
