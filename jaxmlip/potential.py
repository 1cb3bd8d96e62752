"""A potential: a network, its parameters, reference energies, and their origin."""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, runtime_checkable

import ase.data
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax.sharding import Mesh

from jaxmlip.crystals import batches, batching
from jaxmlip.crystals.atoms import numbered
from jaxmlip.crystals.graph import ELEMENTS, CrystalGraph, Cutoffs, from_atoms, has_stress
from jaxmlip.crystals.reach import Reach
from jaxmlip.derivatives.gradients import with_derivatives
from jaxmlip.models import limits
from jaxmlip.models.chgnet import CHGNet, CHGNetConfig
from jaxmlip.models.dispersion import TABLES, Damping, Dispersed
from jaxmlip.models.function import energy_function
from jaxmlip.models.limits import fault_of
from jaxmlip.models.m3gnet import M3GNet, M3GNetConfig
from jaxmlip.models.mace import MACE, MACEConfig
from jaxmlip.models.matgl_chgnet import MatglCHGNet, MatglCHGNetConfig
from jaxmlip.models.mattersim import MatterSim, MatterSimConfig
from jaxmlip.system.borders import RefusedError, brief, cut, guard, listed, printable
from jaxmlip.system.files import writing_folder
from jaxmlip.system.parallel import check_all_have_some, make_mesh, own_mesh
from jaxmlip.system.programs import QUICKLY, programs
from jaxmlip.system.progress import track

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

FORMAT = 1  # layout of the folder that `save` writes; another layout gets another number
ARCHITECTURES: dict[str, tuple[type[nn.Module], type]] = {
    "chgnet": (CHGNet, CHGNetConfig),
    "m3gnet": (M3GNet, M3GNetConfig),
    "mace": (MACE, MACEConfig),
    "mattersim": (MatterSim, MatterSimConfig),
    "matgl-chgnet": (MatglCHGNet, MatglCHGNetConfig),
}
FUNCTION = "function"  # an energy function that the user wrote
LARGEST_MANIFEST = 10_000_000  # bytes; the manifest of a published model has some thousands
LARGEST_DAMPING = 100.0  # of parameters of dispersion; published ones are below 7
LONGEST_LABEL = 200  # characters of the name of a model


class Prediction(TypedDict, total=False):
    """The result of `Potential.predict`, as NumPy arrays in the precision of the potential."""

    energy: float  # eV
    forces: np.ndarray  # (atoms, 3), eV/Å
    # (3, 3), eV/Å³, positive in tension as in ASE. For a slab or a wire: along the directions in which it
    # repeats, per volume of the box as given, zero along the others. Molecules and boxes without height have
    # none.
    stress: np.ndarray
    # (atoms,), eV; they add up to the energy. An energy function has none: it gives energies of crystals.
    site_energies: np.ndarray
    magmoms: np.ndarray  # (atoms,), μB; only if the model has them


@runtime_checkable
class Model(Protocol):
    """The interface of a model to a potential. Models are compared and hashed: equal ones share programs."""

    config: Any  # a dataclass: what a file has to say of the model, besides its parameters
    # True if the model makes every fetch from another cell by `crystals.fetch`, as lattice waves need.
    fetches_are_known: bool

    @property
    def cutoffs(self) -> Cutoffs:
        """The cutoffs of the model (Å)."""
        ...

    @property
    def reach(self) -> Reach | None:
        """How far the energy of an atom sees; None if that is not known."""
        ...

    def identity(self, params: Any) -> str:
        """A text that identifies the model, for files that continue an interrupted computation."""
        ...

    def energies(self, params: Any, graph: CrystalGraph) -> tuple[jax.Array, dict[str, jax.Array]]:
        """eV of each crystal, reference energies included, and the quantities of each atom by name."""
        ...


@dataclass(frozen=True)
class Energy:
    """`energy(params, graph)` -> eV per crystal, for one model.

    Energies of equal models compare equal, so potentials that differ only in their parameters share compiled
    programs.
    """

    model: Model

    def __call__(self, params: Any, graph: CrystalGraph) -> jax.Array:
        return self.with_sites(params, graph)[0]

    def with_sites(self, params: Any, graph: CrystalGraph) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The energies, and the model's quantities of each atom, such as site_energies (eV)."""
        return self.model.energies(params, graph)


