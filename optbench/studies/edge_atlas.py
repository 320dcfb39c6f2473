"""The edge atlas: where the curvature of every optimizer stops, beside where it should.

By a formula, measured/threshold; by the multiplier of the training map, the learning rate over the
one at which the oscillating eigenvalue leaves the unit disc; for steps of a fixed size, by the
amplitude of their alternation. All are 1 at the edge. A row is one run; the claims are of the
seeds' own statistics, those of the farthest entry where a claim says "all".

References:
    Cohen et al. (2021), arXiv:2103.00065, and (2022), arXiv:2207.14484; for the multiplier
    `optbench.dynamics.oscillating_eigenvalue`, for the amplitude `describing_function`.
"""

import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from optbench import lab
from optbench.intervals import Interval, t_quantile
from optbench.studies import atlas_page, atlas_picture
from optbench.studies.atlas_entries import Atlas, Entry
from optbench.studies.edge_reading import read_run, read_series
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
    rounded,
    six_digits,
)
from optbench.studies.judging import UNKNOWN, judged
from optbench.studies.measured_once import measured_once

ARRIVED = 0.1
"""Most by which a level may change from the third to the fourth quarter and still stand."""

SLOWER = 0.25
"""Factor of the learning rate of the run that goes on from half of the steps."""

PARTS = 30
"""Parts that the picture shows of each run."""

Values = NDArray[np.float64]
"""One number an entry and seed, shape (entries, seeds)."""


