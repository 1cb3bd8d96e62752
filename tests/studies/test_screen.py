"""A screening computes each crystal once, whatever is killed, and names what it cannot compute."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import ase.db
import ase.io
import killed_screen
import numpy as np
import pytest
import submitit  # noqa: F401 (its import closes log handlers, those that pytest makes for a test too)
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms
from killed_screen import PROPERTIES, potential, screening
from matplotlib.figure import Figure
from pymatgen.core import Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor

from jaxmlip.cli import main
from jaxmlip.crystals.batching import shape_for
from jaxmlip.derivatives.response import Response
from jaxmlip.mechanics.elasticity import NotAtRestWarning, elastic_tensor
from jaxmlip.mechanics.relaxation import relax
from jaxmlip.mechanics.vibrations import vibrations
from jaxmlip.phonons import expansion, instabilities, mesh_modes
from jaxmlip.studies.screen import PROPERTIES as PROPERTIES_OF
from jaxmlip.studies.screen import results, screen
from jaxmlip.studies.screen.inputs import files_of, named, noted, read_inputs
from jaxmlip.studies.screen.library import Entry, chunks_of, key_of
from jaxmlip.studies.screen.properties import Found
from jaxmlip.studies.study import StudyError

ELASTIC = PROPERTIES_OF["elastic"]
KILLS = int(os.environ.get("JAXMLIP_KILLS", "3"))


def many() -> dict[str, Atoms]:
    """Twelve crystals: one is there twice, one is a molecule, one is empty, one has an unknown element."""
    found = {f"{symbol} fcc": bulk(symbol, "fcc", 3.7) for symbol in ("Al", "Ca", "Cu", "Ag")}
    found |= {f"{symbol} hcp": bulk(symbol, "hcp", 2.6, c=4.25) for symbol in ("Mg", "Ti", "Zn")}
    found["CuAu"] = Atoms(
        "NiCu", cell=[2.6, 2.6, 3.7], pbc=True, scaled_positions=[(0, 0, 0), (0.5, 0.5, 0.5)]
    )
    found["again"] = bulk("Cu", "fcc", 3.7)
    found["molecule"] = Atoms("Cu2", [[0, 0, 0], [2.5, 0, 0]])
    found["empty"] = Atoms(cell=[3, 3, 3], pbc=True)
    found["unknown"] = bulk("Pt", "fcc", 3.9)
    return found


@pytest.fixture(scope="module")
def pairs():
    return potential()


@pytest.fixture(scope="module")
def rows(pairs) -> dict[str, dict]:
    """The rows of all by the plain function."""
    return {row.columns["name"]: row.columns for row in screen(pairs, many(), PROPERTIES, mesh=(1, 1, 1))}


def test_every_crystal_has_a_row_and_what_fails_has_a_reason(rows):
    assert set(rows) == set(many())
    failed = {
        name: {k: v for k, v in row.items() if k.endswith("failed") and v} for name, row in rows.items()
    }
    bad = {name: reasons for name, reasons in failed.items() if reasons}
    assert list(bad["molecule"]) == ["elastic_failed"]
    assert "pbc=[False, False, False]" in bad["molecule"]["elastic_failed"]
    assert "empty" in bad["empty"]["failed"]
    assert "Pt (Z = 78)" in bad["unknown"]["failed"]
    assert set(bad) == {"molecule", "empty", "unknown"}
    assert (rows["again"]["same_as"], rows["Cu fcc"]["same_as"]) == ("Cu fcc", None)
    assert rows["again"] == {**rows["Cu fcc"], "name": "again", "same_as": "Cu fcc"}


def test_a_row_is_what_each_function_gives_for_the_crystal_alone(pairs, rows):
    for name in ("Mg hcp", "CuAu"):
        row = rows[name]
        alone = relax(pairs, many()[name], fix_symmetry=True)
        assert row["relax_space_group"] == alone.space_group
        C = elastic_tensor(pairs, alone.atoms)
        modes = mesh_modes(pairs, alone.atoms.copy(), (1, 1, 1), shape=shape_for)
        there = [row[f"elastic_{k}"] for k in ("bulk_GPa", "shear_GPa", "C11_GPa", "C13_GPa")]
        here = [C.hill.bulk, C.hill.shear, C.C[0, 0], C.C[0, 2]]
        np.testing.assert_allclose(there, here, rtol=1e-7)
        np.testing.assert_allclose(
            row["relax_energy_eV_per_atom"], alone.energy / len(alone.atoms), rtol=1e-10
        )
        np.testing.assert_allclose(row["phonons_max_THz"], modes.frequencies.max(), atol=1e-6)


@pytest.mark.slow
def test_thermal_expansion_is_that_of_each_crystal_alone_and_slabs_have_none(pairs):
    crystals = {name: many()[name] for name in ("Mg hcp", "Cu fcc", "molecule")}
    found = {
        row.columns["name"]: row for row in screen(pairs, crystals, ["relax", "expansion"], mesh=(2, 2, 2))
    }
    for name in ("Mg hcp", "Cu fcc"):
        columns, atoms = found[name].columns, found[name].atoms
        its = expansion(pairs, atoms, mesh=(2, 2, 2), temperatures=[300])
        expected = [
            its.beta[0] * 1e6,
            its.alpha[0, 2, 2] * 1e6,
            its.gamma[0],
            its.heat_capacity_p[0] / len(atoms),
        ]
        names = ("volumetric_ppm_per_K", "zz_ppm_per_K", "grueneisen", "heat_capacity_p_J_per_K_mol")
        np.testing.assert_allclose([columns[f"expansion_{k}"] for k in names], expected, rtol=1e-6)
        assert columns["expansion_failed"] is None
    assert "thermal expansion coefficients need" in found["molecule"].columns["expansion_failed"]


def test_unstable_modes_and_vibrations_are_those_of_each_crystal_alone(pairs):
    held = bulk("Ag", "fcc", 3.7)
    held.set_constraint(FixAtoms([0]))
    crystals = {
        "cubic": bulk("Cu", "sc", 2.45),
        "held": held,
        "molecule": Atoms("Cu2", [[0, 0, 0], [2.5, 0, 0]]),
        "atom": Atoms("Cu"),
    }
    found = {
        row.columns["name"]: row.columns
        for row in screen(pairs, crystals, ["instabilities", "vibrations"], mesh=(2, 2, 2))
    }
    assert (found["held"]["instabilities_stable"], found["cubic"]["instabilities_stable"]) == (True, False)
    with pytest.warns(NotAtRestWarning):
        alone = instabilities(pairs, crystals["cubic"], mesh=(2, 2, 2))
    assert "not relaxed" in found["cubic"]["notes"]
    assert found["cubic"]["instabilities_modes"] == len(alone) > 0
    np.testing.assert_allclose(found["cubic"]["instabilities_lowest_THz"], alone[0].thz, rtol=1e-6)
    assert found["cubic"]["instabilities_cells"] == alone[0].cells
    assert "FixAtoms" in found["held"]["notes"]
    with pytest.warns(NotAtRestWarning):
        its = vibrations(pairs, crystals["molecule"])
    columns = found["molecule"]
    assert (columns["vibrations_modes"], columns["vibrations_imaginary"]) == (1, its.imaginary)
    np.testing.assert_allclose(columns["vibrations_highest_per_cm"], its.per_cm[-1], rtol=1e-9)
    np.testing.assert_allclose(columns["vibrations_zero_point_meV"], 1e3 * its.zero_point_energy, rtol=1e-9)
    assert (found["atom"]["vibrations_modes"], found["atom"]["vibrations_lowest_per_cm"]) == (0, None)


def test_relaxation_is_done_once_and_properties_can_be_added(tmp_path, pairs, rows, monkeypatch):
    begun = screening(tmp_path, ("relax",))
    begun.add(named(many()))
    begun.work()
    monkeypatch.setattr("jaxmlip.studies.screen.properties.relax_many", None)  # called again, it would raise
    more = screening(tmp_path, PROPERTIES)
    assert more.finished() == (0, 0, 9)
    more.work()
    assert more.finished() == (9, 1, 9)
    found = {row.columns["name"]: row.columns for row in more.rows()}
    assert found.keys() == rows.keys()
    for name, row in rows.items():
        close = {
            k: v if isinstance(v, str | bool | None) else pytest.approx(v, rel=1e-9, abs=1e-9)
            for k, v in row.items()
        }
        assert found[name] == close


def started(folder: Path) -> subprocess.Popen:
    return subprocess.Popen([*killed_screen.WORKER, str(folder)], stdin=subprocess.PIPE)


def table(folder: Path) -> str:
    return results.as_csv(screening(folder).rows())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a screening that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    begun = screening(folder)
    begun.add(named(many()))
    begun.work()
    return folder


@pytest.mark.slow
def test_a_screening_that_is_killed_at_random_moments_ends_with_the_same_table(tmp_path, whole):
    screening(tmp_path).add(named(many()))
    rng = random.Random(3)
    for _ in range(KILLS):
        process, parts = started(tmp_path), len(list((tmp_path / "parts").iterdir()))
        until = time.monotonic() + 120
        while len(list((tmp_path / "parts").iterdir())) == parts and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdin.close()
    both = [started(tmp_path), started(tmp_path)]
    assert [process.wait(120) for process in both] == [0, 0]
    for process in both:
        process.stdin.close()
    assert table(tmp_path) == table(whole)


def test_other_weights_or_settings_on_an_old_folder_are_refused_with_what_differs(whole):
    for options, says in (
        ({"scale": 1.1}, "weights: .* there, .* here"),
        ({"fmax": 0.1}, "fmax: 0.001 there, 0.1 here"),
        ({"mesh": (2, 2, 2)}, r"mesh: \[1, 1, 1\] there, \[2, 2, 2\] here"),
        ({"properties": ("elastic",)}, "relaxed: True there, False here"),
    ):
        with pytest.raises(StudyError, match=says):
            screening(whole, **options)
    assert screening(whole, memory_limit=1e12).finished() == (9, 1, 9)


def test_shards_divide_the_chunks_and_together_are_the_whole(tmp_path, whole):
    screening(tmp_path).add(named(many()))
    counts = [0]
    for k in range(3):
        screening(tmp_path).work((k, 3))
        counts.append(screening(tmp_path).finished()[0])
    assert 0 == counts[0] < counts[1] < counts[2] < counts[3] == 9
    assert table(tmp_path) == table(whole)


def test_a_chunk_that_another_process_has_is_left_to_it(tmp_path, whole):
    begun = screening(tmp_path)
    begun.add(named(many()))
    script = (
        "import fcntl, sys, time\nfile = open(sys.argv[1], 'r+')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX, 1, int(sys.argv[2]))\nprint('mine', flush=True)\ntime.sleep(99)"
    )
    (tmp_path / "claims").touch()
    part = next(chunk.part for chunk in chunks_of(begun.potential, begun.entries) if len(chunk.keys) == 3)
    claim = [sys.executable, "-c", script, str(tmp_path / "claims"), str(part)]
    with subprocess.Popen(claim, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"mine\n"
        begun.work()
        assert begun.finished() == (6, 1, 9)
        other.kill()
    begun.work()
    assert table(tmp_path) == table(whole)


def test_a_crystal_larger_than_memory_is_named_and_skipped(pairs, real_shapes, monkeypatch):
    crystals = {"small": bulk("Cu", "fcc", 3.7), "large": bulk("Al", "fcc", 3.7) * (3, 3, 3)}
    for module in ("derivatives.response", "studies.screen.properties"):  # memory of a process varies
        monkeypatch.setattr(f"jaxmlip.{module}.resident", lambda: 0)
    kept = Response(pairs, crystals["large"]).kept
    asked = {"properties": ("energy", "elastic", "phonons"), "memory_limit": 0.7 * kept, "mesh": (1, 1, 1)}
    rows = {row.columns["name"]: row.columns for row in screen(pairs, crystals, **asked)}
    assert "27 atoms" in rows["large"]["elastic_failed"]
    assert "GB was given" in rows["large"]["elastic_failed"]
    assert rows["large"]["phonons_failed"] is None  # of the primitive cell
    assert rows["large"]["energy_eV_per_atom"] < 0
    assert not any(rows["small"][f"{name}_failed"] for name in asked["properties"])
    (row,) = screen(pairs, [crystals["large"]], ("energy",), memory_limit=0.1 * kept)
    assert "27 atoms" in row.columns["energy_failed"]


PARTLY = """data_x
_cell_length_a 4
_cell_length_b 4
_cell_length_c 4
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Cu1 Cu 0 0 0 0.5
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with files of many kinds, that commands are started in."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "given"
    folder.mkdir()
    copper = bulk("Cu", "fcc", 3.7)
    ase.io.write("given/Cu [a].cif", copper)
    ase.io.write("given/several.extxyz", [bulk("Al", "fcc", 3.9), copper, bulk("Ag", "fcc", 3.9)])
    text = Path("given/several.extxyz").read_text()
    Path("given/cut.extxyz").write_text("".join(text.splitlines(keepends=True)[:5]))
    Path("given/empty.cif").touch()
    Path("given/.hidden").write_text("?")
    Path("given/notes.txt").write_text("no crystal")
    Path("given/partly.cif").write_text(PARTLY)
    with ase.db.connect("given/own.db") as database:
        for symbol in ("Al", "Zn"):
            database.write(bulk(symbol, "fcc", 4.0))
    salt = Structure(Lattice.cubic(3.7), ["Cu"], [[0, 0, 0]]).as_dict()
    documents = [{"mp_id": "mp-1", "structure": salt}, {"mp_id": "mp-2"}, {"mp_id": "mp-3", "structure": {}}]
    with gzip.open("given/documents.json.gz", "wt") as file:
        json.dump(documents, file)
    Path("given/alone.json").write_text(json.dumps(salt))
    return tmp_path


