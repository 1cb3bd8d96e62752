"""Vibrations of molecules, adsorbates and cells at q = 0, from exact Hessians, and their thermochemistry.

    M^(-1/2) H M^(-1/2) e = ω² e,  the displacement of atom a along e is e_a / √m_a

H is the block of the coordinates that move, and only its columns are computed. Motions that cost no energy
are projected out first: translations and rotations of a molecule, translations of a crystal, and none if
atoms are frozen. E. B. Wilson, J. C. Decius and P. C. Cross, Molecular Vibrations (1955), chapter 2.

An imaginary frequency is a negative number. Potentials have no dipoles, so there are no infrared intensities.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from ase import Atoms
from jaxtyping import Float

from jaxmlip.crystals.atoms import as_atoms, oscillation
from jaxmlip.crystals.batching import BatchShape
from jaxmlip.crystals.graph import CrystalGraph, directions
from jaxmlip.crystals.structures import moving_coordinates
from jaxmlip.derivatives.response import Response
from jaxmlip.mechanics.elasticity import NotAtRestWarning
from jaxmlip.potential import Potential
from jaxmlip.units import EV_PER_THZ, PER_CM_PER_THZ, in_thz

if TYPE_CHECKING:
    from ase.thermochemistry import HarmonicThermo, HinderedThermo, IdealGasThermo
    from ase.vibrations import VibrationsData
    from pymatgen.core import Structure

Geometry = Literal["monatomic", "linear", "nonlinear"]

IMAGINARY = -0.1  # THz; a lower mode has no restoring force, which is not rounding
LARGE_FORCE = 0.01  # eV/Å; above it, frequencies are not those of a structure at rest
STRAIGHT = 0.02  # Å; a molecule is linear if no atom is farther from its axis
ALIKE = 0.05  # Å; atoms this close to their images under a rotation are symmetric


@dataclass(frozen=True, eq=False)
class Vibrations:
    """The modes of a molecule, an adsorbate or a cell in which all periodic images move alike.

    Their number is that of moving coordinates less that of the `rigid` motions. They are in ascending order
    of frequency, the imaginary ones first.
    """

    atoms: Atoms  # with the masses that vibrate, in u
    coordinates: np.ndarray  # (n,), ascending: those that move, 3a + x for atom a along x
    hessian: np.ndarray  # (n, n), eV/Å²: of these coordinates, in float64
    energy: float = float("nan")  # eV
    max_force: float = float("nan")  # eV/Å, the largest on an atom along moving coordinates

    @property
    def indices(self) -> np.ndarray:
        """The numbers of the atoms that move."""
        return np.unique(self.coordinates // 3)

    @property
    def frozen(self) -> int:
        """The number of coordinates that do not move."""
        return 3 * len(self.atoms) - len(self.coordinates)

    @cached_property
    def rigid(self) -> Float[np.ndarray, "n motions"]:
        """Translations and rotations that cost no energy, orthonormal in mass-weighted coordinates."""
        if self.frozen:
            return np.zeros((len(self.coordinates), 0))
        return rigid_motions(self.atoms, self.atoms.get_masses())

    @cached_property
    def _solved(self) -> tuple[np.ndarray, np.ndarray]:
        """Frequencies in THz (modes,), and eigenvectors (n, modes) of the mass-weighted Hessian."""
        root = np.sqrt(self.atoms.get_masses()[self.coordinates // 3])
        D = (self.hessian + self.hessian.T) / 2 / np.outer(root, root)
        space = complement(self.rigid)
        squares, vectors = np.linalg.eigh(space.T @ D @ space)
        return in_thz(squares), space @ vectors

    @property
    def thz(self) -> Float[np.ndarray, " modes"]:
        """Frequencies in THz."""
        return self._solved[0]

    @property
    def mev(self) -> Float[np.ndarray, " modes"]:
        """Energies hν in meV."""
        return self.thz * EV_PER_THZ * 1e3

    @property
    def per_cm(self) -> Float[np.ndarray, " modes"]:
        """Wavenumbers in cm⁻¹."""
        return self.thz * PER_CM_PER_THZ

    @property
    def imaginary(self) -> int:
        """The number of imaginary modes, below -0.1 THz."""
        return int((self.thz < IMAGINARY).sum())

    @property
    def zero_point_energy(self) -> float:
        """Σ hν / 2 in eV, without imaginary modes."""
        return float(np.maximum(self.thz, 0).sum() * EV_PER_THZ / 2)

    @property
    def asymmetry(self) -> float:
        """The largest |H - Hᵀ| in eV/Å², which is rounding."""
        return float(np.abs(self.hessian - self.hessian.T).max())

    @property
    def eigenvectors(self) -> Float[np.ndarray, "modes atoms 3"]:
        """Mass-weighted modes, orthonormal; zero for what does not move."""
        found = np.zeros((len(self.thz), 3 * len(self.atoms)))
        found[:, self.coordinates] = self._solved[1].T
        return found.reshape(len(found), -1, 3)

    @property
    def displacements(self) -> Float[np.ndarray, "modes atoms 3"]:
        """e / √m in u^(-1/2), the normal modes of ASE; zero for what does not move."""
        return self.eigenvectors / np.sqrt(self.atoms.get_masses())[:, None]

    @property
    def is_molecule(self) -> bool:
        """True if nothing repeats and nothing is frozen, so that it also moves and turns as a whole."""
        return not self.atoms.pbc.any() and not self.frozen

    @property
    def geometry(self) -> Geometry:
        """The geometry of a molecule, from its inertia tensor."""
        return geometry(self.atoms)

    def animation(self, mode: int, *, amplitude: float = 0.3, frames: int = 20) -> list[Atoms]:
        """One period of a mode as frames, the largest motion `amplitude` Å; see `oscillation`.

        Write them with ase.io.write("mode.extxyz", frames).
        """
        found = oscillation(self.atoms, self.displacements[mode], amplitude, frames)
        for frame in found:
            frame.info |= {"mode": mode, "frequency_per_cm": float(self.per_cm[mode])}
        return found

    def to_ase(self) -> VibrationsData:
        """The same as ase.vibrations.VibrationsData, which projects no rigid motions out.

        Raises ValueError if an atom is held along some directions only: there it takes whole atoms.
        """
        from ase.vibrations import VibrationsData

        indices = self.indices
        if len(self.coordinates) != 3 * len(indices):
            parts = [a for a in indices if (self.coordinates // 3 == a).sum() < 3]
            raise ValueError(
                f"atom {parts[0]} of {self.atoms.get_chemical_formula()} is held along some directions only, "
                "but VibrationsData holds whole atoms. Choose atoms with indices=, or hold all of each."
            )
        return VibrationsData.from_2d(self.atoms, self.hessian, indices)

    @classmethod
    def from_ase(cls, data: VibrationsData) -> Vibrations:
        """The vibrations of ASE's data, which has neither energy nor forces: they are NaN."""
        atoms, indices = data.get_atoms(), data.get_indices() % len(data.get_atoms())
        columns = (3 * indices[:, None] + np.arange(3)).ravel()
        order = np.argsort(columns, kind="stable")
        return cls(atoms, columns[order], data.get_hessian_2d()[np.ix_(order, order)])

    @property
    def ase_energies(self) -> np.ndarray:
        """Energies hν in eV as ASE has them, complex (modes,): imaginary ones on the imaginary axis."""
        return np.where(self.thz < 0, 1j * np.abs(self.thz), self.thz) * EV_PER_THZ

    def ideal_gas(
        self, *, spin: float, symmetry_number: int | None = None, ignore_imag_modes: bool = False
    ) -> IdealGasThermo:
        """The free molecule as an ideal gas with rigid rotations and harmonic vibrations.

        `spin` is the total electronic spin: 0 if all electrons are paired, 1 for O₂. The rotational symmetry
        number is that of `rotations` unless given. get_gibbs_energy(K, Pa) and other methods of the result
        are ASE's. Raises ValueError unless it is a molecule, nothing of which is frozen, and if modes are
        imaginary, unless they are ignored.
        """
        from ase.thermochemistry import IdealGasThermo

        if not self.is_molecule:
            raise ValueError(
                f"{self.atoms.get_chemical_formula()} has pbc={self.atoms.pbc.tolist()} and {self.frozen} "
                "frozen coordinates, but an ideal gas is of free molecules. Set atoms.pbc = False and free "
                "all atoms, or use harmonic()."
            )
        return IdealGasThermo(
            self._energies(ignore_imag_modes),
            self.geometry,
            potentialenergy=self._known_energy,
            atoms=self.atoms,
            symmetrynumber=symmetry_number or rotations(self.atoms),
            spin=spin,
            vib_selection="all" if ignore_imag_modes else "exact",
            ignore_imag_modes=ignore_imag_modes,
        )

    def harmonic(self, *, ignore_imag_modes: bool = False) -> HarmonicThermo:
        """All modes as harmonic oscillators, for adsorbates and cells; get_helmholtz_energy(K) is ASE's.

        Raises ValueError if there is no mode, or modes are imaginary and not ignored.
        """
        from ase.thermochemistry import HarmonicThermo

        if not len(self.thz):
            raise ValueError(f"{self.atoms.get_chemical_formula()} has no mode: a single atom only moves.")
        return HarmonicThermo(self._energies(ignore_imag_modes), self._known_energy, ignore_imag_modes)

    def hindered(
        self,
        *,
        trans_barrier: float,
        rot_barrier: float,
        site_density: float,
        rotational_minima: int,
        symmetry_number: int = 1,
        inertia: float | None = None,
        normal: Sequence[float] = (0, 0, 1),
        ignore_imag_modes: bool = False,
    ) -> HinderedThermo:
        """An adsorbate that moves and turns over barriers, whose three slowest modes become such motions.

        They are two hindered translations and a hindered rotation about `normal`: L. H. Sprowl et al., J.
        Phys. Chem. C 120, 9719 (2016). The atoms that move must be those of the adsorbate: they give its mass
        and, unless given, its moment of `inertia` (u Å²) about `normal`. Barriers are in eV, `site_density`
        in cm⁻². Raises ValueError if there are fewer than four modes or no moment of inertia, and if modes
        are imaginary, unless they are ignored.
        """
        from ase.thermochemistry import HinderedThermo

        if len(self.thz) < 4 or len(self.coordinates) != 3 * len(self.indices) or not self.frozen:
            raise ValueError(
                f"found {len(self.thz)} modes of {len(self.indices)} of {len(self.atoms)} atoms, needed an "
                "adsorbate of two or more atoms that are free in all directions, on frozen ones."
            )
        if inertia is None:
            inertia = self._inertia_about(np.asarray(normal, float))
        if not inertia > 1e-3:
            raise ValueError(
                f"found a moment of inertia of {inertia:.2g} u Å² about {list(normal)}: the adsorbate stands "
                "upright and no rotation about this axis moves it. Use harmonic(), or give inertia=."
            )
        return HinderedThermo(
            self._energies(ignore_imag_modes),
            trans_barrier,
            rot_barrier,
            site_density,
            rotational_minima,
            potentialenergy=self._known_energy,
            mass=self.atoms.get_masses()[self.indices].sum(),
            inertia=inertia,
            symmetrynumber=symmetry_number,
            ignore_imag_modes=ignore_imag_modes,
        )

    def _inertia_about(self, axis: np.ndarray) -> float:
        """The moment of inertia of the atoms that move about `axis`, in u Å²."""
        some = self.atoms[self.indices]
        m, r = some.get_masses(), _unwrapped(some)
        across = np.cross(r - m @ r / m.sum(), axis / np.linalg.norm(axis))
        return float(m @ (across**2).sum(axis=1))

    @property
    def _known_energy(self) -> float:
        return 0.0 if np.isnan(self.energy) else self.energy

    def _energies(self, ignore_imag_modes: bool) -> list[complex]:
        if (self.thz < 0).any() and not ignore_imag_modes:
            raise ValueError(
                f"{self.atoms.get_chemical_formula()} has {(self.thz < 0).sum()} imaginary modes, down to "
                f"{self.per_cm[0]:.1f} cm⁻¹: it is no minimum, and they have no thermal energy. Relax it, "
                "displaced along them (animation), or leave them out with ignore_imag_modes=True."
            )
        return list(self.ase_energies)


