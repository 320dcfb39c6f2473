"""Chosen runs side by side: groups of runs that differ in nothing but the seed, and their lines.

1. Two runs are of one group if their optimizer, its settings and their problem agree.
2. A group's name says the least settings that tell it from the others.
3. Over the steps a group is its median; its band, from the least to the greatest run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from optbench import metrics
from optbench.boundary.counting import counted
from optbench.leaderboard.run_folders import flat, read_run, read_series
from optbench.leaderboard.run_line import Run
from optbench.record import folder as record
from optbench.record.panels import Line, Panel

OPTIMIZER = "optimizer"
NAMED = (OPTIMIZER, "task", "model", "schedule")
"""Keys whose value says which it is of; the first to tell groups apart."""
NOT_TOLD_APART = ("optimizer._target_",)  # the optimizer's name says it
LEFT_OUT = ("task._target_", "model._target_", "schedule._target_")
ABSENT = "–"
FINALS = {
    "train loss": metrics.TRAIN_LOSS,
    "validation loss": metrics.VAL_LOSS,
    "test error": metrics.TEST_ERROR,
    "gap of loss": metrics.GAP_LOSS,
    "λ₁": metrics.SHARPNESS,
    "distance": metrics.EDGE_DISTANCE,
}
"""Metrics of the table, with the headings of their columns."""
LINE_POINTS = 400  # of a line on a page


@dataclass(frozen=True)
class Member:
    """One run of a comparison.

    Attributes:
        run: The run.
        settings: What it may differ in from others, by key.
        series: (steps, values) of each metric that is drawn.
    """

    run: Run
    settings: Mapping[str, str]
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        name: What tells it from the other groups, how many runs it has, and how many of them did
            not finish.
        settings: Its settings by key.
        members: Its runs.
    """

    name: str
    settings: Mapping[str, str]
    members: Sequence[Member]

    def ends(self) -> str:
        """How its runs ended, such as `2 done, 1 diverged (step 40)`."""
        said = []
        for status in dict.fromkeys(member.run.status for member in self.members):
            own = [m.run for m in self.members if m.run.status == status]
            steps = [run.step for run in own]
            where = f"{min(steps)}" if min(steps) == max(steps) else f"{min(steps)} to {max(steps)}"
            early = f" (step {where} of {own[0].steps})" * (status != "done")
            said.append(f"{len(own)} {status}{early}")
        return ", ".join(said)

    def final(self, metric: str) -> str:
        """Median of a metric's last value over the finished runs, [least, greatest]."""
        last = [m.run.last for m in self.members if m.run.status == "done"]
        values = sorted(float(value[metric]) for value in last if metric in value)
        if not values:
            return ABSENT
        middle = f"{np.median(values):.4g}"
        return middle if len(values) == 1 else f"{middle} [{values[0]:.4g}, {values[-1]:.4g}]"


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, and the keys that they differ in.

    Attributes:
        groups: The groups, in the order of their first runs.
        differing: Keys of which two groups have different values.
        passed_over: A line for each run that could not be read.
    """

    groups: Sequence[Group]
    differing: Sequence[str]
    passed_over: Sequence[str] = field(default_factory=tuple)

    @cached_property
    def members(self) -> list[Member]:
        """All runs, group by group."""
        return [member for group in self.groups for member in group.members]

    @cached_property
    def title(self) -> str:
        """How many runs of how many groups, and what is the same in all."""
        runs = counted(len(self.members), "run")
        same = [
            value
            for key in NAMED[:3]
            if key not in self.differing
            and (value := self.groups[0].settings.get(key, ABSENT)) != ABSENT
        ]
        groups = f" in {counted(len(self.groups), 'group')}" * (len(self.groups) > 1)
        return f"{runs}{groups}" + f": {', '.join(same)}" * bool(same)

    def differences(self) -> str:
        """What the groups differ in, in a sentence."""
        if len(self.groups) == 1:
            return "The runs differ in nothing but the seed."
        return f"The groups differ in {', '.join(self.differing)}."

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the heads and the rows of the table: ends, final values, settings that differ."""
        shown = [head for head, metric in FINALS.items() if self._has(metric)]
        heads = ["group", "ended", *shown, *self.differing]
        rows = [
            [
                group.name,
                group.ends(),
                *(group.final(FINALS[head]) for head in shown),
                *(group.settings.get(key, ABSENT) for key in self.differing),
            ]
            for group in self.groups
        ]
        return heads, rows

    def _has(self, metric: str) -> bool:
        return any(metric in member.run.last for member in self.members)

    def panels(self) -> list[Panel]:
        """Loss, λ₁, distance to the edge and generalization gap of all groups."""
        train, said = metrics.TRAIN_LOSS, "train"
        if not self._measured(train):
            train, said = metrics.BATCH_LOSS, "batch"
        losses = [
            *self._lines(train),
            *(replace(line, is_second=True) for line in self._lines(metrics.VAL_LOSS)),
        ]
        dashed = ", validation (dashed)" * any(line.is_second for line in losses)
        return [
            Panel(
                f"{said} loss",
                f"loss: {said}{dashed}",
                losses,
                log=True,
                note=self._lacking(losses),
                second="validation loss",
            ),
            Panel(
                "λ₁",
                "sharpness λ₁ of the Hessian",
                lines := self._lines(metrics.SHARPNESS),
                note=self._lacking(lines),
            ),
            Panel(
                "distance",
                "distance to the edge: measured / threshold",
                lines := self._lines(metrics.EDGE_DISTANCE),
                log=True,
                level=1.0,
                note=self._lacking(lines),
            ),
            Panel(
                "gap",
                "generalization gap: test − train loss",
                lines := self._lines(metrics.GAP_LOSS),
                log=False,
                view=self._view(lines),
                note=self._lacking(lines),
            ),
        ]

    def _measured(self, metric: str) -> bool:
        return any(metric in member.series for member in self.members)

    def _lines(self, metric: str) -> list[Line]:
        found = [(i, group, line_of(group, i, metric)) for i, group in enumerate(self.groups)]
        return [line for _, _, line in found if line is not None]

    def _lacking(self, lines: Sequence[Line]) -> str:
        """Which groups have no line, where others have one."""
        there = {line.index for line in lines}
        names = [group.name for i, group in enumerate(self.groups) if i not in there]
        if not lines or not names:
            return ""
        said = names[0] if len(names) == 1 else counted(len(names), "group")
        return f"not measured for {said}"

    def _view(self, lines: Sequence[Line]) -> tuple[float, float] | None:
        """The range of the groups that did not diverge, which others would make a flat line."""
        whole = [
            line
            for line in lines
            if not any(m.run.status == "diverged" for m in self.groups[line.index].members)
        ]
        if not whole or len(whole) == len(lines):
            return None
        values = [v for line in whole for v in (*line.middle, *line.low, *line.high)]
        low, high = min(values), max(values)
        room = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
        return low - room, high + room


