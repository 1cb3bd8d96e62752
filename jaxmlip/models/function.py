"""Energy functions of the user: any JAX function of a jraph.GraphsTuple as a model of this library."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.traverse_util
import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jax.extend import core

from jaxmlip.crystals import batching, fetch
from jaxmlip.crystals.graph import CrystalGraph, Cutoffs, sum_over_crystals
from jaxmlip.crystals.reach import Reach


@dataclass(frozen=True)
class FunctionConfig:
    """The record of an energy function in a file: its name, and the options of its potential."""

    function: str
    cutoff: float  # Å
    elements: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class EnergyFunction:
    """An energy function over a jraph.GraphsTuple. Make one with `energy_function`.

    Instances with the same function and the same settings are equal, so that they share compiled programs.
    """

    fn: Callable[..., Any]  # fn(params, graph), or fn(graph) if it has no parameters
    config: FunctionConfig
    tree: Any = None  # the PyTreeDef of fn's parameters; None: it has none
    # The name of each leaf, and its value if it is not a floating-point number, which training leaves alone.
    leaves: tuple[tuple[str, Any], ...] = ()
    reach: Reach | None = None  # if the user said it; no program depends on it

    # Waves need to know which fetches leave their cell. For these functions that is inferred, and a proof has
    # to confirm it.
    fetches_are_known: ClassVar[bool] = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EnergyFunction) and (
            self.fn is other.fn
            and (self.config, self.tree) == (other.config, other.tree)
            and len(self.leaves) == len(other.leaves)
            and all(a[0] == b[0] and a[1] is b[1] for a, b in zip(self.leaves, other.leaves, strict=True))
        )

    def __hash__(self) -> int:
        return hash((id(self.fn), self.config))  # some functions, such as modules of Equinox, have no hash

    @property
    def cutoffs(self) -> Cutoffs:
        return Cutoffs(self.config.cutoff)

    def identity(self, params: Mapping[str, Any]) -> str:
        """A text that identifies this function: its name, and its program on a small graph."""
        graph = batching.pack([], batching.BatchShape(2, 2, 1, 0, 1), np.float32)
        params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
        closed = jax.make_jaxpr(lambda *args: self._apply(*args)[0])(params, graph)
        digest = hashlib.sha256(re.sub("0x[0-9a-f]+", "", str(closed.jaxpr)).encode())  # without addresses
        for x in closed.consts:
            digest.update(np.asarray(x).tobytes())
        return f"{self.config!r} {digest.hexdigest()}"

    def parameters(self, params: Mapping[str, Any]) -> Any:
        """The parameters as fn takes them, from those of a potential (`potential.params`)."""
        flat = flax.traverse_util.flatten_dict(params.get("network", {}), sep="/")
        return self.tree.unflatten(flat[name] if fixed is None else fixed for name, fixed in self.leaves)

    def energies(
        self, params: Mapping[str, Any], graph: CrystalGraph
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The energy of each crystal (eV), and nothing about its atoms; `params` as in `Network.energies`.

        Raises ValueError if the function does not return an energy for each graph.
        """
        found, _ = self._apply(params, graph)
        crystals, dtype = len(graph.cell), graph.positions.dtype
        if jnp.shape(found) != (crystals + 1,) or found.dtype != dtype:
            raise ValueError(
                f"the energy function {self.config.function} returned {_described(found)}, needed an energy "
                "(eV) for each graph, the padding graph included, in the precision of the positions: an "
                f"array of shape {(crystals + 1,)} and dtype {dtype}."
            )
        atoms = jnp.zeros(crystals, jnp.int32).at[graph.crystal].add(graph.is_atom.astype(jnp.int32))
        reference = jnp.where(graph.is_atom, params["reference_energies"][graph.species], 0.0)
        energies = jnp.where(atoms > 0, params.get("scale", 1.0) * found[:crystals], 0.0)
        return energies + sum_over_crystals(reference, graph), {}

    def unknown_fetch(self, params: Mapping[str, Any], graph: CrystalGraph) -> str:
        """The operation on the senders of `graph` that lattice waves cannot pass; "" for none."""
        unknown = []
        jax.eval_shape(lambda *args: unknown.append(self._apply(*args)[1]), params, graph)
        return unknown[0]

    def _apply(self, params: Mapping[str, Any], graph: CrystalGraph) -> tuple[Any, str]:
        def fn(network, graph):
            return self.fn(graph) if self.tree is None else self.fn(self.parameters(network), graph)

        network = {"network": params.get("network", {})}
        return with_known_fetches(fn, network, graph.to_jraph(self.config.elements, padded=True))


