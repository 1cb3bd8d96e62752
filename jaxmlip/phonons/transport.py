"""Lattice thermal conductivity by phono3py, from the second- and third-order constants of a potential.

phono3py (https://phonopy.github.io/phono3py) solves the Boltzmann equation in the relaxation-time
approximation on a mesh of wave vectors, with tetrahedra, and Wigner's equation with its coherences
(Simoncelli, Marzari and Mauri, Nat. Phys. 15, 809 (2019)). It is an extra of this package.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from jaxmlip.phonons.cells import Cells, check_masses, import_phono3py
from jaxmlip.phonons.imaginary import check_stable
from jaxmlip.phonons.isotopes import NO_FREQUENCY, isotope_linewidths, mass_variances, same_frequency
from jaxmlip.phonons.meshes import check_mesh
from jaxmlip.phonons.phono3py_files import to_phono3py
from jaxmlip.phonons.third import SecondOrder, ThirdOrder
from jaxmlip.phonons.three_waves import THZ_OF_RATES, along, bose, parts, rates
from jaxmlip.system.begun import changes, described
from jaxmlip.system.files import write_whole, writing
from jaxmlip.system.progress import paced

if TYPE_CHECKING:
    from phono3py import Phono3py

Transport = Literal["wigner", "particles"]
VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])  # xx, yy, zz, yz, xz, xy
TOGETHER = 16  # wave vectors that are computed, and kept, at once
BEGUN = "conductivity.json"
NOTHING = 1e-6  # eV/Å³; third-order constants that are all smaller are none


@dataclass(frozen=True, eq=False)
class _Modes:
    """What phono3py computes at wave vectors, for all bands: Q wave vectors, B bands, T temperatures."""

    q_points: np.ndarray  # (Q, 3), reciprocal lattice units, irreducible
    weights: np.ndarray  # (Q,), the number of wave vectors that each stands for
    thz: np.ndarray  # (Q, B)
    velocities: np.ndarray  # (Q, B, 3), km/s
    heat_capacities: np.ndarray  # (T, Q, B), eV/K
    linewidths: np.ndarray  # (T, Q, B), THz: Γ of three phonons, half the width at half maximum
    isotope_linewidths: np.ndarray  # (Q, B), THz
    # (T, Q, B, 3, 3), W/m/K: a mode's conductivity, summed over the wave vectors that it stands for. Their
    # sum over Q and B by that of the weights is the conductivity. A coherence of two modes is shared in the
    # ratio of their heat capacities.
    modes: np.ndarray
    shared: np.ndarray  # (T, Q, B, 3, 3), W/m/K: what of `modes` is of coherences


@dataclass(frozen=True, eq=False)
class Conductivity(_Modes):
    """Lattice thermal conductivity of a crystal, and what each mode has of it."""

    cells: Cells
    mesh: tuple[int, int, int]
    temperatures: np.ndarray  # (T,), K
    transport: Transport
    isotopes: bool
    boundary: float | None  # µm

    @property
    def particles(self) -> np.ndarray:
        """The conductivity (T, 3, 3) of phonons as particles, W/m/K."""
        return self.kappa - self.coherences

    @property
    def coherences(self) -> np.ndarray:
        """The conductivity (T, 3, 3) of Wigner's coherences between bands, W/m/K."""
        return self.shared.sum(axis=(1, 2)) / self.weights.sum()

    @property
    def kappa(self) -> np.ndarray:
        """The whole conductivity (T, 3, 3), W/m/K."""
        return self.modes.sum(axis=(1, 2)) / self.weights.sum()

    @cached_property
    def lifetimes(self) -> np.ndarray:
        """1/(4πΓ) (T, Q, B) in ps, by phonons, isotopes and boundaries; infinite for modes without Γ."""
        gamma = self.linewidths + self.isotope_linewidths
        if self.boundary is not None:  # rate of a phonon that crosses the length: km/s / µm = 1e-3 THz
            gamma = gamma + 1e-3 * self.speeds / self.boundary / (4 * np.pi)
        with np.errstate(divide="ignore"):
            return np.where(gamma > 0, 1 / (4 * np.pi * gamma), np.inf)

    @property
    def speeds(self) -> np.ndarray:
        """The length (Q, B) of the group velocities, km/s."""
        return np.linalg.norm(self.velocities, axis=-1)

    @property
    def mean_free_paths(self) -> np.ndarray:
        """The way (T, Q, B) in nm that a phonon goes before it scatters."""
        with np.errstate(invalid="ignore"):
            return np.nan_to_num(self.lifetimes * self.speeds, nan=0.0, posinf=np.inf)


