"""Intervals, tables, sentences and figures of `experiments.transfer.methods`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.transfer.material_errors import mean, median
from experiments.transfer.settings import FROZEN, METHODS, REFIT, SCRATCH, TRAINABLE, Settings
from jaxmlip.studies.study import bootstrap
from jaxmlip.system.plots import COLOURS, legend, panels
from jaxmlip.system.tables import Estimate, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = {  # of the paper's Table 1, and factors for its units
    "energy": ("energy / meV/atom", 1e3),
    "forces": ("forces / meV/Å", 1e3),
    "stress": ("stress / GPa", 1.0),
    "magmoms": ("magmoms / μB", 1.0),
    "decomposition": ("decomposition energy / meV/atom", 1e3),
    "formation": ("formation energy / meV/atom", 1e3),
}
PUBLISHED = {  # Huang et al. (2025), Table 1
    SCRATCH: (27, 45, 0.239, 0.019, 37.44, 43.11),
    TRAINABLE: (26, 54, 0.266, 0.027, 41.22, 52.43),
    FROZEN: (26, 52, 0.257, 0.026, 38.54, 39.78),
    REFIT: (17, 38, 0.167, 0.023, 23.66, 29.38),
}
SOURCE = "source"  # the key of its row


def interval(
    one: Sequence[Any], other: Sequence[Any] | None = None, unit: float = 1.0, resamples: int = 2000
) -> Estimate:
    """The mean over seeds of the error of `one` minus that of `other`, given as sums and counts (seeds,
    materials, 2).

    The 95 % interval is by bootstrap over seeds and materials, drawn anew each time, and alike for the two.
    """
    rng = np.random.default_rng(0)
    arrays = [unit * np.asarray(x, float) * (1, 1 / unit) for x in (one, other) if x is not None]
    seeds, materials = arrays[0].shape[:2]
    of_materials = rng.multinomial(materials, np.full(materials, 1 / materials), size=resamples)
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds

    def errors_of(weights: np.ndarray, x: np.ndarray) -> np.ndarray:  # (draws, seeds)
        sums, counts = (np.einsum("dm,sm->ds", weights, x[..., k]) for k in (0, 1))
        return np.where(counts > 0, sums / np.where(counts > 0, counts, 1), np.nan)

    value, draws = (
        (of * sum(sign * errors_of(w, x) for sign, x in zip((1, -1), arrays, strict=False))).sum(axis=1)
        for w, of in ((np.ones((1, materials)), np.full((1, seeds), 1 / seeds)), (of_materials, of_seeds))
    )
    if materials < 2:
        return Estimate(float(value[0]), math.nan, math.nan)
    low, high = np.nanpercentile(draws, (2.5, 97.5))
    return Estimate(float(value[0]), float(low), float(high))


class Results:
    """The rows, of all methods and seeds, that did not fail."""

    def __init__(self, settings: Settings, rows: Mapping[str, Any]):
        self.settings, self.source = settings, rows[SOURCE]
        self.rows = {
            method: {seed: rows[key] for seed in range(settings.seeds) if (key := f"{method}/{seed}") in rows}
            for method in settings.methods
        }
        self.rows = {method: found for method, found in self.rows.items() if found}
        known = {name for found in self.rows.values() for row in found.values() for name in row["errors"]}
        self.columns = {name: its for name, its in COLUMNS.items() if name in known}

    def error(self, method: str, name: str) -> Estimate | None:
        found = [row["errors"][name] for row in self.rows[method].values() if name in row["errors"]]
        return interval(found, unit=self.columns[name][1]) if found else None

    def less(self, one: str, other: str, name: str) -> Estimate | None:
        """The error of `other` minus that of `one`; None if no seed has both."""
        shared = [seed for seed in self.rows[one] if seed in self.rows[other]]
        found = [[self.rows[m][seed]["errors"][name] for seed in shared] for m in (other, one)]
        return interval(*found, unit=self.columns[name][1]) if shared else None

    def of_median(self, method: str, name: str) -> Estimate | None:
        """The error of the median test material, averaged over seeds."""
        found = [row["errors"][name] for row in self.rows[method].values() if name in row["errors"]]
        return bootstrap([self.columns[name][1] * median(sums) for sums in found]) if found else None

    def before(self, method: str, name: str) -> float:
        found = [row["before"].get(name) for row in self.rows[method].values()]
        known = [x for x in found if x is not None]
        return self.columns[name][1] * float(np.mean(known)) if known else math.nan

    def lines(self, method: str, of: str) -> tuple[np.ndarray, np.ndarray]:
        """The x of the points of a method's curves, and their y (seeds, points)."""
        curves = [np.array(row[of], float) for row in self.rows[method].values()]
        return curves[0][:, 0], np.array([curve[:, 1] for curve in curves])


