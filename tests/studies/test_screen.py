"""A screening computes each crystal once, whatever is killed, and names what it cannot compute."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import killed_screen
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from killed_screen import PROPERTIES, potential, screening

from jaxmlip.derivatives.response import Response
from jaxmlip.mechanics.elasticity import elastic_tensor
from jaxmlip.mechanics.relaxation import relax
from jaxmlip.phonons import mesh_modes
from jaxmlip.studies.screen import results, screen
from jaxmlip.studies.screen.inputs import named
from jaxmlip.studies.study import StudyError

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
    for name in ("Al fcc", "Mg hcp", "CuAu"):
        row = rows[name]
        alone = relax(pairs, many()[name], fix_symmetry=True)
        assert row["relax_space_group"] == alone.space_group
        C = elastic_tensor(pairs, alone.atoms)
        modes = mesh_modes(pairs, alone.atoms.copy(), (1, 1, 1))
        there = [row[f"elastic_{k}"] for k in ("bulk_GPa", "shear_GPa", "C11_GPa", "C13_GPa")]
        here = [C.hill.bulk, C.hill.shear, C.C[0, 0], C.C[0, 2]]
        np.testing.assert_allclose(there, here, rtol=1e-7)
        np.testing.assert_allclose(
            row["relax_energy_eV_per_atom"], alone.energy / len(alone.atoms), rtol=1e-10
        )
        np.testing.assert_allclose(row["phonons_max_THz"], modes.frequencies.max(), atol=1e-6)


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


def started(folder: Path, *shard: int) -> subprocess.Popen:
    return subprocess.Popen([*killed_screen.WORKER, str(folder), *map(str, shard)], stdin=subprocess.PIPE)


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
    for process in both:
        process.stdin.flush()
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
        "import sys, time\nfrom contextlib import ExitStack\nimport killed_screen\n"
        "from pathlib import Path\nfrom jaxmlip.system.locks import Claims\n"
        "from jaxmlip.studies.screen.library import chunks_of\n"
        f"its = killed_screen.screening(Path({str(tmp_path)!r}))\n"
        "with Claims(its.folder).claimed(chunks_of(its.entries)[0].part) as ours:\n"
        "    print(ours, flush=True)\n    time.sleep(99)"
    )
    here = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(killed_screen.__file__).parent), *sys.path]),
    }
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=here) as other:
        assert other.stdout.readline() == b"True\n"
        begun.work()
        assert begun.finished() == (6, 1, 9)
        other.kill()
    begun.work()
    assert table(tmp_path) == table(whole)


def test_a_crystal_larger_than_memory_is_named_and_skipped(pairs, monkeypatch):
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
