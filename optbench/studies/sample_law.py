"""How many fresh examples does a hidden direction take, n* ∝ d^a, and is a the optimizer's?

    log n*(d) = log c + a log d,    n*: examples seen when the test loss first is half that of 0

One pass, each example seen once. The learning rate is tuned anew at every d: by the median over
seeds of the same count on the validation split.

References:
    Ben Arous et al. (2021), arXiv:2003.10409: for online SGD on an (n, d → ∞) single-index model of
    information exponent s, n ~ d for s = 1, d log d for s = 2 and d^(s−1) for s > 2.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optbench import lab
from optbench.boundary.counting import agreeing, counted
from optbench.intervals import Interval
from optbench.lab import Snapshot
from optbench.studies.figures import draw_curves, draw_forest
from optbench.studies.frame import (
    REFUTED,
    SUPPORTED,
    Cell,
    Declaration,
    Finding,
    Size,
    Table,
    columns,
    length,
    subset,
)
from optbench.studies.judging import UNKNOWN, interval_of, judged
from optbench.studies.many_rates import ManyRates
from optbench.studies.measured_once import measured_once

EVERY = 5
"""Updates between two readings of the losses; the crossing is interpolated between them."""

PATIENCE = 2
"""The pass ends at this multiple of the count of the first rate that arrived."""

LEARNED = 0.25
"""Loss that counts as having found the direction: half of the ½ that predicting 0 has."""

DRAWS = 500
SAME = ("same_staircase", "same_he2", "same_he3")


@dataclass(frozen=True)
class Link:
    """A target function of the study.

    Attributes:
        words: Overrides; they name the batch size.
        batch: Batch size.
        examples: Length of the pass.
    """

    words: Sequence[str]
    batch: int
    examples: int


class SampleLaw:
    """Links x dimensions x seeds; every cell is a start, from which each optimizer is tuned.

    Args:
        declaration: What is declared; `sizes` has links, dimensions, seeds.
        links: {name: fields of `Link`}.
        rates: {optimizer: (low, high)} of log₁₀ of the learning rate; four rates a decade.
        common: Overrides of all runs.
    """

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "theory": dict.fromkeys(("rises", "prefactor", *SAME), SUPPORTED),
        "one_law": {"rises": REFUTED, **dict.fromkeys(("prefactor", *SAME), SUPPORTED)},
        "optimizers_differ": dict.fromkeys(("prefactor", *SAME), REFUTED),
        # the best rate of one optimizer falls with d: to keep that of the smallest d would be wrong
        "moving_rate": dict.fromkeys(("rises", "prefactor", *SAME), SUPPORTED),
        # and it leaves the grid: what is then measured looks like another exponent
        "out_of_grid": dict.fromkeys(SAME, SUPPORTED),
    }

    def __init__(
        self,
        declaration: Declaration,
        links: Mapping[str, Mapping[str, Any]],
        rates: Mapping[str, tuple[float, float]],
        common: Sequence[str],
    ) -> None:
        self.declaration, self.common = declaration, common
        self.links = {name: Link(**fields) for name, fields in links.items()}
        self.rates = {
            name: [float(f"{10**x:.4g}") for x in np.arange(low, high + 1e-9, 0.25)]
            for name, (low, high) in rates.items()
        }

    def plan(self, size: Size) -> list[Cell]:
        """The starts of a size."""
        grid = self.declaration.sizes[size]
        cells = []
        for name, d, seed in product(grid["links"], grid["dimensions"], grid["seeds"]):
            link = self.links[name]
            command = (
                *link.words,
                *self.common,
                f"task.dimension={d}",
                f"task.train_size={link.examples}",
                f"batch_size={link.batch}",
                f"seed={seed}",
            )
            cells.append(Cell({"link": name, "dimension": d, "seed": seed}, command))
        return cells

    def read(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """A row for each optimizer and rate: examples to half the loss, on both splits."""
        link = self.links[cell.factors["link"]]
        settings = [link.batch, self.rates, EVERY, PATIENCE, LEARNED]
        found = measured_once(
            folder, "pass", settings, lambda: {"rows": self._rows(folder, link.batch)}
        )
        return [dict(cell.factors) | row for row in found["rows"]]

    def _rows(self, folder: Path, batch: int) -> list[dict[str, Any]]:
        start = lab.open(folder).at(step=0)
        return [row for o in self.rates for row in self._tuned(start, o, batch)]

    def _tuned(self, start: Snapshot, optimizer: str, batch: int) -> Iterator[dict[str, Any]]:
        rates = self.rates[optimizer]
        for rate, counts in zip(rates, one_pass(start, optimizer, rates, batch), strict=True):
            named = zip(("val", "test"), counts, strict=True)
            row: dict[str, Any] = {"optimizer": optimizer, "rate": rate}
            yield row | {k: float(f"{n:.6g}") for k, n in named if math.isfinite(n)}

    def judge(self, table: Table) -> list[Finding]:
        """Apply the rules at the rates that are best on the validation split."""
        found = []
        for h in self.declaration.hypotheses:
            links = _links_of(h.name)
            rows, why = best(table, links)
            estimate = self._bootstrap(rows, h.name) if length(rows) else UNKNOWN
            found.append(judged(h, estimate, length(rows), why))
        return found

    def _bootstrap(self, rows: Table, name: str) -> Interval:
        wide = by_seed(rows)
        if length(wide) < 2:
            return UNKNOWN
        span = math.log(rows["dimension"].max() / rows["dimension"].min())
        wide = {**wide, "span": np.full(length(wide), span)}
        return interval_of(wide, lambda t: statistic(t, name), self.declaration.level, DRAWS)

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world."""
        return columns(list(_planted(self, world, np.random.default_rng([seed, len(world)]))))

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        """Draw n* against d, the exponents, and n* against the rate at the largest d."""
        if "val" not in table:
            return
        counts, exponents = {}, {}
        for link in self.links:
            rows, _ = best(table, [link], inside=False)
            if not length(rows):
                continue
            counts[link] = _curves(rows, "dimension", "test")
            exponents[link] = [
                (o, self._exponent_of(subset(rows, rows["optimizer"] == o))) for o in self.rates
            ]
        if counts:
            x, y = "dimension d", "examples to half the loss"
            yield draw_curves(counts, x, y, folder / "counts", log="xy")
            yield draw_forest(exponents, "exponent a", folder / "exponents")
        largest = subset(table, table["dimension"] == table["dimension"].max())
        rates = {
            f"{link}, d = {largest['dimension'][0]:g}": _curves(
                subset(largest, largest["link"] == link), "rate", "val"
            )
            for link in self.links
            if (largest["link"] == link).any()
        }
        y = "examples to half the loss (validation)"
        yield draw_curves(rates, "learning rate", y, folder / "rates", log="xy")

    def _exponent_of(self, rows: Table) -> Interval:
        return interval_of(rows, slope, self.declaration.level, DRAWS)


