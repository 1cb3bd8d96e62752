"""Second derivatives are the same on however many devices and hosts their columns are spread.

That holds for any potential, so that most is proved of pairs of atoms, whose programs compile in a second.
Networks are asked for their own: that each architecture can be spread, and that bonds and angles can be
divided.
"""

import subprocess
from pathlib import Path

import jax
import numpy as np
import pairs
import pytest
import spread_columns
from conftest import FIRST, KINDS, small_potential
from hypothesis import given
from hypothesis import strategies as st
from processes import free_address, started

from jaxmlip.crystals.batching import BatchShape, divisible
from jaxmlip.system import parallel

SCRIPT = Path(spread_columns.__file__)
PAIRS = "pairs"


@pytest.fixture
def begin(tmp_path):
    """Starts a process of so many devices that finds what is asked of a potential."""

    def begun(devices: int, model: str, which: str, *address: object) -> subprocess.Popen:
        folder = PAIRS
        if model != PAIRS:
            folder = tmp_path / "model"
            if not folder.exists():
                small_potential(model).save(folder)
        return started(devices, SCRIPT, folder, tmp_path, which, *address)

    return begun


def check(folder: Path, devices: int, model: str, which: str, *runs: subprocess.Popen) -> None:
    """Each of the processes has found what one device does, which is this one's."""
    potential = pairs.potential() if model == PAIRS else small_potential(model)
    alone = spread_columns.found(potential, which, folder)
    for k, run in enumerate(runs):
        said = run.communicate(timeout=600)[1]
        assert run.returncode == 0, said
        found = dict(np.load(folder / f"{k}.npz"))
        assert found.pop("devices") == devices
        if which == "few":
            assert found.pop("compiled anew") == 0  # for another crystal of the size
            work = found.pop("work") / alone["work"]  # of each device, for as many columns
            assert work < 1.5 / devices
        if which.startswith("divided"):
            assert found.pop("kept") < 0.8 * alone["kept"]
        expected = {name: x for name, x in alone.items() if name not in ("work", "kept")}
        assert found.keys() == expected.keys()
        for name, x in expected.items():
            scale = np.abs(x).max()
            assert scale > 0, name
            np.testing.assert_allclose(found[name], x, rtol=0, atol=1e-12 * max(1, scale), err_msg=name)


@pytest.mark.slow
def test_eight_devices_find_the_hessian_and_dynamical_matrices_that_one_does(begin, tmp_path):
    check(tmp_path, 8, PAIRS, "few", begin(8, PAIRS, "few"))


@pytest.mark.slow
def test_eight_devices_find_every_other_quantity_that_one_does(begin, tmp_path):
    check(tmp_path, 8, PAIRS, "others", begin(8, PAIRS, "others"))


@pytest.mark.slow
@pytest.mark.parametrize("model", KINDS)
def test_eight_devices_spread_every_architecture(model, begin, tmp_path):
    check(tmp_path, 8, model, "hessian", begin(8, model, "hessian"))


@pytest.mark.slow
def test_bonds_and_angles_are_divided_among_devices_that_cannot_hold_all_of_them(begin, tmp_path):
    model = "m3gnet-smooth"  # the smallest whose energy has angles; those that are listed come next
    check(tmp_path, 8, model, "divided-third", begin(8, model, "divided-third"))


@pytest.mark.slow
@pytest.mark.parametrize(("model", "which"), [(PAIRS, "few"), (FIRST, "divided")])
def test_two_processes_of_two_devices_find_what_one_device_does(model, which, begin, tmp_path):
    address = free_address()
    check(tmp_path, 4, model, which, *(begin(2, model, which, address, 2, k) for k in range(2)))


def test_a_process_without_a_device_is_named(any_potential, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(ValueError, match="found 1 devices, which leave process 1, 2 without any"):
        any_potential.on_devices(1)


def test_one_device_of_one_process_has_all_of_everything():
    mesh = parallel.make_mesh()
    assert parallel.own_mesh(mesh) == mesh
    assert parallel.least(3) == 3
    whole = {"bonds": np.arange(6).reshape(3, 2)}
    np.testing.assert_array_equal(parallel.gather(parallel.divide(whole, mesh)["bonds"]), whole["bonds"])


@pytest.mark.parametrize("given", [("host:1", 2, None), (None, 2, 0), (None, None, 1)])
def test_a_process_is_told_all_of_where_it_belongs_or_nothing(given):
    with pytest.raises(ValueError, match=rf"processes={given[1]} and process={given[2]}, needed all three"):
        parallel.connect(*given)


@given(parts=st.integers(1, 9), numbers=st.tuples(*[st.integers(0, 99)] * 4))
def test_bonds_and_angles_are_padded_until_they_can_be_divided(parts, numbers):
    shape = BatchShape(7, *numbers, crystals=2)
    found = divisible(shape, parts)
    assert (found.atoms, found.crystals) == (7, 2)
    for name in ("short", "long", "angles", "pairs"):
        assert getattr(found, name) % parts == 0
        assert 0 <= getattr(found, name) - getattr(shape, name) < parts