def _described(found: Any) -> str:
    if isinstance(found, jax.Array):
        return f"an array of shape {found.shape} and dtype {found.dtype}"
    return f"{type(found).__name__}"


def energy_function(
    fn: Callable[..., Any],
    cutoff: float,
    elements: Sequence[int],
    params: Any = None,
    reach: Reach | None = None,
) -> tuple[EnergyFunction, dict[str, Any]]:
    """`fn` as a model, and its parameters as a nested dictionary of arrays, named by their paths.

    Raises ValueError if two parameters have the same path, or the path of one leads through another.
    """
    name = ".".join(filter(None, (getattr(fn, "__module__", ""), getattr(fn, "__qualname__", ""))))
    config = FunctionConfig(name or type(fn).__qualname__, float(cutoff), tuple(map(int, elements)))
    if params is None:
        return EnergyFunction(fn, config, reach=reach), {}
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    flat, leaves = {}, []
    for path, x in paths:
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "value"
        trained = np.issubdtype(np.asarray(x).dtype, np.floating)
        leaves.append((name, None if trained else x))
        if trained:
            flat[name] = np.asarray(x)
    names = [name for name, _ in leaves]
    for name in names:
        if names.count(name) > 1 or any(other.startswith(f"{name}/") for other in names):
            raise ValueError(
                f"found the parameter {name!r} besides another of this name or below it, needed a pytree in "
                "which each array has a path of its own."
            )
    model = EnergyFunction(fn, config, tree, tuple(leaves), reach)
    return model, flax.traverse_util.unflatten_dict(flat, sep="/")


def with_known_fetches(
    fn: Callable[[Any, jraph.GraphsTuple], Any], network: Any, graph: jraph.GraphsTuple
) -> tuple[Any, str]:
    """fn(network, graph), with `crystals.fetch` in place of its fetches from senders and additions to them.

    All quantities of an edge belong to the cell of its receiver, so the sender is fetched from the cell that
    the edge's shift gives. The function is traced, and x[senders] and x.at[senders].add(y) are found in its
    operations, however they are written. If another operation uses the senders, the function is applied as
    it is. Also returns the name of that operation, or "".
    """
    leaves, tree = jax.tree.flatten((network, graph))
    closed, shape = jax.make_jaxpr(lambda *leaves: fn(*tree.unflatten(leaves)), return_shape=True)(*leaves)
    nodes = len(graph.nodes["positions"])
    edges = _Edges(graph.senders, _images(graph, nodes), nodes, closed.jaxpr.debug_info)
    try:
        args = [(leaf, SENDERS if leaf is graph.senders else "") for leaf in leaves]
        found = _evaluate(closed.jaxpr, closed.consts, args, edges)
        if any(mark for _, mark in found):
            raise _UnknownFetchError("return")
    except _UnknownFetchError as unknown:
        return fn(network, graph), str(unknown)
    return jax.tree.unflatten(jax.tree.structure(shape), [x for x, _ in found]), ""


def _images(graph: jraph.GraphsTuple, nodes: int) -> jax.Array:
    crystal = jnp.repeat(jnp.arange(len(graph.n_node)), graph.n_node, total_repeat_length=nodes)
    shifts = graph.edges["shifts"]
    return jnp.concatenate([shifts, crystal[graph.receivers][:, None].astype(shifts.dtype)], axis=1)


class _UnknownFetchError(Exception):
    """An operation uses senders in a way that is not understood."""


@dataclass(frozen=True)
class _Edges:
    senders: jax.Array
    images: jax.Array  # of the senders, as `crystals.fetch` has them
    nodes: int
    debug_info: Any  # of the traced function, for errors


# Marks of values derived from the senders: the senders themselves, in the shape (edges,) or (edges, 1); the
# test for negative senders, which is always false; and the values that would replace negative ones.
SENDERS, NEGATIVE, REPLACED = "senders", "negative", "replaced"
COMPARISONS = {"lt", "le", "gt", "ge", "eq", "ne"}
SAME = {"convert_element_type", "broadcast_in_dim", "reshape", "squeeze", "copy", "stop_gradient"}