def test_files_folders_patterns_and_databases_are_read_and_what_cannot_be_has_a_name(here):
    given = {its.name: its for its in read_inputs([Path("given")], out=Path("given/out"))}
    good = [name for name, its in given.items() if its.atoms is not None]
    assert good == [
        "given/Cu [a].cif", "given/alone.json", "given/cut.extxyz", "given/documents.json.gz mp-1",
        "given/own.db", "given/own.db [1]", "given/partly.cif", "given/several.extxyz",
        "given/several.extxyz [1]", "given/several.extxyz [2]",
    ]  # fmt: skip
    bad = {name: its.failed for name, its in given.items() if its.failed}
    assert list(bad) == [
        "given/cut.extxyz [1 …]", "given/documents.json.gz mp-2", "given/documents.json.gz mp-3",
        "given/empty.cif", "given/notes.txt",
    ]  # fmt: skip
    assert "beyond its first 1 structures" in bad["given/cut.extxyz [1 …]"]
    assert "has no structure" in bad["given/documents.json.gz mp-2"]
    assert "notes.txt" in bad["given/notes.txt"]


def test_brackets_in_a_name_are_no_pattern_and_results_of_the_screening_are_no_input(here):
    assert files_of([Path("given/Cu [a].cif")]) == [Path("given/Cu [a].cif")]
    assert files_of([Path("given/*.cif"), Path("given/empty.cif")]) == [
        Path("given") / name for name in ("Cu [a].cif", "empty.cif", "partly.cif")
    ]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        files_of([Path("nowhere/*.cif")])
    (here / "given" / "out").mkdir()
    ase.io.write("given/out/results.cif", bulk("Cu"))
    assert not [path for path in files_of([Path("given")], out=Path("given/out")) if "out" in path.parts]
    assert len(list(read_inputs([Path("given/several.extxyz")], limit=2))) == 2


