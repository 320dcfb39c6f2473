"""The edge atlas's own table: a row an optimizer, from the runs of all seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optbench import metrics
from optbench.intervals import Interval
from optbench.record.durable import write_whole
from optbench.studies.atlas_entries import Atlas, Entry
from optbench.studies.edge_reading import obeyed
from optbench.studies.frame import Table, length, subset

PAGE = "entries.md"
NEAR = 0.05
"""Largest |distance − 1| that counts as at the edge where a run is said to obey one of two."""

SYMBOLS = {
    metrics.SHARPNESS: "λ₁(H)",
    metrics.PRECONDITIONED_SHARPNESS: "λ₁(P⁻¹H)",
    metrics.NORM_SHARPNESS: "norm sharpness",
    metrics.BATCH_SHARPNESS: "batch sharpness",
}
COLUMNS = (
    "optimizer",
    "lr",
    "measured",
    "by formula",
    "lowest to highest",
    "tolerance",
    "verdict",
    "by multiplier",
    "predicted",
    "balance",
    "obeyed",
    "why",
)
NOTHING = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Row:
    """What the runs of one entry came to; intervals are medians with the range over the seeds.

    Attributes:
        entry: The entry.
        quantity: The metric that was compared with the formula's threshold.
        formula: Measured over threshold.
        multiplier: Distance by the multiplier.
        amplitude: Predicted over measured amplitude, of steps of fixed size.
        balance: ½⟨dᵀHd⟩ over −⟨g·d⟩ along the updates d.
        flow: Measured over threshold, had the run gone on at a quarter of its learning rate.
        verdict: "within" if every seed is within the tolerance, "outside" if not, "edge not
            reached" if no seed reached it, "open" where no threshold is established, "diverged",
            "missing".
        obeyed: Which of formula and multiplier stands at 1; see `edge_reading.obeyed`.
        why: What the entry says of it.
    """

    entry: Entry
    quantity: str
    formula: Interval
    multiplier: Interval
    amplitude: Interval
    balance: Interval
    flow: Interval
    verdict: str
    obeyed: str
    why: str


def rows(atlas: Atlas, table: Table) -> list[Row]:
    """Return a row for every entry of the atlas that has a run in the table."""
    found = []
    for entry in atlas.entries:
        own = subset(table, table["optimizer"] == entry.name)
        if length(own):
            found.append(_row(entry, own, atlas.why(entry)))
    return found


def _row(entry: Entry, own: Table, why: str) -> Row:
    over = {
        name: _range(own[name])
        for name in ("formula", "multiplier", "amplitude", "balance", "flow")
    }
    if not entry.fixed_size:
        over["amplitude"] = NOTHING
    if not entry.flow:
        over["flow"] = NOTHING
    diverged = bool((own["status"] == "diverged").any())
    # a conjecture of steps of fixed size is no edge to obey
    formula = math.nan if entry.fixed_size and entry.tolerance is None else over["formula"].value
    kept = "–"
    if entry.full_batch:
        multiplier, amplitude = over["multiplier"].value, over["amplitude"].value
        kept = obeyed(formula, multiplier, amplitude, diverged, NEAR)
    return Row(
        entry,
        str(own["quantity"][0]),
        **over,
        verdict=verdict(
            entry, own["formula"].tolist(), own["reached"].tolist(), own["status"].tolist()
        ),
        obeyed=kept,
        why=why,
    )


def _range(values: Any) -> Interval:
    """Median with the range of the values that are finite; NaN if none is."""
    known = values[np.isfinite(values)]
    if not len(known):
        return NOTHING
    return Interval(float(np.median(known)), float(known.min()), float(known.max()))


def verdict(
    entry: Entry, ratios: Sequence[float], reached: Sequence[float], statuses: Sequence[str]
) -> str:
    """One word on an entry; see `Row`."""
    if not len(statuses):
        return "missing"
    if "diverged" in statuses:
        return "diverged"
    if not any(reached):
        return "edge not reached"
    if (tolerance := entry.tolerance) is None:
        return "open"
    return "within" if all(abs(r - 1) <= tolerance for r in ratios) else "outside"


def markdown(rows: Sequence[Row]) -> str:
    """The table of `docs/edge_atlas.md`."""
    head, *lines = [f"| {' | '.join(line)} |\n" for line in (COLUMNS, *map(cells, rows))]
    return "".join([head, "|---" * len(COLUMNS) + "|\n", *lines])


def cells(row: Row) -> list[str]:
    """What a reader is shown of a row, under `COLUMNS`."""
    predicted: Mapping[str, float] = {"amplitude": row.amplitude.value, "flow": row.flow.value}
    known = [f"{name} {value:.3f}" for name, value in predicted.items() if math.isfinite(value)]
    formula, tolerance = row.formula, row.entry.tolerance
    spread = f"{formula.low:.3f} to {formula.high:.3f}" if math.isfinite(formula.low) else "–"
    return [
        row.entry.name,
        f"{row.entry.lr:g}",
        SYMBOLS.get(row.quantity, row.quantity),
        _number(formula.value),
        spread,
        "–" if tolerance is None else f"±{tolerance:.0%}",
        row.verdict,
        # signs and polar factors do not answer a small change: no distance
        "–" if row.entry.fixed_size else _number(row.multiplier.value),
        ", ".join(known) or "–",
        _number(row.balance.value),
        row.obeyed,
        row.why,
    ]


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def write(rows: Sequence[Row], folder: Path) -> None:
    """Write the table beside the verdict."""
    write_whole(folder / PAGE, markdown(rows))
