"""README, docs/ with its tutorials, experiments/README.md say what works: Python runs, commands exist.

Public models are replaced by a small network with random parameters, or by pairs of atoms, and the files that
commands read are made for them.
"""

import contextlib
import json
import pkgutil
import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from inspect import ismodule
from pathlib import Path

import ase.io
import jax
import numpy as np
import pairs
import pytest
import quick_network
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from documents import (
    NOTEBOOK,
    PAGES,
    ROOT,
    SHELLS,
    TUTORIALS,
    block,
    blocks,
    commands,
    commands_of,
    options,
    spans,
    understood,
    usage_of,
)
from pymatgen.io.ase import AseAtomsAdaptor

from jaxmlip.cli import COMMANDS, Group, main
from jaxmlip.models.chgnet import CHGNetConfig
from jaxmlip.potential import Potential, random_potential
from weights_convert.published import MODELS

OURS = ("jaxmlip", "weights_convert", "experiments", "benchmarks", "tests", "docs")
MODULES = [
    *(path for folder in ("experiments", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))),
    ROOT / "weights_convert" / "golden.py",
]
OTHERS = {  # programs, and whose they are
    "cd": "of the shell",
    "wait": "of the shell",
    "gcloud": "Google's",
    "ruff": "of [test]",
    "pre-commit": "installed as CONTRIBUTING.md says",
    "make": "reads docs/Makefile",
}
TRAINING = ("docs/training.md", "jaxmlip finetune")
# Blocks for a shell that nothing here runs, by their page and words that no other block of it has, and why.
NOT_RUN = {
    ("README.md", "jaxmlip softening"): "installs, takes minutes, and calls this very test",
    ("docs/notebook.ipynb", "pip install"): "installs",
    ("CONTRIBUTING.md", "pre-commit install"): "installs",
    ("CONTRIBUTING.md", "pytest --all"): "runs this very test",
    ("CONTRIBUTING.md", "make -C docs"): "test_site.py builds the site, and the tutorials run here",
    ("docs/training.md", "jaxmlip sweep"): "six runs; test_sweep.py has smaller ones by the same options",
    ("docs/many_devices.md", "--out run\n"): "as the next",
    ("docs/many_devices.md", "device_count=8"): "test_many_devices.py runs it",
    (
        "docs/many_devices.md",
        "run --coordinator",
    ): "needs two hosts; test_data_parallel.py does the same on one",
    (
        "docs/many_devices.md",
        "H.npy --coordinator",
    ): "needs two hosts; test_shared_file.py does the same on one",
    ("docs/many_devices.md", "#SBATCH --signal"): "test_many_devices.py runs it",
    (
        "docs/many_devices.md",
        "srun jaxmlip hessian",
    ): "needs SLURM; test_shared_file.py starts two processes by hand",
    ("docs/many_devices.md", "tpus queued-resources"): "needs an account with TPUs",
    ("docs/many_devices.md", "phonons --distributed"): "needs an account with TPUs",
    ("docs/many_devices.md", "--sparse"): "test_sparse.py does the same",
    ("docs/many_devices.md", "--devices 8"): "needs eight devices; test_spread_columns.py makes them",
    ("docs/many_devices.md", "--dry-run"): "as the sweep of docs/training.md",
    ("docs/many_devices.md", "CUDA_VISIBLE_DEVICES"): "needs two GPUs",
    ("docs/conductivity.md", "NaCl.cif"): "test_conductivity_command.py runs it on another crystal",
    ("docs/stabilise.md", "CaTiO3.cif"): "test_instabilities.py runs it on another crystal",
    ("docs/dispersion.md", "graphite.cif"): "test_dispersion.py loads such a name",
    ("docs/learn_phonons.md", "jaxmlip evaluate"): "test_spectra.py does the same by hand",
    ("docs/learn_phonons.md", "jaxmlip finetune"): "test_spectra.py runs it on another file",
    ("docs/expansion.md", "ZnO.cif"): "test_expansion.py runs it on another crystal",
    ("docs/screening.md", "more.db"): "test_screen.py runs it on other files",
    ("docs/vibrations.md", "adsorbate.extxyz"): "test_vibrations.py runs it on another structure",
    ("docs/vibrations.md", "neb images.extxyz"): "test_saddle.py runs it on another band",
    ("docs/screening.md", "--collect"): "as the one before",
    ("docs/screening.md", "--slurm"): "needs SLURM and two GPUs; test_screen.py has processes",
    ("docs/screening.md", "--shard"): "test_screen.py has shards",
    (
        "docs/many_devices.md",
        "--slurm",
    ): "needs SLURM; test_many_devices.py asks submitit",
}
# Pages that show what no pairs of atoms have: magnetic moments, and dispersion that is added.
OF_A_NETWORK = (ROOT / "README.md", ROOT / "docs" / "dispersion.md")
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """An empty working folder, where names of public models stand for what compiles sooner.

    Those of CHGNet stand for a small network, all others for pairs of atoms.
    """
    config = CHGNetConfig(features=4, radial=3, angular=3, blocks=1, bond_cutoff=4.0, readout=(4,))
    network = random_potential(config, seed=8)  # in which MgO is stable
    monkeypatch.setattr("jaxmlip.zoo.load.load_known", loading(network))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loading(chgnet: Potential | None = None) -> Callable[[str], Potential]:
    """Instead of `load_known`: pairs of atoms, and for CHGNet another potential if one is given."""
    salt = pairs.potential(1.1, alike=2**0.5)

    def load_known(name: str) -> Potential:
        its = chgnet if chgnet and name.startswith("chgnet") else salt
        said = {**its.manifest, "functional": MODELS[name].functional}
        return replace(its, name=name, manifest=said)

    return load_known


