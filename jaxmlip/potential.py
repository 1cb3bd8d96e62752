"""A potential: a network, its parameters, reference energies, and where they come from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypedDict

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jaxmlip.crystals import batches, batching
from jaxmlip.crystals.graph import CrystalGraph, Cutoffs, from_atoms, has_stress, numbered, sum_over_crystals
from jaxmlip.derivatives.gradients import with_derivatives
from jaxmlip.models import limits
from jaxmlip.models.chgnet import CHGNet, CHGNetConfig
from jaxmlip.models.limits import fault_of
from jaxmlip.models.m3gnet import M3GNet, M3GNetConfig
from jaxmlip.models.mace import MACE, MACEConfig
from jaxmlip.system.borders import RefusedError, brief, cut, guard, listed, printable
from jaxmlip.system.files import writing_folder
from jaxmlip.system.programs import programs
from jaxmlip.system.progress import track

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

FORMAT = 1  # of the folder that `save` writes; another number is another layout
ARCHITECTURES: dict[str, tuple[type[nn.Module], type]] = {
    "chgnet": (CHGNet, CHGNetConfig),
    "m3gnet": (M3GNet, M3GNetConfig),
    "mace": (MACE, MACEConfig),
}
LARGEST_MANIFEST = 10_000_000  # bytes; that of a published model has some thousands
LONGEST_LABEL = 200  # characters of the name of a model


class Prediction(TypedDict, total=False):
    """What `Potential.predict` returns, as NumPy arrays in the precision of the potential."""

    energy: float  # eV
    forces: np.ndarray  # (atoms, 3), eV/Å
    # (3, 3), eV/Å³, positive in tension as in ASE. Of a slab or a wire: along the directions in which it
    # repeats, per volume of the box as given, zero along the others; none for a molecule or a box without
    # height.
    stress: np.ndarray
    site_energies: np.ndarray  # (atoms,), eV; they add up to the energy
    magmoms: np.ndarray  # (atoms,), μB; only where the model has them


@dataclass(frozen=True)
class Energy:
    """`energy(params, graph)` -> eV per crystal, for one architecture.

    Equal architectures compare equal, so that potentials that differ in their parameters alone share
    compiled programs.
    """

    model: nn.Module

    def __call__(self, params: Any, graph: CrystalGraph) -> jax.Array:
        return self.with_sites(params, graph)[0]

    def with_sites(self, params: Any, graph: CrystalGraph) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The energies, and the quantities of each atom: site_energies (eV) and what else the model gives."""
        variables = {"params": params["network"], "constants": params.get("constants", {})}
        sites = self.model.apply(variables, graph)
        reference = params["reference_energies"][graph.species]
        total = params.get("scale", 1.0) * sites["site_energies"] + jnp.where(graph.is_atom, reference, 0.0)
        return sum_over_crystals(total, graph), {**sites, "site_energies": total}


@partial(jax.jit, static_argnames="energy")
def _predict(energy: Energy, params: Any, graph: CrystalGraph):
    e, forces, stress, sites = with_derivatives(partial(energy.with_sites, params), graph)
    return e, stress, {"forces": forces, **sites}


class ManifestError(RefusedError):
    """A model folder that cannot be used: what was found, what was needed, what to do."""


