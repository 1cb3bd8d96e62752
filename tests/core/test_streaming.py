"""Hessians that are written as they are computed: whole or not there, and resumed to the last bit."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import environment
from conftest import QUICK, small_potential
from interruptions import StopError, interrupted

from jaxmlip import hessian, hessian_columns
from jaxmlip.derivatives.response import Response
from jaxmlip.derivatives.streaming import columns_done, stream_hessian


def counted(monkeypatch) -> list[int]:
    """The columns that are computed from now on, a number for each, repeated ones included."""
    import jaxmlip.derivatives.linear_map as module

    seen: list[int] = []
    columns = module.columns

    def remember(tangent_map, r, eps, groups, index):
        seen.extend(index.tolist())
        return columns(tangent_map, r, eps, groups, index)

    monkeypatch.setattr(module, "columns", remember)
    return seen


def test_the_file_holds_the_hessian_and_numpy_opens_it(any_potential, crystal, tmp_path):
    found = stream_hessian(any_potential, crystal, tmp_path / "h.npy", block_size=4)
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(np.load(tmp_path / "h.npy"), found)
    np.testing.assert_allclose(found, hessian(any_potential, crystal, block_size=4), rtol=0, atol=1e-12)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["h.npy", "h.npy.json"]
    assert columns_done(tmp_path / "h.npy") == 15


def test_progress_counts_the_columns_that_are_there(any_potential, crystal, tmp_path, monkeypatch):
    told, again = [], []
    with monkeypatch.context() as patch:
        interrupted(patch, 2)
        with pytest.raises(StopError):
            stream_hessian(any_potential, crystal, tmp_path / "h.npy", block_size=4, progress=told.append)
    stream_hessian(any_potential, crystal, tmp_path / "h.npy", block_size=4, progress=again.append)
    assert (told, again) == ([4, 8], [12, 15])


def test_chosen_columns_come_in_the_order_asked_for(any_potential, crystal, tmp_path):
    columns = [7, 0, 14, 3]
    found = stream_hessian(any_potential, crystal, tmp_path / "h.npy", columns, block_size=4)
    expected = hessian_columns(any_potential, crystal, columns, block_size=4)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_complete_file_is_not_computed_again(any_potential, crystal, tmp_path, monkeypatch):
    first = stream_hessian(any_potential, crystal, tmp_path / "h.npy", block_size=4)
    seen = counted(monkeypatch)
    np.testing.assert_array_equal(
        stream_hessian(any_potential, crystal, tmp_path / "h.npy", block_size=4), first
    )
    assert seen == []


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_an_interrupted_run_goes_on_and_ends_with_the_same_bits(
    any_potential, crystal, tmp_path, monkeypatch, blocks
):
    """15 columns in blocks of 4: the last block is shorter than the others."""
    whole = stream_hessian(any_potential, crystal, tmp_path / "whole.npy", block_size=4)
    with monkeypatch.context() as patch:
        interrupted(patch, blocks)
        with pytest.raises(StopError):
            stream_hessian(any_potential, crystal, tmp_path / "h.npy", block_size=4)
    assert not (tmp_path / "h.npy").exists()
    assert columns_done(tmp_path / "h.npy") == 4 * blocks
    seen = counted(monkeypatch)
    # Once begun, the block size is that of the file.
    found = stream_hessian(any_potential, crystal, tmp_path / "h.npy", block_size=5 if blocks else 4)
    assert min(seen) == 4 * blocks
    np.testing.assert_array_equal(found, whole)


def run_until_killed(folder: Path, columns: int) -> None:
    """A process that computes h.npy, killed once that many columns are done."""
    command = (
        "import time, jaxmlip.derivatives.streaming as s\n"
        "from ase.io import read\n"
        "import quick_network\n"
        "from jaxmlip import Potential\n"
        "replace = s.os.replace\n"
        "def slowly(*args):\n"
        "    replace(*args)\n"
        "    time.sleep(0.2)\n"  # so that there is a middle to be killed in
        "s.os.replace = slowly\n"
        "potential = Potential.from_folder('model', 'float64')\n"
        "s.stream_hessian(potential, read('crystal.json'), 'h.npy', block_size=2)"
    )
    process = subprocess.Popen([sys.executable, "-c", command], cwd=folder, env=environment(folder))
    try:
        end = time.monotonic() + 120
        while columns_done(folder / "h.npy") < columns:
            assert process.poll() is None, "the process ended before it could be killed"
            assert time.monotonic() < end, "the process got nowhere"
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_done(crystal, tmp_path, monkeypatch):
    from ase.io import write

    from jaxmlip import Potential

    small_potential(QUICK).save(tmp_path / "model")
    write(tmp_path / "crystal.json", crystal)
    potential = Potential.from_folder(tmp_path / "model", "float64")
    run_until_killed(tmp_path, 4)
    assert not (tmp_path / "h.npy").exists()
    done = columns_done(tmp_path / "h.npy")
    assert 4 <= done < 15
    seen = counted(monkeypatch)
    found = stream_hessian(potential, crystal, tmp_path / "h.npy", block_size=2)
    assert min(seen) == done
    whole = stream_hessian(potential, crystal, tmp_path / "whole.npy", block_size=2)
    np.testing.assert_array_equal(found, whole)


def test_another_hessian_of_that_name_is_not_touched(any_potential, crystal, tmp_path):
    path = tmp_path / "h.npy"
    stream_hessian(any_potential, crystal, path, block_size=4)
    before = path.read_bytes()
    moved = crystal.copy()
    moved.positions[0, 0] += 1e-3
    with pytest.raises(ValueError, match=r"HAlMgO2 with .*, float64; .* differs in cell, elements or pos"):
        stream_hessian(any_potential, moved, path)
    with pytest.raises(ValueError, match="differs in the network or its parameters\\. Choose"):
        stream_hessian(small_potential("chgnet-0.2"), crystal, path)
    with pytest.raises(ValueError, match="differs in the precision"):
        stream_hessian(any_potential.astype("float32"), crystal, path)
    with pytest.raises(ValueError, match="differs in the columns"):
        stream_hessian(any_potential, crystal, path, [0, 1])
    assert path.read_bytes() == before


def test_a_file_that_is_not_ours_is_not_touched(any_potential, crystal, tmp_path):
    path = tmp_path / "h.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(ValueError, match=r"h\.npy exists without h\.npy\.json"):
        stream_hessian(any_potential, crystal, path)
    (tmp_path / "h.npy.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="is not what this version of jaxmlip writes"):
        stream_hessian(any_potential, crystal, path)
    np.testing.assert_array_equal(np.load(path), np.zeros(3))


def test_two_processes_do_not_write_one_file(any_potential, crystal, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl", reason="this system has no locks")
    with monkeypatch.context() as patch:
        interrupted(patch, 1)
        with pytest.raises(StopError):
            stream_hessian(any_potential, crystal, tmp_path / "h.npy", block_size=4)
    with (tmp_path / "h.npy.part").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match=r"another process is writing .*h\.npy\.part"):
            stream_hessian(any_potential, crystal, tmp_path / "h.npy")
    assert len(stream_hessian(any_potential, crystal, tmp_path / "h.npy")) == 15


def test_a_lost_array_is_missed(any_potential, crystal, tmp_path):
    stream_hessian(any_potential, crystal, tmp_path / "h.npy", block_size=4)
    (tmp_path / "h.npy").unlink()
    with pytest.raises(ValueError, match=r"h\.npy, which is missing, and so is h\.npy\.part"):
        stream_hessian(any_potential, crystal, tmp_path / "h.npy")


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_computed(
    any_potential, crystal, tmp_path, monkeypatch
):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    seen = counted(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(
            OSError, match=r"h\.npy\.part \(1\.8e-06 GB\) cannot be written \(No space left"
        ) as e:
            stream_hessian(any_potential, crystal, tmp_path / "h.npy")
    assert e.value.errno == errno.ENOSPC
    assert seen == []
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_later_leaves_what_was_done(any_potential, crystal, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    whole = stream_hessian(any_potential, crystal, tmp_path / "whole.npy", block_size=4)
    for blocks in (1, 2):
        with monkeypatch.context() as patch:
            replace, left = os.replace, [blocks + (blocks == 1)]  # a new run writes the JSON file once more

            def fill(*args, replace=replace, left=left):
                if left[0] == 0:
                    full()
                left[0] -= 1
                replace(*args)

            patch.setattr(os, "replace", fill)
            with pytest.raises(OSError, match=r"h\.npy\.json cannot be written .*goes on from there"):
                stream_hessian(any_potential, crystal, tmp_path / "h.npy", block_size=4)
    assert columns_done(tmp_path / "h.npy") == 12
    np.testing.assert_array_equal(
        stream_hessian(any_potential, crystal, tmp_path / "h.npy", block_size=4), whole
    )


def test_the_name_must_be_that_of_an_array(any_potential, crystal, tmp_path):
    with pytest.raises(ValueError, match=r"found the file name h\.npz, needed one that ends in \.npy"):
        stream_hessian(any_potential, crystal, tmp_path / "h.npz")
    with pytest.raises(OSError, match=r"the folder of .*h\.npy\.json does not exist"):
        stream_hessian(any_potential, crystal, tmp_path / "nowhere" / "h.npy")


def test_the_record_says_whose_hessian_it_is(any_potential, crystal, tmp_path):
    stream_hessian(any_potential, crystal, tmp_path / "h.npy", block_size=4)
    record = json.loads((tmp_path / "h.npy.json").read_text())
    assert record["formula"] == "HAlMgO2"
    assert record["potential"] == any_potential.name
    assert record["dtype"] == "float64"
    assert record["columns"] == list(range(15))
    assert record["done"] == 15


def test_memory_holds_a_block_of_columns_and_not_the_hessian(any_potential, crystal, tmp_path, monkeypatch):
    """The largest array that is handed on to be written is one block."""
    sizes, columns = [], Response.columns

    def watched(self, *args, **options):
        for start, rows in columns(self, *args, **options):
            sizes.append(rows.shape)
            yield start, rows

    monkeypatch.setattr(Response, "columns", watched)
    stream_hessian(any_potential, crystal, tmp_path / "h.npy", block_size=4)
    assert sizes == [(4, 15), (4, 15), (4, 15), (3, 15)]
