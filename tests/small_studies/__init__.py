"""Every experiment on a small scale: its data, its settings, and what is particular about its folder.

`TABLE` has one entry for each experiment; tests/studies/test_contract.py proves of each what all have to do.
The small runs are made once for all tests (conftest's `ran`), so that an experiment's own file proves its
numbers on the same rows.
"""

import fcntl
import importlib
import inspect
import json
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pairs
import pytest
import quick_network

from experiments.training.networks import small
from jaxmlip.mechanics.elasticity import NotAtRestWarning
from jaxmlip.training.run import run_training
from small_studies import conductivity, softening, transfer


def nothing(patch: pytest.MonkeyPatch) -> None:
    """Replaces nothing."""


def stand_ins(*modules: str) -> Callable:
    def replaced(patch):
        for module in modules:
            patch.setattr(f"experiments.softening.{module}.load_models", softening.load_models)

    return replaced


def few_oxides(patch) -> None:
    stand_ins("solid_solutions")(patch)
    patch.setattr("experiments.softening.solid_solutions.CELLS", (2, 4))


def alike(patch) -> None:
    from conftest import share_programs

    share_programs(patch)
    quick_network.play(patch)
    patch.setattr("experiments.transfer.methods.small", tiny)
    for name in ("parity", "learning_curves"):
        patch.setattr(f"jaxmlip.training.run.{name}", lambda *_: None)


def run_all(runs, folder, processes=1) -> None:
    """The runs of a sweep in this process, since each other one would spend seconds on imports."""
    for run in runs:
        if not run.finished(folder):
            run_training(run.config, run.folder(folder))


def tiny_networks(patch) -> None:
    alike(patch)
    patch.setattr("experiments.transfer.scaling_law.run_all", run_all)
    patch.setattr("experiments.transfer.scaling_law.small", tiny)


def tiny_metal(patch) -> None:
    quick_network.play(patch)
    patch.setattr("experiments.training.from_scratch.small", tiny)


FEW = {"REPLAYED": ("mlearn/Cu.extxyz.gz",), "ELSEWHERE": ("mlearn/Ni.extxyz.gz",)}


def few_examples(patch) -> None:
    alike(patch)
    patch.setattr("experiments.training.hessian_columns.load_models", softening.load_models)
    for name, some in (FEW | {"TRAINED": ("NaCl",)}).items():
        patch.setattr(f"experiments.training.hessian_columns.{name}", some)


def few_metals(patch) -> None:
    for name, some in FEW.items():
        patch.setattr(f"experiments.learn_phonons.{name}", some)
    known = {"pairs": pairs.potential(alike=2**0.5)}
    patch.setattr(
        "experiments.learn_phonons.load_models",
        lambda names: known if set(names) == set(known) else softening.load_models(names),
    )


def tiny(architecture: str, width: int) -> dict[str, Any]:
    return transfer.TINY.get(architecture) or small(architecture, width)


@dataclass(frozen=True)
class Experiment:
    """One experiment, as the contract tests see it."""

    lay: Callable[..., dict]  # lays data into a folder and returns the settings of a small run
    mistake: tuple[dict, str]  # settings that make no sense, and what the message has to say
    # The file that is looked for first, where it is published, and settings besides; None: none is.
    missing: tuple[str, str, dict] | None = None
    goes_on: bool = False  # other data are used where those are missing
    other: dict = field(default_factory=dict)  # settings that a run may not go on with
    models: str | None = "model"  # the setting that names potentials
    small: Callable[[pytest.MonkeyPatch], None] = nothing  # what makes the experiment small
    times: tuple[str, ...] = ()  # entries of rows that say how long it took


