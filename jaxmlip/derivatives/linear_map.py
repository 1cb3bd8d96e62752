"""The gradient's linear map, as compiled programs: columns of second derivatives, on one device or on many.

`linearise` makes the map; all other programs send a block of columns through it. `on_mesh` spreads such a
program over devices: each holds the whole map and computes its part of the columns, so that nothing is
exchanged between them. If no device can hold the whole map, each gets a part of the bonds and angles instead
(`with_divided_bonds`). The compiler then divides all work and all that is kept, and adds what the parts send
to atoms: the devices compute each column together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int

from jaxmlip.crystals.graph import CrystalGraph
from jaxmlip.derivatives.gradients import strain, stress
from jaxmlip.derivatives.tangents import second_axis_vmap
from jaxmlip.system import parallel
from jaxmlip.system.arrays import Array
from jaxmlip.system.parallel import AXIS


class Gradient(NamedTuple):
    """The energy of a padded graph, and its first derivatives."""

    energy: Float[Array, " crystals"]  # eV
    positions: Float[Array, "atoms 3"]  # ∂E/∂r, eV/Å
    strain: Float[Array, "crystals 3 3"]  # ∂E/∂ε, eV
    stress: Float[Array, "crystals 3 3"]  # eV/Å³, as `jaxmlip.derivatives.gradients.stress` has it


def point(graph: CrystalGraph) -> tuple[Array, Array]:
    """The point at which the gradient is linearised: positions, and no strain."""
    return graph.positions, 0 * graph.cell  # NumPy or JAX, in its precision


def _slope(energy, params, graph: CrystalGraph) -> Callable:
    """The function (r, ε) -> (∂E/∂r (eV/Å), ∂E/∂ε (eV)), and the energies of the crystals (eV)."""

    def total(r, eps):
        e = energy(params, strain(graph.replace(positions=r), eps))
        return e.sum(), e

    return jax.grad(total, argnums=(0, 1), has_aux=True)


@partial(jax.jit, static_argnames="energy")
def linearise(energy, params, graph: CrystalGraph):
    """The gradient, and the linear map from (dr, dε) to its change, as a function that can be passed on."""
    slope, tangent_map, e = jax.linearize(_slope(energy, params, graph), *point(graph), has_aux=True)
    return Gradient(e, *slope, stress(slope[1], graph)), tangent_map


def _still(tangent_map, eps) -> Callable:
    """The linear map for displacements alone. Strain is 0 and has no axis of columns, so it costs nothing."""
    return lambda dr: tangent_map(dr, jnp.zeros_like(eps))[0]


@jax.jit
def columns(tangent_map, r, eps, groups, index) -> Float[Array, "atoms columns 3"]:
    """Sums of columns of the Hessian: of those whose number in `groups` (atoms, 3) is each of `index`."""
    unit = (groups[:, None] == index[None, :, None]).astype(r.dtype)
    return second_axis_vmap(_still(tangent_map, eps), r)(unit)


@jax.jit
def strained_columns(tangent_map, r, eps, index):
    """Sums of the columns numbered by index (columns, k): for r (atoms, columns, 3), and for ε."""
    count = len(index)
    unit = jnp.zeros((r.size + eps.size, count), r.dtype)
    unit = unit.at[index, jnp.arange(count)[:, None]].set(1, mode="drop")
    dr, deps = (
        jnp.moveaxis(part.reshape(*x.shape, count), -1, 1)
        for part, x in zip(jnp.split(unit, [r.size]), (r, eps), strict=True)
    )
    return second_axis_vmap(tangent_map, r, eps)(dr, deps)


@partial(jax.jit, static_argnames="energy")
def column(energy, params, graph: CrystalGraph, index):
    """The gradient, and column number `index` of the Hessian, (atoms, 3)."""
    r, eps = point(graph)
    unit = jnp.zeros(r.size, r.dtype).at[index].set(1).reshape(r.shape)
    tangents = unit, jnp.zeros_like(eps)
    slope, (change, _), e = jax.jvp(_slope(energy, params, graph), (r, eps), tangents, has_aux=True)
    return Gradient(e, *slope, stress(slope[1], graph)), change


def _waves(
    tangent_map,
    r: Float[Array, "atoms 3"],
    eps: Float[Array, "crystals 3 3"],
    q: Float[Array, "pairs crystals 3"],
    index: Int[Array, "pairs crystals"],
) -> Float[Array, "atoms 2 pairs 3"]:
    """The gradient's response to waves: real and imaginary parts.

    In column p crystal c has the wave q[p, c] of the coordinate numbered index[p, c] in the whole graph; a
    number beyond the last means none.
    """
    atoms, pairs, crystals = len(r), len(q), len(eps)
    unit = jnp.zeros((atoms, 2, pairs, 3), r.dtype)
    unit = unit.at[index // 3, 0, jnp.arange(pairs)[:, None], index % 3].set(1, mode="drop")

    def turn(x, image, sign):
        shift, crystal = image[:, :3], image[:, 3].astype(jnp.int32)
        if crystals == 1:
            along = shift @ q[:, 0].T
        else:
            its = q.swapaxes(0, 1).at[crystal].get(mode="clip")
            along = jnp.einsum("mx,mpx->mp", shift, its)
        angle = 2 * jnp.pi * sign * along
        axes = (*angle.shape, *(1,) * (x.ndim - 2))
        c, s = jnp.cos(angle).reshape(axes), jnp.sin(angle).reshape(axes)
        parts = x.reshape(len(x), 2, pairs, *x.shape[2:])
        re, im = parts[:, 0], parts[:, 1]
        return jnp.stack([c * re - s * im, s * re + c * im], axis=1).reshape(x.shape)

    flat = unit.reshape(atoms, 2 * pairs, 3)
    return second_axis_vmap(_still(tangent_map, eps), r, wave=turn)(flat).reshape(unit.shape)


waves = jax.jit(_waves)


@jax.jit
def waves_and_slopes(tangent_map, r, eps, q, index):
    """The response, and its derivatives by the three components of q: the first axis has four entries."""
    value, slope = jax.linearize(lambda q: _waves(tangent_map, r, eps, q, index), q)
    slopes = [slope(jnp.broadcast_to(direction, q.shape)) for direction in jnp.eye(3, dtype=q.dtype)]
    return jnp.stack([value, *slopes])


@partial(jax.jit, static_argnames="energy")
def strained_waves(energy, params, graph: CrystalGraph, eps, along, q, index):
    """The response, and its derivative by s where strain is s·eps and atoms also move by s·along.

    `eps` (crystals, 3, 3) is that of each crystal, `along` is (atoms, 3).
    """

    def respond(s):
        moved = strain(graph, s * eps)
        moved = moved.replace(positions=moved.positions + s * along)
        there = point(moved)
        tangent_map = jax.linearize(_slope(energy, params, moved), *there, has_aux=True)[1]
        return _waves(tangent_map, *there, q, index)

    return jnp.stack(jax.jvp(respond, (jnp.zeros((), q.dtype),), (jnp.ones((), q.dtype),)))


class Layout(NamedTuple):
    """Where the columns of a program are."""

    arguments: int  # the last arguments, so many, have an entry for each column or pair
    axis: int | None  # of the results; None if they have no axis of columns
    energy: bool = False  # whether the first argument is the energy function


LAYOUTS = {
    linearise: Layout(0, None, energy=True),
    columns: Layout(1, 1),
    strained_columns: Layout(1, 1),
    waves: Layout(2, 2),
    waves_and_slopes: Layout(2, 3),
    strained_waves: Layout(2, 3, energy=True),
}


PER_BOND = ("first", "second", "shifts", "angle_from", "angle_to")


def with_divided_bonds(graph: CrystalGraph, mesh: Mesh) -> CrystalGraph:
    """The graph on a mesh: each device has all atoms, and a part of the bonds and of the angles.

    Their numbers are as `batching.divisible` makes them.
    """
    parts = {name: getattr(graph, name) for name in PER_BOND} | {"pairs": graph.pairs}
    return parallel.replicate(graph, mesh).replace(**parallel.divide(parts, mesh))


@lru_cache(maxsize=64)
def on_mesh(program: Callable, mesh: Mesh) -> Callable:
    """`program` for a block of columns of which each device of `mesh` computes an equal part.

    A linear map that was made on a mesh is for programs on the same mesh.
    """
    count, axis, energy = LAYOUTS[program]
    part, result = P(AXIS), P() if axis is None else P(*(None,) * axis, AXIS)

    def spread(*args):
        first, arrays = args[:energy], args[energy:]
        specs = (P(),) * (len(arrays) - count) + (part,) * count
        its = partial(program, *first)
        return jax.shard_map(its, mesh=mesh, in_specs=specs, out_specs=result, check_vma=False)(*arrays)

    return jax.jit(spread, static_argnums=tuple(range(energy)))