def _links_of(name: str) -> list[str]:
    """The links that a hypothesis rests on."""
    if name.startswith("same_"):
        return [name.removeprefix("same_")]
    if name == "rises":
        return ["he2", "he3"]
    return ["staircase", "he2"] if name == "first_step" else ["staircase", "he2", "he3"]


# What a start comes to


def one_pass(
    start: Snapshot, optimizer: str, rates: Sequence[float], batch: int
) -> list[tuple[float, float]]:
    """Return, for each rate, the examples seen when the losses first are half: (val, test).

    Infinite where the loss did not come there: within the pass, or before it ended.
    """
    task = start.task
    assert task.val is not None and task.test is not None
    copies = ManyRates(start.model, optimizer, rates, task.loss)
    inputs = torch.cat([task.val.inputs, task.test.inputs])
    splits = (slice(0, len(task.val.inputs)), slice(len(task.val.inputs), None))
    targets = torch.cat([task.val.targets, task.test.targets])
    counts = np.full((len(rates), 2), math.inf)
    before, seen = np.full((len(rates), 2), math.nan), 0
    end = math.inf
    for step, (x, y) in enumerate(
        zip(task.train.inputs.split(batch), task.train.targets.split(batch), strict=True)
    ):
        if step % EVERY == 0:
            losses = _losses(copies.outputs(inputs), targets, splits)
            counts = np.minimum(counts, _crossing(before, losses, seen, EVERY * batch))
            before = losses
            if np.isfinite(counts).all(1).any():  # a rate has arrived on both splits
                end = min(end, PATIENCE * step)
        if step >= end:
            break
        copies.step(x, y)
        seen += len(x)
    return [(float(v), float(t)) for v, t in counts]