def test_a_crystal_is_read_back_as_it_was_written_and_has_the_key_of_its_contents():
    atoms = bulk("Fe", cubic=True)
    atoms.positions += np.random.default_rng(0).normal(size=(2, 3)) / 3
    atoms.set_masses([55.0, 57.0])
    entry = Entry(key_of(atoms), ["a\u2028b"], atoms, (2, 3, 4, 5), notes=["n"])
    again = Entry.of_line(entry.as_line())
    assert "\n" not in entry.as_line()
    assert (again.names, again.sizes, again.notes) == (entry.names, entry.sizes, entry.notes)
    np.testing.assert_array_equal(again.atoms.positions, atoms.positions)
    np.testing.assert_array_equal(again.atoms.get_masses(), atoms.get_masses())
    np.testing.assert_array_equal(
        again.atoms.get_initial_magnetic_moments(), atoms.get_initial_magnetic_moments()
    )
    assert key_of(again.atoms) == entry.key
    keys = {entry.key}
    for change in ("positions", "numbers", "masses", "initial_magmoms"):
        other = atoms.copy()
        other.arrays[change][0] += 1
        keys.add(key_of(other))
    near = atoms.copy()
    near.positions += 1e-9
    assert len(keys) == 5
    assert key_of(near) == entry.key


