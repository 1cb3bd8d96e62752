"""Third-order force constants of a crystal that repeats with a supercell, exact or from displacements.

    Φ(ia, jb, kc) = ∂³E / ∂r_ia ∂r_jb ∂r_kc

For a displacement w the slope E_w(r) = dE(r + s w)/ds is an energy function as well, and Φ(w, ·, ·) its
Hessian. So a column Φ(w, jb, ·) is a column of that Hessian, exact and without a step: see
`jaxmlip.derivatives.response`. `triplets` says which columns are computed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from jaxmlip.crystals import batching
from jaxmlip.crystals.graph import CrystalGraph
from jaxmlip.crystals.symmetry import TOLERANCE as SYMPREC
from jaxmlip.derivatives.response import Response, Room, without_net_force
from jaxmlip.derivatives.streaming import columns_done, stream_hessian
from jaxmlip.mechanics.elasticity import internal_response
from jaxmlip.phonons.cells import Cells, Primitive
from jaxmlip.phonons.modes import hermitian
from jaxmlip.phonons.phonopy_files import as_ase
from jaxmlip.phonons.supercell import (
    ForceConstants,
    Supercell,
    cell_number,
    constants_of_columns,
    force_constants,
)
from jaxmlip.phonons.triplets import (
    Column,
    Pairs,
    Plan,
    completed,
    permutation_error,
    plan,
    space_group_error,
)
from jaxmlip.system.progress import paced
from jaxmlip.units import in_thz

if TYPE_CHECKING:
    from ase import Atoms
    from phonopy.structure.atoms import PhonopyAtoms
    from pymatgen.core import Structure

    from jaxmlip.potential import Potential

Method = Literal["exact", "differences", "displaced"]
STEPS = {"differences": 0.01, "displaced": 0.03}  # Å
SAME_WAVE = 1e-9  # of a reciprocal lattice vector
Progress = Callable[[int], None]  # called with the number of columns of a displacement that are there
Columns = Callable[[tuple[int, int], list[int], Progress], np.ndarray]


class SmallSupercellWarning(UserWarning):
    """A supercell whose images are not told apart: bonds to two images of an atom count as one."""


@dataclass(frozen=True)
class Checks:
    """How far third-order constants are from what they should be, in eV/Å³ unless said."""

    largest: float  # the largest element
    sum_rule: float  # the largest |Σ_k Φ_ijk| and |Σ_j Φ_ijk|
    permutation: float  # the largest difference between elements that permutation makes equal
    space_group: float  # the largest difference between columns, or elements, that symmetry makes equal
    boundary: float  # the largest element of the two atoms farthest apart: what a larger supercell would move
    columns: int  # that were computed
    of: int  # columns of all pairs of atoms
    repeat: float  # Å, from an atom to its nearest image
    needed: float  # Å, twice the reach of a bond: images of a bond are then apart
    projected: float = 0.0  # the largest change by symfc's projector

    def __str__(self) -> str:
        share = f"{100 * self.boundary / self.largest:.2g} %" if self.largest else "-"
        short = self.needed - self.repeat
        room = f", too small by {short:.2f} Å to keep images of bonds apart" if short > 0 else ""
        lines = [
            f"largest element       {self.largest:.4g} eV/Å³",
            f"acoustic sum rule     {self.sum_rule:.1e} eV/Å³",
            f"permutation           {self.permutation:.1e} eV/Å³",
            f"space group           {self.space_group:.1e} eV/Å³",
            f"at the boundary       {self.boundary:.1e} eV/Å³, {share} of the largest",
            f"supercell             repeats after {self.repeat:.2f} Å{room}",
        ]
        if self.columns:
            lines.append(f"columns               {self.columns} of {self.of}")
        if self.projected:
            lines.append(f"changed by projecting {self.projected:.1e} eV/Å³")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class ThirdOrder:
    """Third-order force constants, in the order and the compact layout of phono3py."""

    cells: Cells
    # (n, N, N, 3, 3, 3), eV/Å³: Φ(ia, jb, kc) at [i, j, k, a, b, c], i in the primitive cell, j and k in the
    # supercell. C-contiguous, float64.
    fc3: np.ndarray
    method: str
    checks: Checks
    # Second order in the same supercell, where it comes with third order: of exact constants that no folder
    # keeps, and of displacements.
    second: SecondOrder | None = None

    def strained(self, strain: np.ndarray, motion: np.ndarray | None = None) -> SecondOrder:
        """∂Φ2/∂s (eV/Å²) for a strain 1 + s ε under which atoms move with the cell, and by s `motion` (n, 3).

        It is Σ_k Φ(ia, jb, kc) (ε r_ik)_c, r_ik (Å) the mean of the nearest images, and exact if Φ vanishes
        before the supercell repeats.
        """
        moved = self.cells.strained(strain)
        if motion is not None:
            atom, _ = self.cells.places
            moved = moved + np.asarray(motion, float)[atom]
        return SecondOrder(self.cells, np.einsum("ijkabc,ikc->ijab", self.fc3, moved))


@dataclass(frozen=True, eq=False)
class SecondOrder:
    """Second-order force constants in the order and the compact layout of phonopy."""

    cells: Cells
    fc2: np.ndarray  # (n, N, 3, 3), eV/Å²

    @classmethod
    def of(cls, constants: ForceConstants, cells: Cells) -> SecondOrder:
        """The same constants between the atoms of `cells`, whose primitive cell and supercell they have."""
        if not np.array_equal(constants.supercell, cells.matrix) or len(constants.primitive) != len(
            cells.primitive
        ):
            raise ValueError(
                f"found constants of {len(constants.primitive)} atoms in the supercell "
                f"{constants.supercell.tolist()}, needed {len(cells.primitive)} in {cells.matrix.tolist()}."
            )
        (atom, R), n = cells.places, len(cells.primitive)
        phi = constants.phi.reshape(-1, *constants.phi.shape[3:])
        number = constants.number(R[None] - R[cells.p2s][:, None])
        found = phi[number, np.arange(n)[:, None], :, atom[None]]
        return cls(cells, np.ascontiguousarray(found))

    def matrices(self, q_points: np.ndarray) -> np.ndarray:
        """D(q) (q, 3n, 3n) in eV/Å² with the phases of cells, q (q, 3) in reciprocal lattice units.

        Each atom of the supercell stands for its nearest images.
        """
        images, (atom, _) = self.cells.images, self.cells.places
        q, n = np.asarray(q_points, float), len(self.cells.primitive)
        D = np.zeros((len(q), n, 3, n, 3), complex)
        for k, one in enumerate(q):
            phase = images.phases(one)
            for j in range(n):
                its = atom == j
                D[k, :, :, j] = np.einsum("is,isab->iab", phase[:, its], self.fc2[:, its])
        return D.reshape(len(q), 3 * n, 3 * n)

    def weighed(self, q_points: np.ndarray) -> np.ndarray:
        """D(q) (q, 3n, 3n) over the roots of the masses, in eV/(Å² u), Hermitian."""
        root = np.sqrt(np.repeat(self.cells.primitive.get_masses(), 3))
        return hermitian(self.matrices(q_points) / (root[:, None] * root))

    def modes(self, q_points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frequencies (q, 3n) in THz and eigenvectors (q, 3n, 3n), in columns, with the phases of cells.

        Eigenvectors are real where -q and q are one wave vector.
        """
        q = np.asarray(q_points, float)
        squares, vectors = np.linalg.eigh(D := self.weighed(q))
        real = np.abs(2 * q - np.rint(2 * q)).max(axis=1) < SAME_WAVE
        vectors[real] = np.linalg.eigh(D[real].real)[1]
        return in_thz(squares), vectors

    def internal_motion(self, strain: np.ndarray) -> np.ndarray:
        """The motion (n, 3) in Å of the atoms back to rest per unit of a strain, of a crystal at rest.

        Raises ValueError if displacements meet no resistance.
        """
        H = self.matrices(np.zeros((1, 3)))[0].real
        pull = np.einsum("ijab,ijb->ia", self.fc2, self.cells.strained(strain))
        precision = np.finfo(float).eps
        answer = internal_response((H + H.T) / 2, -pull.reshape(-1, 1), precision, self.cells.primitive)[1]
        return answer.reshape(-1, 3)