def _evaluate(jaxpr, consts, args, edges: _Edges) -> list[tuple[Any, str]]:
    """Evaluates `jaxpr` on pairs (value, mark), and returns such pairs. Raises _UnknownFetchError."""
    values = {var: (x, "") for var, x in zip(jaxpr.constvars, consts, strict=True)}
    values.update(zip(jaxpr.invars, args, strict=True))

    def read(atom):
        return (atom.val, "") if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        rule = _of_marked if any(mark for _, mark in inputs) else _bind
        values.update(zip(equation.outvars, rule(equation, inputs, edges), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _bind(equation, inputs, edges: _Edges, mark: str = "") -> list[tuple[Any, str]]:
    # JAX evaluates it, as it knows what each operation needs: a function of this one operation.
    args = {
        atom: x for atom, (x, _) in zip(equation.invars, inputs, strict=True) if isinstance(atom, core.Var)
    }
    alone = core.Jaxpr((), list(args), equation.outvars, [equation], equation.effects, edges.debug_info)
    outputs = core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*args.values())
    return [(x, mark) for x in outputs]


def _of_marked(equation, inputs, edges: _Edges) -> list[tuple[Any, str]]:
    """The outputs of an operation with marked inputs."""
    name, params, marks = equation.primitive.name, equation.params, [mark for _, mark in inputs]
    if name in ("jit", "pjit", "closed_call"):
        inner = params["jaxpr"]
        return _evaluate(inner.jaxpr, inner.consts, inputs, edges)
    if name in ("checkpoint", "remat2"):
        return _checkpoint(params, inputs, edges)
    if name == "gather" and marks == ["", SENDERS] and _is_of_rows(equation, edges):
        return [(fetch.gather(inputs[0][0], edges.senders, edges.images), "")]
    if name == "scatter-add" and marks == ["", SENDERS, ""] and _is_of_rows(equation, edges):
        x, y = inputs[0][0], inputs[2][0]
        return [(x + fetch.scatter_add(y, edges.senders, edges.nodes, edges.images), "")]
    if set(marks) <= {"", NEGATIVE}:  # a property of each edge, like any other
        return _bind(equation, inputs, edges)
    return _bind(equation, inputs, edges, _mark(equation, marks, edges))


def _mark(equation, marks: list[str], edges: _Edges) -> str:
    """The mark of the result of an elementwise operation on marked values. Raises _UnknownFetchError."""
    name, out = equation.primitive.name, equation.outvars[0].aval
    zero = isinstance(equation.invars[-1], core.Literal) and np.all(equation.invars[-1].val == 0)
    if name in COMPARISONS and REPLACED not in marks:
        return NEGATIVE if name == "lt" and marks == [SENDERS, ""] and zero else ""
    if name == "add" and sorted(marks) == ["", SENDERS]:
        return REPLACED
    if name == "select_n" and marks == [NEGATIVE, SENDERS, REPLACED]:
        return SENDERS
    whole = np.issubdtype(out.dtype, np.integer) and out.size == out.shape[0] == len(edges.senders)
    if name in SAME and marks[0] == SENDERS and whole:
        return SENDERS
    raise _UnknownFetchError(name)


def _is_of_rows(equation, edges: _Edges) -> bool:
    """True if a gather takes whole rows of nodes, or a scatter adds to them."""
    x, index = equation.invars[0].aval, equation.invars[1].aval
    numbers, rest = equation.params["dimension_numbers"], tuple(range(1, x.ndim))
    if equation.primitive.name == "gather":
        rows = jax.lax.GatherDimensionNumbers(rest, (0,), (0,))
        whole = tuple(equation.params["slice_sizes"]) == (1, *x.shape[1:])
    else:
        rows, whole = jax.lax.ScatterDimensionNumbers(rest, (0,), (0,)), True
    return numbers == rows and whole and x.shape[0] == edges.nodes and index.shape == (len(edges.senders), 1)


def _checkpoint(params, inputs, edges: _Edges) -> list[tuple[Any, str]]:
    """Keeps a checkpointed part (recomputed in the backward pass) checkpointed."""
    marks = [mark for _, mark in inputs]

    def inner(*args):
        found = _evaluate(params["jaxpr"], (), list(zip(args, marks, strict=True)), edges)
        if any(mark for _, mark in found):
            raise _UnknownFetchError("checkpoint")
        return [x for x, _ in found]

    again = jax.checkpoint(inner, prevent_cse=params["prevent_cse"], policy=params["policy"])
    return [(x, "") for x in again(*(x for x, _ in inputs))]
