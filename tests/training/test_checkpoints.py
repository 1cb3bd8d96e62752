"""What was saved comes back bit for bit, or the checkpoint before it does."""

import json
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from jaxmlip.training.checkpoints import (
    DIGESTS,
    CheckpointError,
    Checkpoints,
    DamagedCheckpointError,
    on_host,
)

few = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
DTYPES = st.sampled_from([np.float32, np.int32, np.uint32, ml_dtypes.bfloat16, np.float64, np.bool_])
ARRAYS = DTYPES.flatmap(
    lambda d: arrays(np.uint8, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)).map(
        lambda x: (x % 2).astype(d) if d is np.bool_ else (x.astype(np.float32) / 7).astype(d)
    )
)


def saved(folder: Path, steps=(10, 20, 30), keep: int = 3) -> Checkpoints:
    """Checkpoints whose arrays are all equal to the step."""
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, arrays_of(step), {"step": step})
        checkpoints.finished(wait=True)
    return checkpoints


def save_now(checkpoints: Checkpoints, step: int, content: dict[str, np.ndarray]) -> None:
    checkpoints.save(step, content, {})
    checkpoints.finished(wait=True)


def arrays_of(step: int) -> dict[str, np.ndarray]:
    return {"params/kernel": np.full((50, 50), step, np.float32), "step": np.int32(step)[None]}


@pytest.fixture(scope="session")
def three(tmp_path_factory) -> Path:
    """A folder with checkpoints of the steps 10, 20 and 30."""
    folder = tmp_path_factory.mktemp("three") / "checkpoints"
    saved(folder).close()
    return folder


@few
@given(st.dictionaries(st.text("abc_/", min_size=1, max_size=4), ARRAYS, min_size=1, max_size=4))
@example({"_": np.float32(0), "_/": np.int32(1)})
def test_arrays_of_every_type_and_shape_come_back_bit_for_bit(tmp_path_factory, given_arrays):
    checkpoints = Checkpoints(tmp_path_factory.mktemp("run"))
    state = {"params": given_arrays, "step": np.int32(3)}
    checkpoints.save(3, on_host(state), {"seed": 1})
    assert checkpoints.finished(wait=True) == 3
    found = checkpoints.latest()
    assert (found.step, found.record) == (3, {"seed": 1})
    back = found.restore(state)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
    checkpoints.close()


def test_a_state_of_an_optimizer_comes_back_as_the_same_tree(tmp_path):
    params = {"network": {"kernel": jnp.ones((3, 4)), "none": jnp.zeros((0, 3))}}
    optimizer = optax.chain(optax.clip(1.0), optax.adamw(optax.cosine_decay_schedule(1e-3, 9)))
    state = {"params": params, "optimizer": optimizer.init(params), "ema": None, "step": jnp.int32(2)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, on_host(state), {})
    checkpoints.close()
    back = Checkpoints(tmp_path).latest().restore(state)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(back))
    jax.tree.map(np.testing.assert_array_equal, back, state)


def test_a_step_that_reuses_the_memory_of_a_state_does_not_change_what_is_saved_of_it(tmp_path):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    state, checkpoints = jnp.zeros(100_000), Checkpoints(tmp_path)
    checkpoints.save(0, on_host({"x": state}), {})
    for _ in range(50):
        state = step(state)
    checkpoints.finished(wait=True)
    assert not checkpoints.latest().arrays["x"].any()
    checkpoints.close()


@settings(few, max_examples=8)
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(1, 3))
def test_the_last_and_the_best_that_each_of_them_knows_of_are_kept(tmp_path_factory, improved, keep):
    checkpoints = Checkpoints(tmp_path_factory.mktemp("run"), keep)
    best, history = None, {}
    for step, better in enumerate(improved):
        best = step if better else best
        history[step] = best
        checkpoints.save(step, {"x": np.ones(2)}, {"best": best})
        checkpoints.finished(wait=True)
    last = sorted(history)[-keep:]
    assert checkpoints.steps == sorted({*last, *(history[s] for s in last)} - {None})
    checkpoints.close()