def third_order(
    potential: Potential,
    crystal: Atoms | Structure,
    supercell: Supercell,
    *,
    primitive: Primitive = "auto",
    method: Method = "exact",
    step: float | None = None,
    symmetry: bool = True,
    symprec: float = SYMPREC,
    project: bool = False,
    block_size: int | None = None,
    memory_limit: float | None = None,
    shape: Room | None = None,
    path: str | Path | None = None,
) -> ThirdOrder:
    """Third-order force constants between the atoms of a primitive cell and those of a supercell.

    `crystal` is the unit cell, `supercell` and `primitive` as in `Cells.of`. Atoms are not relaxed. `method`
    is "exact", third derivatives of the energy; or "differences", central differences of exact Hessian
    columns, each atom moved by `step` Å (default: 0.01); or "displaced", phono3py's finite displacements of
    `step` Å (default: 0.03) with forces of the potential, which phono3py makes into constants.

    With `symmetry` only columns that differ under the space group, found within `symprec` (Å), and by
    permutation are computed. With `project` symfc's projector imposes space group, permutation and
    translation on the result. `block_size`, `memory_limit` and `shape` are those of `Response`; columns are
    spread over the devices of the potential as its are. `path` names a folder in which `stream_hessian` keeps
    the exact columns: the same call goes on there after an interruption.

    Use a potential of dtype "float64". Raises ImportError if phonopy (or for "displaced" phono3py) is not
    installed, ValueError as `Cells.of` does or if arguments make no sense, and MemoryLimitError as `Response`
    does. Warns if the supercell is so small that an atom has bonds to two images of another.
    """
    if method not in get_args(Method):
        raise ValueError(f"found method={method!r}, needed 'exact', 'differences' or 'displaced'.")
    if path is not None and method != "exact":
        raise ValueError(
            f"found path={str(path)!r} for method={method!r}, needed 'exact', which is kept there."
        )
    _check_step(method, step)
    step = STEPS.get(method) if step is None else step
    cells = Cells.of(crystal, supercell, primitive, symprec)
    group = cells.group(symprec) if symmetry else None
    _warn_of_images(potential, cells)
    if method == "displaced":
        found = _displaced(potential, cells, step, symprec)
        return projected(found) if project else found
    chosen, there, slopes = plan(cells, group), 0, None
    limits = {"block_size": block_size, "memory_limit": memory_limit}
    if path is not None:
        how, columns = "exact", _streamed(potential, cells, Path(path), **limits)
        there = sum(columns_done(_file(Path(path), w)) for w in chosen.wanted)
    else:
        limits |= {"shape": shape, "beside": 8 * 27 * len(cells.primitive) * len(cells.supercell) ** 2}
        if method == "exact":
            how, columns = "exact", (slopes := _Slopes(potential, cells, chosen, limits))
        else:
            how = f"differences of exact Hessian columns, ±{step:g} Å"
            columns = _differences(potential, cells, chosen, step, limits)
    rows = _rows(chosen, columns, len(cells.supercell), there)
    phi, off = completed(chosen, rows)
    known = None if group is None else off
    checks = checked(phi, cells, symprec, len(rows), potential.cutoffs.bond, known)
    second = None if slopes is None else slopes.second(symmetry, symprec)
    found = ThirdOrder(cells, phi, how, checks, second)
    return projected(found) if project else found


