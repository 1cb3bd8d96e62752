"""The configuration of a training run: dataclasses, and the YAML file that holds them."""

from __future__ import annotations

import ast
import copy
import dataclasses
import difflib
import glob
import inspect
import io
import math
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import yaml

from jaxmlip.data.labels import PROPERTIES, functional_name
from jaxmlip.models import limits
from jaxmlip.system.borders import shallow
from jaxmlip.training.losses import LossConfig
from jaxmlip.training.optimizer import OptimizerConfig

LARGEST = 1 << 20  # bytes of a configuration
SEEDS = 1 << 32  # the number of different seeds in JAX
Scalar = bool | int | float | str | None
LEAST = {  # the smallest allowed values of numbers in a configuration
    "epochs": 1,
    "steps": 1,
    "batch_size": 1,
    "waves": 1,
    "devices": 1,
    "data.crystals": 1,
    "replay.crystals": 0,
    "validate_every": 1,
    "patience": 1,
    "checkpoint_every": 1,
    "keep": 1,
    "report_every": 1,
}
MONITORED = ("loss", *(f"{p}_{kind}" for p in PROPERTIES for kind in ("mae", "rmse")))


class ConfigError(ValueError):
    """A configuration cannot be used. The message gives the key, what was found and what was needed."""


@dataclass(frozen=True)
class ModelConfig:
    """The potential that training begins with: a known one, or an architecture with random parameters."""

    start: str | None = None  # a name that `jaxmlip models` lists, a model folder or a torch checkpoint
    head: str | None = None  # the head to take, if start is a checkpoint with several
    architecture: Literal["chgnet", "m3gnet", "mace", "mattersim", "matgl-chgnet"] | None = (
        None  # with random parameters, instead of start
    )
    # Changes of the architecture's defaults, such as {features: 32}. The elements of mace are those of the
    # training data.
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    # Two or more, such as [PBE, r2SCAN], to train on crystals of all of these at once: each functional has
    # its own parameters for every element, the rest is shared. `jaxmlip export --functional` makes a
    # potential of one.
    functionals: tuple[str, ...] = ()
    name: str | None = None  # of the trained potential; default: the name of the run's folder

    def check(self) -> None:
        """Raises ConfigError if the values do not fit together."""
        if (self.start is None) == (self.architecture is None):
            raise ConfigError(
                f"found model.start: {self.start} and model.architecture: {self.architecture}, needed "
                "exactly one: a potential to start from, or an architecture with random parameters."
            )
        if self.architecture is not None and self.head is not None:
            raise ConfigError(
                f"found model.head: {self.head} with model.architecture, needed model.start: only "
                "checkpoints have heads. Leave it out."
            )
        if self.hyperparameters and self.architecture is None:
            raise ConfigError(
                "found model.hyperparameters with model.start, which has its own; leave them out."
            )
        if self.architecture is not None:
            hyperparameters(self.architecture, self.hyperparameters, elements=(1,))
        names = [functional_name(name) for name in self.functionals]
        if names and (len(set(names)) < max(2, len(names)) or not all(names)):
            raise ConfigError(
                f"model.functionals: found {names}, needed two or more different names, or none."
            )


@dataclass(frozen=True)
class DataConfig:
    """Labelled crystals: files that `jaxmlip data` reads, or the folder of a dataset that it wrote.

    Paths are relative to the folder that the command is started in.
    """

    train: tuple[str, ...] = ()  # files, folders or patterns of them, or one dataset with its splits
    validation: tuple[str, ...] = ()  # likewise; default: a part of train
    test: tuple[str, ...] = ()  # likewise; default: a part of train
    # The parts of the files in train that are for training, validation and test. If validation or test are
    # given, their part is used for training.
    fractions: tuple[float, float, float] = (0.9, 0.05, 0.05)
    split_by: Literal["material", "crystal"] = "material"  # material: crystals of one stay together
    split_seed: int = 0
    # Train on so many of the crystals, drawn by split_seed: a smaller number takes some of a larger one's.
    # Default: all.
    crystals: int | None = None
    functional: str | None = None  # take crystals of this functional alone; default: all must be of one
    format: str | None = None  # of the files; default: guessed from their names and contents
    # Options for reading files, such as {forces_key: dft_forces}, or {limit: 100} to read so many crystals.
    options: dict[str, Any] = field(default_factory=dict)
    skip_bad: bool = False  # leave out crystals that cannot be used, and the rest of broken files
    skip_corrupt: bool = False  # leave out damaged records of a dataset, instead of stopping

    def check(self) -> None:
        """Raises ConfigError for impossible fractions and for missing files."""
        parts = self.fractions
        if min(parts) < 0 or not math.isclose(sum(parts), 1, abs_tol=1e-6) or parts[0] == 0:
            raise ConfigError(
                f"data.fractions: found {list(parts)}, needed three numbers, none negative and the first "
                "positive, that add up to 1."
            )
        for name in ("train", "validation", "test"):
            if (paths := getattr(self, name)) or name == "train":
                check_paths(f"data.{name}", paths)


