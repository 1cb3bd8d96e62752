"""Potentials and crystals that the tests share.

Laws are proved on small networks with random parameters, so that they need no weights; parity is proved on
the public weights, fetched once, and skipped with the reason where they cannot be had.
"""

import functools
import gc
import os
import sys
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import workers

os.environ.update(workers.environment(os.environ))  # before JAX is imported, which reads it
# Arrays of different ranks or dtypes are mixed only where the code says so, as in JAX's own tests. In the
# environment, so that it holds in the processes that tests start, too.
os.environ.update(JAX_NUMPY_RANK_PROMOTION="raise", JAX_NUMPY_DTYPE_PROMOTION="strict")
# Experiments run from the checkout. At the end, so that an installed package is what is tested.
sys.path.append(str(Path(__file__).parents[1]))

import ase.io
import jax
import numpy as np
import pytest
import quick_network
import shared_shapes
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from crystals import triclinic

from jaxmlip.crystals import batching
from jaxmlip.models.chgnet import CHGNetConfig
from jaxmlip.models.m3gnet import M3GNetConfig
from jaxmlip.models.mace import MACEConfig
from jaxmlip.models.matgl_chgnet import MatglCHGNetConfig
from jaxmlip.models.mattersim import MatterSimConfig
from jaxmlip.potential import random_potential
from jaxmlip.system.programs import programs

# Traced programs are many small objects that live long; to look through them again and again costs a tenth.
gc.set_threshold(100_000, 50, 50)

CHGNET = {
    "features": 8,
    "radial": 5,
    "angular": 5,
    "bond_cutoff": 4.0,
    "angle_cutoff": 3.0,
}
M3GNET = {"features": 8, "hidden": 6, "radial": 2, "bond_cutoff": 4.0, "angle_cutoff": 3.0}
MACE = {"elements": tuple(range(1, 95)), "channels": 4, "cutoff": 4.0, "radial": 4, "readout": 4}
MODELS = {
    "chgnet-0.3": CHGNetConfig(**CHGNET, blocks=2, readout=(8, 8)),
    "chgnet-0.2": CHGNetConfig(**CHGNET, blocks=3, readout=(8,), envelope=5, norm=False, output_bias=True),
    "chgnet-options": CHGNetConfig(
        **CHGNET,
        blocks=3,
        envelope=6,
        readout=(6, 5),
        bond_features=6,
        angle_features=5,
        atom_hidden=(6, 7),
        bond_hidden=(),
        norms=("layer", "batch", "none"),
        activation="tanh",
        update_angles=False,
        gated_readout=True,
    ),
    "m3gnet-smooth": M3GNetConfig(**M3GNET, blocks=1),
    "m3gnet-spherical": M3GNetConfig(**M3GNET, blocks=2, smooth=False),
    "mattersim": MatterSimConfig(features=6, radial=2, blocks=2, bond_cutoff=4.0, angle_cutoff=3.0),
    "matgl-chgnet": MatglCHGNetConfig(
        features=6, radial=4, angular=2, blocks=2, bond_cutoff=4.0, angle_cutoff=3.0, readout=(6,)
    ),
    "mace-density": MACEConfig(**MACE, harmonics_l=2, radial_widths=(8, 8)),
    "mace-residual": MACEConfig(
        **MACE,
        hidden_l=2,
        correlation=(2, 3),
        blocks=("agnostic", "residual"),
        radial_widths=(8,),
        average_neighbours=30.0,
        agnesi=False,
        soft=True,
        repulsion=False,
        cutoff_on_basis=False,
    ),
    "mace-nonlinear": MACEConfig(
        **MACE,
        harmonics_l=1,
        correlation=(2, 2),
        blocks=("nonlinear-residual",) * 2,
        radial_widths=(4,),
        density_width=4,
        edge_channels=(2, 2),
        agnostic_product=True,
        agnesi=False,
        repulsion=False,
        cutoff_on_basis=False,
    ),
}
QUICK = "quick"  # for claims that no model makes truer: see quick_network
# For those that need a published architecture, or simple crystals that are stable.
SHORT, STABLE = "chgnet-short", 49
ONE_LAYER = "mace-one-layer"  # for derivatives whose program of two layers takes minutes to compile
FIRST = "chgnet-0.3"
KINDS = ("chgnet-0.3", "m3gnet-smooth", "mace-density")  # one of each architecture; MatterSim is an M3GNet