def second_order(
    potential: Potential,
    crystal: Atoms | Structure,
    supercell: Supercell,
    *,
    primitive: Primitive = "auto",
    method: Literal["exact", "displaced"] = "exact",
    step: float | None = None,
    symprec: float = SYMPREC,
    **options: Any,
) -> SecondOrder:
    """Second-order force constants in the order of phonopy and phono3py, for `write_third_order`.

    Arguments are those of `third_order`. `method` is "exact", second derivatives of the energy; or
    "displaced", the displacements of `step` Å (default: 0.03) that phono3py has for second order, with forces
    of the potential, made symmetric by phonopy. `options` are those of `force_constants`, whose symmetry is
    used; "displaced" has none. Raises as `third_order` does.
    """
    if method not in ("exact", "displaced"):
        raise ValueError(f"found method={method!r}, needed 'exact' or 'displaced'.")
    _check_step(method, step)
    cells = Cells.of(crystal, supercell, primitive, symprec)
    if method == "displaced":
        if options:
            raise ValueError(f"found {next(iter(options))} for method='displaced', which has no such option.")
        return _second_displaced(potential, cells, STEPS[method] if step is None else step, symprec)
    options = {"symmetry": True, **options}
    constants = force_constants(potential, cells.primitive, cells.matrix, symprec=symprec, **options)
    return SecondOrder.of(constants, cells)


def projected(constants: ThirdOrder) -> ThirdOrder:
    """The nearest constants that have the space group, permutation and translation, by symfc."""
    from phonopy.interface.symfc import symmetrize_by_projector

    cells, phi = constants.cells, constants.fc3
    phonon = cells.to_phonopy()
    found = symmetrize_by_projector(phonon.supercell, phi, 3, primitive=phonon.primitive)
    change = float(np.abs(found - phi).max())
    checks = replace(constants.checks, projected=change)
    return replace(constants, fc3=np.ascontiguousarray(found), checks=checks)