def vibrations(
    potential: Potential,
    atoms: Atoms | Structure,
    *,
    indices: Sequence[int] | None = None,
    block_size: int | None = None,
    memory_limit: float | None = None,
    shape: BatchShape | None = None,
) -> Vibrations:
    """The vibrations of `atoms` in `potential`, from the exact Hessian of the atoms that move.

    These are the atoms `indices`, or all but what constraints hold: atoms (FixAtoms) or directions of them.
    A partial Hessian costs its share of columns. Use a potential of dtype "float64". See `Response` for
    `block_size`, `memory_limit` and `shape`.

    It warns if forces remain on moving atoms, and if a molecule is in a periodic box, which is treated as a
    crystal. Raises ValueError as `Potential.graph` and `moving_coordinates` do.
    """
    atoms = as_atoms(atoms).copy()
    coordinates = moving_coordinates(atoms, indices)
    graph = potential.graph(atoms)
    _check_box(atoms, graph, coordinates)
    response = Response(potential, graph, block_size=block_size, memory_limit=memory_limit, shape=shape)
    hessian = exact_hessian(response, coordinates)
    force = on_moving(response.forces, coordinates)
    found = Vibrations(
        atoms, coordinates, hessian, response.energy, float(np.linalg.norm(force, axis=1).max())
    )
    if found.max_force > LARGE_FORCE:
        warnings.warn(
            f"{atoms.get_chemical_formula()} is not at rest: forces up to {found.max_force:.3g} eV/Å remain "
            "on atoms that vibrate. Frequencies are those of the curvature here; relax it with this "
            "potential first.",
            NotAtRestWarning,
            stacklevel=2,
        )
    return found