def run_python(page: Path) -> dict:
    """Runs all Python of a page, block after block, and gives the names that it leaves."""
    names = {"__name__": page.stem}
    with pytest.MonkeyPatch.context() as patch:
        if page not in OF_A_NETWORK:
            patch.setattr("jaxmlip.zoo.load.load_known", loading())
        for its in blocks(page):
            if its.language == "python":
                text = "\n" * (its.line - 1) + its.text  # so that an error shows the line of the page
                exec(compile(text, str(page), "exec"), names)
    return names


def test_the_python_of_the_readme_gives_what_its_comments_say(stand_in):
    found = run_python(ROOT / "README.md")
    assert found["prediction"].keys() == {"energy", "forces", "stress", "site_energies", "magmoms"}
    assert (len(found["many"]), found["H"].shape) == (100, (6, 6))
    assert found["C"].shape == (6, 6)
    assert (found["potential"].dtype, found["exact"].dtype) == ("float32", "float64")
    assert np.isfinite(found["heat"]).all()


@pytest.mark.slow
def test_python_of_the_pages_runs_and_gives_what_its_comments_say(stand_in):
    write_labelled(stand_in / "frames.extxyz", "SiC")
    apart = (ROOT / "README.md", *TUTORIALS, NOTEBOOK)
    left = {page: run_python(page) for page in PAGES if page not in apart}
    its = left[ROOT / "docs" / "phonons.md"]
    assert its["D"].shape == (len(its["q_points"]), 6, 6)
    assert its["C"].shape == (6, 6)
    assert left[ROOT / "docs" / "own_energy.md"]["own"].elements == (29,)
    its = left[ROOT / "docs" / "training.md"]
    assert its["state"].step == its["plan"].steps == 3
    before, after = (jax.tree.leaves(its[who].params["network"]) for who in ("potential", "trained"))
    assert not all(map(np.array_equal, before, after))


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
@pytest.mark.slow
def test_a_tutorial_runs_and_draws(stand_in, page, monkeypatch):
    from matplotlib import pyplot

    quick_network.play(monkeypatch)  # for those that train a network of random parameters
    pyplot.switch_backend("agg")
    try:
        run_python(page)
        assert len(pyplot.get_fignums()) == 1
    finally:
        pyplot.close("all")