@dataclass(frozen=True, eq=False)
class Potential:
    """A potential energy surface E(positions, species, cell), with everything that is needed to use it.

    Make one with `jaxmlip.load`. `predict` gives energies, forces, stresses and magnetic moments;
    `jaxmlip.hessian` and its relatives take it as it is; `energy` is the bare function of a graph.
    """

    name: str
    model: nn.Module
    # {"network": …, "reference_energies": by atomic number, "constants": what training leaves alone, if any,
    # "scale": a number that multiplies what the network gives, if it is not 1},
    # in NumPy and the precision in which they were published.
    params: Any
    elements: tuple[
        int, ...
    ]  # atomic numbers that the potential was fitted to; species, of several functionals
    manifest: dict[str, Any]
    dtype: str = "float32"

    def __post_init__(self):
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"found dtype={self.dtype!r}, needed 'float32' or 'float64'.")

    @property
    def cutoffs(self) -> Cutoffs:
        """How far the model looks (Å)."""
        return self.model.cutoffs

    @property
    def functionals(self) -> tuple[str, ...]:
        """Of a potential that `jaxmlip.training.fidelities.join` made; no other names them."""
        return tuple(map(str, self.manifest.get("functionals", ())))

    @property
    def energy_fn(self) -> Energy:
        """The pure function (params, graph) -> eV per crystal."""
        return Energy(self.model)

    def energy(self, graph: CrystalGraph) -> jax.Array:
        """eV of each crystal of `graph`. In float64 call it within `precision()`."""
        return self.energy_fn(self.arrays, graph)

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        """The scope in which JAX computes as this potential's dtype asks, also on accelerators.

        On entering it, compiled programs are dropped where a process can hold no more of them.
        """
        programs().make_room()
        with self._as_dtype():
            yield

    @contextlib.contextmanager
    def _as_dtype(self) -> Iterator[None]:
        with jax.enable_x64(self.dtype == "float64"), jax.default_matmul_precision("highest"):
            yield

    @cached_property
    def arrays(self) -> Any:
        """The parameters on the device, in the precision of the potential."""
        # Kept beyond the call, so never as a tracer of a function that asks first.
        with self._as_dtype(), jax.ensure_compile_time_eval():
            return jax.tree.map(lambda x: jnp.asarray(x, self.dtype), self.params)

    @property
    def parameter_count(self) -> int:
        """The number of parameters, reference energies included."""
        return sum(x.size for x in jax.tree.leaves(self.params))

    def astype(self, dtype: str) -> Potential:
        """The same potential, computing in float32 or float64."""
        return replace(self, dtype=dtype)

    def graph(self, crystal: Atoms | Structure) -> CrystalGraph:
        """The graph of `crystal` in NumPy, without padding. Raises ValueError as `from_atoms` does."""
        return from_atoms(crystal, self)

    def graphs(self, crystals: Iterable[Atoms | Structure]) -> list[CrystalGraph]:
        """The graphs of many crystals. Raises as `graph` does, with the number of the crystal, from 0 on."""
        found = []
        for k, crystal in enumerate(track(crystals, "neighbours")):
            with numbered(k):
                found.append(self.graph(crystal))
        return found

    def predict(self, crystals: Atoms | Structure | Iterable[Atoms | Structure]):
        """Energy, forces, stress, site energies and magnetic moments, as a `Prediction` (a dictionary).

        For a list of crystals, or another iterable of them, a list in the same order: they are computed in
        batches, with a progress bar on a terminal. Raises ValueError, as `graphs` does, before anything is
        computed.
        """
        if not isinstance(crystals, Iterable) or _is_structure(crystals):
            graph = self.graph(crystals)
            return self.predict_graphs([graph], batching.capacity([graph]))[0]
        return batches.predicted(self, self.graphs(crystals))

    def predict_graphs(self, graphs: Sequence[CrystalGraph], room: batching.Capacity) -> list[Prediction]:
        """`Prediction`s for graphs computed as one batch of the given capacity."""
        packed = batching.pack(graphs, room, np.dtype(self.dtype))
        with self.precision():
            e, stress, per_atom = jax.device_get(_predict(self.energy_fn, self.arrays, packed))
        split = {name: batching.split_atoms(x, graphs) for name, x in per_atom.items()}
        return [
            Prediction(
                energy=float(e[c]),
                **({"stress": stress[c]} if has_stress(graph) else {}),
                **{name: parts[c] for name, parts in split.items()},
            )
            for c, graph in enumerate(graphs)
        ]

    def save(self, folder: str | Path) -> None:
        """Writes model.safetensors and manifest.json into `folder`, for `load`: both, or none of them.

        Raises OSError where they cannot be written; what was there then stays.
        """
        flat = flax.traverse_util.flatten_dict(self.params, sep="/")
        tensors = {name: np.asarray(x, order="C") for name, x in flat.items()}
        raw = safetensors.numpy.save(tensors)
        manifest = {
            **{key: value for key, value in self.manifest.items() if key != "checksum"},
            "format": FORMAT,
            "name": printable(cut(self.name, LONGEST_LABEL)),
            "architecture": architecture_of(self.model),
            "hyperparameters": asdict(self.model.config),
            "elements": list(self.elements),
            "parameters": self.parameter_count,
            "sha256": hashlib.sha256(raw).hexdigest(),
        }
        manifest["checksum"] = _checksum(manifest)
        with writing_folder(folder, last="manifest.json") as draft:
            (draft / "model.safetensors").write_bytes(raw)
            (draft / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")

    @classmethod
    def from_folder(cls, folder: str | Path, dtype: str = "float32") -> Potential:
        """The potential that `save` wrote into `folder`.

        Raises ManifestError where a file is missing, damaged, of another layout, or does not fill the model,
        or where its numbers are none that a model has; warns where a file is not as it was written.
        """
        potential, changed = read_folder(Path(folder))
        if changed:
            warnings.warn(changed, stacklevel=2)
        return replace(potential, dtype=dtype)


def read_folder(folder: Path) -> tuple[Potential, str]:
    """The potential that `Potential.save` wrote into `folder`, and which of its files was changed, if any.

    Raises ManifestError as `Potential.from_folder` does.
    """
    with guard(folder, ManifestError, "Convert the source again."):
        manifest = _read_manifest(folder)
        model = _make_model(manifest)
        name = manifest.get("name", folder.name)
        if not isinstance(name, str) or not name.isprintable() or len(name) > LONGEST_LABEL:
            raise ManifestError(f"manifest.json has name={brief(name)}, needed a line of text.")
        raw, tensors = _read_tensors(folder)
        _check_tensors(tensors, model)
        changed = ""
        # Manifests of earlier versions have no checksum.
        if manifest.get("checksum", _checksum(manifest)) != _checksum(manifest):
            changed = f"{folder / 'manifest.json'} was changed since it was written (checksum)."
        elif hashlib.sha256(raw).hexdigest() != manifest.get("sha256"):
            changed = f"{folder / 'model.safetensors'} is not the file that its manifest describes (sha256)."
    params = flax.traverse_util.unflatten_dict(tensors, sep="/")
    return Potential(name, model, params, tuple(manifest["elements"]), manifest), changed


def architecture_of(model: nn.Module) -> str:
    return next(name for name, (kind, _) in ARCHITECTURES.items() if isinstance(model, kind))


@lru_cache(maxsize=64)
def parameter_shapes(model: nn.Module) -> Mapping[str, tuple[int, ...]]:
    """The name and shape of every parameter of a potential with this network."""
    # The key is made within, so that no device is needed.
    tree = jax.eval_shape(lambda: _initial(model, jax.random.key(0)))
    shapes = {n: x.shape for n, x in flax.traverse_util.flatten_dict(tree, sep="/").items()}
    return MappingProxyType(shapes)


def random_potential(config: Any, seed: int = 0, dtype: str = "float32", name: str = "random") -> Potential:
    """A potential of the architecture of `config` with random parameters: to train, or to test laws with.

    Raises ValueError for hyperparameters with which it could not be loaded again.
    """
    limits.check(config)
    model = next(kind for kind, its in ARCHITECTURES.values() if isinstance(config, its))(config)
    params = jax.device_get(jax.jit(partial(_initial, model))(jax.random.key(seed)))
    manifest = {"source": f"random parameters, seed {seed}"}
    return Potential(name, model, params, atomic_numbers(model), manifest, dtype)


def atomic_numbers(model: nn.Module) -> tuple[int, ...]:
    """The elements that a network has parameters for, as species."""
    elements = model.config.elements
    return tuple(range(1, elements + 1)) if isinstance(elements, int) else elements


def _initial(model: nn.Module, key: jax.Array) -> dict[str, Any]:
    """The parameters of a potential, as the network initialises them, with reference energies of zero."""
    # Padding alone: parameters do not depend on the sizes of a graph.
    graph = batching.pack([], batching.Capacity(1, 1, 1, 1, 1), np.float32)
    variables = model.init(key, graph)
    made = {"network": variables["params"]}
    if "constants" in variables:
        made["constants"] = variables["constants"]
    return made | {"reference_energies": jnp.zeros(max(atomic_numbers(model)) + 1)}


def _is_structure(crystal: Any) -> bool:
    # Atoms and Structure are sequences of their sites.
    return hasattr(crystal, "get_atomic_numbers") or hasattr(crystal, "to_ase_atoms")


def _checksum(manifest: dict[str, Any]) -> str:
    """The sha256 of what `manifest` says, but for a checksum in it, whatever its layout."""
    said = json.loads(json.dumps({key: value for key, value in manifest.items() if key != "checksum"}))
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path, again = folder / "manifest.json", "convert the source again."
    if not path.is_file():
        raise ManifestError(
            "it has no manifest.json; needed a folder that `jaxmlip convert` or Potential.save wrote."
        )
    if path.stat().st_size > LARGEST_MANIFEST:
        raise ManifestError(f"manifest.json has {path.stat().st_size:,} bytes; {again}")
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"manifest.json is not JSON ({cut(str(error), 100)}); {again}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        version = (
            f" ({brief(manifest['jaxmlip'])})" if isinstance(manifest, dict) and "jaxmlip" in manifest else ""
        )
        raise ManifestError(
            f"manifest.json has format {brief(found)}, this version of jaxmlip reads format {FORMAT}. "
            "Convert the source again with this version, or install the version of jaxmlip that wrote "
            f"it{version}."
        )
    return manifest