def tables(results: Results) -> list[Table]:
    settings, crystals = results.settings, results.source["crystals"]
    used = crystals["train"] if settings.crystals is None else settings.crystals
    columns = ("method", *(label for label, _ in results.columns.values()))

    def of(number: Callable[[str, str], Any]) -> list[list[Any]]:
        return [[METHODS[m], *(number(m, name) for name in results.columns)] for m in results.rows]

    published = [
        [METHODS[m], *(x for name, x in zip(COLUMNS, numbers, strict=True) if name in results.columns)]
        for m, numbers in PUBLISHED.items()
    ]
    title = f"{settings.source_functional} to {settings.target}: {used} crystals, {settings.epochs} epochs"
    note = (
        f"Mean absolute errors over {crystals['test']} test crystals of {crystals['test materials']} "
        f"materials that are in no training data, against the labels of {settings.target}, a stand-in for "
        f"DFT; means over {settings.seeds} seeds with 95 % intervals by bootstrap over seeds and materials. "
        f"Formation and decomposition energies of {crystals['compounds']} compounds among them, at the "
        f"geometry of the set; others compete with {crystals['competing']} of them, for the rest the two are "
        f"one. {crystals['without elements']} more have an element without a crystal of its own."
    )
    of_medians = (
        "The mean error of each test material, and of these the median: one material that is far from all "
        "others can make the mean above, and not this. Intervals by bootstrap over seeds."
    )
    of_paper = (
        "Huang et al. (2025), Table 1: CHGNet from GGA/GGA+U to 190,560 structures of MP-r2SCAN, all of DFT; "
        "formation energies after relaxation. Other data, for the order of the methods alone."
    )
    return [
        Table(title, columns, of(results.error), 2, note),
        Table("The same, of the median material", columns, of(results.of_median), 2, of_medians),
        Table("The same as means, before training", columns, of(results.before), 2),
        Table("Published, on other data", columns, published, 2, of_paper),
        work_table(results),
    ]


def work_table(results: Results) -> Table:
    rows = []
    for method, found in results.rows.items():
        norms = [first_epoch(row) for row in found.values()]
        rates = [row["crystals per second"] for row in found.values() if row["crystals per second"]]
        steps = next(iter(found.values()))["steps"]
        rows.append(
            [METHODS[method], steps, float(np.mean(norms)), f"{np.median(rates):.0f}" if rates else None]
        )
    columns = ("method", "steps", "gradient norm, first epoch", "crystals/s")
    note = (
        "The norm is of the gradient of all that is trained. The paper trains for 149,000 steps. Adam moves "
        f"a reference energy by about {results.settings.learning_rate:g} eV a step at most, so that a shift "
        "of some eV takes thousands."
    )
    return Table("Gradients and work", columns, rows, 3, note)


def first_epoch(row: Mapping[str, Any]) -> float:
    """The mean norm of the gradient in the first epoch."""
    return float(np.mean([norm for _, norm in row["gradients"]]))


def findings(results: Results) -> list[str]:
    settings, source = results.settings, results.source
    own = mean(np.array(source["errors"]["energy"]))
    made = settings.start or f"a small {settings.architecture} of {source['parameters']:,} parameters"
    found = [
        f"The source, {made}, has an energy error of {1e3 * own:.1f} meV/atom on the test crystals as "
        f"{settings.source_functional} labels them."
    ]
    rows = results.rows
    if source["crystals"]["left out"]:
        found.append(
            f"{source['crystals']['left out']} more test crystals have an element that not every seed trains "
            "on, so that no reference energy of it can be fitted: they are left out."
        )
    if REFIT in rows:
        against = [(m, d) for m in rows if m != REFIT and (d := results.less(REFIT, m, "energy"))]
        for verdict, holds in (
            ("smaller than", lambda d: d.low > 0),
            ("larger than", lambda d: d.high < 0),
            ("not told from", lambda d: d.low <= 0 <= d.high or math.isnan(d.low)),
        ):
            told = "; ".join(
                f"{METHODS[m]} ({d.value:+.1f}, {d.low:+.1f} to {d.high:+.1f})"
                for m, d in against
                if holds(d)
            )
            if told:
                found.append(
                    f"With refitted references the energy error is {verdict} that of (in brackets, how much "
                    f"more theirs is, meV/atom): {told}."
                )
    if REFIT in rows and FROZEN in rows:
        ratio = np.mean([first_epoch(r) for r in rows[FROZEN].values()]) / np.mean(
            [first_epoch(r) for r in rows[REFIT].values()]
        )
        found.append(
            f"In the first epoch the gradient's norm without a refit is {ratio:.1f} times that with it "
            "(published: an order of magnitude at least). The Huber loss bounds the pull of an energy at an "
            "error of 100 meV/atom: the ratio tells how far below that the refit comes."
        )
        found.append(
            f"Before training the energy error is {results.before(FROZEN, 'energy'):.0f} meV/atom with the "
            f"source's references and {results.before(REFIT, 'energy'):.0f} with refitted ones."
        )
    return found


def figures(results: Results) -> dict[str, Any]:
    settings = results.settings
    return {
        "transfer_gradients.png": (
            "Norm of the gradient in the first epoch, geometric means over seeds (as Fig. 3a of the paper).",
            curves(results, "gradients", "step", "norm of the gradient", 1.0),
        ),
        "transfer_curves.png": (
            f"Energy error on validation crystals against {settings.target}; bands: all seeds.",
            curves(results, "curve", "epoch", "energy MAE, validation (meV/atom)", 1e3),
        ),
    }


def curves(results: Results, of: str, x_label: str, y_label: str, unit: float) -> Figure:
    """Draws a line for each method on a logarithmic axis, with a band from the lowest to the highest seed."""
    figure, ((ax,),) = panels(each=(6.5, 4.6), spare=(0, 0))
    styles = dict(zip(METHODS, zip(("0.3", *COLOURS), "osd^vxP", strict=True), strict=False))
    for k, method in enumerate(results.rows):
        colour, marker = styles[method]
        x, y = results.lines(method, of)
        middle = unit * np.exp(np.log(y).mean(axis=0))
        look = {"color": colour, "marker": marker, "ls": ("-", "--")[k % 2], "ms": 5, "lw": 1.2}
        ax.plot(x, middle, markevery=max(1, len(x) // 8), label=METHODS[method], **look)
        ax.fill_between(x, unit * y.min(axis=0), unit * y.max(axis=0), color=colour, alpha=0.15, lw=0)
    ax.set(yscale="log", xlabel=x_label, ylabel=y_label)
    ax.xaxis.get_major_locator().set_params(integer=True)
    legend(figure, ncols=2, fontsize="small")
    return figure