@torch.no_grad()
def _losses(outputs: Tensor, targets: Tensor, splits: Sequence[slice]) -> NDArray[np.float64]:
    """Half mean squared error (R, 2) of outputs (R, N, 1) on the parts of the examples."""
    squares = (outputs - targets).square().squeeze(-1) / 2
    return np.stack([squares[:, part].mean(1).double().numpy() for part in splits], axis=1)


def _crossing(
    before: NDArray[np.float64], now: NDArray[np.float64], seen: int, stride: int
) -> NDArray[np.float64]:
    """Examples at which the log of the loss crossed, linear in between; infinite if it did not."""
    crossed = (before > LEARNED) & (now <= LEARNED)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.log(before / LEARNED) / np.log(before / now)
    return np.where(crossed, seen - stride * (1 - share), math.inf)


# The rules


def best(table: Table, links: Sequence[str], inside: bool = True) -> tuple[Table, str]:
    """Return the rows at the best rate of each link, dimension and optimizer.

    The best rate has the smallest median over seeds of the examples to half the validation loss, a
    run that did not come there counting as infinitely many.

    Args:
        table: All rows.
        links: Links to take.
        inside: Return none if a best rate is at an end of its grid.
    """
    if "val" not in table or "test" not in table:
        return {}, "no run came to half the loss"
    chosen, ends, missed = np.zeros(length(table), dtype=bool), [], []
    keys = product(links, np.unique(table["dimension"]), np.unique(table["optimizer"]))
    for link, d, optimizer in keys:
        mask = (
            (table["link"] == link) & (table["dimension"] == d) & (table["optimizer"] == optimizer)
        )
        rates = np.unique(table["rate"][mask])
        medians = [_median(table["val"][mask & (table["rate"] == r)]) for r in rates]
        where = f"{optimizer} on {link}, d = {d:g}"
        if not medians or not math.isfinite(min(medians)):
            missed.append(where)
            continue
        at = int(np.argmin(medians))
        if at in (0, len(rates) - 1):
            ends.append(where)
        chosen |= mask & (table["rate"] == rates[at])
    if missed:
        return {}, f"did not come to half the loss: {', '.join(missed)}"
    if ends and inside:
        return {}, f"the best rate is at the grid's end: {', '.join(ends)}"
    rows = subset(table, chosen)
    late = int((~np.isfinite(rows["test"])).sum())
    told = ", ".join(
        f"{link}: {', '.join(f'{o} {a:.2f}' for o, a in exponents(rows, link).items())}"
        for link in links
    )
    return rows, f"Exponents: {told}." + (
        f" {counted(late, 'run')} at the best rate {agreeing(late, 'was', 'were')} late."
        * bool(late)
    )


def _median(counts: NDArray[Any]) -> float:
    return float(np.median(np.where(np.isfinite(counts), counts, math.inf)))


def slope(rows: Table) -> float:
    """a: least-squares slope of log n* on log d, over runs that came to half the test loss."""
    there = np.isfinite(rows["test"])
    return float(np.polyfit(np.log(rows["dimension"][there]), np.log(rows["test"][there]), 1)[0])


def exponents(rows: Table, link: str) -> dict[str, float]:
    """{optimizer: a} on a link, the mean over seeds of their slopes."""
    return _means(by_seed(rows), "a", link)