def _make_model(manifest: dict[str, Any]) -> nn.Module:
    name, given = manifest.get("architecture"), manifest.get("hyperparameters")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ManifestError(
            f"manifest.json names the architecture {brief(name)}, known are {', '.join(ARCHITECTURES)}."
        )
    kind, config = ARCHITECTURES[name]
    known = {field.name for field in fields(config)}
    if not isinstance(given, dict) or not known >= set(given) or not given:
        raise ManifestError(
            f"manifest.json has hyperparameters={brief(given)}, needed those of {name}: {', '.join(known)}."
        )
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    with limits.told(ManifestError):
        frozen = config(**tuples)
    limits.check(frozen, error=ManifestError)
    model = kind(frozen)
    elements, species = manifest.get("elements"), set(atomic_numbers(model))
    if not isinstance(elements, list) or not all(type(z) is int for z in elements):
        raise ManifestError(f"manifest.json has elements={brief(elements)}, needed a list of atomic numbers.")
    if not elements or len(set(elements)) != len(elements) or not species >= set(elements):
        raise ManifestError(
            f"manifest.json has elements={brief(elements)}, needed different ones of the {len(species)} that "
            "the network has parameters for."
        )
    functionals = manifest.get("functionals", [])
    named = [*functionals, manifest.get("functional", "")] if isinstance(functionals, list) else [None]
    if not all(isinstance(its, str) and its.isprintable() and len(its) <= LONGEST_LABEL for its in named):
        raise ManifestError(f"manifest.json has the functionals {brief(named)}, needed names.")
    return model