class EdgeAtlas:
    """Every entry on every seed.

    Args:
        declaration: What is declared; `sizes` has seeds, steps, every (steps between multipliers)
            and only (names of entries; none for all).
        settings: Of `Atlas`.
    """

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "theory": dict.fromkeys(
            ("formula", "multiplier", "obeyed", "flow", "flow_control", "amplitude", "balance"),
            SUPPORTED,
        ),
        # levels stand a quarter above, and at whatever rate the run goes on; no amplitude is met
        "elsewhere": dict.fromkeys(
            ("formula", "multiplier", "flow", "flow_control", "amplitude", "balance"), REFUTED
        ),
        # all but one entry of each claim at 1: no mean may hide it
        "one_elsewhere": dict.fromkeys(("formula", "multiplier", "amplitude"), REFUTED),
        "formula_right": {"formula": SUPPORTED, "obeyed": REFUTED},
        # levels pass through 1 while they rise: the truth is a quarter above
        "passing": {"formula": REFUTED, "multiplier": REFUTED},
    }

    def __init__(self, declaration: Declaration, **settings: Any) -> None:
        self.declaration, self.atlas = declaration, Atlas.of(settings)

    def entries(self, size: Size) -> list[Entry]:
        """The entries of a size whose optimizers are installed; it says which are not."""
        only = self.declaration.sizes[size]["only"]
        wanted = [e for e in self.atlas.entries if not only or e.name in only]
        for e in wanted:
            if not e.available:
                print(f"left out: {e.name} needs {e.needs}: pip install {e.needs}", file=sys.stderr)
        return [e for e in wanted if e.available]

    def plan(self, size: Size) -> list[Cell]:
        """The runs of a size."""
        grid = self.declaration.sizes[size]
        return [
            Cell(
                {"optimizer": entry.name, "seed": seed},
                tuple(self._command(entry, seed, grid["steps"], grid["every"])),
            )
            for entry in self.entries(size)
            for seed in grid["seeds"]
        ]

    def _command(self, entry: Entry, seed: int, steps: int, every: int) -> list[str]:
        more = ["picture=false", "checkpoint_seconds=600"]
        if entry.full_batch:
            more += [*self.atlas.multiplier, f"probes.multiplier.every={every}"]
        if entry.fixed_size:
            more.append("probes.multiplier.amplitude=true")
        if entry.flow:
            more.append(f"keep_steps=[{steps // 2}]")
        return self.atlas.command(entry, entry.lr, seed, steps, more)

    def read(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """One row: where the run stands, by each measure, and its level in parts of the run."""
        entry = self.atlas.named(cell.factors["optimizer"])
        series = read_series(folder, entry.metric, entry.factor / entry.lr)
        row = {
            **cell.factors,
            "lr": f"{entry.lr:g}",
            "quantity": series.quantity,
            **asdict(read_run(folder, series)),
            "reached": float(any(ratio >= 1 for ratio in series.ratios)),
            "swings": float(series.between(0.5, 1.0).swings),
            "flow": math.nan,
        }
        if entry.flow and row["status"] == "done":
            found = measured_once(
                folder, "flow", [SLOWER, "1"], lambda: {"level": slower_level(folder, SLOWER)}
            )
            row["flow"] = math.nan if found["level"] is None else found["level"]
        for part in range(PARTS):
            level = series.between(part / PARTS, (part + 1) / PARTS).mean
            row[f"part_{part + 1}"] = float(f"{level:.4g}")
        return [rounded(row)]

    def judge(self, table: Table) -> list[Finding]:
        """Apply the declared rules."""
        return [self._judge(h.name, table) for h in self.declaration.hypotheses]

    def _judge(self, name: str, table: Table) -> Finding:
        (hypothesis,) = (h for h in self.declaration.hypotheses if h.name == name)
        entries = [e for e in self.atlas.entries if name in e.claims]
        values, seeds = self._values(name, entries, table)
        n = int(np.isfinite(values).sum())
        missing = [e.name for e, own in zip(entries, values, strict=True) if not _known(own)]
        if missing or len(seeds) < 2:
            why = f"Without a level: {', '.join(missing)}." if missing else "Fewer than two seeds."
            return judged(hypothesis, UNKNOWN, n, why)
        statistic = STATISTICS[name](values, np.array([e.tolerance or math.nan for e in entries]))
        estimate = mean_interval(statistic, self.declaration.level)
        return judged(hypothesis, estimate, n, _told(name, entries, values))

    def _values(
        self, name: str, entries: Sequence[Entry], table: Table
    ) -> tuple[Values, list[float]]:
        """The logarithm that a claim is about, (entries, seeds), NaN where there is none."""
        if not length(table):
            return np.full((len(entries), 0), math.nan), []
        seeds = sorted(set(table["seed"].tolist()))
        values = np.full((len(entries), len(seeds)), math.nan)
        for i, entry in enumerate(entries):
            own = (table["optimizer"] == entry.name) & (table["status"] == "done")
            if not own.any() or (name in LEVELS and not arrived(table["drift"][own])):
                continue
            for seed, value in zip(table["seed"][own], _logs(name, table, own), strict=True):
                values[i, seeds.index(seed)] = value
        return values, seeds

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world."""
        return planted_table(self, world, seed)

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        """Draw both distances of every entry, and the level over each run; write entries.md."""
        rows = atlas_page.rows(self.atlas, table)
        atlas_page.write(rows, folder)
        yield atlas_picture.draw_distances(rows, folder / "distances")
        yield atlas_picture.draw_levels(rows, table, folder / "levels")


def arrived(drifts: Values) -> bool:
    """Whether most runs of an entry stand at a level, and do not pass through it."""
    return bool(np.median(np.abs(drifts)) <= ARRIVED)


LEVELS = ("formula", "multiplier", "obeyed")
"""Claims on a level at which the run has to stand."""

STATISTICS: Mapping[str, Callable[[Values, Values], Values]] = {
    "formula": lambda logs, tolerance: 2 - (np.abs(logs).T / np.log1p(tolerance)).max(1),
    "multiplier": lambda logs, _: 2 - (np.abs(logs) / math.log(1.05)).max(0),
    "obeyed": lambda logs, _: logs.mean(0),
    "flow": lambda logs, _: 0.1 - np.abs(logs).max(0),
    "flow_control": lambda logs, _: logs.mean(0),
    "amplitude": lambda logs, _: 0.1 - np.abs(logs).max(0),
    "balance": lambda logs, _: 0.1 - np.abs(logs).max(0),
}
"""Logarithms (entries, seeds) and tolerances (entries,) to a statistic of each seed."""


def _logs(name: str, table: Table, own: NDArray[np.bool_]) -> Values:
    """The logarithm that a claim is about, of some rows."""
    with np.errstate(divide="ignore", invalid="ignore"):
        log = {
            key: np.log(table[key][own])
            for key in ("formula", "multiplier", "flow", "amplitude", "balance")
        }
    match name:
        case "obeyed":
            return np.asarray(np.abs(log["formula"]) - np.abs(log["multiplier"]))
        case "flow":
            return np.asarray(log["formula"] - log["flow"])
        case "flow_control":
            return np.asarray(log["flow"] - log["formula"])
    return np.asarray(log[name])


def _known(own: Values) -> bool:
    return bool(len(own)) and bool(np.isfinite(own).all())


def _told(name: str, entries: Sequence[Entry], values: Values) -> str:
    """The median over the seeds of each entry, as a change in per cent or a difference."""
    medians = np.median(values, 1)
    if name == "obeyed":
        told = [f"{e.name} {m:+.3f}" for e, m in zip(entries, medians, strict=True)]
    else:
        told = [f"{e.name} {math.exp(m):.3f}" for e, m in zip(entries, medians, strict=True)]
    return f"Medians: {', '.join(told)}."


def mean_interval(values: Values, level: float) -> Interval:
    """Return the mean of the seeds' values with its interval of Student's t."""
    n, mean = len(values), float(values.mean())
    half = t_quantile(n - 1, level) * float(values.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def slower_level(folder: Path, factor: float) -> float | None:
    """Return where the curvature of a run would stand if it had gone on at a smaller rate.

    From half of the steps, with all learning rates times `factor` and 1/`factor` as many steps:
    the same time Σηt. The level is over the run's own threshold, at its own rate. A run that
    follows its flow comes to the same level; one that its edge holds comes to a higher one.

    Args:
        folder: Folder of a run that kept a checkpoint at half of its steps.
        factor: Factor of the learning rate, below 1.
    """
    run = lab.open(folder)
    steps = int(run.config.steps)
    half = steps // 2
    cadence = round(int(run.config.probes.sharpness.every) / factor)
    with tempfile.TemporaryDirectory() as place:
        slower = (
            run.at(step=half)
            .fork(
                f"optimizer.scale={factor:g}",
                f"probes.sharpness.every={cadence}",
                "probes.generalization.every=1000000",
                "probes.multiplier=null",
                "probes.direction=null",
                "picture=false",
                "wandb.mode=disabled",
                results_dir=place,
                steps=round((steps - half) / factor),
            )
            .train()
        )
        # thresholds of all these edges are inverse to the learning rate
        return six_digits(read_series(slower.folder).level / factor)


def planted_table(study: EdgeAtlas, world: str, seed: int) -> Table:
    """Levels of a world, as many as in the size small.

    - theory: what is claimed stands at 1; Adadelta and Adafactor a tenth above by the formula.
    - elsewhere: it stands a quarter above or below, and the flow is no other than the run's edge.
    - one_elsewhere: as theory, but for the first entry of each claim, which is a sixth above.
    - formula_right: as theory, but it is the multiplier that is a tenth above.
    - passing: levels rise through 1 in the second half.
    """
    random = np.random.default_rng([seed, sorted(study.worlds).index(world)])
    rows: list[dict[str, Any]] = []
    first = {
        name: next(e.name for e in study.atlas.entries if name in e.claims)
        for name in ("formula", "multiplier", "amplitude")
    }
    for entry in study.atlas.entries:
        own = random.normal(0, 0.008, 3)  # of the entry, the same on all seeds
        for s in study.declaration.sizes["small"]["seeds"]:
            formula, multiplier, amplitude = own + random.normal(0, 0.006, 3)
            balance, flow = random.normal(0, 0.006, 2)
            flow += formula + 0.4 * ("flow_control" in entry.claims)
            if "obeyed" in entry.claims:
                formula += 0.1 * (world != "formula_right")
                multiplier += 0.1 * (world == "formula_right")
            if world == "elsewhere":
                formula, multiplier = formula + 0.22, multiplier + 0.22
                amplitude, balance = amplitude + 0.3, balance - 0.3
                flow = formula + 0.3 * ("flow" in entry.claims)
            if world == "one_elsewhere":
                formula += 0.1 * (entry.tolerance or 0) / 0.05 * (entry.name == first["formula"])
                multiplier += 0.1 * (entry.name == first["multiplier"])
                amplitude += 0.1 * (entry.name == first["amplitude"])
            logs = {
                "formula": formula, "multiplier": multiplier, "amplitude": amplitude,
                "balance": balance, "flow": flow,
            }  # fmt: skip
            drift = 0.2 if world == "passing" else random.normal(0, 0.01)
            rows.append(
                {"optimizer": entry.name, "seed": s, "status": "done", "drift": drift}
                | {name: math.exp(log) for name, log in logs.items()}
            )
    return columns(rows)