@partial(jax.jit, static_argnames="energy")
def _predict(energy: Energy, params: Any, graph: CrystalGraph):
    e, forces, stress, sites = with_derivatives(partial(energy.with_sites, params), graph)
    return e, stress, {"forces": forces, **sites}


class ManifestError(RefusedError):
    """A model folder cannot be used. The message says what was found, what was needed and what to do."""


@dataclass(frozen=True, eq=False)
class Potential:
    """A potential energy surface E(positions, species, cell), with everything needed to use it.

    Make one with `jaxmlip.load`, or from your own energy function with `from_energy`. `predict` gives
    energies, forces, stresses and magnetic moments; `jaxmlip.hessian` and related functions accept it
    directly; `energy` is the bare function of a graph.
    """

    name: str
    model: Model
    # {"network": …, "reference_energies": by atomic number, "constants": numbers that training does not
    # change, if any, "scale": a factor of the network's output, if it is not 1, "dispersion": its tables, if
    # it is added},
    # in NumPy and the precision in which they were published.
    params: Any
    elements: tuple[
        int, ...
    ]  # atomic numbers that the potential was fitted to; species, if it has several functionals
    manifest: dict[str, Any]
    dtype: str = "float32"
    mesh: Mesh | None = None  # devices over which second derivatives are spread; None for the first alone

    def __post_init__(self):
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"found dtype={self.dtype!r}, needed 'float32' or 'float64'.")

    @classmethod
    def from_energy(
        cls,
        fn: Callable[..., Any],
        cutoff: float,
        elements: Iterable[int | str],
        params: Any = None,
        *,
        name: str = "energy-function",
        dtype: str = "float32",
        hops: int | None = None,
    ) -> Potential:
        """The potential of an energy function over a jraph.GraphsTuple, written in JAX.

        fn(graph) returns the energy (eV) of each graph, (graphs,), in the precision of the positions. With
        `params`, a pytree whose floating-point arrays training may change, it is fn(params, graph).
        `graph` has the fields of `CrystalGraph.to_jraph(elements, padded=True)`: nodes "positions",
        "species" (the index of Z in `elements`) and "numbers" (Z), edges "shifts", globals "cell" and "pbc".
        Its edges are those shorter than `cutoff` (Å), each in both directions. fn must compute distances
        from positions, shifts and cell: forces, stress and Hessians are its derivatives. The last graphs are
        padding, by jraph's masks; their energies do not count, but must not be NaN.
        `elements` are atomic numbers or symbols.

        All functions that accept a potential accept this one. It has no site energies or magnetic moments.
        Before dynamical matrices are computed, a check proves that fn treats the cells of a wave correctly.
        `save` writes the parameters, not fn; `with_parameters` reads them into a potential of the same fn.
        Reference energies are zero at first.

        `hops` is how often atoms learn of their neighbours along edges: 1 for pairs, for embedded atoms and
        for angles at an atom, n for n layers of messages. Only `jaxmlip.sparse_hessian` needs it, and proves
        it.

        Raises ValueError if `cutoff`, `elements` or `hops` make no sense, or as `energy_function` does.
        """
        numbers = tuple(_atomic_number(element) for element in elements)
        if not numbers or len(set(numbers)) != len(numbers):
            raise ValueError(f"found elements={list(numbers)}, needed one or more different elements.")
        if not 0 < cutoff < np.inf:
            raise ValueError(f"found cutoff={cutoff}, needed a distance above 0 (Å).")
        if hops is not None and hops < 1:
            raise ValueError(f"found hops={hops}, needed a number from 1 on.")
        reach = None if hops is None else Reach(hops)
        model, network = energy_function(fn, cutoff, numbers, params, reach)
        made = {"network": network, "reference_energies": np.zeros(max(numbers) + 1)}
        manifest = {"source": f"the energy function {model.config.function}"}
        return cls(name, model, made, numbers, manifest, dtype)

    @property
    def cutoffs(self) -> Cutoffs:
        """The cutoffs of the model (Å)."""
        return self.model.cutoffs

    @property
    def functionals(self) -> tuple[str, ...]:
        """The functionals of a potential that `jaxmlip.training.functionals.join` made; () for any other."""
        return tuple(map(str, self.manifest.get("functionals", ())))

    @property
    def energy_fn(self) -> Energy:
        """The pure function (params, graph) -> eV per crystal."""
        return Energy(self.model)

    def energy(self, graph: CrystalGraph) -> jax.Array:
        """The energy (eV) of each crystal of `graph`. In float64 call it within `precision()`."""
        return self.energy_fn(self.arrays, graph)

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        """A scope in which JAX computes in this potential's dtype, also on accelerators.

        On entry, compiled programs are dropped if the process can hold no more of them.
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
        # The result is cached, so it must not be a tracer of the function that asks first.
        with self._as_dtype(), jax.ensure_compile_time_eval():
            return jax.tree.map(lambda x: jnp.asarray(x, self.dtype), self.params)

    @property
    def parameter_count(self) -> int:
        """The number of parameters, reference energies included, tables of dispersion not."""
        return sum(
            x.size for name, its in self.params.items() if name != "dispersion" for x in jax.tree.leaves(its)
        )

    def astype(self, dtype: str) -> Potential:
        """The same potential, computing in float32 or float64."""
        return replace(self, dtype=dtype)

    def on_devices(self, number: int | None = None) -> Potential:
        """The same potential, with second derivatives spread over `number` devices; by default over all.

        Each device computes a part of the columns of a Hessian or of D(q), from a copy of the same linear
        map. The devices may belong to several hosts, all of which make the same calls and get the same
        results (see docs/many_devices.md). Raises ValueError if there are fewer devices, or if a process of
        several would have none.
        """
        mesh = make_mesh(number)
        check_all_have_some(mesh)
        return replace(self, mesh=None if mesh.size == 1 else mesh)

    def on_own_devices(self) -> Potential:
        """The same potential, on those of its devices that belong to this process."""
        mesh = None if self.mesh is None else own_mesh(self.mesh)
        return replace(self, mesh=None if mesh is None or mesh.size == 1 else mesh)

    def graph(self, crystal: Atoms | Structure) -> CrystalGraph:
        """The graph of `crystal` in NumPy, without padding. Raises ValueError as `from_atoms` does."""
        return from_atoms(crystal, self)

    def graphs(self, crystals: Iterable[Atoms | Structure]) -> list[CrystalGraph]:
        """The graphs of many crystals. Raises as `graph` does, with the index of the crystal, from 0 on."""
        found = []
        for k, crystal in enumerate(track(crystals, "neighbours")):
            with numbered(k):
                found.append(self.graph(crystal))
        return found

    def predict(self, crystals: Atoms | Structure | Iterable[Atoms | Structure]):
        """Energy, forces, stress, site energies and magnetic moments, as a `Prediction` (a dictionary).

        For a list or another iterable of crystals it returns a list in the same order. They are computed in
        batches, with a progress bar on a terminal. Raises ValueError, as `graphs` does, before anything is
        computed.
        """
        if not isinstance(crystals, Iterable) or _is_structure(crystals):
            graph = self.graph(crystals)
            return self.predict_graphs([graph], batching.shape_for([graph]))[0]
        return batches.predicted(self, self.graphs(crystals))

    def predict_graphs(self, graphs: Sequence[CrystalGraph], shape: batching.BatchShape) -> list[Prediction]:
        """A `Prediction` for each of the graphs, computed as one batch of the given shape."""
        packed = batching.pack(graphs, shape, np.dtype(self.dtype))
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
        """Writes model.safetensors and manifest.json into `folder`, for `load`: both or neither.

        Of a potential `from_energy` the function is not written, so that `with_parameters` reads it instead.
        Raises OSError if they cannot be written; existing files then stay.
        """
        flat = flax.traverse_util.flatten_dict(self.params, sep="/")
        tensors = {name: np.asarray(x, order="C") for name, x in flat.items()}
        raw = safetensors.numpy.save(tensors)
        has_dispersion = isinstance(self.model, Dispersed)
        manifest = {
            **{key: value for key, value in self.manifest.items() if key != "checksum"},
            **({"dispersion": asdict(self.model.damping)} if has_dispersion else {}),
            "format": FORMAT,
            "name": printable(cut(self.name, LONGEST_LABEL)),
            "architecture": architecture_of(self.model.network if has_dispersion else self.model),
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

        Raises ManifestError if a file is missing, damaged, of another layout, or does not fill the model, or
        if no model can have its numbers; warns if a file is not as it was written.
        """
        potential, changed = read_folder(Path(folder))
        if changed:
            warnings.warn(changed, stacklevel=2)
        return replace(potential, dtype=dtype)

    def with_parameters(self, folder: str | Path) -> Potential:
        """This potential with the parameters that `save` wrote into `folder` from one with the same model.

        For potentials `from_energy`, whose function no file holds. Raises ManifestError if the model of the
        folder has another name, cutoff, elements or parameters, or a file is damaged; warns if a file is not
        as it was written.
        """
        saved, changed = read_folder(Path(folder), self)
        if changed:
            warnings.warn(changed, stacklevel=2)
        return replace(saved, model=self.model, dtype=self.dtype)


