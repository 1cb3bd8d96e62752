"""docs/ makes a site without a warning: links lead somewhere, names of the reference exist."""

import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
from documents import ROOT

NEEDED = ("sphinx", "furo", "myst_parser", "sphinx_gallery")


@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, NEEDED)), reason="needs the packages of `pip install '.[docs]'`")
def test_the_site_builds_without_a_warning(tmp_path):
    """Tutorials are not run: test_documents.py runs them on stand-ins."""
    shutil.copytree(
        ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("_build", "tutorials_run")
    )
    (tmp_path / "experiments").mkdir()
    shutil.copy(ROOT / "experiments" / "README.md", tmp_path / "experiments")
    sphinx = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-D", "plot_gallery=0"]
    built = tmp_path / "built"
    done = subprocess.run([*sphinx, "docs", str(built)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in ("index", "exact_waves", "reference/phonons", "tutorials_run/01_phonons"):
        assert (built / f"{page}.html").is_file()
