"""The configuration of a training run: what is written is read, and mistakes are named."""

import dataclasses
import math
import sys
import typing
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmlip.data.labels import PROPERTIES
from jaxmlip.system.begun import changes
from jaxmlip.training.config import (
    EXAMPLE,
    PRESETS,
    ConfigError,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ReplayConfig,
    TrainConfig,
    descriptions,
    finetune_config,
    flat,
    from_yaml,
    hyperparameters,
    read_config,
    to_yaml,
)

MADE = "made"  # a dataset, as far as the configuration looks at it
SECTIONS = (ModelConfig, DataConfig, ReplayConfig, LossConfig, OptimizerConfig)
# What classes refuse by themselves is tested where they are.
POSITIVE = st.floats(1e-12, 1e12)
BOUNDED = {
    "delta": POSITIVE,
    "learning_rate": st.floats(1, 1e12),
    "final_learning_rate": st.floats(0, 1),
    "warmup_steps": st.integers(0, 9),
    "clip": st.none() | POSITIVE,
    "weight_decay": st.just(0.0),
    "ema": st.none() | st.floats(0, 0.999),
    "accumulate": st.integers(1, 9),
    **dict.fromkeys(PROPERTIES, POSITIVE),
}
OPTIONS = st.dictionaries(
    st.text(min_size=1), st.text() | st.integers() | st.booleans() | st.none() | st.lists(st.text())
)


def values(kind):
    """Any value of a field of this type."""
    if dataclasses.is_dataclass(kind):
        return configs(kind)
    if kind is float:
        return st.floats(allow_nan=False, allow_infinity=False)
    if typing.get_origin(kind) is dict:
        return OPTIONS
    if typing.get_origin(kind) is tuple and typing.get_args(kind)[1] is ...:
        return st.lists(st.text(), max_size=3).map(tuple)
    if typing.get_origin(kind) is tuple:
        return st.tuples(*(values(k) for k in typing.get_args(kind)))
    if type(None) in typing.get_args(kind):
        (other,) = (k for k in typing.get_args(kind) if k is not type(None))
        return st.none() | values(other)
    return st.from_type(kind)


def configs(kind=TrainConfig):
    hints = typing.get_type_hints(kind)
    return st.builds(
        kind,
        **{
            f.name: BOUNDED[f.name] if f.name in BOUNDED else values(hints[f.name])
            for f in dataclasses.fields(kind)
        },
    )


@given(configs(), st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_configuration_is_read_as_it_was_written(config, described):
    assert from_yaml(to_yaml(config, described)) == config


def test_every_key_of_the_example_says_what_it_means_or_its_section_does():
    told = descriptions(TrainConfig) | descriptions(OptimizerConfig) | descriptions(DataConfig)
    assert told["batch_size"] == "crystals of a batch, over all devices"
    assert told["reference_energies"].startswith("keep: those of the model; refit:")
    assert told["clip"] == "largest norm of the gradient of all parameters"
    written = to_yaml(EXAMPLE)
    assert "  # largest norm of the gradient of all parameters\n  clip: null" in written
    assert from_yaml(written) == EXAMPLE


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("optimizer: {learnin_rate: 3}", r"optimizer\.learnin_rate is no key; did you mean learning_rate"),
        ("learning_rate: 3", r"did you mean optimizer\.learning_rate\?"),
        ("unheard_of: 3", r"unheard_of is no key; known are model, data"),
        ("optimizer: {learning_rate: fast}", r"optimizer\.learning_rate: found 'fast' .*, needed a number"),
        ("optimizer: {learning_rate: .nan}", r"optimizer\.learning_rate: found nan"),
        ("epochs: 1.5", r"epochs: found 1\.5 \(float\), needed a whole number"),
        ("epochs: yes", r"epochs: found True \(bool\), needed a whole number"),
        ("batch_size: null", r"batch_size: found nothing, needed a whole number"),
        ("loss: {kind: hubert}", r"loss\.kind: found 'hubert'.*did you mean huber\?"),
        ("loss: {energy: -1}", r"loss: found the loss weights"),
        ("data: {fractions: [1, 2]}", r"data\.fractions: found \[1, 2\] \(list\), needed a list of 3"),
        ("data: {train: [1]}", r"data\.train\[0\]: found 1 \(int\), needed text. Put it in quotes: '1'"),
        ("model: {hyperparameters: {a: {b: 1}}}", r"model\.hyperparameters\.a: found"),
        ("model: chgnet", r"model: found 'chgnet' \(str\), needed keys"),
        ("seed: 1\nseed: 2", r"line 2: seed is there a second time"),
        ("model: {start: a, start: b}", r"line 1: start is there a second time"),
        ("seed: [", "is not YAML"),
        ("- 1", "needed keys with values"),
        ("", "found nothing"),
        ("seed: 2024-99-99", "cannot read"),
        ("seed: !!python/object/apply:os.system ['false']", "is not YAML"),
    ],
)
def test_a_mistake_is_named_with_its_key(text, named):
    with pytest.raises(ConfigError, match=named):
        from_yaml(text)


