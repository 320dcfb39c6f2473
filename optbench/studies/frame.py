"""The frame of all studies: declare, plan, run, measure, judge. A verdict is computed.

A study is a class in one file and its settings in `conf/study/NAME.yaml`, whose `_target_` names
the class. What is declared there is hashed before the first run; see `declaration`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from optbench.intervals import Interval

Size = Literal["smoke", "small", "full"]
Table = Mapping[str, NDArray[Any]]
"""Columns of equal length: one row a run, or a checkpoint of one."""

SUPPORTED, REFUTED, UNDECIDED = "supported", "refuted", "undecided"


@dataclass(frozen=True)
class Hypothesis:
    """One claim, with everything that decides it, declared before the first run.

    - supported: the interval of the statistic lies beyond the smallest effect of interest, on the
      side of the expected sign;
    - refuted: it lies inside ±sesoi, or beyond it on the other side;
    - undecided: anything else.

    Attributes:
        name: Short name.
        claim: The claim, as a sentence.
        statistic: What is estimated, in words or as an equation.
        sign: Expected sign, +1 or −1.
        sesoi: Smallest effect of interest, in units of the statistic.
        prior: What was found before, with its source.
        overturned_by: What would overturn it.
        primary: Whether it counts among those that are corrected for each other.
    """

    name: str
    claim: str
    statistic: str
    sign: int
    sesoi: float
    prior: str = ""
    overturned_by: str = ""
    primary: bool = True


@dataclass(frozen=True)
class Declaration:
    """What a study says before it runs.

    Attributes:
        title: Title, a question.
        direction: Direction and sub-question, such as 8c.
        question: What is asked.
        protocol: What is run, and what is held equal.
        controls: What rules out other explanations.
        not_shown: What the study cannot show.
        hypotheses: The claims.
        sizes: Settings of the sizes smoke, small and full.
        cost: Time on two cores, by size.
        errata: Sentences of the declaration that turned out to be wrong, and what is right. They
            are said beside it and are no part of its digest.
    """

    title: str
    direction: str
    question: str
    protocol: str
    controls: str
    not_shown: str
    hypotheses: Sequence[Hypothesis]
    sizes: Mapping[str, Mapping[str, Any]]
    cost: Mapping[str, str] = field(default_factory=dict)
    errata: Sequence[str] = ()

    @property
    def level(self) -> float:
        """Level of each interval: 95 % for all primary hypotheses together (Bonferroni)."""
        return 1 - 0.05 / max(1, sum(h.primary for h in self.hypotheses))


@dataclass(frozen=True)
class Cell:
    """A run of the plan.

    Attributes:
        factors: What distinguishes it: {factor: value}.
        command: Overrides of the main job.
    """

    factors: Mapping[str, Any]
    command: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """What a rule computed for a hypothesis.

    Attributes:
        hypothesis: Its name.
        estimate: The statistic with its interval; NaN where nothing can be said.
        verdict: supported, refuted or undecided.
        n: Number of runs (or pairs) that it rests on.
        why: What kept it undecided, or what else decided it.
    """

    hypothesis: str
    estimate: Interval
    verdict: str
    n: int
    why: str = ""


class Study(Protocol):
    """What a study's class has."""

    declaration: Declaration
    worlds: ClassVar[Mapping[str, Mapping[str, str]]]
    """{world: {hypothesis: verdict that is right there}}; a rule never to be fooled by another."""

    def plan(self, size: Size) -> Sequence[Cell]:
        """The runs of a size."""

    def read(self, cell: Cell, folder: Path) -> Sequence[Mapping[str, Any]]:
        """The rows of a finished run. It may be called in another process."""

    def judge(self, table: Table) -> Sequence[Finding]:
        """Apply the declared rules; a table of planted rows is judged by the same code."""

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world, as large as that of the size small."""

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        """Draw the figures into the folder; yield the name of each without its ending."""


def columns(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return rows as columns; a value that a row does not have is NaN, or the empty text."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table: dict[str, NDArray[Any]] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        if any(isinstance(value, str) for value in values):
            table[name] = np.asarray(["" if v is None else str(v) for v in values])
        else:
            table[name] = np.asarray([np.nan if v is None else float(v) for v in values])
    return table


def subset(table: Table, mask: NDArray[np.bool_]) -> Table:
    """Return the rows where the mask is true."""
    return {name: values[mask] for name, values in table.items()}


def length(table: Table) -> int:
    """Number of rows."""
    return len(next(iter(table.values()))) if table else 0


def six_digits(value: float) -> float | None:
    """Return a number with six significant digits; None, a cell without a value, if not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with six significant digits in each number that is a float."""
    return {k: six_digits(v) if isinstance(v, float) else v for k, v in row.items()}