@dataclass(frozen=True)
class ReplayConfig:
    """A second data set with crystals in every batch, so that the model keeps what it had learnt."""

    data: tuple[str, ...] = ()  # files, or one dataset, whose training split is used
    crystals: int = 0  # of this data in each batch, in addition to batch_size

    def check(self) -> None:
        """Raises ConfigError if only one of the two is given, or files are missing."""
        if bool(self.data) != bool(self.crystals):
            raise ConfigError(
                f"found replay.data: {list(self.data)} and replay.crystals: {self.crystals}, needed both or "
                "neither."
            )
        if self.data:
            check_paths("replay.data", self.data)


@dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    # keep: those of the model; refit: least squares on the training data; isolated: energies of the isolated
    # atoms in the training files (config_type=IsolatedAtom, or one atom alone). They stay fixed unless
    # optimizer.train has "references". Default: keep with model.start, refit with model.architecture.
    reference_energies: Literal["keep", "refit", "isolated"] | None = None
    epochs: int = 100  # how often to go through the training data
    steps: int | None = None  # number of batches to train on; default: epochs decides
    batch_size: int = 32  # crystals of a batch, over all devices
    dtype: Literal["float32", "float64"] = "float32"
    seed: int = 0  # for random parameters, the order of the data, and the choice of Hessian columns
    mixed_probes: bool = False  # train on random mixtures of Hessian columns instead of single ones
    waves: int = 4  # wave vectors drawn in each step for each crystal with frequencies
    validate_every: int | None = None  # in steps; default: an epoch. First and last step are validated, too
    # The validation error that is smallest at the best step: loss, energy_mae, forces_mae, ...
    monitor: Literal[MONITORED] = "loss"
    patience: int | None = None  # stop after so many validations without improvement; default: never
    checkpoint_every: int = 1000  # in steps; the best, the last and an interrupted step are always saved
    keep: int = 3  # number of checkpoints to keep
    report_every: int = 50  # in steps; metrics are averaged over these
    devices: int | None = None  # number of devices to train on; default: all
    final: Literal["best", "last"] = "best"  # the step that becomes the trained model
    tensorboard: bool = True
    wandb: bool = False  # log to Weights & Biases, too; needs the package wandb

    def checked(self) -> TrainConfig:
        """This configuration, after a check that its values fit together. Raises ConfigError, naming the key.

        Files are not read: only their existence is checked, so that mistakes are reported at once.
        """
        self.model.check()
        if self.model.functionals and self.data.functional is not None:
            raise ConfigError(
                f"found model.functionals: {list(self.model.functionals)} and data.functional: "
                f"{self.data.functional}, needed at most one of them: the first trains on crystals of "
                "several functionals, the second on those of one."
            )
        self.check_numbers()
        self.data.check()
        self.replay.check()
        self._check_reading()
        if self.wandb and not _installed("wandb"):
            raise ConfigError(
                "wandb: true needs the package wandb, which is not installed. Install it with pip install "
                "wandb, or leave it out: metrics.jsonl and TensorBoard have the same numbers."
            )
        return self

    def _check_reading(self) -> None:
        """Raises ConfigError if there are options for reading files, but only datasets."""
        from jaxmlip.data.dataset import is_dataset

        d = self.data
        options = {"data.format": d.format, "data.options": d.options}
        given = [f"{key}: {value}" for key, value in options.items() if value]
        if given and all(is_dataset(p) for p in (d.train, d.validation, d.test, self.replay.data) if p):
            raise ConfigError(
                f"found {' and '.join(given)} with the dataset {d.train[0]}, whose labels are already read; "
                "leave it out, or give it to `jaxmlip data convert`."
            )

    def check_numbers(self) -> None:
        """Raises ConfigError for numbers that make no sense, alone or together."""
        for key, least in LEAST.items():
            value = attrgetter(key)(self)
            if value is not None and not value >= least:
                raise ConfigError(f"{key}: found {value}, needed {least} or more.")
        for key, seed in (("seed", self.seed), ("data.split_seed", self.data.split_seed)):
            if not 0 <= seed < SEEDS:
                raise ConfigError(f"{key}: found {seed}, needed 0 to {SEEDS - 1}.")
        if self.steps is not None:  # else the number of steps is known only with the data
            self.check_steps(self.steps)
        if not self.loss.hessian and (self.mixed_probes or self.monitor.startswith("hessian")):
            found = "mixed_probes: true" if self.mixed_probes else f"monitor: {self.monitor}"
            raise ConfigError(
                f"found {found}, but loss.hessian: 0 computes no Hessian columns; needed a weight above 0."
            )
        for name in ("frequencies", "averages", "third"):
            if not getattr(self.loss, name) and self.monitor.startswith(name):
                raise ConfigError(
                    f"found monitor: {self.monitor}, but loss.{name}: 0 computes no {name}; needed a weight "
                    "above 0."
                )

    def check_steps(self, steps: int) -> None:
        """Raises ConfigError if the optimizer's numbers make no sense in a run of `steps` batches."""
        try:
            self.optimizer.updates(steps)
        except ValueError as error:
            raise ConfigError(f"optimizer: {error}") from None

    def absolute(self) -> TrainConfig:
        """This configuration with absolute paths, for a file that is later read from another folder."""

        def whole(paths: Sequence[str]) -> tuple[str, ...]:
            return tuple(str(Path(p).absolute()) for p in paths)

        d, start = self.data, self.model.start
        if start is not None and Path(start).exists():
            start = str(Path(start).absolute())
        return replace(
            self,
            model=replace(self.model, start=start),
            data=replace(d, train=whole(d.train), validation=whole(d.validation), test=whole(d.test)),
            replay=replace(self.replay, data=whole(self.replay.data)),
        )