def test_a_configuration_of_brackets_is_refused_whatever_limit_another_package_has_set():
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)  # as symfc does when it is imported
    try:
        with pytest.raises(ConfigError, match="nested too deeply"):
            from_yaml("[" * 5000)
    finally:
        sys.setrecursionlimit(before)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("optimizer: {clip: -1}", r"optimizer: found clip=-1\.0, needed a positive number, or null"),
        ("optimizer: {clip: 0}", r"optimizer: found clip=0\.0, needed a positive number, or null"),
        ("optimizer: {clip: .inf}", r"optimizer\.clip: found inf \(float\), needed a number"),
        ("optimizer: {learning_rate: 0}", r"found learning_rate=0\.0, needed a positive number"),
        ("optimizer: {warmup_steps: -5}", "found warmup_steps=-5, needed 0 or more"),
        (
            "optimizer: {name: adamw, weight_decay: -0.1}",
            r"found weight_decay=-0\.1, needed a number that is",
        ),
        ("optimizer: {accumulate: 0}", "found accumulate=0, needed 1 or more"),
        ("optimizer: {ema: 1}", r"found ema=1\.0, needed a decay below 1"),
        (
            "optimizer: {learning_rate: 1e-6}",
            "found final_learning_rate=1e-05 and learning_rate=1e-06.*not above the first",
        ),
        ("loss: {delta: .inf}", r"loss\.delta: found inf"),
        ("loss: {energy: .inf}", r"loss\.energy: found inf"),
    ],
)
def test_numbers_without_meaning_are_refused_with_what_is_needed(text, named):
    with pytest.raises(ConfigError, match=named):
        from_yaml(text)


def test_a_rate_below_the_usual_final_one_may_stay_constant():
    assert from_yaml("optimizer: {learning_rate: 1e-6, schedule: constant}").optimizer.learning_rate == 1e-6


def test_numbers_without_meaning_are_refused_in_python_too():
    for kind, wrong in ((LossConfig, {"energy": math.inf}), (OptimizerConfig, {"clip": math.nan})):
        with pytest.raises(ValueError, match="found"):
            kind(**wrong)


def test_aliases_do_not_make_a_small_file_large():
    bomb = "a0: &a0 [x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 30))
    with pytest.raises(ConfigError, match="a0 is no key"):
        from_yaml(bomb)


def test_numbers_that_yaml_takes_for_text_are_numbers():
    assert yaml.safe_load("1e-3") == "1e-3"
    assert from_yaml("optimizer: {learning_rate: 1e-3, clip: 10}").optimizer.learning_rate == 1e-3