def _read_tensors(folder: Path) -> tuple[bytes, dict[str, np.ndarray]]:
    """The bytes of model.safetensors, and the tensors in it."""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ManifestError("it has a manifest.json and no model.safetensors; convert the source again.")
    raw = path.read_bytes()
    try:
        return raw, safetensors.numpy.load(raw)
    except safetensors.SafetensorError as error:
        raise ManifestError(f"model.safetensors is damaged ({error}); convert the source again.") from None


def _check_tensors(tensors: dict[str, np.ndarray], model: nn.Module) -> None:
    """Raises ManifestError where `tensors` are not the parameters of `model`, each with sound numbers."""
    shapes = {**parameter_shapes(model), **({"scale": ()} if "scale" in tensors else {})}
    wrong = [f"{n}: missing" for n in shapes if n not in tensors]
    wrong += [f"{cut(n, 100)}: unknown" for n in tensors if n not in shapes]
    wrong += [
        f"{n}: found shape {brief(tensors[n].shape)}, needed {shapes[n]}"
        for n in shapes
        if n in tensors and tensors[n].shape != shapes[n]
    ]
    if wrong:
        raise ManifestError(
            "model.safetensors does not fill the model that manifest.json describes; convert the source "
            "again: " + listed(wrong)
        )
    faults = [f"{name}: {fault}" for name, tensor in tensors.items() if (fault := fault_of(tensor))]
    if faults:
        raise ManifestError(f"model.safetensors holds no weights; convert the source again: {listed(faults)}")