@pytest.fixture
def command(here, monkeypatch, pairs):
    """`jaxmlip screen` with pairs of atoms in the place of any model, in this process and in others."""
    monkeypatch.setattr("jaxmlip.zoo.load.load", lambda *_, **__: pairs)
    monkeypatch.setattr("jaxmlip.studies.screen.worker.WORKER", killed_screen.WORKER)
    monkeypatch.setattr("jaxmlip.studies.screen.library.CHUNK", {"cpu": (20_000, 3)})
    common = ("--properties", "relax", "elastic", "--out", "out")
    return lambda *words: main(["screen", *words, *common])


def test_the_command_computes_a_folder_says_what_failed_and_goes_on(command, capsys, monkeypatch):
    command("given")
    out, err = capsys.readouterr()
    assert "15 structures: 7 different crystals for relax, elastic" in err
    assert "2 are the same as another and not computed again; 6 cannot be used" in err
    assert "7 of 7 (100 %)" in err
    assert "given/empty.cif" in out
    monkeypatch.setattr("jaxmlip.studies.screen.folder.carry_on", None)  # called again, it would raise
    assert Path("out/summary.png").stat().st_size > 10_000
    monkeypatch.setattr(results, "draw", lambda *_: Figure())  # which takes a second
    command("given")
    assert "7 are done already" in capsys.readouterr().err
    command("--collect")
    lines = Path("out/results.csv").read_text().splitlines()
    assert len(lines) == 16
    text = Path("out/summary.md").read_text()
    assert "| structures | 15 |" in text
    assert "| relax: computed | 6 |" in text
    assert "partly occupied" in text
    assert "bulk modulus (GPa)" in text
    with ase.db.connect("out/results.db") as database:
        kept = {row.data["name"]: row for row in database.select()}
    assert len(kept) == 9
    row = kept["given/several.extxyz"]
    table = {line.split(",")[0]: line.split(",") for line in lines}
    column = lines[0].split(",").index("elastic_bulk_GPa")
    assert row.elastic_bulk_GPa == float(table["given/several.extxyz"][column])
    assert row.energy / row.natoms == pytest.approx(row.relax_energy_eV_per_atom)
    assert abs(row.volume / row.natoms - row.relax_volume_A3_per_atom) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(
    "jobs", [(), ("--slurm", "cluster=local", "timeout_min=5")], ids=["here", "submitit"]
)
def test_processes_share_the_work_and_one_that_fails_is_told(command, capsys, monkeypatch, jobs):
    command("given", "--processes", "2", "--verbose", *jobs)
    several = Path("out/results.csv").read_text()
    assert "7 of 7 (100 %)" in capsys.readouterr().err
    assert sorted(path.name for path in Path("out/logs").iterdir()) == ["1.log", "2.log"]
    assert all("s: tracing" in path.read_text() for path in Path("out/logs").iterdir())
    command("--collect")
    assert Path("out/results.csv").read_text() == several
    monkeypatch.setattr("jaxmlip.studies.screen.worker.WORKER", (sys.executable, "-c", "1/0"))
    ase.io.write("more.cif", bulk("Ti", "fcc", 4.0))
    with pytest.raises(SystemExit):
        command("more.cif", "--processes", "2", *jobs)
    said = capsys.readouterr().err
    assert "2 of the processes failed; 1 of 8 crystals are left" in said
    assert "ZeroDivisionError" in said