def test_changes_replace_what_the_file_says(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("seed: 1\noptimizer: {clip: 3}\nloss:\n")
    config = read_config(path, ["seed=2", "loss.kind=mse", "data.train=[a, b]"])
    assert (config.seed, config.optimizer.clip, config.loss.kind) == (2, 3.0, "mse")
    assert config.data.train == ("a", "b")
    for change, named in [("seed", "KEY=VALUE"), ("seed.x=1", "seed has no keys"), ("sed=1", "mean seed")]:
        with pytest.raises(ConfigError, match=named):
            read_config(path, [change])
    with pytest.raises(ConfigError, match="--example` prints an example"):
        read_config(tmp_path / "none.yaml")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_config(path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": ModelConfig()}, "needed exactly one"),
        ({"model": ModelConfig(architecture="mace", hyperparameters={"chanels": 4})}, "mean channels"),
        ({"model": ModelConfig(architecture="mace", hyperparameters={"hidden_l": 9})}, "harmonics_l=3"),
        ({"data": DataConfig()}, r"data\.train: found nothing"),
        ({"data": DataConfig(train=("gone.extxyz",))}, r"data\.train: gone\.extxyz does not exist"),
        ({"data": DataConfig(train=(__file__,), fractions=(0.5, 0.2, 0.1))}, r"data\.fractions.*add up to 1"),
        ({"batch_size": 0}, "batch_size: found 0, needed 1 or more"),
        ({"replay": ReplayConfig(data=(__file__,))}, "needed both or neither"),
        ({"wandb": True}, "pip install wandb"),
        (
            {"data": DataConfig(train=(MADE,), options={"forces_key": "f"})},
            r"data\.options: \{'forces_key': 'f'\} with the dataset made, whose labels are already read",
        ),
        ({"seed": -1}, "seed: found -1, needed 0 to 4294967295"),
        ({"seed": 1 << 32}, "seed: found 4294967296, needed 0 to"),
        ({"data": DataConfig(train=(__file__,), split_seed=-1)}, r"data\.split_seed: found -1"),
        (
            {"steps": 1, "optimizer": OptimizerConfig(warmup_steps=1000)},
            r"optimizer: found warmup_steps=1000 in a run of 1 updates \(1 steps\).*needed at most 0",
        ),
        (
            {"steps": 40, "optimizer": OptimizerConfig(warmup_steps=10, accumulate=4)},
            r"warmup_steps=10 in a run of 10 updates \(40 steps\).*needed at most 9",
        ),
        (
            {"steps": 3, "optimizer": OptimizerConfig(accumulate=4)},
            "accumulate=4 in a run of 3 steps",
        ),
        ({"mixed_probes": True}, r"mixed_probes: true, but loss\.hessian: 0"),
        ({"monitor": "hessian_mae"}, r"monitor: hessian_mae, but loss\.hessian: 0"),
        ({"monitor": "frequencies_mae"}, r"monitor: frequencies_mae, but loss\.frequencies: 0"),
        (
            {"model": ModelConfig(architecture="mace", head="pbe")},
            r"model\.head: pbe with model\.architecture",
        ),
    ],
)
def test_what_does_not_fit_together_is_told_before_anything_starts(change, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(MADE).mkdir()
    Path(MADE, "dataset.json").touch()
    monkeypatch.setattr("jaxmlip.training.config._installed", lambda package: False)
    good = dataclasses.replace(EXAMPLE, data=DataConfig(train=(__file__,)))
    good.checked()
    with pytest.raises(ConfigError, match=named):
        dataclasses.replace(good, **change).checked()


@pytest.mark.parametrize(
    ("architecture", "given", "named"),
    [
        ("m3gnet", {"features": 0}, r"model\.hyperparameters\.features=0 \(needed .* from 1"),
        ("m3gnet", {"blocks": 0}, r"blocks=0 \(needed .* from 1"),
        ("m3gnet", {"bond_cutoff": -1}, r"bond_cutoff=-1\.0 \(needed"),
        ("m3gnet", {"angle_cutoff": 5.5}, r"angle_cutoff=5\.5 .*bond_cutoff=5\.0"),
        ("m3gnet", {"angular": 4}, "angular=4, needed 1, 2 or 3"),
        ("chgnet", {"angular": 4}, "angular=4, needed an odd number"),
        ("chgnet", {"readout": [8, 0]}, r"readout=\(8, 0\) \(needed .* from 1"),
        ("mace", {"harmonics_l": -1, "hidden_l": -1}, r"hidden_l=-1 \(needed .* from 0"),
        ("mace", {"blocks": ["agnostik", "residual"]}, "agnostik.*needed for each layer one of agnostic"),
        ("mace", {"blocks": ["density"]}, r"correlation=\(3, 3\), needed for each layer"),
        ("mace", {"average_neighbours": 0}, r"average_neighbours=0\.0 \(needed"),
    ],
)
def test_a_network_that_cannot_be_is_refused(architecture, given, named):
    assert hyperparameters(architecture, {}, elements=(14,))
    with pytest.raises(ConfigError, match=named):
        hyperparameters(architecture, given, elements=(14,))


def test_paths_are_made_absolute_and_names_of_models_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    assert EXAMPLE.absolute().data.train == (str(tmp_path / "crystals.extxyz"),)
    assert EXAMPLE.absolute().model.start == "chgnet-0.3.0"
    own = dataclasses.replace(EXAMPLE, model=ModelConfig(start="own"))
    assert own.absolute().model.start == str(tmp_path / "own")


@pytest.mark.parametrize("preset", PRESETS)
def test_flags_replace_what_a_preset_says(preset):
    flags = {"model.start": "m", "epochs": None, "batch_size": 7, "replay.data": ["r"]}
    config = finetune_config(preset, flags)
    assert (config.model.start, config.batch_size, config.replay.crystals) == ("m", 7, 7)
    assert config.epochs == PRESETS[preset]["epochs"]
    assert PRESETS[preset]["batch_size"] != 7
    changed = finetune_config(preset, {"optimizer.train": ["scale"]}, ["optimizer.clip=2", "epochs=3"])
    assert (changed.optimizer.train, changed.optimizer.clip, changed.epochs) == (("scale",), 2.0, 3)


def test_changes_are_named_by_key():
    other = dataclasses.replace(EXAMPLE, seed=3, loss=LossConfig(kind="mae"))
    assert changes(flat(EXAMPLE), flat(other)) == {"loss.kind": ("huber", "mae"), "seed": (0, 3)}


def test_what_to_leave_out_and_how_much_to_read_reaches_the_configuration(tmp_path, monkeypatch):
    from jaxmlip.cli import main, training

    seen = []
    monkeypatch.setattr(training, "_run", lambda config, out: seen.append(config))
    frames = str(tmp_path / "a.extxyz")
    Path(frames).touch()
    main(["finetune", "--data", frames, "--skip-bad", "--limit", "7", "--references", "isolated"])
    assert seen[0].data.skip_bad
    assert seen[0].data.options == {"limit": 7}
    assert seen[0].reference_energies == "isolated"
    (tmp_path / "c.yaml").write_text(to_yaml(seen[0]).replace("skip_bad: true", "skip_bad: false"))
    main(["train", str(tmp_path / "c.yaml")])
    main(["train", str(tmp_path / "c.yaml"), "--skip-bad"])
    assert [config.data.skip_bad for config in seen] == [True, False, True]