def _displaced(potential: Potential, cells: Cells, step: float, symprec: float) -> ThirdOrder:
    """Constants from forces of the potential at phono3py's displacements."""
    ph3 = cells.to_phono3py(symprec)
    ph3.generate_displacements(distance=step)
    # Supercells that are left out by a cutoff would be None.
    ph3.forces = _forces(potential, ph3.supercells_with_displacements)
    how = f"phono3py's displacements of {step:g} Å, {len(ph3.forces)} supercells"
    return from_forces(cells, ph3.dataset, how, symprec, potential.cutoffs.bond)


def from_forces(
    cells: Cells, dataset: dict[str, Any], how: str, symprec: float = SYMPREC, bond: float = 0.0
) -> ThirdOrder:
    """What phono3py makes of the displacements and forces in its `dataset`; `how` says where they are from.

    Pairs of displaced atoms give the constants by differences, symmetrised as by its `symmetrize_fc3` and
    `symmetrize_fc2`; the checks are of what they are before. Supercells with all atoms displaced are fitted
    by symfc.

    Raises ImportError if phono3py, or symfc if it is needed, is not installed.
    """
    ph3 = cells.to_phono3py(symprec)
    ph3.dataset = dataset
    fit = "first_atoms" not in dataset
    ph3.produce_fc3(is_compact_fc=True, fc_calculator="symfc" if fit else None)
    checks = checked(np.array(ph3.fc3, float), cells, symprec, bond=bond)
    if not fit:
        ph3.symmetrize_fc3()
        ph3.symmetrize_fc2()
    second = SecondOrder(cells, np.ascontiguousarray(ph3.fc2, float))
    return ThirdOrder(cells, np.ascontiguousarray(ph3.fc3, float), how, checks, second)


def _second_displaced(potential: Potential, cells: Cells, step: float, symprec: float) -> SecondOrder:
    """What phonopy makes of forces at displacements along the vectors of the supercell, as phono3py has them
    for second order."""
    phonon = cells.to_phonopy(symprec)
    phonon.generate_displacements(distance=step, is_plusminus="auto", is_diagonal=False)
    phonon.forces = _forces(potential, phonon.supercells_with_displacements)
    phonon.produce_force_constants(calculate_full_force_constants=False)
    phonon.symmetrize_force_constants()
    return SecondOrder(cells, np.ascontiguousarray(phonon.force_constants, float))


def _forces(potential: Potential, supercells: Iterable[PhonopyAtoms]) -> np.ndarray:
    """Forces (supercells, N, 3) in eV/Å."""
    return np.array([p["forces"] for p in potential.predict(list(map(as_ase, supercells)))], float)


def _check_step(method: str, step: float | None) -> None:
    if step is not None and (method == "exact" or not step > 0):
        raise ValueError(
            f"found step={step} for method={method!r}, needed a distance above 0 (Å), and none for 'exact'."
        )


def _rows(chosen: Plan, columns: Columns, N: int, there: int) -> Mapping[Column, np.ndarray]:
    """All columns (N, 3) that are wanted, of which `there` are known from earlier."""
    found: dict[Column, np.ndarray] = {}
    with paced(sum(map(len, chosen.wanted.values())), there, "third-order columns") as show:
        for w, numbers in chosen.wanted.items():
            before = len(found)
            rows = columns(w, numbers, lambda done, before=before: show(before + done, ""))
            for number, row in zip(numbers, rows, strict=True):
                found[Column(*w, number)] = np.asarray(row, float).reshape(N, 3)
    return found