MLEARN, MAML = "materialsvirtuallab/mlearn", "materialsvirtuallab/maml"
TABLE = {
    "softening.forces": Experiment(
        softening.forces,
        ({"frames": 0}, "found 0 frames"),
        ("mlearn", MLEARN, {}),
        other={"max_energy": 2.0},
        small=stand_ins("forces"),
    ),
    "softening.phonons": Experiment(
        softening.phonons,
        ({"displacement": -0.01}, r"--displacement -0\.01, needed a number above 0"),
        ("phonondb_PBE_103", "MPA2suite/k_SRME", {}),
        other={"displacement": 0.02},
    ),
    "learn_phonons": Experiment(
        softening.learn_phonons,
        ({"kinds": ("magic",)}, "'magic', needed some of one factor"),
        ("phonondb_PBE_103", "MPA2suite/k_SRME", {}),
        other={"waves": 2},
        small=few_metals,
    ),
    "softening.surfaces": Experiment(
        softening.surfaces,
        ({"materials": ("mlearn/Xx",)}, "found mlearn/Xx, needed names of data: mlearn/Li"),
        ("mlearn/Li.extxyz.gz", MLEARN, {}),
        other={"fmax": 2e3},
        small=stand_ins("surfaces"),
    ),
    "softening.defects": Experiment(
        softening.defects,
        ({"elements": ("Xx",)}, "found Xx, needed names of data: Li"),
        ("mlearn/Li.extxyz.gz", MLEARN, {}),
        other={"fmax": 2e3},
        small=stand_ins("defects"),
    ),
    "softening.solid_solutions": Experiment(
        softening.solid_solutions,
        ({"fmax": -1.0}, r"--fmax -1\.0, needed a number above 0"),
        ("maml_MoNbTaW/MoNb_SS.extxyz.gz", MAML, {"orderings": 0}),
        goes_on=True,
        other={"seed": 1},
        small=few_oxides,
    ),
    "softening.migration": Experiment(
        softening.migration,
        ({"hosts": ("NaCl",)}, "'NaCl', needed some of MgO"),
        ("emmet_testfiles", "materialsproject/emmet", {"hosts": ()}),
        goes_on=True,
        other={"images": 7},
        small=stand_ins("migration"),
    ),
    "softening.elastic": Experiment(
        softening.elastic,
        ({"every": 0}, "found every, batch or limit below 1"),
        (
            "matcalc_benchmark/mp-binary-pbe-elasticity-2025.1.json.gz",
            "materialsvirtuallab/matcalc",
            {},
        ),
        other={"steps": 299},
    ),
    "softening.force_constants": Experiment(
        softening.force_constants,
        ({"runs": ("Salt",)}, r"found the run .Salt., needed some of NaCl"),
        ("phonopy_examples_PBE/NaCl", "phonopy/phonopy", {}),
        other={"runs": ("NaCl", "NaCl")},
    ),
    "softening.anharmonicity": Experiment(
        softening.anharmonicity,
        ({"runs": ("Salt",)}, r"found the run .Salt., needed some of Si \(PBE\)"),
        ("phono3py_examples/Si-PBE", "phonopy/phono3py", {}),
        other={"runs": ("Si (PBE)", "Si (PBE)")},
    ),
    "softening.cure": Experiment(
        softening.cure,
        ({"methods": ("magic",)}, "'magic', needed some of least squares"),
        ("mlearn/Si.extxyz.gz", MLEARN, {}),
        other={"epochs": 2},
    ),
    "conductivity": Experiment(
        conductivity.conductivities,
        ({"methods": ("magic",)}, "'magic', needed some of displaced, exact"),
        ("phonondb_PBE_103", "MPA2suite/k_SRME", {}),
        other={"step": 0.02},
        small=conductivity.small,
        times=("seconds",),
    ),
    "transfer.energy_references": Experiment(
        transfer.energy_references,
        ({"set": (Path("nowhere"),)}, r"nowhere has no set\.json"),
        ("matcalc_elemental_refs_PBE_r2SCAN", "materialsvirtuallab/matcalc", {}),
        other={"energy_key": "corrected_total_energy"},
        models=None,
    ),
    "transfer.methods": Experiment(
        transfer.methods,
        ({"methods": ("magic",)}, "'magic', needed some of scratch, trainable"),
        other={"epochs": 3},
        models=None,
        small=alike,
        times=("crystals per second",),
    ),
    "transfer.scaling_law": Experiment(
        transfer.scaling_law,
        ({"architectures": ("transformer",)}, "'transformer', needed one of chgnet, m3gnet, mace"),
        other={"epochs": 2},
        models=None,
        small=tiny_networks,
    ),
    "transfer.teacher_set.make": Experiment(
        transfer.teacher_set,
        ({"element": ("Xy",)}, "--element Xy, needed a chemical symbol"),
        other={"seed": 1},
        models=None,  # its elements are those that all teachers know
        times=("seconds_of",),
    ),
    "training.from_scratch": Experiment(
        transfer.from_scratch,
        ({"models": ("transformer",)}, "'transformer', needed some of chgnet, m3gnet, mace"),
        ("maml_MoNbTaW/Mo_AIMD.extxyz.gz", MAML, {}),
        other={"epochs": 3},
        models=None,
        small=tiny_metal,
        times=("minutes",),
    ),
    "training.hessian_columns": Experiment(
        transfer.hessian_columns,
        ({"steps": 0}, "--steps 0, needed a number from 1 on"),
        ("phonopy_examples_PBE", "phonopy/phonopy", {}),
        other={"steps": 3},
        small=few_examples,
    ),
}


def module(name: str) -> Any:
    return importlib.import_module(f"experiments.{name}")


@contextmanager
def on_a_small_scale(name: str) -> Iterator[None]:
    """Stand-ins in place of models, and whatever else makes the experiment small."""
    with pytest.MonkeyPatch.context() as patch:
        TABLE[name].small(patch)
        yield


@contextmanager
def not_at_rest() -> Iterator[None]:
    """Crystals are not at rest in random networks, which is no surprise here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotAtRestWarning)
        yield


def go(name: str, settings: Any) -> None:
    """Runs the experiment as its command would."""
    with on_a_small_scale(name), not_at_rest():
        module(name).main(settings)


@dataclass(frozen=True)
class Ran:
    """A run that has come to its end."""

    name: str
    settings: Any

    @property
    def out(self) -> Path:
        return self.settings.out

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.out / "record.json").read_text())

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return self.record["rows"]

    @property
    def text(self) -> str:
        return (self.out / f"{self.record['experiment']}.md").read_text()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lets one process after the other work in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(name: str, root: Path, model: str | None = None) -> Ran:
    """The small run below `root`, made where it is not there: of the table's model, or of another network."""
    lay = TABLE[name].lay
    own = inspect.signature(lay).parameters.get("model")
    model = model or (own.default if own else "")
    folder = root / name / model
    with alone(folder), not_at_rest():
        kept = folder / "settings.pickle"
        if not kept.exists():
            given = lay(folder, model) if model else lay(folder)
            settings = module(name).Settings(**given, out=folder / "out")
            go(name, settings)
            kept.write_bytes(pickle.dumps(settings))
        return Ran(name, pickle.loads(kept.read_bytes()))
