"""The edge atlas: measured/threshold of every optimizer on digits, from one study's runs."""

import csv
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from optbench import metrics
from optbench.record import folder as record
from optbench.studies.atlas_entries import NOT_REACHED, OPEN, OUTSIDE, WITHIN, Entry

TABLE, FACTS, PICTURE, PAGE = "edge_atlas.csv", "edge_atlas.json", "edge_atlas.png", "edge_atlas.md"
COLUMNS = (
    "optimizer",
    "lr",
    "measured",
    "median",
    "lowest to highest",
    "tolerance",
    "verdict",
    "why",
)
SYMBOLS = {
    metrics.SHARPNESS: "λ₁(H)",
    metrics.PRECONDITIONED_SHARPNESS: "λ₁(P⁻¹H)",
    metrics.NORM_SHARPNESS: "norm sharpness",
    metrics.BATCH_SHARPNESS: "batch sharpness",
}


@dataclass
class Row:
    """What the runs of one entry came to.

    Attributes:
        optimizer: The entry's name.
        lr: Its learning rate.
        ratios: Measured/threshold, a seed each; NaN where the run has none.
        median: Over the seeds.
        tolerance: Of the entry.
        reached: Share of the seeds whose ratio was 1 or more at some step.
        verdict: "within" if every seed is within the tolerance, "outside" if not, "edge not
            reached" if no seed reached it, "open" where no threshold is established, "diverged",
            "missing".
        expected: The verdict that the entry expects.
        quantity: The metric that was compared.
        why: What the entry says of it.
        series: (steps, ratios) of each seed, for the picture.
    """

    optimizer: str
    lr: float
    ratios: list[float]
    median: float
    tolerance: float | None
    reached: float
    verdict: str
    expected: str
    quantity: str
    why: str
    series: list[tuple[list[int], list[float]]] = field(default_factory=list, repr=False)

    @property
    def spread(self) -> tuple[float, float]:
        """Lowest and highest ratio of the seeds that have one; NaN if none has."""
        known = [ratio for ratio in self.ratios if not math.isnan(ratio)] or [math.nan]
        return min(known), max(known)


@dataclass(frozen=True)
class Series:
    """What one run measured, and the threshold at the same steps."""

    quantity: str
    steps: list[int]
    measured: list[float]
    threshold: list[float]

    @property
    def ratios(self) -> list[float]:
        """Measured/threshold at every step."""
        return [m / t for m, t in zip(self.measured, self.threshold, strict=True)]

    def plateau(self, mean: bool, start: float = 0.5, end: float = 1.0) -> float:
        """Median of measured/threshold over a share of the steps, or ratio of their means."""
        last = self.steps[-1] if self.steps else 0
        columns = zip(self.steps, self.measured, self.threshold, strict=True)
        chosen = [(m, t) for s, m, t in columns if start * last <= s <= end * last]
        if not chosen:
            return math.nan
        if mean:
            total = sum(t for _, t in chosen)
            return sum(m for m, _ in chosen) / total if total > 0 else math.nan
        return statistics.median(m / t for m, t in chosen)


def read_series(entry: Entry, lr: float, folder: Path) -> Series:
    """Measured and threshold of a run: of its edge, or the entry's metric against factor/lr."""
    records = record.read_lines(folder / record.METRICS)
    if entry.metric is not None:
        on, threshold = entry.metric, [entry.factor / lr] * len(records)
    else:
        on, threshold = (
            metrics.threshold_is_on(records),
            [r.get(metrics.EDGE_THRESHOLD, 0.0) for r in records],
        )
    rows = [
        (r["step"], r[on], t) for r, t in zip(records, threshold, strict=True) if on in r and t > 0
    ]
    return Series(on, [s for s, _, _ in rows], [m for _, m, _ in rows], [t for _, _, t in rows])


def read_row(entry: Entry, folders: Sequence[Path]) -> Row:
    """Read the runs of one entry."""
    every = [read_series(entry, entry.lr, folder) for folder in folders]
    statuses = [
        str((record.read_json(folder / record.SUMMARY) or {}).get("status")) for folder in folders
    ]
    ratios = [series.plateau(entry.mean) for series in every]
    known = [ratio for ratio in ratios if not math.isnan(ratio)]
    reached = sum(any(r >= 1 for r in series.ratios) for series in every) / max(1, len(every))
    return Row(
        entry.name,
        entry.lr,
        ratios,
        statistics.median(known) if known else math.nan,
        entry.tolerance,
        reached,
        verdict(entry, ratios, reached, statuses),
        entry.expected,
        ", ".join(sorted({series.quantity for series in every})),
        entry.why,
        [(series.steps, series.ratios) for series in every],
    )


def verdict(entry: Entry, ratios: Sequence[float], reached: float, statuses: Sequence[str]) -> str:
    """One word on an entry; see `Row`."""
    if not statuses:
        return "missing"
    if "diverged" in statuses:
        return "diverged"
    if not reached:
        return NOT_REACHED
    if entry.tolerance is None:
        return OPEN
    return WITHIN if all(abs(r - 1) <= entry.tolerance for r in ratios) else OUTSIDE


def write(rows: Sequence[Row], folder: Path) -> None:
    """Write the rows as JSON, CSV and Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = [{key: value for key, value in asdict(row).items() if key != "series"} for row in rows]
    record.write_whole(folder / FACTS, json.dumps(record.plain({"rows": facts}), indent=2) + "\n")
    with (folder / TABLE).open("w", newline="") as stream:
        writer = csv.writer(stream)
        columns = [
            "seeds",
            "median",
            "lowest",
            "highest",
            "tolerance",
            "reached",
            "verdict",
            "expected",
            "why",
        ]
        writer.writerow(["optimizer", "lr", "quantity", *columns])
        for row in rows:
            numbers = [f"{x:.4f}" for x in (row.median, *row.spread)]
            rest = [row.tolerance, f"{row.reached:.2f}", row.verdict, row.expected, row.why]
            writer.writerow(
                [row.optimizer, f"{row.lr:g}", row.quantity, len(row.ratios), *numbers, *rest]
            )
    record.write_whole(folder / PAGE, markdown(rows))


def markdown(rows: Sequence[Row]) -> str:
    """The table of `docs/edge_atlas.md`."""
    head, *lines = [f"| {' | '.join(line)} |\n" for line in (COLUMNS, *map(cells, rows))]
    return "".join([head, "|---" * len(COLUMNS) + "|\n", *lines])


def cells(row: Row) -> list[str]:
    """What a reader is shown of a row, under `COLUMNS`."""
    lowest, highest = row.spread
    return [
        row.optimizer,
        f"{row.lr:g}",
        SYMBOLS.get(row.quantity, row.quantity),
        *(
            ["–", "–"]
            if math.isnan(row.median)
            else [f"{row.median:.3f}", f"{lowest:.3f} to {highest:.3f}"]
        ),
        "–" if row.tolerance is None else f"±{row.tolerance:.0%}",
        row.verdict,
        row.why,
    ]