def small_potential(name: str, dtype: str = "float64"):
    """A potential whose parameters are all random, biases and reference energies included, constants not."""
    return _small_potential(name).astype(dtype)


@functools.cache  # to trace and compile the initialisation takes seconds
def _small_potential(name: str):
    if name == QUICK:
        config = quick_network.QuickConfig(bond_cutoff=4.0, angle_cutoff=3.0)
        potential = quick_network.potential(config, seed=7, name=name)
    else:
        mace = replace(MODELS["mace-density"], blocks=("density",), correlation=(2,))
        few = {SHORT: replace(MODELS[FIRST], blocks=1), ONE_LAYER: mace}
        config = few.get(name) or MODELS[name]
        potential = random_potential(config, seed=7, name=name)
    rng = np.random.default_rng(STABLE if name == SHORT else 7)
    trained = {key: potential.params[key] for key in ("network", "reference_energies")}
    params = jax.tree.map(lambda x: (x + 0.1 * rng.normal(size=x.shape)).astype(x.dtype), trained)
    return replace(potential, params=potential.params | params)


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="slow proofs too")
    parser.addoption(
        "--hostile", type=int, default=None, help="how many hostile files to try; default: 8, with --all 200"
    )


def pytest_configure(config):
    workers.set_flags(config)
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(workers.Durations(config))


def pytest_report_header(config):
    return workers.drop_kept_programs()


def pytest_xdist_auto_num_workers(config):
    return workers.number_of_workers(config)


def pytest_xdist_setupnodes(config, specs):
    if len(specs) > 1 and os.environ["XLA_FLAGS"] == workers.QUICK:
        specs[-1].env["XLA_FLAGS"] = ""


def pytest_xdist_make_scheduler(config, log):
    return workers.Groups(config, log)


def pytest_collection_modifyitems(config, items):
    """Leaves slow proofs out, unless they are asked for: by --all, by their file, or by -m or -k.

    So are laws of published architectures, whose values other tests prove: a law is of the library, and the
    quick network obeys it. Of `one_model`, which takes a fixture that others need for each, no other model
    ever runs.
    """
    of_others = [item for item in items if item.get_closest_marker("one_model") and of_a_model(item)]
    config.hook.pytest_deselected(items=of_others)
    items[:] = [item for item in items if item not in of_others]
    for item in items:
        if of_a_model(item):
            item.add_marker("slow")
    asked = config.option.all or config.option.markexpr or config.option.keyword
    if not asked and not workers.named_files(config):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def of_a_model(item) -> bool:
    """Whether a test is the law of all models, for one that is not the quick network."""
    given = item.callspec.params if getattr(item, "callspec", None) else {}
    return any(given.get(name, QUICK) != QUICK for name in ("potential", "architecture", "network"))


programs().share = 0.5  # a test maps few pieces, and to trace all that is dropped again takes long


@pytest.hookimpl(trylast=True)  # when the test's own replacements are gone
def pytest_runtest_teardown():
    """Drops compiled programs where a process maps too many: the library does so only where it is asked."""
    programs().make_room()


@pytest.fixture(scope="session", params=[QUICK, *MODELS])
def potential(request):
    """Each model in turn, and all of its tests before the next one's."""
    return small_potential(request.param)


@pytest.fixture(scope="session", params=[QUICK, *KINDS])
def architecture(request):
    """One model of each architecture, for laws whose proof takes long."""
    return small_potential(request.param)


@pytest.fixture(scope="session", params=[QUICK, *KINDS, "chgnet-options", "mattersim", "mace-nonlinear"])
def network(request):
    """The same and what else is new, for the laws of second and third order that all others follow from."""
    return small_potential(request.param)


@pytest.fixture(scope="session")
def any_potential():
    """For claims about the library, which no model makes truer."""
    return small_potential(QUICK)


@pytest.fixture(scope="session")
def short_potential():
    """A published architecture, for claims about files of a model and its parameters."""
    return small_potential(SHORT)