@settings(few, max_examples=40)
@given(st.data())
def test_a_newest_checkpoint_with_any_file_cut_changed_or_gone_gives_way_to_the_one_before(
    three, tmp_path_factory, data
):
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    shutil.copytree(three, folder)
    checkpoints = Checkpoints(folder)
    files = sorted(p for p in checkpoints.path(30).rglob("*") if p.is_file())
    file = data.draw(st.sampled_from(files).filter(lambda p: p.stat().st_size > 0))
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    damage = data.draw(st.sampled_from(["cut", "flip", "remove"]))
    if damage == "remove":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:at])
    else:
        content[at] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(content)
    harmless = file.name == DIGESTS and same_digests(content, three, damage)
    if harmless:  # a blank of the list that became another blank
        assert checkpoints.latest().step == 30
        return
    with pytest.warns(UserWarning, match=r"(?s)00000030.*Going back to the checkpoint of step 20"):
        found = checkpoints.latest()
    assert found.step == 20
    np.testing.assert_array_equal(found.arrays["params/kernel"], arrays_of(20)["params/kernel"])
    # Set aside, not deleted; and no second warning.
    assert (folder / "00000030.damaged").is_dir()
    assert Checkpoints(folder).latest().step == 20


def same_digests(content: bytearray, three: Path, damage: str) -> bool:
    if damage != "flip":
        return False
    try:
        return json.loads(content) == json.loads((three / "00000030" / DIGESTS).read_text())
    except ValueError:
        return False


def test_where_no_checkpoint_is_whole_an_error_names_each(three, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(three, folder)
    checkpoints = Checkpoints(folder)
    for step in checkpoints.steps:
        (checkpoints.path(step) / "run.json").write_text("{}")
    with pytest.raises(DamagedCheckpointError, match=r"(?s)00000030.*00000020.*00000010.*are damaged"):
        checkpoints.latest()
    assert checkpoints.steps == [10, 20, 30]  # nothing was touched


def test_what_a_killed_process_left_half_written_is_ignored_and_cleared_away(three, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(three, folder)
    shutil.copytree(folder / "00000030", folder / "saving-40")
    (folder / "saving-40" / DIGESTS).unlink()
    checkpoints = Checkpoints(folder)
    assert checkpoints.latest().step == 30
    checkpoints.save(40, arrays_of(40), {})
    checkpoints.close()
    assert sorted(p.name for p in folder.iterdir()) == ["00000020", "00000030", "00000040"]


def test_there_is_no_checkpoint_in_a_new_folder(tmp_path):
    assert Checkpoints(tmp_path / "new").latest() is None


def test_a_full_disk_leaves_the_older_checkpoints_and_saving_works_again_when_there_is_room(tmp_path):
    checkpoints = saved(tmp_path)
    big = {"x": np.random.default_rng(0).normal(size=300_000)}  # 2.4 MB that do not compress
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"step 40 was not saved.*step 30 is intact"):
            save_now(checkpoints, 40, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.steps == [10, 20, 30]
    assert checkpoints.latest().step == 30
    checkpoints.save(50, big, {})
    assert checkpoints.finished(wait=True) == 50
    np.testing.assert_array_equal(checkpoints.latest().arrays["x"], big["x"])
    checkpoints.close()


def test_a_checkpoint_larger_than_what_is_free_is_not_begun(three, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    checkpoints = Checkpoints(three)
    with pytest.raises(CheckpointError, match=r"1\.4 MiB are needed.*1\.0 MiB free.*step 30 is intact"):
        save_now(checkpoints, 40, {"x": np.zeros(100_000, np.float32)})
    assert checkpoints.latest().step == 30
    assert not list(three.glob("saving-*"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file" / "checkpoints")
    with pytest.raises(CheckpointError, match=r"step 1 was not saved in .*/file/checkpoints"):
        checkpoints.save(1, arrays_of(1), {})


def test_a_checkpoint_of_another_model_says_what_differs(three):
    like = {
        "params": {"kernel": np.zeros((50, 40), np.float32)},
        "step": np.zeros(1, np.int32),
        "ema": np.ones(3),
    }
    with pytest.raises(CheckpointError) as error:
        Checkpoints(three).latest().restore(like)
    assert "ema: not in the checkpoint" in str(error.value)
    assert "params/kernel: found float32[50, 50], needed float32[50, 40]" in str(error.value)


def test_a_run_keeps_at_least_one_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)
