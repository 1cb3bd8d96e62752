"""Crystals by prototype: compounds with balanced charges or of metals, and a first guess of their size.

A `Prototype` is a structure type with places for elements; a `Candidate` is a prototype with elements.
`drawn` gives candidates of many elements in random order, with all families of compounds in turn. Lengths are
guessed from ionic radii in salts and from atomic volumes in metals, so that relaxations are short.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations, product, zip_longest
from typing import NamedTuple

import numpy as np
from ase import Atoms

CUBIC, HEXAGONAL = (1, 1, 1, 90, 90, 90), (90, 90, 120)
HYPOTHETICAL = 2  # prototypes of each composition at most, drawn at random
TERNARIES = 6000  # of the ternary compounds of metals, of which there are hundreds of thousands
TOLERANCE = (0.75, 1.15)  # of perovskites: Goldschmidt's (r_A + r_X) / √2 (r_B + r_X)


class Site(NamedTuple):
    """A Wyckoff position: which of the elements is there, and a fractional coordinate of it."""

    element: int
    at: tuple[float, float, float]


@dataclass(frozen=True)
class Prototype:
    """A structure type. `cell` has relative lengths, and angles in degrees."""

    name: str
    group: int  # space group
    sites: tuple[Site, ...]
    cell: tuple[float, ...] = CUBIC
    setting: int = 1  # of the space group

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of atoms of each element in a formula unit."""
        numbers = np.bincount(template(self)[0])
        return tuple(int(n) for n in numbers // np.gcd.reduce(numbers))


def prototype(name: str, group: int, *sites: tuple, cell=CUBIC, setting=1) -> Prototype:
    return Prototype(name, group, tuple(Site(*s) for s in sites), cell, setting)


def _hexagonal(ratio: float) -> tuple[float, ...]:
    return (1, 1, ratio, *HEXAGONAL)


T, U = 1 / 3, 2 / 3
O0, HALF, QUARTER = (0, 0, 0), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
ELEMENTARY = (
    prototype("bcc", 229, (0, O0)),
    prototype("fcc", 225, (0, O0)),
    prototype("hcp", 194, (0, (T, U, 0.25)), cell=_hexagonal(1.633)),
    prototype("diamond", 227, (0, O0)),
    prototype("sc", 221, (0, O0)),
)
# For elements with none of these at rest; more complex ones (Mn, Pu, S, …) have the nearest of all.
OWN = (
    prototype("A7", 166, (0, (0, 0, 0.228)), cell=_hexagonal(2.8)),
    prototype("A8", 152, (0, (0.225, 0, T)), cell=_hexagonal(1.136)),
    prototype("A11", 64, (0, (0, 0.1539, 0.081)), cell=(1, 1.70, 1.0, 90, 90, 90)),
    prototype("A17", 64, (0, (0, 0.1017, 0.0806)), cell=(1, 3.166, 1.32, 90, 90, 90)),
    prototype("A20", 63, (0, (0, 0.105, 0.25)), cell=(1, 2.057, 1.737, 90, 90, 90)),
    prototype("B12", 166, (0, (0.119, 0.238, 0.891)), (0, (0.1965, 0.393, 0.0243)), cell=_hexagonal(2.55)),
)
GROUND = {  # for other elements that of ase.data.reference_states, if it is simple, else fcc
    **dict.fromkeys(("As", "Sb", "Bi"), "A7"),
    **dict.fromkeys(("S", "Se", "Te"), "A8"),
    **dict.fromkeys(("La", "Ce", "Pr", "Nd", "Pm", "Sm", "Tb", "Am"), "hcp"),
    **dict.fromkeys(("Pa", "Np", "Pu", "Mn"), "bcc"),
    "Ga": "A11",
    "P": "A17",
    "U": "A20",
    "B": "B12",
    "Po": "sc",
    "Sn": "diamond",
}
MOLECULES = {  # edge of the cube of α-N2, and bond length (Å)
    "H": (5.3, 0.74),
    "N": (5.66, 1.10),
    "O": (5.4, 1.22),
    "F": (5.5, 1.42),
    "Cl": (6.2, 2.00),
    "Br": (6.6, 2.30),
    "I": (7.2, 2.70),
}
# fmt: off
VOLUMES = {  # per atom at rest, Å³, to within a few per cent
    "B": 7.3, "P": 19.0, "S": 25.8, "Mn": 12.2, "Ga": 19.6, "As": 21.5, "Se": 27.3, "In": 26.2, "Sn": 28.0,
    "Sb": 30.2, "Te": 34.0, "Hg": 23.4, "Bi": 35.4, "Sm": 33.2, "Pa": 24.9, "U": 20.8, "Np": 19.2, "Pu": 20.0,
    "Am": 29.3, "H": 9.0, "He": 17.0, "N": 13.0, "O": 12.0, "F": 15.0, "Cl": 25.0, "Br": 30.0, "I": 40.0,
}
# fmt: on
AX = (
    prototype("rocksalt", 225, (0, O0), (1, HALF)),
    prototype("CsCl", 221, (0, O0), (1, HALF)),
    prototype("zincblende", 216, (0, O0), (1, QUARTER)),
    prototype("wurtzite", 186, (0, (T, U, 0)), (1, (T, U, 0.375)), cell=_hexagonal(1.633)),
    prototype("NiAs", 194, (0, O0), (1, (T, U, 0.25)), cell=_hexagonal(1.6)),
)
AX2 = (
    prototype("fluorite", 225, (0, O0), (1, QUARTER)),
    prototype("rutile", 136, (0, O0), (1, (0.305, 0.305, 0)), cell=(1, 1, 0.65, 90, 90, 90)),
    prototype("CdI2", 164, (0, O0), (1, (T, U, 0.25)), cell=_hexagonal(1.6)),
    prototype("CdCl2", 166, (0, O0), (1, (0, 0, 0.25)), cell=_hexagonal(4.9)),
    prototype("MoS2", 194, (0, (T, U, 0.25)), (1, (T, U, 0.621)), cell=_hexagonal(3.9)),
)
A2X = (
    prototype("antifluorite", 225, (0, QUARTER), (1, O0)),
    prototype("cuprite", 224, (0, QUARTER), (1, O0)),
)
AX3 = (prototype("ReO3", 221, (0, O0), (1, (0.5, 0, 0))),)
A2X3 = (prototype("corundum", 167, (0, (0, 0, 0.352)), (1, (0.306, 0, 0.25)), cell=_hexagonal(2.73)),)
ABX2 = (
    prototype("NaFeO2", 166, (0, (0, 0, 0.5)), (1, O0), (2, (0, 0, 0.24)), cell=_hexagonal(5.0)),
    prototype(
        "chalcopyrite", 122, (0, O0), (1, (0, 0, 0.5)), (2, (0.25, 0.25, 0.125)), cell=(1, 1, 2, 90, 90, 90)
    ),
)
ABX3 = (prototype("perovskite", 221, (0, HALF), (1, O0), (2, (0.5, 0, 0))),)
AB2X4 = (
    prototype("spinel", 227, (0, (0.125,) * 3), (1, HALF), (2, (0.2625,) * 3), setting=2),
    prototype(
        "K2NiF4",
        139,
        *((1, (0, 0, 0.355)), (0, O0), (2, (0, 0.5, 0)), (2, (0, 0, 0.16))),
        cell=(1, 1, 3.3, 90, 90, 90),
    ),
)
A2BCX6 = (prototype("elpasolite", 225, (0, QUARTER), (1, O0), (2, HALF), (3, (0.24, 0, 0))),)
METALS_AB = (AX[1], prototype("L1_0", 123, (0, O0), (1, HALF), cell=(1, 1, 1.38, 90, 90, 90)))
METALS_A3B = (
    prototype("L1_2", 221, (0, (0.5, 0.5, 0)), (1, O0)),
    prototype("D0_3", 225, (0, QUARTER), (0, HALF), (1, O0)),
)
METALS_AB2 = (
    prototype("C15", 227, (0, (0.125,) * 3), (1, HALF), setting=2),
    prototype("AlB2", 191, (0, O0), (1, (T, U, 0.5)), cell=_hexagonal(1.0)),
)
METALS_ABC = (
    prototype("half-Heusler", 216, (0, QUARTER), (1, O0), (2, HALF)),
    prototype("Heusler", 225, (0, QUARTER), (1, O0), (2, HALF)),
)

ANIONS = {
    **dict.fromkeys(("H", "F", "Cl", "Br", "I"), 1),
    **dict.fromkeys(("O", "S", "Se", "Te"), 2),
    **dict.fromkeys(("N", "P", "As", "Sb"), 3),
    "C": 4,
}
NO_METAL = "H He B C N O F Ne Si P S Cl Ar Ge As Se Br Kr Te I Xe At Rn".split()  # noqa: SIM905
CATIONS_TOO = ("B", "Si", "Ge")


class Candidate(NamedTuple):
    """A prototype filled with elements."""

    family: str
    prototype: str
    symbols: tuple[str, ...]  # in the order in which the prototype has its elements
    charges: tuple[int, ...] = ()  # their oxidation states; none for metals and elements

    @property
    def formula(self) -> str:
        """The elements and their numbers, in the order of the prototype."""
        counts = (1,) if self.prototype == "molecule" else BY_NAME[self.prototype].counts
        return "".join(s + (str(n) if n > 1 else "") for s, n in zip(self.symbols, counts, strict=True))

    @property
    def material(self) -> str:
        """The material, such as "rocksalt-MgO"."""
        return f"{self.prototype}-{self.formula}"

    @property
    def composition(self) -> str:
        """The composition, equal for all arrangements of the same atoms."""
        counts = (1,) if self.prototype == "molecule" else BY_NAME[self.prototype].counts
        pairs = sorted(zip(self.symbols, counts, strict=True))
        return "".join(f"{s}{n}" for s, n in pairs)

    def atoms(self) -> Atoms:
        """The primitive cell, of guessed size (Å)."""
        if self.prototype == "molecule":
            return molecule(self.symbols[0])
        roles, places, cell = template(BY_NAME[self.prototype])
        atoms = Atoms([self.symbols[k] for k in roles], scaled_positions=places, cell=cell, pbc=True)
        if self.charges:
            return salt(atoms, dict(zip(self.symbols, self.charges, strict=True)))
        volume = sum(atomic_volume(s) for s in atoms.get_chemical_symbols())
        atoms.set_cell(cell * (volume / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
        return atoms


ALL = (
    *(*ELEMENTARY, *OWN, *AX, *AX2, *A2X, *AX3, *A2X3, *ABX2, *ABX3, *AB2X4, *A2BCX6),
    *(*METALS_AB, *METALS_A3B, *METALS_AB2, *METALS_ABC),
)
BY_NAME = {p.name: p for p in ALL}


@cache
def template(of: Prototype) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    """The element of each atom of the primitive cell, fractional coordinates and lattice vectors."""
    from ase.spacegroup import crystal

    stand_ins = [("H", "He", "Li", "Be")[s.element] for s in of.sites]
    lengths = (*(5.0 * x for x in of.cell[:3]), *of.cell[3:])  # Å
    atoms = crystal(
        stand_ins,
        [s.at for s in of.sites],
        spacegroup=of.group,
        setting=of.setting,
        cellpar=lengths,
        primitive_cell=True,
    )
    return tuple((atoms.numbers - 1).tolist()), atoms.get_scaled_positions(), atoms.cell.array


def molecule(symbol: str) -> Atoms:
    """Four molecules X₂ in the cube of α-N₂."""
    from ase.spacegroup import crystal

    a, bond = MOLECULES[symbol]
    x = bond / (2 * 3**0.5 * a)
    found = crystal([symbol], [(x, x, x)], spacegroup=205, cellpar=(a, a, a, 90, 90, 90))
    return Atoms(found.numbers, found.positions, cell=found.cell, pbc=True)


def salt(atoms: Atoms, charges: Mapping[str, int]) -> Atoms:
    """`atoms`, scaled so that the closest cation and anion touch, by their ionic radii."""
    from jaxmlip.crystals.graph import Cutoffs, from_atoms
    from jaxmlip.data.dataset import lengths

    atoms.set_cell(atoms.cell * (12 * len(atoms) / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
    graph = from_atoms(atoms, Cutoffs(4.5))
    symbols = atoms.get_chemical_symbols()
    charge = np.array([charges[s] for s in symbols])
    radius = np.array([ionic_radius(s, charges[s]) for s in symbols])
    unlike = charge[graph.first] * charge[graph.second] < 0
    ratio = (lengths(graph) / (radius[graph.first] + radius[graph.second]))[unlike].min()
    atoms.set_cell(atoms.cell / ratio, scale_atoms=True)
    return atoms


@cache
def ionic_radius(symbol: str, charge: int) -> float:
    """Radius (Å) in this oxidation state, in the nearest known one of the same sign, or of the atom."""
    from ase.data import atomic_numbers, covalent_radii
    from pymatgen.core import Element

    if symbol == "H":
        return 1.4
    known = {q: float(r) for q, r in Element(symbol).ionic_radii.items() if q * charge > 0}
    if known:
        return known[min(known, key=lambda q: (abs(q - charge), q))]
    bare = float(covalent_radii[atomic_numbers[symbol]])
    return bare - 0.5 if charge > 0 else bare + 0.7


@cache
def atomic_volume(symbol: str) -> float:
    """Volume (Å³) from VOLUMES, or from ASE's table if the element is cubic or hexagonal there."""
    from ase.data import atomic_numbers, covalent_radii, reference_states

    if symbol in VOLUMES:
        return VOLUMES[symbol]
    state = reference_states[atomic_numbers[symbol]] or {}
    a, atoms = state.get("a"), {"bcc": 2, "fcc": 4, "diamond": 8, "sc": 1}
    if a and state["symmetry"] in atoms:
        return a**3 / atoms[state["symmetry"]]
    if a and state["symmetry"] == "hcp":
        return 3**0.5 / 4 * a**3 * state["c/a"]
    return float(2 * covalent_radii[atomic_numbers[symbol]]) ** 3 / 2**0.5  # touching spheres in fcc


def ground_state(symbol: str) -> Candidate:
    """The ground state of the element, or the prototype nearest to it."""
    from ase.data import atomic_numbers, reference_states

    if symbol in MOLECULES:
        return Candidate("elements", "molecule", (symbol,))
    state = reference_states[atomic_numbers[symbol]] or {}
    usual = state.get("symmetry") if state.get("symmetry") in {p.name for p in ELEMENTARY} else "fcc"
    return Candidate("elements", GROUND.get(symbol, usual), (symbol,))


def drawn(symbols: Collection[str], seed: int) -> list[list[Candidate]]:
    """All candidates of these elements but their ground states, grouped by composition.

    The order is random; families come in turn until each is used up. At most two of the prototypes that a
    composition can have in its family are taken.
    """
    rng = np.random.default_rng([seed, 1])
    found: dict[str, list[list[Candidate]]] = {}
    seen: set[str] = set()
    for family, groups in families(sorted(symbols), rng).items():
        kept = []
        for group in groups:
            composition = group[0].composition
            if composition not in seen:
                seen.add(composition)
                some = rng.permutation(len(group))[:HYPOTHETICAL]
                kept.append([group[k] for k in np.sort(some)])
        found[family] = [kept[k] for k in rng.permutation(len(kept))]
    return [group for turn in zip_longest(*found.values()) for group in turn if group is not None]


def families(symbols: Sequence[str], rng: np.random.Generator) -> dict[str, list[list[Candidate]]]:
    """The prototypes that each composition can have, by family of compounds."""
    cations = {s: oxidation_states(s) for s in symbols if s in CATIONS_TOO or s not in NO_METAL}
    anions = {s: q for s, q in ANIONS.items() if s in symbols}
    metals = [s for s in symbols if s not in NO_METAL]
    return {
        "elements": [
            [c for p in ELEMENTARY if (c := Candidate("elements", p.name, (s,))) != ground_state(s)]
            for s in symbols
        ],
        "AX": list(salts("AX", AX, (1, 1), cations, anions)),
        "AX2": list(salts("AX2", AX2, (1, 2), cations, anions)),
        "A2X": list(salts("A2X", A2X, (2, 1), cations, anions)),
        "AX3, A2X3": [
            *salts("AX3, A2X3", AX3, (1, 3), cations, anions),
            *salts("AX3, A2X3", A2X3, (2, 3), cations, anions),
        ],
        "ABX2": list(salts("ABX2", ABX2, (1, 1, 2), cations, anions)),
        "ABX3": list(salts("ABX3", ABX3, (1, 1, 3), cations, anions)),
        "AB2X4": list(salts("AB2X4", AB2X4, (1, 2, 4), cations, anions)),
        "A2BCX6": list(elpasolites(cations, anions)),
        "metals AB": [
            [Candidate("metals AB", p.name, pair) for p in METALS_AB] for pair in combinations(metals, 2)
        ],
        "metals A3B, AB2": [
            [Candidate("metals A3B, AB2", p.name, pair) for p in kind]
            for pair in permutations(metals, 2)
            for kind in (METALS_A3B, METALS_AB2)
        ],
        "metals ABC": list(ternaries(metals, rng)),
    }


def salts(
    family: str,
    kinds: Sequence[Prototype],
    counts: tuple[int, ...],
    cations: Mapping[str, Sequence[int]],
    anions: Mapping[str, int],
) -> Iterator[list[Candidate]]:
    """Compounds of one or two cations and an anion, `counts` of each, without net charge."""
    *metal, n = counts
    for x, q in anions.items():
        done = set()
        for chosen in permutations([s for s in cations if s != x], len(metal)):
            for states in product(*(cations[s] for s in chosen)):
                if chosen in done or np.dot(metal, states) != n * q:
                    continue
                charges = (*states, -q)
                fitting = [p for p in kinds if fits(p, (*chosen, x), charges)]
                if fitting:
                    done.add(chosen)
                    yield [Candidate(family, p.name, (*chosen, x), charges) for p in fitting]


def fits(of: Prototype, symbols: Sequence[str], charges: Sequence[int]) -> bool:
    """True if the ions have the sizes and charges that the prototype requires."""
    r = [ionic_radius(s, q) for s, q in zip(symbols, charges, strict=True)]
    if of.name == "perovskite":
        return TOLERANCE[0] < (r[0] + r[2]) / 2**0.5 / (r[1] + r[2]) < TOLERANCE[1]
    if of.name == "K2NiF4":
        return r[1] > r[0] + 0.2
    if of.name in ("NaFeO2", "chalcopyrite"):
        return charges[0] == 1 < charges[1]
    return True


def elpasolites(cations: Mapping[str, Sequence[int]], anions: Mapping[str, int]) -> Iterator[list[Candidate]]:
    """A⁺₂B⁺C³⁺X⁻₆ and A²⁺₂B³⁺C⁵⁺O²⁻₆, A the largest cation."""
    for (a, b, c), some in (((1, 1, 3), ("F", "Cl", "Br", "I")), ((2, 3, 5), ("O",))):
        of = [[s for s in cations if q in cations[s]] for q in (a, b, c)]
        for A, B, C, X in product(*of, [x for x in some if x in anions]):
            if len({A, B, C}) == 3 and ionic_radius(A, a) > max(ionic_radius(B, b), ionic_radius(C, c)):
                yield [Candidate("A2BCX6", "elpasolite", (A, B, C, X), (a, b, c, -anions[X]))]


def ternaries(metals: Sequence[str], rng: np.random.Generator) -> Iterator[list[Candidate]]:
    if len(metals) < 3:
        return
    for k in range(min(TERNARIES, len(metals) ** 3)):
        chosen = tuple(metals[m] for m in rng.choice(len(metals), 3, replace=False))
        yield [Candidate("metals ABC", METALS_ABC[k % 2].name, chosen)]


@cache
def oxidation_states(symbol: str) -> tuple[int, ...]:
    """The common positive oxidation states."""
    from pymatgen.core import Element

    return tuple(q for q in Element(symbol).common_oxidation_states if 0 < q <= 6)


def generator(seed: int, *of: str) -> np.random.Generator:
    """Random numbers for a material, which do not depend on other draws."""
    digest = hashlib.sha256("/".join((str(seed), *of)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