def test_mistakes_are_told_before_anything_is_computed(command, capsys):
    for words, says in (
        (("nowhere.cif",), "nowhere.cif is neither a file nor a folder"),
        ((), "found no crystal, and none in out; needed files"),
        (("given", "--shard", "0/2"), "found --shard 0/2, needed K/N with K from 1 to N"),
        (("given", "--processes", "0"), "found --processes 0, needed a number from 1 on"),
        (("given", "--fmax", "0"), "found fmax=0.0, needed a number above 0"),
        (("given", "--slurm", "cluster=local", "nodez=2"), "--slurm: Parameter 'nodez'"),
    ):
        with pytest.raises(SystemExit):
            command(*words)
        assert says in capsys.readouterr().err
    with pytest.raises(ValueError, match="found the property 'hardness', needed some of relax, energy"):
        screen(potential(), {}, ("hardness",))


def test_nothing_at_all_is_an_error_with_a_table_of_reasons(command, capsys):
    with pytest.raises(SystemExit):
        command("given/notes.txt", "given/partly.cif")
    assert "nothing could be computed; summary.md has the reasons" in capsys.readouterr().err
    assert "partly occupied" in Path("out/summary.md").read_text()


def test_crystals_that_all_fail_are_an_error_as_well(command, capsys):
    ase.io.write("given/own [Pt].cif", bulk("Pt", "fcc", 3.9))
    for _ in range(2):  # the second time nothing is tried again
        with pytest.raises(SystemExit):
            command("given/own [Pt].cif")
        assert "nothing could be computed; summary.md has the reasons" in capsys.readouterr().err
    assert "Pt" in Path("out/summary.md").read_text()