def exact_hessian(response: Response, coordinates: np.ndarray) -> Float[np.ndarray, "n n"]:
    """The block of the Hessian of some `coordinates`, in eV/Å² and float64; it takes their columns alone."""
    rows = [part[:, coordinates] for _, part in response.columns(coordinates)]
    return np.concatenate(rows).astype(float)


def on_moving(vectors: Float[np.ndarray, "atoms 3"], coordinates: np.ndarray) -> Float[np.ndarray, "atoms 3"]:
    """`vectors` in float64, with zeros where nothing moves."""
    found = np.zeros(vectors.size)
    found[coordinates] = np.ravel(vectors)[coordinates]
    return found.reshape(-1, 3)


def rigid_motions(atoms: Atoms, masses: Float[np.ndarray, " atoms"]) -> Float[np.ndarray, "n motions"]:
    """Translations and rotations that leave the energy of `atoms` as it is, orthonormal with √m as weights.

    They are three translations; with no direction that repeats three rotations, of a linear molecule two, of
    an atom none; with one such direction the rotation about it.
    """
    root = np.sqrt(masses)[:, None]
    r = atoms.positions - masses @ atoms.positions / masses.sum()
    rows = [np.tile(axis, (len(atoms), 1)) for axis in np.eye(3)]
    if atoms.pbc.sum() == 1:
        line = np.linalg.eigh(directions(atoms.cell.array, atoms.pbc))[1][:, -1]
        axes = [line] if _farthest(r, line) > STRAIGHT else []
    elif atoms.pbc.any():
        axes = []
    else:
        principal = _principal_axes(r, masses)
        axes = {"monatomic": [], "linear": principal[1:], "nonlinear": principal}[geometry(atoms)]
    rows += [np.cross(axis, r) for axis in axes]
    found = np.array([(row * root).ravel() for row in rows])
    return np.linalg.qr(found.T)[0]


