"""Dispersion for loaded potentials: D3(BJ) with the parameters of their functional."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxmlip.models.dispersion import HIGHEST, TABLES, Damping, Dispersed
from jaxmlip.models.network import Network
from jaxmlip.potential import Potential
from jaxmlip.system.files import cache_folder, sha256, writing
from jaxmlip.zoo.download import published_files
from weights_convert.published import D3_TABLES, MIXED_PBE, OMAT_PBE, PUBLISHED

METHOD = "d3bj"
# S. Grimme, S. Ehrlich and L. Goerigk, J. Comput. Chem. 32, 1456 (2011), and its supplement; SCAN: J. G.
# Brandenburg et al., Phys. Rev. B 94, 115144 (2016); r2SCAN: S. Ehlert et al., J. Chem. Phys. 154, 061101
# (2021).
DAMPING = {
    damping.functional: damping
    for damping in (
        Damping("PBE", 0.4289, 4.4407, 0.7875),
        Damping("PBEsol", 0.4466, 6.1742, 2.9491),
        Damping("RPBE", 0.1820, 4.0094, 0.8318),
        Damping("revPBE", 0.5238, 3.5016, 2.3550),
        Damping("SCAN", 0.5380, 5.4200, 0.0),
        Damping("r2SCAN", 0.49484001, 5.73083694, 0.78981345),
        Damping("PBE0", 0.4145, 4.8593, 1.2177),
    )
}
# A Hubbard U acts on d and f electrons, and dispersion is that of PBE.
WITH_U = {MIXED_PBE: "PBE", OMAT_PBE: "PBE", "PBE+U": "PBE", "r2SCAN+U": "r2SCAN"}


def with_dispersion(potential: Potential, method: str) -> Potential:
    """`potential` and D3(BJ) dispersion (see `jaxmlip.models.dispersion`), under the name NAME+METHOD.

    `method` is "d3bj", with parameters of the functional that the potential was fitted to, or for a potential
    that does not say which, "d3bj-FUNCTIONAL", such as "d3bj-r2scan". Its elements are those up to Rn. Tables
    of D3 are fetched once, as weights are.

    Raises ValueError for another method, for a functional that D3 was not fitted to or that is not the
    potential's, and for a potential that has dispersion, several functionals, or no network; FetchError if
    the tables cannot be obtained.
    """
    damping = _damping(potential, method)
    if not isinstance(potential.model, Network):
        raise ValueError(
            f"found {method!r} for {potential.name}, needed a network without dispersion; an energy function "
            "can add its own."
        )
    elements = tuple(z for z in potential.elements if z <= HIGHEST)
    return replace(
        potential,
        name=f"{potential.name}+{method}",
        model=Dispersed(potential.model, damping),
        params={**potential.params, "dispersion": tables()},
        elements=elements,
    )


def split_name(text: str) -> tuple[str, str | None]:
    """The name of a potential without "+METHOD" at its end, and the method; None if there is none."""
    name, plus, method = text.rpartition("+")
    return (name, method) if plus and method.startswith(METHOD) else (text, None)


def tables() -> dict[str, np.ndarray]:
    """The tables of `models.dispersion.TABLES`, of Grimme's reference molecules.

    They are kept in the cache of this machine. Raises FetchError if they cannot be obtained.
    """
    (file, digest), *_ = PUBLISHED[D3_TABLES].files.items()
    kept = cache_folder() / "tables" / file
    if kept.is_file() and sha256(kept) == digest:
        return _read(kept)
    with tempfile.TemporaryDirectory(prefix="jaxmlip-", ignore_cleanup_errors=True) as scratch:
        found = published_files(D3_TABLES, Path(scratch))[D3_TABLES]
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with writing(kept) as draft:
                shutil.copyfile(found, draft)
        except OSError as error:
            warnings.warn(
                f"D3's tables cannot be kept in {kept.parent} ({error.strerror or error}), and will be "
                "fetched again next time. Set JAXMLIP_CACHE to a folder that can be written.",
                stacklevel=3,
            )
        return _read(found)


def _read(file: Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as known:
        references, radius, moment = known["c6ab"], known["rcov"], known["r2r4"]
    there = slice(HIGHEST + 1)
    references, radius, moment = references[there, there], radius[there], moment[there]
    c6, coordination = references[..., 0], references[..., 1]
    # What is no reference of an element is none beside any other.
    its = np.where(c6 > 0, coordination, -1.0).max(axis=(1, 3))
    found = {"c6": np.maximum(c6, 0.0), "coordination": its, "radius": radius, "moment": moment}
    return {name: found[name].astype(np.float64).reshape(shape) for name, shape in TABLES.items()}


def _damping(potential: Potential, method: str) -> Damping:
    kind, _, wanted = method.partition("-")
    if kind.casefold() != METHOD:
        raise ValueError(f"found dispersion={method!r}, needed {METHOD!r} or '{METHOD}-FUNCTIONAL'.")
    if potential.functionals:
        raise ValueError(
            f"{potential.name} has the functionals {', '.join(potential.functionals)}, needed one: see "
            "jaxmlip.training.functionals.select."
        )
    known, own = {name.casefold(): damping for name, damping in DAMPING.items()}, _own_functional(potential)
    if wanted and own and wanted.casefold() != own.casefold():
        raise ValueError(f"found dispersion={method!r}, but {potential.name} was fitted to {own}.")
    functional = wanted or own
    if functional.casefold() not in known:
        said = f"was fitted to {functional}" if functional else "does not say what it was fitted to"
        instead = f"; name it, as in '{METHOD}-pbe'" if not functional else ""
        raise ValueError(
            f"{potential.name} {said}, and D3(BJ) has parameters for {', '.join(DAMPING)}{instead}."
        )
    return known[functional.casefold()]


def _own_functional(potential: Potential) -> str:
    """The functional of the manifest without a U; "" if it says none."""
    functional = str(potential.manifest.get("functional", ""))
    return WITH_U.get(functional, functional)
