"""The command line as a newcomer meets it: results, and mistakes answered in words."""

import gc
import json
import re
import warnings
from dataclasses import is_dataclass
from typing import get_args, get_type_hints

import numpy as np
import pytest
import tyro
from ase.build import bulk
from ase.constraints import FixAtoms, FixCartesian, FixScaled, FixSymmetry
from ase.io import write
from commands import complaint, here, jaxmlip
from conftest import QUICK, small_potential

from jaxmlip import hessian, plan_hessian
from jaxmlip.cli import COMMANDS, Group, main
from jaxmlip.crystals.structures import free_coordinates, read_crystal
from jaxmlip.phonons import dynamical_matrix
from jaxmlip.system.runtime import RARELY
from jaxmlip.units import THZ_PER_ROOT_EV_PER_A2_U


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small model, and structures that are right and wrong."""
    here = tmp_path_factory.mktemp("work")
    small_potential(QUICK, "float32").save(here / "model")
    salt = bulk("NaCl", "rocksalt", 5.64)
    salt.rattle(0.05, seed=0)
    write(here / "NaCl.cif", salt)
    write(here / "POSCAR", salt)
    write(here / "two.extxyz", [salt, bulk("Cu")])
    molecule = salt.copy()
    molecule.pbc = False
    write(here / "molecule.xyz", molecule, format="extxyz")
    (here / "nonsense.cif").write_text("hello")
    (here / "binary.cif").write_bytes(bytes(range(128, 256)))
    write(here / "cut.extxyz", [salt] * 3)
    (here / "cut.extxyz").write_text((here / "cut.extxyz").read_text()[:-60])
    lines = (here / "POSCAR").read_text().splitlines(keepends=True)
    (here / "POSCAR_of_VASP_4").write_text("".join(["salt\n", *lines[1:5], *lines[6:]]))
    dump = "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n2\nITEM: BOX BOUNDS pp pp pp\n0 4\n0 4\n0 4\n"
    (here / "types.lammpstrj").write_text(f"{dump}ITEM: ATOMS id type x y z\n1 1 0 0 0\n2 2 2 2 2\n")
    for column, values in {"mass": (22.99, 35.45), "element": ("Na", "Cl")}.items():
        rows = "".join(f"{k} {k} {value} 0 0 {2 * k}\n" for k, value in enumerate(values, start=1))
        name = "masses.lammpstrj" if column == "mass" else "elements.lammpstrj"
        (here / name).write_text(f"{dump}ITEM: ATOMS id type {column} x y z\n{rows}")
    salt.set_constraint(FixAtoms([0]))
    write(here / "half [held] @1.vasp", salt)
    salt.set_constraint(FixAtoms([0, 1]))
    write(here / "held.vasp", salt)
    return here


def test_predict_prints_what_the_potential_predicts_for_each_file(folder):
    done = jaxmlip(folder, "predict", "NaCl.cif", "POSCAR", "two.extxyz", "--model", "model", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [r["file"] for r in rows] == ["NaCl.cif", "POSCAR", "two.extxyz", "two.extxyz"]
    assert [r["formula"] for r in rows] == ["ClNa", "ClNa", "ClNa", "Cu"]
    from ase.io import read

    expected = small_potential(QUICK, "float32").predict(read(folder / "POSCAR"))
    np.testing.assert_allclose(rows[1]["energy"], expected["energy"], rtol=1e-5)
    np.testing.assert_allclose(rows[1]["forces"], expected["forces"], atol=1e-4)


def test_predict_takes_crystals_slabs_and_molecules_and_what_is_whole_of_a_file(folder, monkeypatch, capsys):
    done = here(
        folder,
        monkeypatch,
        capsys,
        *("predict", "molecule.xyz", "cut.extxyz", "nonsense.cif", "two.extxyz"),
        *("--limit", "2", "--skip-bad", "--model", "model", "--json"),
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(r["file"], r["index"]) for r in rows] == [
        *(("molecule.xyz", 0), ("cut.extxyz", 0), ("cut.extxyz", 1), ("two.extxyz", 0), ("two.extxyz", 1))
    ]
    assert ["stress" in r for r in rows] == [False, True, True, True, True]
    assert "nonsense.cif" in done.stderr
    table = here(folder, monkeypatch, capsys, "predict", "molecule.xyz", "POSCAR", "--model", "model")
    assert "1 of 2 do not repeat" in table.stdout


def test_hessian_leaves_out_the_atoms_that_the_file_holds_and_takes_those_that_are_named(
    folder, monkeypatch, capsys
):
    from ase.io import read

    from jaxmlip.zoo.load import load

    whole = hessian(load(folder / "model", "float64"), read(folder / "POSCAR"))
    monkeypatch.chdir(folder)
    for options, block in (
        (["half [held] @1.vasp"], slice(3, 6)),
        (["held.vasp", "--atoms", "0"], slice(0, 3)),
    ):
        main(["hessian", *options, "--model", "model", "--out", "block.npz"])
        assert "1 of 2 atoms" in capsys.readouterr().out.replace("\n", " ")
        with np.load("block.npz") as found:
            np.testing.assert_allclose(found["hessian"], whole[block, block], atol=1e-8)
            np.testing.assert_array_equal(found["coordinates"], np.arange(6)[block])
            assert found["modes"].shape == (3, 2, 3)
            assert not np.delete(found["modes"], block.start // 3, axis=1).any()
    main(["hessian", "half [held] @1.vasp", "--model", "model", "--out", "block.npy"])
    np.testing.assert_allclose(np.load("block.npy"), whole[3:6], atol=1e-8)


def test_elements_that_a_dump_of_lammps_names_are_read(folder):
    assert str(read_crystal(folder / "elements.lammpstrj").symbols) == "NaCl"


def test_constraints_that_hold_single_coordinates_are_told_from_others():
    salt = bulk("NaCl", "rocksalt", 5.64, cubic=True)
    salt.set_constraint(
        [FixAtoms([1]), FixCartesian(2, [True, False, False]), FixScaled(3, [False, True, True])]
    )
    free, others = free_coordinates(salt)
    held = [(1, 0), (1, 1), (1, 2), (2, 0), (3, 1), (3, 2)]
    assert [tuple(k) for k in np.argwhere(~free)] == held
    assert others == []
    skewed = bulk("NaCl", "rocksalt", 5.64)
    skewed.set_constraint([FixScaled(1, [True, False, False]), FixSymmetry(skewed)])
    free, others = free_coordinates(skewed)
    assert free.all()
    assert others == ["FixScaled", "FixSymmetry"]


def test_hessian_reports_its_memory_and_saves_the_hessian_of_the_file(folder, monkeypatch, capsys):
    done = here(folder, monkeypatch, capsys, "hessian", "POSCAR", "--model", "model", "--out", "h.npz")
    assert done.returncode == 0, done.stderr
    assert "predicted memory" in done.stdout
    from ase.io import read

    saved = np.load(folder / "h.npz")
    expected = hessian(small_potential(QUICK, "float64"), read(folder / "POSCAR"))
    np.testing.assert_allclose(saved["hessian"], expected, atol=1e-8)
    np.testing.assert_allclose(np.sort(np.abs(saved["frequencies"]))[:3], 0, atol=1e-3)


def test_hessian_writes_an_array_file_as_it_goes_and_goes_on_with_it(folder, monkeypatch, capsys):
    command = ("hessian", "POSCAR", "--model", "model", "--out", "h.npy")
    done = here(folder, monkeypatch, capsys, *command)
    assert done.returncode == 0, done.stderr
    from ase.io import read

    saved = np.load(folder / "h.npy", mmap_mode="r")
    expected = hessian(small_potential(QUICK, "float64"), read(folder / "POSCAR"))
    np.testing.assert_allclose(saved, expected, atol=1e-8)
    again = here(folder, monkeypatch, capsys, *command)
    assert again.returncode == 0, again.stderr
    assert "6 columns are there already" in again.stdout
    other = here(folder, monkeypatch, capsys, *command, "--dtype", "float32")
    assert other.returncode == 1
    assert "differs in the precision" in other.stderr


def test_phonons_writes_bands_a_figure_and_what_phonopy_reads(folder, monkeypatch, capsys):
    size = ("--points", "9", "--mesh", "2", "2", "2", "--path", "GX,GL", "--animate", "0", "5")
    done = here(folder, monkeypatch, capsys, "phonons", "POSCAR", "--model", "model", "--out", "bands", *size)
    assert done.returncode == 0, done.stderr
    assert "highest frequency" in done.stdout
    record = json.loads((folder / "bands" / "phonons.json").read_text())
    from ase.io import read

    D = dynamical_matrix(
        small_potential(QUICK),
        read(folder / "POSCAR"),
        record["bands"]["q_points"],
        mass_weighted=True,
    )
    squares = np.linalg.eigvalsh(D)
    expected = np.sign(squares) * np.sqrt(np.abs(squares)) * THZ_PER_ROOT_EV_PER_A2_U
    np.testing.assert_allclose(record["bands"]["frequencies"], expected, atol=1e-4)
    assert record["max_force_eV_per_A"] > 1e-3  # rattled, and said so
    written = {path.name for path in (folder / "bands").iterdir()}
    assert written >= {"phonons.json", "phonons.png", "mode.extxyz", "phonopy_params.yaml", "FORCE_CONSTANTS"}


def test_hessian_names_the_block_that_fits_into_the_memory_given(folder, monkeypatch, capsys):
    from ase.io import read

    plan = plan_hessian(small_potential(QUICK), read(folder / "POSCAR"), block_size=6)
    too_little = f"{(plan.fixed / 2) / 1e9:.6f}"
    done = here(
        folder, monkeypatch, capsys, "hessian", "POSCAR", "--model", "model", "--memory-limit", too_little
    )
    assert done.returncode == 1
    assert "memory_limit" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "missing.cif"], "missing.cif is not a file"),
        (["predict", "nonsense.cif", "--model", "model"], "neither ASE nor pymatgen can read nonsense.cif"),
        (["predict", "binary.cif", "--model", "model"], "ASE: AssertionError: without a reason"),
        (["predict", "--model", "model"], "found no file"),
        (["predict", "POSCAR", "--limit", "0", "--model", "model"], "limit=0"),
        (["predict", "cut.extxyz", "--model", "model"], "cut.extxyz cannot be read beyond its first 2"),
        (["predict", "POSCAR_of_VASP_4", "--model", "model"], "POSCAR_of_VASP_4 does not name its elements"),
        (["predict", "types.lammpstrj", "--model", "model"], "types 1, 2 and no elements"),
        (["predict", "masses.lammpstrj", "--model", "model"], "types 1, 2 and no elements"),
        (["predict", "nonsense.cif", "POSCAR_of_VASP_4", "--skip-bad", "--model", "model"], "no structure"),
        (["elastic", "molecule.xyz", "--model", "model"], "pbc=[False, False, False]"),
        (
            ["hessian", "POSCAR", "--atoms", "2", "--model", "model"],
            "found atom 2 among the chosen ones of ClNa, needed numbers from 0 to 1",
        ),
        (["hessian", "held.vasp", "--model", "model"], "all 2 atoms"),
        (["predict", "POSCAR", "--model", "chgnet-0.3"], "chgnet-0.3.0"),
        (["predict", "POSCAR", "--model", "cache"], "no manifest.json"),
        (["hessian", "two.extxyz", "--model", "model"], "two.extxyz holds 2 structures, needed one"),
        (["phonons", "two.extxyz", "--model", "model", "--out", "out"], "holds 2 structures, needed one"),
        (
            ["phonons", "POSCAR", "--model", "model", "--path", "GQ", "--out", "out"],
            "with the unknown points",
        ),
        (["phonons", "POSCAR", "--model", "model", "--born", "BORN", "--out", "out"], "BORN is not a file"),
        (["convert", "POSCAR", "out"], "not a zip archive"),
        (["convert", "missing.pt", "out"], "missing.pt does not exist"),
    ],
)
def test_a_mistake_is_answered_in_words_without_a_traceback(folder, monkeypatch, capsys, arguments, words):
    (folder / "cache").mkdir(exist_ok=True)
    monkeypatch.setenv("JAXMLIP_CACHE", str(folder / "cache"))
    assert words in complaint(folder, monkeypatch, capsys, *arguments)
    assert not (folder / "out").exists()


def test_models_lists_every_name_with_its_licence(folder):
    done = jaxmlip(folder, "models")
    assert done.returncode == 0
    for word in ("chgnet-0.2.0", "chgnet-0.3.0", "chgnet-r2scan", "BSD-3-Clause-LBNL"):
        assert word in done.stdout


def test_help_names_every_command(folder):
    done = jaxmlip(folder, "--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert command in done.stdout


RUN = {
    f"{name} {second}".strip(): its
    for name, command in COMMANDS.items()
    for second, its in (command.commands.items() if isinstance(command, Group) else [("", command)])
}
RENAMED = {"changes": "set", "json_": "json"}


def help_on(words: str, capsys, asked: str) -> str:
    with pytest.raises(SystemExit) as end:
        main([*words.split(), asked])
    assert end.value.code == 0
    return capsys.readouterr().out


def options_of(settings) -> set[str]:
    """Names of the options that a command takes, or settings that it takes apart."""
    found = set()
    for name, hint in get_type_hints(settings, include_extras=True).items():
        kind, *marks = get_args(hint) or (hint,)
        if is_dataclass(kind):
            found |= options_of(kind)
        elif tyro.conf.Positional[int].__metadata__[0] not in marks and name != "return":
            found.add(RENAMED.get(name, name).replace("_", "-"))
    return found


@pytest.mark.parametrize("words", ["", *RUN, *(name for name in COMMANDS if name not in RUN)])
def test_help_fits_a_screen(words, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    lines = help_on(words, capsys, "--help").splitlines()
    assert sum(max(1, -(-len(line) // 100)) for line in lines) <= 45


@pytest.mark.parametrize("words", RUN)
def test_help_all_has_every_option_and_help_says_if_some_are_left_out(words, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    brief, whole = (
        set(re.findall(r"--(?:no-)?([a-z][\w-]*)", help_on(words, capsys, asked)))
        for asked in ("--help", "--help-all")
    )
    assert whole >= options_of(RUN[words]) | {"quiet", "verbose", "help"}
    assert ("help-all" in brief) == bool(whole - brief)


def test_quiet_leaves_results_and_warnings_and_verbose_says_where_the_time_went(folder, monkeypatch, capsys):
    def said(*more: str):
        command = ("hessian", "half [held] @1.vasp", "--model", "model", "--out", "said.npz", *more)
        done = here(folder, monkeypatch, capsys, *command)
        assert done.returncode == 0, done.stderr
        return done

    usual, quiet, verbose = said(), said("--quiet"), said("--verbose", "--memory-limit", "20")
    for remark in ("1 of 2 atoms", "predicted memory", "written to said.npz"):
        assert remark in usual.stdout
        assert remark not in quiet.stdout
    for result in ("THz", "asymmetry"):
        assert result in quiet.stdout
    assert quiet.stderr == usual.stderr == ""
    assert len(verbose.stdout.splitlines()) == len(usual.stdout.splitlines())
    for told in ("memory for ", "cache of programs: ", "s: tracing ", "most memory "):
        assert told in verbose.stderr
    assert "one of them" in complaint(folder, monkeypatch, capsys, "models", "--quiet", "--verbose")
    bad = ("predict", "nonsense.cif", "POSCAR", "--skip-bad", "--model", "model", "--quiet")
    assert "warning: " in here(folder, monkeypatch, capsys, *bad).stderr


@pytest.mark.parametrize("others", [{}, {"sing": lambda: None}])
def test_a_command_of_two_words_runs_and_is_described_with_its_group(monkeypatch, capsys, others):
    def count(to: int) -> None:
        """Counts."""
        print("counted to", to)

    monkeypatch.setitem(COMMANDS, "numbers", Group("What numbers are for.", {"count": count, **others}))
    main(["numbers", "count", "--to", "3"])
    assert capsys.readouterr().out == "counted to 3\n"
    for words, said in ((["--help"], "What numbers are for."), (["numbers", "--help"], "Counts.")):
        with pytest.raises(SystemExit):
            main(words)
        assert said in capsys.readouterr().out


def test_commands_look_for_garbage_rarely(capsys):
    before = gc.get_threshold()
    try:
        gc.set_threshold(700, 10, 10)
        main(["models"])
        assert gc.get_threshold() == RARELY
    finally:
        gc.set_threshold(*before)


def test_a_command_leaves_the_warnings_of_the_calling_process_alone(folder, monkeypatch, capsys):
    before = warnings.showwarning, warnings.filters[:]
    done = here(
        folder, monkeypatch, capsys, "predict", "nonsense.cif", "NaCl.cif", "--skip-bad", "--model", "model"
    )
    assert "warning: " in done.stderr
    assert "nonsense.cif" in done.stderr
    assert (warnings.showwarning, warnings.filters[:]) == before