def conductivity(
    third: ThirdOrder,
    second: SecondOrder | None = None,
    *,
    mesh: Sequence[int] | float = 100.0,
    temperatures: Sequence[float] = (300.0,),
    transport: Transport = "wigner",
    isotopes: bool = True,
    boundary: float | None = None,
    path: str | Path | None = None,
) -> Conductivity:
    """The lattice thermal conductivity of the crystal that these constants are of, by phono3py.

    By default second order is that of the supercell of third order, which comes with it; give one of a larger
    supercell where forces reach farther.
    `mesh` is the number of wave vectors along each reciprocal vector of the primitive cell, or a length (Å):
    see `check_mesh`. `temperatures` are in K. `transport` is "wigner", with coherences, or
    "particles", the relaxation-time approximation alone. With `isotopes` natural isotopes scatter; an atom
    whose mass is not its element's counts as one isotope. Phonons scatter at boundaries after `boundary` µm.
    `path` names a folder in which finished wave vectors are kept: the same call goes on there.

    Raises ImportError if phono3py is missing or too old, ImaginaryModesError, and ValueError if the constants
    are of different crystals or those of third order all vanish, the mesh breaks symmetry, equivalent atoms
    have different masses, the arguments make no sense, or `path` was begun with other ones.
    """
    _check(temperatures, transport, boundary)
    check_masses(third.cells.unit)
    _check_anharmonic(third)
    second = third.second if second is None else second
    if second is None:
        raise ValueError(
            f"found no second-order constants with those of third order ({third.method}), needed `second`: "
            "phonons.second_order computes them."
        )
    whole = check_mesh(third.cells, mesh)
    ph3 = to_phono3py(third, second)
    ph3.mesh_numbers = whole
    # Without them a linewidth depends on which eigenvectors of equal frequencies a library happens to return,
    # and on how the mesh is cut into tetrahedra: κ of Si on 7 x 7 x 7 wave vectors by 0.2 %.
    ph3.init_phph_interaction(symmetrize_tetrahedra=True, average_degenerate_weights=True)
    ph3.run_phonon_solver()
    points = _irreducible(ph3)
    thz, _, address = ph3.get_phonon_data()
    check_stable(third.cells.primitive, address / whole, thz, np.ones(len(thz), int))
    variances = mass_variances(third.cells) if isotopes else np.zeros(len(third.cells.primitive))
    settings = {
        "mesh": list(whole),
        "temperatures": [float(t) for t in temperatures],
        "transport": transport,
        "boundary": boundary,
        "mass_variances": variances.tolist(),
    }
    folder = None if path is None else _begun(Path(path), third, second, settings)
    blocks = list(_computed(ph3, third, points, settings, folder))
    joined = {
        f.name: np.concatenate([getattr(b, f.name) for b in blocks], axis=_AXES[f.name])
        for f in fields(_Modes)
    }
    return Conductivity(
        **joined,
        cells=third.cells,
        mesh=whole,
        temperatures=np.array(settings["temperatures"]),
        transport=transport,
        isotopes=isotopes,
        boundary=boundary,
    )


# The axis of wave vectors.
_AXES = dict.fromkeys(("heat_capacities", "linewidths", "modes", "shared"), 1)
_AXES |= dict.fromkeys(("q_points", "weights", "thz", "velocities", "isotope_linewidths"), 0)


def _check(temperatures: Sequence[float], transport: str, boundary: float | None) -> None:
    if transport not in get_args(Transport):
        raise ValueError(f"found transport={transport!r}, needed {' or '.join(get_args(Transport))}.")
    t = np.asarray(temperatures, float)
    if t.ndim != 1 or not t.size or not (np.isfinite(t) & (t > 0)).all():
        raise ValueError(f"found temperatures={np.ravel(t).tolist()}, needed some above 0 K.")
    if boundary is not None and not boundary > 0:
        raise ValueError(f"found boundary={boundary}, needed a length above 0 µm, or None.")
    import_phono3py()