PRESETS: dict[str, dict[str, Any]] = {
    # Deng et al., npj Comput. Mater. 11, 9 (2025), Methods, which do not state the batch size.
    "few": {
        "loss": {"kind": "mse", "energy": 0.1, "forces": 100.0, "stress": 0.1, "magmoms": 0.0},
        "optimizer": {"name": "adam", "learning_rate": 1e-3, "final_learning_rate": 1e-5},
        "data": {"fractions": [0.9, 0.1, 0.0], "split_by": "crystal"},
        "monitor": "forces_mae",
        "epochs": 100,
        "batch_size": 4,
    },
    # Huang et al., npj Comput. Mater. 11, 313 (2025), Methods.
    "transfer": {
        "loss": {"kind": "huber", "delta": 0.1, "energy": 3.0, "forces": 1.0, "stress": 0.1, "magmoms": 1.0},
        "optimizer": {"name": "adam", "learning_rate": 1e-3, "final_learning_rate": 1e-5},
        "data": {"fractions": [0.8, 0.1, 0.1], "split_by": "material"},
        "reference_energies": "refit",
        "epochs": 50,
        "batch_size": 64,
    },
    # Frequencies of phonons, and of crystals to replay the labels that the potential was trained on.
    "phonons": {
        "loss": {
            "kind": "huber",
            "delta": 0.1,
            "energy": 1.0,
            "forces": 1.0,
            "stress": 0.1,
            "magmoms": 0.1,
            "frequencies": 1.0,
            "averages": 1.0,
        },
        "optimizer": {"name": "adam", "learning_rate": 1e-4, "final_learning_rate": 1e-6},
        "data": {"fractions": [0.9, 0.1, 0.0], "split_by": "material"},
        "epochs": 50,
        "batch_size": 4,
    },
}


EXAMPLE = TrainConfig(model=ModelConfig(start="chgnet-0.3.0"), data=DataConfig(train=("crystals.extxyz",)))


def reader_options(given: Sequence[str]) -> dict[str, Any]:
    """Options for a reader, such as ["forces_key=dft_forces"]. Raises ConfigError."""
    return _changed({}, given)


def check_paths(key: str, paths: Sequence[str]) -> None:
    """Raises ConfigError, naming `key`, if no path is given or one does not exist."""
    if not paths:
        raise ConfigError(
            f"{key}: found nothing, needed files of labelled crystals or the folder of a dataset."
        )
    for path in paths:
        if not Path(path).exists() and not glob.glob(path):
            raise ConfigError(
                f"{key}: {path} does not exist (relative to {Path.cwd()}); needed a file of labelled "
                "crystals or a folder that `jaxmlip data convert` wrote."
            )