def line_of(group: Group, index: int, metric: str) -> Line | None:
    """Median, least and greatest of a group's lines, at every step that one of them has.

    Between its measurements a run's line is straight; before its first and after its last it has
    none. So seeds measured at different steps have a band, that of their lines.

    Args:
        group: Runs.
        index: Number of the group.
        metric: What to draw.

    Returns:
        The line; None where no run has the metric.
    """
    series = [member.series[metric] for member in group.members if metric in member.series]
    if not series:
        return None
    steps = np.unique(np.concatenate([np.asarray(at, dtype=float) for at, _ in series]))
    rows = np.array([np.interp(steps, at, y, left=np.nan, right=np.nan) for at, y in series])
    middle = np.nanmedian(rows, axis=0)
    if len(series) == 1:
        return Line(group.name, index, steps.tolist(), middle.tolist())
    low, high = np.nanmin(rows, axis=0), np.nanmax(rows, axis=0)
    return Line(group.name, index, *(a.tolist() for a in (steps, middle, low, high)))


def thinned(line: Line, points: int = LINE_POINTS) -> Line:
    """A line of at most so many points: of every bin of them the least and the greatest median.

    A stride would draw one branch of a loss that alternates.
    """
    if len(line.steps) <= points:
        return line
    middle = np.asarray(line.middle)
    kept = {0, len(middle) - 1}
    for part in np.array_split(np.arange(len(middle)), points // 2 - 1):
        kept |= {int(part[middle[part].argmin()]), int(part[middle[part].argmax()])}
    chosen = sorted(kept)

    def of(values: Sequence[float]) -> Sequence[float]:
        return [values[i] for i in chosen] if values else ()

    steps, middle_kept = of(line.steps), of(line.middle)
    return replace(line, steps=steps, middle=middle_kept, low=of(line.low), high=of(line.high))


def read_member(folder: Path) -> Member:
    """Return a run with its series.

    Raises:
        UnreadableError: If there is no run in the folder, or it is damaged.
        ShapeError: If something in its files is not as a run writes it.
    """
    run = read_run(folder, any_run=True)
    assert run is not None  # any run is one
    own = {OPTIMIZER: run.optimizer} | flat(dict(run.settings), f"{OPTIMIZER}.")
    settings = {key: _word(value) for key, value in (own | dict(run.conditions)).items()}
    drawn = {*FINALS.values(), metrics.BATCH_LOSS}
    series: dict[str, tuple[list[float], list[float]]] = {}
    for line in read_series(folder / record.METRICS):
        for metric in drawn & line.keys():
            steps, values = series.setdefault(metric, ([], []))
            steps.append(_number(line["step"]))
            values.append(_number(line[metric]))
    return Member(run, {k: v for k, v in settings.items() if k not in LEFT_OUT}, series)


def _number(value: Any) -> float:
    return float(value)


def _word(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def compare(members: Sequence[Member], passed_over: Sequence[str] = ()) -> Comparison:
    """Return these runs in groups of those that differ in nothing but the seed."""
    keys = dict.fromkeys(key for member in members for key in member.settings)
    ordered = sorted(keys, key=lambda key: _PLACE.get(key, len(_PLACE)))
    differing = [key for key in ordered if len({m.settings.get(key) for m in members}) > 1]
    parts: dict[tuple[str | None, ...], list[Member]] = {}
    for member in members:
        parts.setdefault(_values(member, differing), []).append(member)
    telling = _telling([own[0] for own in parts.values()], differing)
    groups = []
    for own in parts.values():
        settings = own[0].settings
        name = _name(settings, telling) or settings[OPTIMIZER]
        groups.append(Group(f"{name} ({_count(own)})", settings, own))
    if OPTIMIZER in differing:
        differing = [key for key in differing if key not in NOT_TOLD_APART]
    return Comparison(groups, differing, tuple(passed_over))


_PLACE = {key: i for i, key in enumerate(NAMED)}


def _count(members: Sequence[Member]) -> str:
    """How many runs, and how many of them did not finish, such as `3 runs, 1 diverged`."""
    ends = [member.run.status for member in members if member.run.status != "done"]
    others = [f"{ends.count(status)} {status}" for status in dict.fromkeys(ends)]
    return ", ".join([counted(len(members), "run"), *others])


def _values(member: Member, keys: Sequence[str]) -> tuple[str | None, ...]:
    return tuple(member.settings.get(key) for key in keys)


def _telling(groups: Sequence[Member], differing: Sequence[str]) -> list[str]:
    """Keys that together tell all groups apart: each is one that splits some that are not yet."""
    telling: list[str] = []
    for key in differing:
        if len({_values(g, [*telling, key]) for g in groups}) > len(
            {_values(g, telling) for g in groups}
        ):
            telling.append(key)
    return telling


def _name(settings: Mapping[str, str], telling: Sequence[str]) -> str:
    words = []
    for key in telling:
        if key in settings:
            short = key.rpartition(".")[2]
            ends = [other.rpartition(".")[2] for other in telling]
            said = short if ends.count(short) == 1 else key
            words.append(settings[key] if key in NAMED else f"{said}={settings[key]}")
    return " ".join(words)