@pytest.mark.slow
def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path, whole):
    begun = screening(tmp_path)
    begun.add(named(many()))
    begun.work((0, 2))
    before = begun.finished()[0]
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}

    little = ["bash", "-c", 'ulimit -f 1; exec "$@"', "", *killed_screen.WORKER, str(tmp_path)]
    with subprocess.Popen(little, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as full:
        told = full.stderr.read()  # until its end
    assert full.returncode == 1
    assert "cannot be written (File too large). Make room" in told
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")} == files
    assert screening(tmp_path).finished()[0] == before > 0
    screening(tmp_path).work()
    assert table(tmp_path) == table(whole)


def test_crystals_can_be_added_and_a_name_that_is_given_again_is_the_new_crystal(tmp_path):
    begun = screening(tmp_path)
    copper, silver = bulk("Cu", "fcc", 3.7), bulk("Ag", "fcc", 4.0)
    begun.add(named({"a": copper, "b": silver, "c": Atoms()}))
    text = (tmp_path / "crystals.jsonl").read_text()
    begun.add(named({"b": silver, "a": copper}))
    assert (tmp_path / "crystals.jsonl").read_text() == text
    begun.add(named({"c": copper, "d": bulk("Al", "fcc", 4.0)}))
    begun.add(named({"b": copper}))
    found = {str(entry.atoms.symbols): entry.names for entry in screening(tmp_path).entries}
    assert found == {"Cu": ["a", "b", "c"], "Al": ["d"]}


def test_what_failed_is_tried_again_when_asked_for_and_nothing_else(tmp_path, pairs, rows, monkeypatch):
    calls = []
    true = ELASTIC.compute

    def unlucky(*given):
        calls.append(len(given[1]))
        yield from ((k, ValueError("bad luck")) for k in range(len(given[1])))

    begun = screening(tmp_path, ("relax", "elastic"))
    begun.add(named({name: many()[name] for name in ("Al fcc", "Cu fcc")}))
    monkeypatch.setitem(PROPERTIES_OF, "elastic", replace(ELASTIC, compute=unlucky))
    begun.work()
    begun.work()
    assert (calls, begun.finished()) == ([2], (2, 2, 2))
    monkeypatch.setitem(PROPERTIES_OF, "elastic", replace(ELASTIC, compute=true))
    begun.forget_failures()
    assert begun.finished() == (0, 0, 2)
    begun.work()
    assert begun.finished() == (2, 0, 2)
    found = {row.columns["name"]: row.columns["elastic_bulk_GPa"] for row in begun.rows()}
    assert found == {name: pytest.approx(rows[name]["elastic_bulk_GPa"]) for name in found}


def test_what_packages_deprecate_is_no_note_of_a_crystal():
    with noted() as notes:
        warnings.warn("once for a process", DeprecationWarning, stacklevel=1)
        for _ in range(2):
            warnings.warn("of this crystal", stacklevel=1)
    assert notes == ["of this crystal"]


def test_a_fault_that_ends_a_batch_is_that_of_one_crystal(pairs, monkeypatch):
    def fragile(potential, crystals, options, chunk):
        for k, atoms in enumerate(crystals):
            if "Cu" in atoms.symbols:
                raise TypeError("cannot be")
            yield k, Found({"bulk_GPa": float(len(crystals))})

    monkeypatch.setitem(PROPERTIES_OF, "elastic", replace(ELASTIC, compute=fragile))
    crystals = {symbol: bulk(symbol, "fcc", 3.9) for symbol in ("Al", "Cu", "Ag")}
    rows = {row.columns["name"]: row.columns for row in screen(pairs, crystals, ("elastic",))}
    assert {name: row["elastic_failed"] for name, row in rows.items()} == {
        "Al": None,
        "Cu": "TypeError: cannot be",
        "Ag": None,
    }


def test_parquet_has_the_table_with_its_units(tmp_path, whole):
    pq = pytest.importorskip("pyarrow.parquet")
    begun = screening(whole)
    assert "results.parquet" in results.write(tmp_path, begun.rows(), begun.names, "pairs")
    found = pq.read_table(tmp_path / "results.parquet")
    assert found.to_pylist() == [row.columns for row in begun.rows()]
    assert found.schema.field("elastic_bulk_GPa").metadata[b"unit"] == b"GPa"


@pytest.mark.filterwarnings("ignore")  # jobflow's own, of what it imports
def test_a_job_of_jobflow_screens(pairs, rows, tmp_path, monkeypatch):
    """Jobs hand on what is MSONable: structures of pymatgen, and rows in types of JSON."""
    jobflow = pytest.importorskip("jobflow")
    monkeypatch.chdir(tmp_path)

    def screened(crystals, properties):
        return [row.columns for row in screen(pairs, crystals, properties)]

    structures = {"Al fcc": AseAtomsAdaptor.get_structure(many()["Al fcc"])}
    job = jobflow.job(screened)(structures, ["relax"])
    (found,) = jobflow.run_locally(jobflow.Flow([job]), ensure_success=True)[job.uuid][1].output
    assert found["name"] == "Al fcc"
    assert found["relax_energy_eV_per_atom"] == pytest.approx(rows["Al fcc"]["relax_energy_eV_per_atom"])