def finetune_config(preset: str, flags: Mapping[str, Any], changes: Sequence[str] = ()) -> TrainConfig:
    """A preset with other values for some keys, such as {"optimizer.clip": 10}; None keeps the preset's.

    Raises ConfigError as `read_config` does.
    """
    values = copy.deepcopy(PRESETS[preset])
    for key, value in flags.items():
        if value is not None:
            _set(values, key, value)
    if flags.get("replay.data") and flags.get("replay.crystals") is None:
        _set(values, "replay.crystals", values["batch_size"])
    return _made(TrainConfig, _changed(values, changes), "")


def hyperparameters(architecture: str, given: Mapping[str, Any], elements: tuple[int, ...]) -> Any:
    """The configuration of a network; `elements` (atomic numbers) count if its parameters depend on them.

    Raises ConfigError for unknown names, wrong types, and values that make no sense.
    """
    from jaxmlip.potential import ARCHITECTURES

    kind = ARCHITECTURES[architecture][1]
    needed = next(f for f in dataclasses.fields(kind) if f.name == "elements")
    listed = needed.default is dataclasses.MISSING
    made = _made(
        kind, {"elements": list(elements)} | dict(given) if listed else given, "model.hyperparameters"
    )
    limits.check(made, {name: f"model.hyperparameters.{name}" for name in vars(made)}, ConfigError)
    return made


def read_config(path: str | Path, changes: Sequence[str] = ()) -> TrainConfig:
    """The configuration in a YAML file; `changes`, such as "optimizer.clip=10", replace its values.

    Raises ConfigError if it is not YAML, has unknown keys or a value of a wrong type.
    """
    found = _changed(read_mapping(path, "`jaxmlip train --example`"), changes)
    try:
        return from_mapping(found)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_mapping(path: str | Path, example: str) -> dict[str, Any]:
    """The keys and values in a YAML file; `example` is the command that prints such a file.

    Raises ConfigError if it is not YAML, or holds no keys with values.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(
            f"{path} is not a file; needed a configuration. {example} prints an example."
        ) from None
    if len(raw) > LARGEST:
        raise ConfigError(f"{path} has {len(raw)} bytes; needed a configuration, not data.")
    try:
        return _mapping(raw.decode(), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8 ({error}).") from None


def from_mapping(found: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> TrainConfig:
    """The configuration of nested keys, with `changes` such as {"optimizer.clip": 10}. Raises ConfigError."""
    values = copy.deepcopy(dict(found))
    for key, value in (changes or {}).items():
        _set(values, key, value)
    return _made(TrainConfig, values, "")


def from_yaml(text: str) -> TrainConfig:
    """The configuration that `to_yaml` wrote. Raises ConfigError as `read_config` does."""
    return _made(TrainConfig, _mapping(text, "the configuration"), "")


def to_yaml(config: TrainConfig, described: bool = True) -> str:
    """`config` as YAML; with `described`, comments say what each key means."""
    return "\n".join(_lines(config, described, 0)) + "\n"


def flat(config: Any, section: str = "") -> dict[str, Any]:
    """All values of a configuration by key, such as optimizer.clip."""
    found: dict[str, Any] = {}
    for its in dataclasses.fields(config):
        value, key = getattr(config, its.name), f"{section}{its.name}"
        found |= flat(value, f"{key}.") if dataclasses.is_dataclass(value) else {key: value}
    return found


def descriptions(kind: type) -> dict[str, str]:
    """The comments beside or above the fields of a dataclass, by field."""
    source = textwrap.dedent(inspect.getsource(kind))
    comments = {
        token.start[0]: (token.string.lstrip("# "), token.start[1])
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for node in ast.parse(source).body[0].body:
        if not isinstance(node, ast.AnnAssign):
            continue
        if node.end_lineno in comments:
            found[node.target.id] = comments[node.end_lineno][0]
            continue
        above, line = [], node.lineno - 1
        while line in comments and comments[line][1] == node.col_offset:
            above.insert(0, comments[line][0])
            line -= 1
        found[node.target.id] = " ".join(above)
    return found


def _lines(config: Any, described: bool, depth: int) -> Iterator[str]:
    told, indent = descriptions(type(config)) if described else {}, "  " * depth
    for its in dataclasses.fields(config):
        value = getattr(config, its.name)
        section = dataclasses.is_dataclass(value)
        words = (inspect.getdoc(type(value)) or "") if section and described else told.get(its.name, "")
        for paragraph in words.split("\n\n"):
            yield from (f"{indent}# {line}" for line in textwrap.wrap(paragraph, 96 - len(indent)))
        if section:
            yield f"{indent}{its.name}:"
            yield from _lines(value, described, depth + 1)
        else:
            odd = "\\" in repr(value)  # line breaks and the like must be escaped, in double quotes
            dumped = yaml.safe_dump(
                {its.name: _plain(value)},
                default_flow_style=None if isinstance(value, tuple | dict) else False,
                default_style='"' if odd else None,
                allow_unicode=not odd,
                width=math.inf,
            )
            yield from (indent + line for line in dumped.rstrip("\n").split("\n"))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _changed(values: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"found the change {change!r}, needed KEY=VALUE, such as seed=1.")
        _set(values, key, _yaml(value, change))
    return values


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise ConfigError(f"{key}: {section} has no keys.")
    values[last] = value


class _Once(yaml.SafeLoader):
    """Refuses duplicate keys: YAML would silently take the last."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in keys:
                line = key.start_mark.line + 1
                raise ConfigError(f"line {line}: {name} is there a second time; keep one.")
            keys.add(name)
        return super().construct_mapping(node, deep)