def _check_anharmonic(third: ThirdOrder) -> None:
    largest = float(np.abs(third.fc3).max())
    if not largest > NOTHING:
        raise ValueError(
            f"found third-order constants of at most {largest:.2g} eV/Å³, with which phonons never scatter; "
            "needed some above 0. In a supercell that is too small those of images cancel (this one repeats "
            f"after {third.cells.repeat:.2f} Å): take a larger one."
        )


def _irreducible(ph3: Phono3py) -> np.ndarray:
    """The numbers of the irreducible wave vectors in phono3py's grid."""
    from phonopy.phonon.grid import get_ir_grid_points

    return ph3.grid.grg2bzg[get_ir_grid_points(ph3.grid)[0]]


def _begun(folder: Path, third: ThirdOrder, second: SecondOrder, settings: dict[str, Any]) -> Path:
    """The folder, if what it holds was begun with the same constants and settings."""
    digest = hashlib.sha256()
    atoms = third.cells.primitive
    for x in (third.fc3, second.fc2, atoms.cell.array, atoms.positions, atoms.numbers, atoms.get_masses()):
        digest.update(np.ascontiguousarray(x).tobytes())
    now = {"constants": digest.hexdigest()[:16], **settings}
    record = folder / BEGUN
    if record.exists() and (changed := changes(json.loads(record.read_text()), now)):
        raise ValueError(
            f"{folder} holds wave vectors of another calculation:\n  {described(changed)}\nGive another "
            "folder, or remove that one."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(record, json.dumps(now) + "\n")
    return folder


def _computed(
    ph3: Phono3py, third: ThirdOrder, points: np.ndarray, settings: dict[str, Any], folder: Path | None
) -> Iterator[_Modes]:
    """The modes at these wave vectors in blocks, kept in `folder` and read from there."""
    blocks = [points[k : k + TOGETHER] for k in range(0, len(points), TOGETHER)]
    files = [None if folder is None else folder / f"wave-vectors-{block[0]}.npz" for block in blocks]
    there = sum(len(block) for block, file in zip(blocks, files, strict=True) if file and file.exists())
    with paced(len(points), there, "wave vectors") as show:
        for block, file in zip(blocks, files, strict=True):
            if file is not None and file.exists():
                with np.load(file) as held:
                    yield _Modes(**held)
            else:
                found = _modes(_solved(ph3, third, block, settings), settings["transport"] == "wigner")
                if file is not None:
                    with writing(file) as draft, draft.open("wb") as opened:
                        np.savez(opened, **{f.name: getattr(found, f.name) for f in fields(_Modes)})
                there += len(block)
                show(there, "")
                yield found


def _solved(ph3: Phono3py, third: ThirdOrder, points: np.ndarray, settings: dict[str, Any]) -> Any:
    """phono3py's calculator of the conductivity, at the end of its work for these points of its grid."""
    from phono3py.conductivity.factory import conductivity_calculator

    temperatures, variances = np.array(settings["temperatures"]), np.array(settings["mass_variances"])
    solved = conductivity_calculator(
        ph3.phph_interaction,
        temperatures,
        [None],
        method="SMM19-rta" if settings["transport"] == "wigner" else "std-rta",
        grid_points=points,
        boundary_mfp=settings["boundary"],
    )
    solved.gamma = linewidths_by_phonons(ph3, third, points, temperatures)[None]
    if variances.any():
        solved.gamma_isotope = isotope_linewidths(ph3, points, variances)[None]
    solved.run()
    return solved


def linewidths_by_phonons(
    ph3: Phono3py, third: ThirdOrder, points: np.ndarray, temperatures: np.ndarray
) -> np.ndarray:
    """Γ (T, Q, B) in THz of three phonons at points (Q,) of the grid of a Phono3py object.

    The coupling of modes is ours, as products of matrices; phono3py's loops take several times as long.
    Triplets and tetrahedra are phono3py's.
    """
    from phono3py.phonon3.triplets import get_triplets_integration_weights

    interaction = ph3.phph_interaction
    thz, vectors, address = ph3.get_phonon_data()
    q = address / ph3.mesh_numbers
    # From the phases of atoms, as phonopy has them, to those of cells.
    phases = np.exp(2j * np.pi * np.repeat(q @ third.cells.primitive.get_scaled_positions().T, 3, axis=1))
    vectors = phases[:, :, None] * vectors
    inverse = np.divide(1, thz, out=np.zeros_like(thz), where=thz > NO_FREQUENCY)
    gamma = np.zeros((len(temperatures), len(points), thz.shape[1]))
    for k, point in enumerate(points):
        interaction.set_grid_point(int(point))
        triplets, weights, *_ = interaction.get_triplets_at_q()
        for some in parts(third, len(triplets)):
            three = triplets[:1, 0], triplets[some, 1], triplets[some, 2]
            (decay, join), _ = get_triplets_integration_weights(
                _Some(interaction, triplets[some], weights[some]), thz[point], None
            )
            V = along(third, [q[x] for x in three], [vectors[x] for x in three])
            one, two, last = (inverse[x] for x in three)
            strength = V.real**2 + V.imag**2
            strength *= one[:, :, None, None] * two[:, None, :, None] * last[:, None, None, :]
            # Weights of equal frequencies differ, as their bands do around them; their mean counts.
            strength = (
                same_frequency(thz[three[1]])[:, None] @ strength @ same_frequency(thz[three[2]])[:, None]
            )
            numbers = bose(thz[three[1]], temperatures), bose(thz[three[2]], temperatures)
            gamma[:, k] += rates(strength, decay, join, numbers, weights[some])
        gamma[:, k] = gamma[:, k] @ same_frequency(thz[point])
    return THZ_OF_RATES / np.prod(ph3.mesh_numbers) * gamma


class _Some:
    """phono3py's interaction with some of the triplets of a wave vector, so that weights of few are kept."""

    def __init__(self, interaction: Any, triplets: np.ndarray, weights: np.ndarray):
        self._interaction, self._some = interaction, (triplets, weights, None, None)

    def get_triplets_at_q(self) -> tuple[Any, ...]:
        return self._some

    def __getattr__(self, name: str) -> Any:
        return getattr(self._interaction, name)


def _modes(found: Any, coherent: bool) -> _Modes:
    """The results of phono3py's calculator, with one smearing, in this module's units."""
    thz, capacity = found.frequencies, found.mode_heat_capacities
    isotope = found.gamma_isotope
    if coherent:
        pairs = found.mode_kappa_matrix[0]  # (T, Q, B, B, 6)
        own = np.einsum("tqssv->tqsv", pairs)
        shared = shared_coherences(pairs, capacity)
    else:
        own = found.mode_kappa[0]
        shared = np.zeros_like(own)
    return _Modes(
        q_points=found.qpoints,
        weights=found.grid_weights,
        thz=thz,
        velocities=0.1 * found.group_velocities,  # from THz Å
        heat_capacities=capacity,
        linewidths=found.gamma[0],
        isotope_linewidths=np.zeros_like(thz) if isotope is None else isotope[0],
        modes=(own + shared)[..., VOIGT],
        shared=shared[..., VOIGT],
    )


def shared_coherences(pairs: np.ndarray, capacity: np.ndarray) -> np.ndarray:
    """What each mode has of its coherences with others, (T, Q, B, 6), as arXiv:2408.00755 has it.

    `pairs` (T, Q, B, B, 6) are conductivities of pairs of modes, whose diagonal is left out, `capacity`
    (T, Q, B) heat capacities. Both of a pair have what it has together in the ratio of their capacities.
    """
    apart = pairs * ~np.eye(pairs.shape[2], dtype=bool)[:, :, None]
    both = capacity[..., :, None] + capacity[..., None, :]
    ratio = np.divide(capacity[..., :, None], both, out=np.full_like(both, 0.5), where=both > 0)
    return ((apart + apart.swapaxes(2, 3)) * ratio[..., None]).sum(axis=3)
