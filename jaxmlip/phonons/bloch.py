"""Dynamical matrices at any wave vector, exactly, from the primitive cell alone.

A lattice wave displaces atom j of cell R by u_j e^{2πi q·R}. Everything that a network computes along the way
then differs from cell to cell by the same phase, so the response of one cell is enough: in the linearised
gradient, each fetch from the cell R away multiplies by e^{2πi q·R}, and each transpose of a fetch by
e^{-2πi q·R} (see `fetch`). Column (j, b) of

    D(q)_{ia,jb} = Σ_R Φ(0ia; Rjb) e^{2πi q·R}

is the response to u = 1 for coordinate b of atom j. The sum over cells is never formed, and nothing is cut
off, however far messages travel. Real and imaginary parts are carried as two columns; the gradient is
linearised once for all wave vectors. D is Hermitian because second derivatives commute; it is not made so.

Wave vectors q are in reciprocal lattice units throughout: q·R with R in whole lattice vectors.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmlip.crystals import batching
from jaxmlip.crystals.graph import CrystalGraph, as_atoms, in_box
from jaxmlip.crystals.symmetry import TOLERANCE as SYMPREC
from jaxmlip.crystals.symmetry import Pairs, completed, needed_columns, space_group
from jaxmlip.derivatives.gradients import gradient, hvp, strain
from jaxmlip.derivatives.hessian import (
    _block_size,
    _counted,
    _kept,
    _linearise,
    _packed,
    _plan,
    _resident,
    _scratch,
)
from jaxmlip.derivatives.proof import prove_waves
from jaxmlip.derivatives.tangents import second_axis_vmap
from jaxmlip.mechanics.elasticity import VOIGT, internal_strain
from jaxmlip.system.allocator import giving_memory_back
from jaxmlip.system.progress import track

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

    from jaxmlip.potential import Potential

Phase = Literal["cells", "atoms"]
# Real columns at once, where memory allows: more gain no speed. Small cells need many to be worth a call.
COLUMNS, COLUMN_BYTES = 96, 4e8
# So few columns at Γ are computed one by one, gradient and all, where the linearised gradient is larger.
FEW, LARGE = 16, 1e9


def dynamical_matrix(
    potential: Potential,
    crystal: Atoms | Structure,
    q_points: Float[Array, "q 3"],
    *,
    mass_weighted: bool = False,
    phase: Phase = "cells",
    symmetry: bool = False,
    symprec: float = SYMPREC,
    block_size: int | None = None,
    memory_limit: float | None = None,
    room: batching.Capacity | None = None,
) -> np.ndarray:
    """D(q) at each of `q_points` (reciprocal lattice units): complex, (q, 3N, 3N), in eV/Å².

    `mass_weighted` divides by √(m_i m_j): eV/(Å² u), with the masses of the crystal. With `phase="cells"` a
    wave has the phase e^{2πi q·R} of its cell, and D is periodic in q; with "atoms" that of the atom's
    position, e^{2πi q·(R + x)}, as phonopy has it. Both have the same eigenvalues.

    With `symmetry` only those columns are computed that the operations of the space group that keep q, and
    time reversal, do not give; the others follow, as exactly as the crystal has that symmetry. It is that of
    the elements, found within `symprec` (Å).

    `block_size` real columns are computed at once, two for each coordinate and wave vector; `memory_limit`
    (bytes) bounds them as in `hessian_columns`. Use a potential of dtype "float64": in float32 the lowest
    frequencies are noise. Any cell serves; D of a supercell has the wave vectors of the primitive cell
    folded into its own. Crystals padded to the same `room` share the compiled programs.

    Raises ValueError where `q_points` is not of shape (q, 3) and finite, or as `from_atoms` does, and
    MemoryLimitError as `hessian_columns` does.
    """
    if phase not in get_args(Phase):
        raise ValueError(f"found phase={phase!r}, needed 'cells' or 'atoms'.")
    atoms, q_points = along_lattice(crystal, q_points)
    _prove(potential, atoms, q_points)
    graph = _packed(potential, atoms, memory_limit, room)
    group = space_group(atoms, symprec) if symmetry else None
    pairs = _all_pairs(len(q_points), len(atoms)) if group is None else needed_columns(q_points, group)
    columns = None
    if not q_points.any() and 0 < len(pairs.wave) <= FEW:
        columns = _few_columns(potential, graph, pairs, len(atoms), memory_limit)
    if columns is None:
        columns = _all_columns(potential, graph, q_points, pairs, len(atoms), block_size, memory_limit)
    whole = group is None
    D = _matrices(columns, len(atoms)) if whole else completed(columns, pairs, q_points, group)
    return _convention(D, atoms, q_points, mass_weighted, phase)


def _prove(potential, atoms: Atoms, q_points) -> None:
    """Raises ValueError where a wave through the energy of a potential cannot be trusted."""
    if (q_points == q_points.round()).all():  # no cell differs from another
        return

    def respond(graph, q_points, pairs):
        packed = batching.pack([graph], None, np.dtype(potential.dtype))
        return _all_columns(potential, packed, q_points, pairs, len(graph.species), None, None)

    prove_waves(potential, potential.graph(atoms), respond)


def _all_columns(
    potential, graph, q_points, pairs: Pairs, atoms: int, block_size: int | None, memory_limit: float | None
) -> np.ndarray:
    """The columns of `pairs`, (pairs, 3N)."""
    with _counted(memory_limit), potential.precision():
        if memory_limit is not None:
            # At most so many as without a limit.
            columns = min(COLUMNS, 2 * len(pairs.wave))
            blocks = partial(_block_size, columns=columns, most=COLUMNS, size=COLUMN_BYTES)
            block_size = _plan(
                potential, graph, block_size, memory_limit, columns, _columns_program, blocks
            ).block_size
        tangent_map = _linearise(potential.energy_fn, potential.arrays, graph)
        real = _real_columns(tangent_map, block_size)
        respond = partial(_response, tangent_map, graph.positions)
        return _in_blocks(respond, q_points, pairs, atoms, real, potential.dtype)


def _few_columns(potential, graph, pairs: Pairs, atoms: int, memory_limit: float | None) -> np.ndarray | None:
    """As `_all_columns` at Γ, where columns are real, one after the other; None where that saves no memory.

    The gradient is computed anew for each, so that nothing of it need be kept.
    """
    args = (potential.energy_fn, potential.arrays, graph)
    with potential.precision():
        if _kept(jax.eval_shape(partial(_linearise, args[0]), *args[1:])) < LARGE:
            return None
    # In a heap that is kept, the scratch memory of the second column may not fit where that of the first was.
    with giving_memory_back(), potential.precision():
        if memory_limit is not None and _resident() + _scratch(_column.lower(*args, 0)) > memory_limit:
            return None
        found = [np.asarray(_column(*args, int(k)))[:atoms].ravel() for k in pairs.coordinate]
    return np.array(found, complex)


def dynamical_matrix_slopes(
    potential: Potential,
    crystal: Atoms | Structure,
    q_points: Float[Array, "q 3"],
    *,
    mass_weighted: bool = False,
    block_size: int | None = None,
    room: batching.Capacity | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """D(q), (q, 3N, 3N), and ∂D/∂q, (q, 3, 3N, 3N), with the phases of cells; see `dynamical_matrix`.

    The derivative is exact, by the three components of q in reciprocal lattice units.
    """
    atoms, q_points = along_lattice(crystal, q_points)
    _prove(potential, atoms, q_points)
    graph = batching.pack([potential.graph(atoms)], room, np.dtype(potential.dtype))
    with potential.precision():
        tangent_map = _linearise(potential.energy_fn, potential.arrays, graph)
        real = max(6, _real_columns(tangent_map, block_size) // 4)
        respond = partial(_response_and_slopes, tangent_map, graph.positions)
        pairs = _all_pairs(len(q_points), len(atoms))
        columns = _in_blocks(respond, q_points, pairs, len(atoms), real, potential.dtype)
    D = _convention(_matrices(columns, len(atoms)), atoms, q_points, mass_weighted, "cells")
    return D[0], D[1:].swapaxes(0, 1)


def dynamical_matrix_strained(
    potential: Potential,
    crystal: Atoms | Structure,
    q_points: Float[Array, "q 3"],
    eps: Float[Array, "3 3"],
    *,
    along: Float[Array, "atoms 3"] | None = None,
    mass_weighted: bool = False,
    block_size: int | None = None,
    room: batching.Capacity | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """D(q) and its derivative dD(q)/ds, each (q, 3N, 3N), where the crystal is strained by 1 + s·`eps`.

    Besides, the atoms move by s·`along` (Å): as `following` says, or by default not at all; then they keep
    their fractional coordinates. q keeps its reciprocal lattice units.
    """
    atoms, q_points = along_lattice(crystal, q_points)
    _prove(potential, atoms, q_points)
    graph = batching.pack([potential.graph(atoms)], room, np.dtype(potential.dtype))
    eps = np.asarray(eps, potential.dtype)
    moving = np.zeros_like(graph.positions)
    if along is not None:
        moving[: len(atoms)] = along
    with potential.precision():
        args = (potential.energy_fn, potential.arrays, graph, eps, moving)
        tangent_map = jax.eval_shape(partial(_linearise, args[0]), *args[1:3])
        # Each column takes the second derivative's place twice, and all that it needs is made anew.
        real = max(6, _real_columns(tangent_map, block_size) // 2)
        pairs, respond = _all_pairs(len(q_points), len(atoms)), partial(_strained_response, *args)
        columns = _in_blocks(respond, q_points, pairs, len(atoms), real, potential.dtype)
    return tuple(_convention(_matrices(columns, len(atoms)), atoms, q_points, mass_weighted, "cells"))


def following(
    potential: Potential,
    crystal: Atoms | Structure,
    eps: Float[Array, "3 3"],
    room: batching.Capacity | None = None,
) -> np.ndarray:
    """How far (N, 3), in Å, the atoms move on their way back to rest for each unit of the strain `eps`.

    To first order, by `internal_strain`, which raises where it is open how.
    """
    symmetric = np.add(eps, np.transpose(eps))
    voigt = [symmetric[i, j] / (2 if i == j else 1) for i, j in VOIGT]
    return internal_strain(potential, as_atoms(crystal), room) @ voigt


def along_lattice(crystal: Atoms | Structure, q_points: Any) -> tuple[Atoms, np.ndarray]:
    """The crystal, in a box where it does not repeat, and its wave vectors (q, 3).

    Raises ValueError as `wave_vectors` does, and where a wave runs along a vector that does not repeat.
    """
    atoms, q = in_box(crystal), wave_vectors(q_points)
    if np.abs(q[:, ~atoms.pbc]).max(initial=0) > 1e-9:
        raise ValueError(
            f"found the wave vector {q[np.abs(q[:, ~atoms.pbc]).max(axis=1).argmax()].tolist()} for "
            f"{atoms.get_chemical_formula()} with pbc={atoms.pbc.tolist()}, needed 0 along each vector that "
            "does not repeat."
        )
    return atoms, q


def wave_vectors(q_points: Any) -> np.ndarray:
    """`q_points` as an array (q, 3). Raises ValueError where they are something else."""
    q = np.asarray(q_points, float)
    if q.ndim != 2 or q.shape[1] != 3:
        raise ValueError(
            f"found wave vectors of shape {q.shape}, needed (q, 3): rows of three numbers in reciprocal "
            "lattice units. For one wave vector write [[q1, q2, q3]]."
        )
    if not np.isfinite(q).all():
        raise ValueError(f"wave vector {np.flatnonzero(~np.isfinite(q).all(axis=1))[0]} is not finite.")
    return q


def asymmetry(D: np.ndarray) -> float:
    """max |D - D†|: what rounding leaves of a symmetry that exact second derivatives have."""
    return float(np.abs(D - np.conj(D.swapaxes(-1, -2))).max(initial=0))


def position_phases(atoms: Atoms, q_points: np.ndarray) -> np.ndarray:
    """e^{2πi q·x} of each coordinate at fractional position x, (q, 3N)."""
    x = atoms.cell.scaled_positions(atoms.positions)
    return np.repeat(np.exp(2j * np.pi * q_points @ x.T), 3, axis=1)


def _convention(D, atoms, q_points, mass_weighted: bool, phase: Phase):
    if mass_weighted:
        root = np.sqrt(np.repeat(atoms.get_masses(), 3))
        D = D / (root[:, None] * root)
    if phase == "atoms":
        turn = position_phases(atoms, q_points)
        D = D * (turn.conj()[:, :, None] * turn[:, None, :])
    return D


def _real_columns(tangent_map, asked: int | None) -> int:
    return _block_size(tangent_map, asked, COLUMNS, COLUMNS, COLUMN_BYTES)


def _in_blocks(respond, q_points, pairs: Pairs, atoms: int, real: int, dtype) -> np.ndarray:
    """`respond(q, index)`, parts (…, padded atoms, 2, pairs, 3), for all pairs: complex (…, pairs, 3N)."""
    wave, index = pairs
    size, found = max(1, real // 2), []
    for start in track(range(0, len(wave), size), "dynamical matrices"):
        count = len(wave[start : start + size])
        # The last block repeats some of its pairs.
        some = np.resize(np.arange(start, start + count), size)
        parts = np.asarray(respond(q_points[wave[some]].astype(dtype), index[some]))
        parts = np.moveaxis(parts[..., :atoms, :, :count, :], (-3, -2), (0, -3))  # 2 … pairs atoms 3
        found.append((parts[0] + 1j * parts[1]).reshape(*parts.shape[1:-2], 3 * atoms))
    return np.concatenate(found, axis=-2) if found else np.zeros((0, 3 * atoms), complex)


def _all_pairs(waves: int, atoms: int) -> Pairs:
    return Pairs(np.repeat(np.arange(waves), 3 * atoms), np.tile(np.arange(3 * atoms), waves))


def _matrices(columns, atoms: int) -> np.ndarray:
    """Columns (…, q · 3N, 3N) of all pairs as matrices (…, q, 3N, 3N)."""
    n = 3 * atoms
    return columns.reshape(*columns.shape[:-2], -1, n, n).swapaxes(-1, -2)


def _waves(tangent_map: Any, positions, q: Float[Array, "pairs 3"], index) -> Float[Array, "atoms 2 pairs 3"]:
    """The gradient's response to waves q of the coordinates numbered `index`: real and imaginary parts."""
    atoms, pairs = len(positions), len(q)
    unit = jnp.zeros((atoms, 2, pairs, 3), positions.dtype)
    unit = unit.at[index // 3, 0, jnp.arange(pairs), index % 3].set(1)

    def turn(x, image, sign):
        angle = 2 * jnp.pi * sign * (image @ q.T)
        axes = (*angle.shape, *(1,) * (x.ndim - 2))
        c, s = jnp.cos(angle).reshape(axes), jnp.sin(angle).reshape(axes)
        parts = x.reshape(len(x), 2, pairs, *x.shape[2:])
        re, im = parts[:, 0], parts[:, 1]
        return jnp.stack([c * re - s * im, s * re + c * im], axis=1).reshape(x.shape)

    flat = unit.reshape(atoms, 2 * pairs, 3)
    return second_axis_vmap(tangent_map, positions, wave=turn)(flat).reshape(unit.shape)


_response = jax.jit(_waves)


@partial(jax.jit, static_argnames="energy")
def _column(energy, params, graph: CrystalGraph, index) -> Float[Array, "atoms 3"]:
    """Column number `index` of the second derivative."""
    unit = jnp.zeros(graph.positions.size, graph.positions.dtype).at[index].set(1)
    return hvp(partial(energy, params), graph, unit.reshape(graph.positions.shape))


@jax.jit
def _response_and_slopes(tangent_map, positions, q, index):
    """The response, and its derivatives by the three components of q: the first axis has four entries."""
    respond = partial(_waves, tangent_map, positions, index=index)
    value, slope = jax.linearize(lambda q: respond(q=q), q)
    slopes = [slope(jnp.broadcast_to(direction, q.shape)) for direction in jnp.eye(3, dtype=q.dtype)]
    return jnp.stack([value, *slopes])


@partial(jax.jit, static_argnames="energy")
def _strained_response(energy, params, graph: CrystalGraph, eps, along, q, index):
    """The response, and its derivative by s where strain is s·eps and atoms move by s·along besides."""

    def respond(s):
        moved = _moved(graph, s, eps, along)
        tangent_map = jax.linearize(gradient(partial(energy, params), moved), moved.positions)[1]
        return _waves(tangent_map, moved.positions, q, index)

    return jnp.stack(jax.jvp(respond, (jnp.zeros((), q.dtype),), (jnp.ones((), q.dtype),)))


def _moved(graph: CrystalGraph, s, eps, along) -> CrystalGraph:
    moved = strain(graph, jnp.broadcast_to(s * eps, graph.cell.shape))
    return moved.replace(positions=moved.positions + s * along)


def _columns_program(tangent_map, positions, block: int):
    """The program that `dynamical_matrix` runs for `block` real columns, to ask what memory it takes."""
    pairs = max(1, block // 2)
    return _response.lower(
        tangent_map, positions, np.zeros((pairs, 3), positions.dtype), np.zeros(pairs, int)
    )