def read_folder(folder: Path, like: Potential | None = None) -> tuple[Potential, str]:
    """The potential that `Potential.save` wrote into `folder`, and a sentence on a changed file, or "".

    With `like` it has the model of that potential. Raises ManifestError as `Potential.from_folder` and
    `with_parameters` do.
    """
    with guard(folder, ManifestError, "Convert the source again."):
        manifest = _read_manifest(folder)
        model = _make_model(manifest) if like is None else _same_model(manifest, like.model)
        _check_labels(manifest, model)
        name = manifest.get("name", folder.name)
        if not isinstance(name, str) or not name.isprintable() or len(name) > LONGEST_LABEL:
            raise ManifestError(f"manifest.json has name={brief(name)}, needed a line of text.")
        raw, tensors = _read_tensors(folder)
        _check_tensors(tensors, parameter_shapes(model) if like is None else _shapes(like.params))
        changed = _changed(folder, manifest, raw)
    params = flax.traverse_util.unflatten_dict(tensors, sep="/")
    return Potential(name, model, params, tuple(manifest["elements"]), manifest), changed


def _changed(folder: Path, manifest: dict[str, Any], raw: bytes) -> str:
    """A sentence that names the file that has changed since it was written; "" for none."""
    # Manifests of earlier versions have no checksum.
    if manifest.get("checksum", _checksum(manifest)) != _checksum(manifest):
        return f"{folder / 'manifest.json'} was changed since it was written (checksum)."
    if hashlib.sha256(raw).hexdigest() != manifest.get("sha256"):
        return f"{folder / 'model.safetensors'} is not the file that its manifest describes (sha256)."
    return ""