def by_seed(rows: Table) -> Table:
    """One row a seed: slope `a LINK OPTIMIZER` and mean `m LINK OPTIMIZER` of log n* over d.

    With all runs there, the mean of the slopes is the least-squares slope of all.
    """
    wide = []
    for seed in np.unique(rows["seed"]):
        row: dict[str, float] = {"seed": float(seed)}
        for link, optimizer in product(np.unique(rows["link"]), np.unique(rows["optimizer"])):
            mask = (rows["seed"] == seed) & (rows["link"] == link) & np.isfinite(rows["test"])
            of = subset(rows, mask & (rows["optimizer"] == optimizer))
            if len(np.unique(of["dimension"])) > 1:
                row[f"a {link} {optimizer}"] = slope(of)
                row[f"m {link} {optimizer}"] = float(np.log(of["test"]).mean())
        wide.append(row)
    return columns(wide)


def _means(wide: Table, what: str, link: str) -> dict[str, float]:
    start = f"{what} {link} "
    return {
        n.removeprefix(start): float(np.nanmean(v)) for n, v in wide.items() if n.startswith(start)
    }


def statistic(wide: Table, name: str) -> float:
    """The number that a hypothesis is about, of `by_seed`'s rows.

    - same_LINK: .6 − (largest a − smallest a over optimizers);
    - rises: mean a over optimizers on he3 less that on he2; first_step: he2 less the staircase;
    - prefactor: range over optimizers of mean log n*, less the most that their exponents part them
      from the middle of the range of log d to its ends; mean over links.
    """
    links = _links_of(name)
    by_link = [_means(wide, "a", link) for link in links]
    spreads = [max(a.values()) - min(a.values()) for a in by_link]
    if name.startswith("same_"):
        return 0.6 - spreads[0]
    if name in ("rises", "first_step"):
        low, high = (float(np.mean(list(a.values()))) for a in by_link)
        return high - low
    half = float(wide["span"][0]) / 2
    ranges = [float(np.ptp(list(_means(wide, "m", link).values()))) for link in links]
    return float(np.mean([r - half * s for r, s in zip(ranges, spreads, strict=True)]))


# Planted worlds and figures


def _planted(study: SampleLaw, world: str, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Rows whose counts are a power of d times a parabola in the log rate, with noise."""
    grid = study.declaration.sizes["small"]
    laws = {"staircase": 1.0, "he2": 1.0, "he3": 1.0 if world == "one_law" else 2.0}
    for link, d, seed in product(grid["links"], grid["dimensions"], grid["seeds"]):
        far = math.log(d / min(grid["dimensions"]))
        common = rng.normal(0, 0.15)  # the data and the start, which all optimizers share
        for i, (optimizer, rates) in enumerate(study.rates.items()):
            differ = world == "optimizers_differ"
            a = laws[link] + (0.4 * i if differ else 0.0)
            middle = math.log(max(grid["dimensions"]) / min(grid["dimensions"])) / 2
            log = 6 + a * (far - middle) + (0.0 if differ else 0.4 * i) + common
            log10 = np.log10(rates)
            at = log10.mean()
            if i == 0 and world in ("moving_rate", "out_of_grid"):
                fall = (0.5 if world == "moving_rate" else 2.5) * far / (2 * middle)
                at += (0.25 if world == "moving_rate" else 0.5) - fall
            noise = rng.normal(0, 0.08, 2)
            for rate, x in zip(rates, log10, strict=True):
                val, test = np.exp(log + 2 * (x - at) ** 2 + noise)
                row = {"link": link, "dimension": d, "seed": seed, "optimizer": optimizer}
                yield row | {"rate": rate, "val": val, "test": test}


def _curves(rows: Table, x: str, y: str) -> dict[str, tuple[Any, Any]]:
    """{optimizer: (x, median of y over seeds)}, where most seeds came there."""
    curves = {}
    for optimizer in np.unique(rows["optimizer"]):
        of = subset(rows, rows["optimizer"] == optimizer)
        medians = {value: _median(of[y][of[x] == value]) for value in np.unique(of[x])}
        there = {value: m for value, m in medians.items() if math.isfinite(m)}
        curves[str(optimizer)] = (list(there), list(there.values()))
    return curves