def test_the_cells_of_the_notebook_run_and_draw(stand_in):
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    try:
        left = run_python(NOTEBOOK)
        assert len(pyplot.get_fignums()) == 1
    finally:
        pyplot.close("all")
    assert [h.shape for h in left["hessians"]] == [(6, 6)] * 4
    assert left["H"].shape == (48, 48)
    found = json.loads(NOTEBOOK.read_text())
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    assert not any(cell.get("outputs") for cell in found["cells"])  # what one machine said is not for others


def write_labelled(path: Path, names: str) -> None:
    """A few rattled crystals of each name, with energies, forces, stresses and magnetic moments."""
    rng = np.random.default_rng(0)
    for name in names.split():
        for _ in range(2):
            atoms = bulk(name, "zincblende", 5.4)
            moved = 0.1 * rng.normal(size=atoms.positions.shape)
            atoms.positions += moved
            labels = {"energy": (moved**2).sum() / 2, "forces": -moved, "stress": np.zeros(6)}
            atoms.calc = SinglePointCalculator(atoms, **labels, magmoms=np.zeros(len(atoms)))
            ase.io.write(path, atoms, append=True)


def write_mptrj(path: Path, number: int) -> None:
    """As many materials, so that some fall to validation and test, as MPtrj has them."""
    materials, atoms = {}, bulk("ZnS", "zincblende", 5.4)
    for k in range(number):
        frame = {
            "structure": AseAtomsAdaptor.get_structure(atoms).as_dict(),
            "uncorrected_total_energy": -1.0,
            "corrected_total_energy": -1.5,
            "energy_per_atom": -0.75,
            "force": [[0.0] * 3] * 2,
            "stress": [[0.0] * 3] * 3,
            "magmom": [0.0] * 2,
            "mp_id": f"mp-{k}",
        }
        materials[f"mp-{k}"] = {f"mp-{k}-0-0": frame}
    path.write_text(json.dumps(materials, default=lambda x: x.item()))  # old pymatgens keep bools of NumPy


@pytest.mark.slow
def test_commands_of_the_pages_train_evaluate_and_export(stand_in):
    (stand_in / "runs").mkdir()
    write_labelled(stand_in / "runs" / "a.extxyz", "SiC GaAs")
    write_labelled(stand_in / "frames.extxyz", "SiC")
    write_labelled(stand_in / "other.extxyz", "SiC")
    write_labelled(stand_in / "crystals.extxyz", "SiC GaAs ZnS")
    write_mptrj(stand_in / "mptrj.json", 60)
    for command in commands_of(block(*TRAINING)):
        with contextlib.ExitStack() as stack:
            if command.out:
                file = stack.enter_context(open(command.out, "w"))
                stack.enter_context(contextlib.redirect_stdout(file))
            main(command.words[1:])
    for made in ("finetuned/model", "mptrj", "run/model", "best_so_far"):
        assert (stand_in / made).is_dir(), made


def test_every_block_for_a_shell_is_run_or_named_with_the_reason():
    here = [b for page in PAGES for b in blocks(page) if b.language in SHELLS]
    listed = [block(*name) for name in (TRAINING, *NOT_RUN)]  # which raises for one that is there no more
    assert sorted(listed) == sorted(here)
    assert {b.language for page in PAGES for b in blocks(page)} <= {"python", "", *SHELLS}


def complaint(command, options_of_pytest) -> str | None:
    """What is wrong with a command, if anything is."""
    program, *rest = command.words
    if program in ("jaxmlip", "python"):
        if program == "jaxmlip" and not command.typed and is_name(rest):
            return None
        try:
            understood(command.words)
        except (ValueError, ImportError) as error:
            return str(error)
    elif program == "pytest":
        wrong = [w for w in rest if not (w in options_of_pytest if w[0] == "-" else (ROOT / w).exists())]
        return f"pytest knows no {', '.join(wrong)}" if wrong else None
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        asked = [m[1] for w in rest if (m := re.fullmatch(r"(?:\.|jaxmlip)\[(\w+)\]", w))]
        return ", ".join(f"{extra} is no extra" for extra in asked if extra not in extras) or None
    elif program not in OTHERS:
        return f"{program} is not known here"
    return None