def architecture_of(model: Model) -> str:
    """The name of the model's architecture in this library, or "function"."""
    return next((name for name, (kind, _) in ARCHITECTURES.items() if isinstance(model, kind)), FUNCTION)


def _atomic_number(element: int | str) -> int:
    if isinstance(element, str):
        if element not in ase.data.atomic_numbers:
            raise ValueError(f"found the element {element!r}, needed an atomic number or a chemical symbol.")
        element = ase.data.atomic_numbers[element]
    if not 1 <= element <= ELEMENTS:
        raise ValueError(f"found the atomic number {element}, needed one from 1 to {ELEMENTS}.")
    return int(element)


@lru_cache(maxsize=64)
def parameter_shapes(model: nn.Module | Dispersed) -> Mapping[str, tuple[int, ...]]:
    """The name and shape of every parameter of a potential with this network."""
    if isinstance(model, Dispersed):
        tables = {f"dispersion/{name}": shape for name, shape in TABLES.items()}
        return MappingProxyType({**parameter_shapes(model.network), **tables})
    # The key is made inside, so no device is needed.
    tree = jax.eval_shape(lambda: _initial(model, jax.random.key(0)))
    return MappingProxyType(_shapes(tree))


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
    return {n: np.shape(x) for n, x in flax.traverse_util.flatten_dict(params, sep="/").items()}


