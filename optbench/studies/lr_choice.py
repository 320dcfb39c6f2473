"""A rule for the atlas's learning rates, and what every rate that was tried did.

The theory is of small oscillations about a valley, and they grow with the rate: so the smallest
rate that is at its edge in good time is taken. A rate can be taken if its run starts below the
edge, has come near it by the second quarter of the steps (measured/threshold at least `ARRIVED`; it
is not asked how far above), and its loss falls. All this is on one seed, which the atlas does not
use again, and does not look at the half that it reports.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optbench.record import folder as record
from optbench.studies.atlas_entries import Entry
from optbench.studies.edge_reading import read_series

ARRIVED = 0.95
TABLE = "edge_atlas_rates.csv"


@dataclass(frozen=True)
class Tried:
    """What one learning rate did.

    Attributes:
        optimizer: The entry's name.
        lr: The rate.
        start: Measured/threshold at the first measurement.
        arrival: Its level over the second quarter of the steps; see `edge_reading.Series`.
        plateau: The same over the second half: what the atlas reports, of other seeds.
        falls: Whether the loss falls.
    """

    optimizer: str
    lr: float
    start: float
    arrival: float
    plateau: float
    falls: bool

    @property
    def admissible(self) -> bool:
        """Whether the rule may take this rate."""
        return self.start < 1 and self.arrival >= ARRIVED and self.falls


def read_tried(entry: Entry, lr: float, folder: Path) -> Tried:
    """Read the run of one rate."""
    series = read_series(folder, entry.metric, entry.factor / lr)
    summary = record.read_json(folder / record.SUMMARY) or {}
    falls = summary.get("status") == "done" and bool(summary.get("events", {}).get("falling"))
    start = series.ratios[0] if series.steps else math.nan
    arrival, level = series.between(0.25, 0.5).level, series.between(0.5, 1.0).level
    return Tried(entry.name, lr, start, arrival, level, falls)


def choose(tried: Sequence[Tried]) -> float | None:
    """The smallest rate that the rule admits, None if it admits none."""
    return min((t.lr for t in tried if t.admissible), default=None)


def write(tried: Sequence[Tried], path: Path) -> None:
    """Write every rate that was tried."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["optimizer", "lr", "start", "arrival", "plateau", "falls", "admissible"])
        for t in tried:
            numbers = [f"{x:.4f}" for x in (t.start, t.arrival, t.plateau)]
            writer.writerow([t.optimizer, f"{t.lr:g}", *numbers, t.falls, t.admissible])