class _Slopes:
    """The slopes of the energy along displacements, as `Columns`: columns of their Hessians.

    The gradient of the slope along a displacement, which comes with its Hessian, is a column of the energy's.
    """

    def __init__(self, potential: Potential, cells: Cells, chosen: Plan, limits: dict[str, Any]):
        if limits["shape"] is None and limits["memory_limit"] is None:
            limits = {**limits, "shape": batching.close_shape_for}  # it is used for much work
        self.cells, self.chosen = cells, chosen
        self.response = Response(potential, cells.supercell, along=_unit(cells, (0, 0)), **limits)
        self.gradients: dict[tuple[int, int], np.ndarray] = {}  # (N, 3), eV/Å²

    def __call__(self, w: tuple[int, int], numbers: list[int], progress: Progress) -> np.ndarray:
        slope = self.response.turned(_unit(self.cells, w))
        found = _all(slope, numbers, self.chosen, progress)
        self.gradients[w] = slope.first_order().positions
        return found

    def second(self, symmetry: bool, symprec: float) -> SecondOrder:
        """Second-order constants of the supercell.

        The displacements that they need are those of third order: no exchange spares a pair (i, i).
        """
        cells, (atom, R), n = self.cells, self.cells.places, len(self.cells.primitive)

        def columns(numbers: list[int]) -> np.ndarray:
            rows = np.empty((len(numbers), len(cells.supercell) // n, n, 3))
            for row, number in zip(rows, numbers, strict=True):
                i, x = divmod(number, 3)
                cell = cell_number(R - R[cells.p2s[i]], cells.matrix)
                row[cell, atom] = without_net_force(self.gradients[i, x])
            return rows

        found = constants_of_columns(cells.primitive, cells.matrix, columns, symmetry, symprec)
        return SecondOrder.of(found, cells)


def _streamed(potential: Potential, cells: Cells, folder: Path, **limits: Any) -> Columns:
    """The same, kept in files of `folder`, from which an interrupted run goes on."""
    folder.mkdir(parents=True, exist_ok=True)

    def columns(w: tuple[int, int], numbers: list[int], progress: Progress) -> np.ndarray:
        how = {"along": _unit(cells, w), "progress": progress, **limits}
        return stream_hessian(potential, cells.supercell, _file(folder, w), numbers, **how)

    return columns


def _file(folder: Path, w: tuple[int, int]) -> Path:
    """The file of the columns of a first displacement."""
    return folder / f"columns-{w[0]}{'xyz'[w[1]]}.npy"


def _differences(
    potential: Potential, cells: Cells, chosen: Plan, step: float, limits: dict[str, Any]
) -> Columns:
    """Central differences of Hessian columns."""

    def graph(w: tuple[int, int], sign: int) -> CrystalGraph:
        moved = cells.supercell.copy()
        moved.positions += sign * step * _unit(cells, w)
        return potential.graph(moved)

    if limits["shape"] is None:  # bonds come and go as atoms move: one shape holds them all
        sizes = [batching.exact_shape([graph(w, sign)]) for w in chosen.wanted for sign in (1, -1)]
        limits = {**limits, "shape": batching.close(batching.BatchShape.covering(sizes))}

    def columns(w: tuple[int, int], numbers: list[int], progress: Progress) -> np.ndarray:
        def at(sign: int, halves: int) -> np.ndarray:
            response = Response(potential, graph(w, sign), **limits)
            return _all(response, numbers, chosen, lambda done: progress((halves * len(numbers) + done) // 2))

        return (at(1, 0) - at(-1, 1)) / (2 * step)

    return columns


def _all(response: Response, numbers: list[int], chosen: Plan, progress: Progress) -> np.ndarray:
    """The columns of these numbers, in blocks of one size for all displacements."""
    most, found = max(map(len, chosen.wanted.values())), []
    for start, rows in response.columns(np.array(numbers), total=most):
        found.append(rows)
        progress(start + len(rows))
    return np.concatenate(found)


def _unit(cells: Cells, w: tuple[int, int]) -> np.ndarray:
    """The displacement (N, 3) of an atom of the primitive cell along an axis by 1 Å."""
    unit = np.zeros((len(cells.supercell), 3))
    unit[cells.p2s[w[0]], w[1]] = 1
    return unit


def checked(
    phi: np.ndarray,
    cells: Cells,
    symprec: float = SYMPREC,
    columns: int = 0,
    bond: float = 0.0,
    space_group: float | None = None,
) -> Checks:
    """All checks of constants; `bond` (Å) is how far bonds reach, `space_group` its error if it is known."""
    if space_group is None:
        space_group = space_group_error(phi, Pairs(cells, cells.group(symprec)))
    distance = cells.images.distance
    farthest = distance > distance.max() - 1e-3
    return Checks(
        largest=float(np.abs(phi).max()),
        sum_rule=float(max(np.abs(phi.sum(axis=axis)).max() for axis in (1, 2))),
        permutation=permutation_error(phi, cells),
        space_group=space_group,
        boundary=float(np.abs(phi[farthest]).max()),
        columns=columns,
        of=9 * phi.shape[0] * phi.shape[1],
        repeat=cells.repeat,
        needed=2 * bond,
    )


def _warn_of_images(potential: Potential, cells: Cells) -> None:
    """Warns if an atom is bonded to two images of another."""
    needed = 2 * potential.cutoffs.bond
    if cells.repeat < needed:
        warnings.warn(
            f"the supercell of {len(cells.supercell)} atoms repeats after {cells.repeat:.2f} Å, and bonds of "
            f"{potential.name} reach {needed / 2:g} Å: an atom can be bonded to two images of another, whose "
            f"constants are then added. It is too small by {needed - cells.repeat:.2f} Å.",
            SmallSupercellWarning,
            stacklevel=3,
        )