def random_potential(config: Any, seed: int = 0, dtype: str = "float32", name: str = "random") -> Potential:
    """A potential of the architecture of `config` with random parameters: for training and for tests.

    Raises ValueError for hyperparameters that would keep it from being loaded again.
    """
    limits.check(config)
    model = next(kind for kind, its in ARCHITECTURES.values() if isinstance(config, its))(config)
    # LLVM's options are for a CPU; a TPU may refuse them.
    options = QUICKLY if jax.default_backend() == "cpu" else None
    initial = jax.jit(partial(_initial, model), compiler_options=options)
    params = jax.device_get(initial(jax.random.key(seed)))
    manifest = {"source": f"random parameters, seed {seed}"}
    return Potential(name, model, params, atomic_numbers(model), manifest, dtype)


def atomic_numbers(model: nn.Module) -> tuple[int, ...]:
    """The elements that a network has parameters for, as species."""
    elements = model.config.elements
    return tuple(range(1, elements + 1)) if isinstance(elements, int) else elements


def _initial(model: nn.Module, key: jax.Array) -> dict[str, Any]:
    """Initial parameters of a potential: the network's own, and reference energies of zero."""
    # A graph of padding is enough: parameters do not depend on the sizes of a graph.
    # It has the precision that parameters get here.
    graph = batching.pack([], batching.BatchShape(1, 1, 1, 1, 1), np.dtype(jnp.result_type(float)))
    variables = model.init(key, graph)
    made = {"network": variables["params"]}
    if "constants" in variables:
        made["constants"] = variables["constants"]
    return made | {"reference_energies": jnp.zeros(max(atomic_numbers(model)) + 1)}


def _is_structure(crystal: Any) -> bool:
    # Atoms and Structure are sequences of their sites.
    return hasattr(crystal, "get_atomic_numbers") or hasattr(crystal, "to_ase_atoms")


def _checksum(manifest: dict[str, Any]) -> str:
    """The sha256 of the contents of `manifest` without its checksum, independent of its layout."""
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


def _make_model(manifest: dict[str, Any]) -> nn.Module | Dispersed:
    name, given = manifest.get("architecture"), manifest.get("hyperparameters")
    if name == FUNCTION:
        raise ManifestError(
            f"it holds parameters of an energy function, {brief(given)}, whose code is in no file. "
            "Make the potential with Potential.from_energy again and read them by its `with_parameters`."
        )
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
    network = kind(frozen)
    return Dispersed(network, _read_damping(manifest)) if "dispersion" in manifest else network


def _read_damping(manifest: dict[str, Any]) -> Damping:
    given, known = manifest["dispersion"], {field.name for field in fields(Damping)}
    numbers = [x for key, x in given.items() if key != "functional"] if isinstance(given, dict) else [None]
    sound = all(type(x) in (int, float) and 0 <= x <= LARGEST_DAMPING for x in numbers)
    if not sound or set(given) != known or not isinstance(given["functional"], str):
        raise ManifestError(
            f"manifest.json has dispersion={brief(given)}, needed {', '.join(sorted(known))}: a name, and "
            f"numbers from 0 to {LARGEST_DAMPING:g}."
        )
    return Damping(**given)


def _same_model(manifest: dict[str, Any], model: Model) -> Model:
    """Returns `model`. Raises ManifestError unless `manifest` describes it."""
    needed = json.loads(json.dumps([architecture_of(model), asdict(model.config)]))
    found = [manifest.get("architecture"), manifest.get("hyperparameters")]
    if found != needed:
        raise ManifestError(f"manifest.json describes the model {brief(found)}, needed {brief(needed)}.")
    return model


def _check_labels(manifest: dict[str, Any], model: Model) -> None:
    """Raises ManifestError if the elements or functionals of `manifest` are none that `model` can have."""
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


def _check_tensors(tensors: dict[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ManifestError if `tensors` are not parameters of these `shapes`, each with sound numbers."""
    shapes = {**shapes, **({"scale": ()} if "scale" in tensors else {})}
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