def is_name(words: list[str]) -> bool:
    """Whether these are the words of a command of ours without its arguments."""
    if not words:
        return True
    its = COMMANDS.get(words[0])
    return its is not None and (words[1:] == [] or (isinstance(its, Group) and words[1:][0] in its.commands))


@by_page
def test_every_command_of_a_page_is_understood_by_its_parser(page, pytestconfig):
    known = {name for group in pytestconfig._parser._groups for o in group.options for name in o.names()}
    found = {str(c): complaint(c, known) for c in commands(page)}
    assert found
    assert {c: why for c, why in found.items() if why} == {}


def test_every_command_of_a_docstring_is_understood_by_its_parser():
    found = {str(c): complaint(c, ()) for module in MODULES for c in usage_of(module)}
    assert len(found) > 25
    assert {c: why for c, why in found.items() if why} == {}


@by_page
def test_options_that_stand_alone_belong_to_a_command_of_their_section(page):
    there = [c for c in commands(page) if c.words[0] in ("jaxmlip", "python")]
    wrong = []
    for line, section, words in options(page):
        if words in (("--help",), ("--help-all",)):
            continue
        near = [c for c in there if c.section == section or section.startswith("# ")]
        if not any(takes(c, words) for c in near):
            wrong.append(f"{page.name}:{line}: {' '.join(words)}")
    assert wrong == []


def takes(command, more: tuple[str, ...]) -> bool:
    """Whether a command takes these options, too; a single one may stand there without its value."""
    for filled in (more, (*more, "1")) if len(more) == 1 else (more,):
        with contextlib.suppress(ValueError):
            understood((*command.words, *filled))
            return True
    return False


def test_the_gallery_shows_the_figure_of_every_command_that_draws_one():
    page = ROOT / "docs" / "gallery.md"
    shown = re.findall(r"^!\[.+?\]\((\w+\.png)\)\n\n`([^`]+)`", page.read_text(), re.MULTILINE)
    commands_shown = [command.split() for _, command in shown]
    for name, its in COMMANDS.items():
        for second, run in its.commands.items() if isinstance(its, Group) else [("", its)]:
            words = f"jaxmlip {name} {second}".split()
            if ".png" in run.__doc__:
                assert any(its[: len(words)] == words for its in commands_shown), words
    assert len(shown) == page.read_text().count("![")
    for file, _ in shown:
        assert (page.parent / file).stat().st_size < 150_000, file


@by_page
def test_files_and_names_that_a_page_gives_are_there(page):
    text = page.read_text()
    paths = set(re.findall(rf"(?<![\w/.-])(?:{'|'.join(OURS)})/[\w/]*(?:\.\w+)?", text))
    assert [path for path in paths if not (ROOT / path).exists()] == []
    for line, span in spans(page):
        if name := re.match(r"jaxmlip(\.\w+)+", span):
            try:
                pkgutil.resolve_name(name[0])
            except (ImportError, AttributeError):
                pytest.fail(f"{page.name}:{line}: there is no {name[0]}")


@pytest.mark.parametrize("door", ["jaxmlip", "jaxmlip.phonons", "jaxmlip.data", "jaxmlip.training"])
def test_the_reference_has_every_name_that_a_door_shows(door):
    package = pkgutil.resolve_name(door)
    shown = {name for name in dir(package) if name[0] != "_" and not ismodule(getattr(package, name))}
    page = (ROOT / "docs" / "reference" / f"{door.rpartition('.')[2]}.rst").read_text()
    listed = re.findall(r"^\.\. auto(?:class|function):: (\w+)$", page, re.MULTILINE)
    assert sorted(listed) == sorted(shown)