def _yaml(text: str, where: str) -> Any:
    try:
        with shallow():
            return yaml.load(text, _Once)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{where} is nested too deeply.") from None
    except ConfigError as error:
        raise ConfigError(f"{where}, {error}") from None
    except ValueError as error:  # such as 2024-99-99, which looks like a date
        raise ConfigError(f"{where} has a value that YAML cannot read: {error}.") from None


def _mapping(text: str, where: str) -> dict[str, Any]:
    found = _yaml(text, where)
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: found {_shown(found)}, needed keys with values, such as `epochs: 10`.")
    return found


def _made(kind: Any, value: Any, key: str) -> Any:
    """`value`, as YAML gives it, converted to the type `kind`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _made_dataclass(kind, value, key)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        others = [a for a in arguments if a is not type(None)]
        if len(others) == 1:
            return _made(others[0], value, key)
    elif origin is Literal:
        if any(value == a and type(value) is type(a) for a in arguments):
            return value
        near = difflib.get_close_matches(str(value), map(str, arguments), 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ConfigError(f"{key}: found {_shown(value)}, needed {_needed(kind)}{hint}")
    elif origin is tuple:
        if isinstance(value, str) and arguments == (str, ...):
            value = [value]
        if isinstance(value, list):
            of_each = arguments[:1] * len(value) if arguments[-1] is ... else arguments
            if len(of_each) == len(value):
                pairs = zip(of_each, value, strict=True)
                return tuple(_made(a, part, f"{key}[{k}]") for k, (a, part) in enumerate(pairs))
    elif origin is dict:
        if isinstance(value, dict) and all(isinstance(k, str) for k in value):
            for name, part in value.items():
                simple = all(isinstance(p, Scalar) for p in (part if isinstance(part, list) else [part]))
                if not simple:
                    raise ConfigError(
                        f"{key}.{name}: found {_shown(part)}, needed a value or a list of them."
                    )
            return value
    elif kind is float:
        try:
            # YAML reads 1e-3 as text, since it has no point.
            number = float(value) if isinstance(value, int | float | str) and value is not True else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if not isinstance(value, bool) and math.isfinite(number):
            return number
    elif type(value) is kind:
        return value
    hint = f". Put it in quotes: '{value}'." if kind is str and isinstance(value, int | float) else "."
    raise ConfigError(f"{key}: found {_shown(value)}, needed {_needed(kind)}{hint}")


def _made_dataclass(kind: Any, value: Any, key: str) -> Any:
    if value is None:  # a section whose keys are all commented out
        value = {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}: found {_shown(value)}, needed keys with values.")
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    for name in value:
        if name not in names:
            raise ConfigError(f"{key + '.' if key else ''}{name} is no key{_nearest(str(name), names, key)}")
    below = f"{key}." if key else ""
    made = {name: _made(hints[name], part, below + name) for name, part in value.items()}
    try:
        return kind(**made)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None


def _nearest(name: str, names: list[str], key: str) -> str:
    near = difflib.get_close_matches(name, names, 3)
    if not near and not key:
        near = [k for k in flat(TrainConfig()) if k.rpartition(".")[2] == name]
    return f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(names)}."


def _needed(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_needed(a) for a in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments)) if len(arguments) > 1 else str(arguments[0])
    if origin is tuple:
        many = "a list" if arguments[-1] is ... else f"a list of {len(arguments)}"
        return f"{many}, each {_needed(arguments[0])}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return words.get(kind, "null" if kind is type(None) else "keys with values")


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = repr(value)
    return f"{text[:60]}{'…' if len(text) > 60 else ''} ({type(value).__name__})"


def _installed(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None