@pytest.fixture
def real_shapes(monkeypatch):
    """The shapes that users get, for claims about them."""
    monkeypatch.setattr(batching, "LADDER", shared_shapes.LADDER)
    monkeypatch.setattr(batching, "close", shared_shapes.close)


@pytest.fixture(scope="session")
def crystal() -> Atoms:
    """Five atoms in a triclinic cell narrower than the cutoff: images of one neighbour, and self images."""
    rng = np.random.default_rng(3)
    cell = np.array([[3.6, 0.3, 0.0], [-0.5, 4.1, 0.4], [0.6, 0.2, 4.4]])
    base = np.array([[0, 0, 0], [0.5, 0.5, 0.1], [0.5, 0.0, 0.5], [0.0, 0.5, 0.55], [0.45, 0.55, 0.6]])
    return Atoms("MgAlO2H", cell=cell, pbc=True, scaled_positions=base + 0.03 * rng.normal(size=(5, 3)))


@pytest.fixture(scope="session")
def cell() -> Atoms:
    """One for all derivatives of dynamical matrices, whose programs take long to compile."""
    return triclinic()


@pytest.fixture(scope="session")
def crystals(crystal) -> list[Atoms]:
    """Crystals of several sizes and densities, one of them without any bond."""
    salt = bulk("NaCl", "rocksalt", 5.64, cubic=True)
    salt.rattle(0.1, seed=2)
    return [crystal, bulk("Cu"), salt, Atoms("He", cell=[9, 9, 9], pbc=True), bulk("Si")]


def write_springs(folder: Path, number: int) -> None:
    """springs.extxyz: as many crystals of silicon, whose atoms springs of 1 eV/Å² bind to their sites."""
    rng = np.random.default_rng(0)
    for _ in range(number):
        atoms = bulk("Si")
        moved = 0.1 * rng.normal(size=atoms.positions.shape)
        atoms.positions += moved
        atoms.calc = SinglePointCalculator(atoms, energy=(moved**2).sum() / 2, forces=-moved)
        ase.io.write(folder / "springs.extxyz", atoms, append=True)


def public(name: str, dtype: str = "float64", head: str | None = None):
    """A public potential; the test is skipped, with the reason, where its weights cannot be had."""
    import jaxmlip
    from jaxmlip.zoo.download import FetchError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return jaxmlip.load(name, dtype, head)
    except FetchError as error:
        pytest.skip(f"the weights of {name} cannot be had: {error}")


@pytest.fixture(scope="session")
def ran(tmp_path_factory):
    """The small run of an experiment, by its name and, where wanted, a network's; one for all processes."""
    from small_studies import run

    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return cache(lambda name, model=None: run(name, root / "small-studies", model))


@pytest.fixture(scope="module")
def quick():
    """Configurations that name M3GNet get a network that compiles in a second."""
    with quick_network.played():
        yield


SHARED_PROGRAMS: dict = {}  # of training runs in this process


@pytest.fixture(scope="module")
def shared_programs():
    """Training runs that differ in parameters alone share their programs."""
    with pytest.MonkeyPatch.context() as patch:
        share_programs(patch)
        yield


@pytest.fixture
def runs_alike(monkeypatch):
    """The same for one test, and no run draws figures."""
    share_programs(monkeypatch)
    for name in ("parity", "learning_curves"):
        monkeypatch.setattr(f"jaxmlip.training.run.{name}", lambda *_: None)


def share_programs(monkeypatch) -> None:
    from jaxmlip.training.step import Needs, make_eval_step, make_train_step

    def shared(make):
        def made(potential, *settings):
            own, double = make(potential, *settings), potential.dtype == "float64"
            program = SHARED_PROGRAMS.setdefault((make, potential.model, *settings), own.jitted)

            def call(state, batch):
                with jax.enable_x64(double):
                    return program(*own.arguments(state, batch))

            call.needs = lambda state, batch: Needs(0, 0, 0.0)
            return call

        return made

    monkeypatch.setattr("jaxmlip.training.loop.make_train_step", shared(make_train_step))
    monkeypatch.setattr("jaxmlip.training.loop.make_eval_step", shared(make_eval_step))