def complement(basis: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n rest"]:
    """An orthonormal basis of what is perpendicular to the orthonormal columns of `basis`."""
    n, k = basis.shape
    return np.linalg.qr(basis, mode="complete")[0][:, k:] if k else np.eye(n)


def geometry(atoms: Atoms) -> Geometry:
    """Whether a molecule is an atom, linear within 0.02 Å, or neither, from its inertia tensor."""
    if len(atoms) == 1:
        return "monatomic"
    m = atoms.get_masses()
    r = atoms.positions - m @ atoms.positions / m.sum()
    return "linear" if _farthest(r, _principal_axes(r, m)[0]) < STRAIGHT else "nonlinear"


def _principal_axes(r: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """The axes of inertia of positions about the centre of mass, as rows; the smallest moment first."""
    square = (masses * (r**2).sum(axis=1)).sum()
    return np.linalg.eigh(square * np.eye(3) - (masses * r.T) @ r)[1].T


def _farthest(r: np.ndarray, axis: np.ndarray) -> float:
    return float(np.linalg.norm(r - np.outer(r @ axis, axis), axis=1).max())


def rotations(atoms: Atoms) -> int:
    """The rotational symmetry number of a molecule: how many rotations map it onto itself, within 0.05 Å.

    Isotopes are told apart by their masses. Two atoms and the centre fix a rotation, so each pair of images
    of two atoms is tried.
    """
    shape, m = geometry(atoms), atoms.get_masses()
    kinds = np.unique(np.column_stack([atoms.numbers, m.round(3)]), axis=0, return_inverse=True)[1].ravel()
    r = atoms.positions - m @ atoms.positions / m.sum()
    if shape == "monatomic":
        return 1
    if shape == "linear":
        return 2 if _maps(-np.eye(3), r, kinds) else 1
    length = np.linalg.norm(r, axis=1)
    a = int(length.argmax())
    b = int(np.linalg.norm(np.cross(r[a], r), axis=1).argmax())
    of = _frame(r[a], r[b])
    apart = np.linalg.norm(r[:, None] - r, axis=-1)
    here, there = (np.flatnonzero((kinds == kinds[k]) & (abs(length - length[k]) < ALIKE)) for k in (a, b))
    return sum(
        _maps(_frame(r[i], r[j]) @ of.T, r, kinds)
        for i in here
        for j in there
        if abs(apart[i, j] - apart[a, b]) < ALIKE
    )


def _unwrapped(atoms: Atoms) -> np.ndarray:
    """Positions of one molecule, put together across the boundary: each atom beside its nearest one."""
    r, placed = atoms.positions.copy(), [0]
    apart = atoms.get_all_distances(mic=True)
    while len(placed) < len(r):
        left = np.setdiff1d(np.arange(len(r)), placed)
        a, b = np.unravel_index(apart[np.ix_(placed, left)].argmin(), (len(placed), len(left)))
        there, new = placed[a], left[b]
        r[new] = r[there] + atoms.get_distance(there, new, mic=True, vector=True)
        placed.append(new)
    return r


def _frame(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Orthonormal axes as columns: along a, along the part of b beside it, and their product."""
    x = a / np.linalg.norm(a)
    y = b - (b @ x) * x
    y /= np.linalg.norm(y)
    return np.column_stack([x, y, np.cross(x, y)])


def _maps(turn: np.ndarray, r: np.ndarray, kinds: np.ndarray) -> bool:
    """True if each atom comes to where one of its kind is."""
    apart = np.linalg.norm((r @ turn.T)[:, None] - r[None], axis=-1)
    apart[kinds[:, None] != kinds] = np.inf
    return bool((apart.min(axis=1) < ALIKE).all())


def _check_box(atoms: Atoms, graph: CrystalGraph, coordinates: np.ndarray) -> None:
    """Warns if a free molecule is in a periodic box, where nothing sees beyond the box."""
    if atoms.pbc.any() and len(coordinates) == 3 * len(atoms) and sees_no_image(graph):
        warnings.warn(
            f"{atoms.get_chemical_formula()} has pbc={atoms.pbc.tolist()}, but no atom sees an image of "
            "its own molecule. It is treated as a crystal: only translations are projected out, its "
            "rotations are among the modes, and it is no ideal gas. For a molecule, set atoms.pbc = False "
            "(with no bond across the boundary) and write it to an extxyz file.",
            stacklevel=3,
        )


def sees_no_image(graph: CrystalGraph) -> bool:
    """True if no chain of bonds leads from an atom to an image of itself.

    Atoms are followed along bonds from the first one of each connected piece; each gets the cell in which it
    was reached, and then all bonds must agree.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import breadth_first_order, connected_components

    n, shifts = len(graph.species), np.asarray(graph.shifts)
    i, j = np.asarray(graph.first), np.asarray(graph.second)
    if (i == j).any():
        return False
    bonds = coo_array((np.ones(len(i)), (i, j)), shape=(n, n)).tocsr()
    step = {(a, b): s for a, b, s in zip(i.tolist(), j.tolist(), shifts, strict=True)}
    cell = np.zeros((n, 3))
    for root in np.unique(connected_components(bonds, directed=False)[1], return_index=True)[1]:
        order, before = breadth_first_order(bonds, root, directed=False)
        for atom in order[1:]:
            last = int(before[atom])
            there, back = step.get((last, int(atom))), step.get((int(atom), last))
            cell[atom] = cell[last] + (there if there is not None else -back)
    return bool((cell[i] + shifts == cell[j]).all()) if len(i) else True
