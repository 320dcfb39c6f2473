"""A comparison as Markdown, CSV and page."""

import math
from collections.abc import Callable
from statistics import median

from optbench import metrics
from optbench.boundary import visible
from optbench.boundary.comma_separated import comma_separated as lines_of
from optbench.leaderboard.page import (
    Part,
    comparison_page,
    interval_row,
    intervals_part,
    left_out_sections,
    row_link,
    table_part,
)
from optbench.leaderboard.tables import (
    escape,
    interval,
    left_out_section,
    markdown_table,
    number,
    plain,
    spread_text,
)
from optbench.leaderboard.untuned import Compared, Comparison, Group, Line, seeds_text

UNTUNED = (
    "Nothing was tuned: each optimizer ran with the settings that its command gave it, and another "
    "learning rate may turn the order around. `python -m optbench.tune suite=smoke` compares tuned "
    "optimizers."
)
PAIRED = (
    "Runs are compared where everything is alike but the optimizer and the seed: task, model, "
    "budget, schedule; and, of each seed, data and initial weights."
)
AT_END = (metrics.TRAIN_LOSS, metrics.TEST_LOSS, metrics.TEST_ERROR, metrics.GAP_LOSS)
CURVATURE = (metrics.SHARPNESS, metrics.EDGE_DISTANCE)
PAIR_HEAD = ("first", "second", "second − first", "effect r", "wins", "p (Holm)", "common seeds")


def columns(group: Group) -> list[str]:
    """Return the names of a group's columns."""
    others = [key for key in (*AT_END, *CURVATURE) if key != group.metric and _measured(group, key)]
    return ["rank", "may be", "optimizer", "seeds", group.metric, *others, "train seconds"]


def rows(group: Group) -> list[list[str]]:
    """Return the rows of a group's table, under its `columns`."""
    return [[_cell(group, line, column) for column in columns(group)] for line in group.lines]


def pair_rows(group: Group) -> list[list[str]]:
    """Return the rows of the table of pairs, the surest difference first."""
    surest = sorted(group.pairs.items(), key=lambda item: item[1].p)
    return [[first, second, *_pair_cells(compared)] for (first, second), compared in surest]


def _pair_cells(compared: Compared) -> list[str]:
    pair, seeds = compared.pair, seeds_text(compared.seeds)
    if compared.diverged:
        return ["–", "–", "–", "–", seeds]
    known = math.isfinite(pair.difference.value)
    return [
        interval(pair.difference) if known else "without bound",
        f"{pair.effect:.2f}",
        f"{pair.wins:.0%}",
        f"{compared.p:.2g}",
        seeds,
    ]


def _measured(group: Group, metric: str) -> bool:
    return any(metric in run.last for line in group.lines for run in line.runs.values())


def _cell(group: Group, line: Line, column: str) -> str:
    cells: dict[str, Callable[[], str]] = {
        "rank": lambda: str(line.rank),
        "may be": lambda: f"{line.ranks[0]}–{line.ranks[1]}",
        "optimizer": lambda: line.name,
        "seeds": lambda: seeds_text(line.runs),
        "train seconds": lambda: number(_median(line, lambda run: run.train_seconds)),
        group.metric: lambda: _value_text(line),
    }
    if column in cells:
        return cells[column]()
    return number(_median(line, lambda run: run.last.get(column, math.nan)))


def _value_text(line: Line) -> str:
    return spread_text(line.value, line.diverged, len(line.runs))


def _median(line: Line, of: Callable[..., float]) -> float:
    """Median over the runs that finished and have a value; NaN for none."""
    known = [
        value
        for run in line.runs.values()
        if run.status == "done" and not math.isnan(value := of(run))
    ]
    return median(known) if known else math.nan


def markdown(comparison: Comparison) -> str:
    """Return the comparison as Markdown; what came from runs is escaped."""
    lines = [f"# {comparison.title}", "", UNTUNED, "", PAIRED, ""]
    for group in comparison.groups:
        lines += [f"## {escape(group.title)}", ""]
        lines += [f"- {escape(said)}" for said in group.said]
        lines += ["", *markdown_table(columns(group), rows(group)), ""]
        if group.pairs:
            lines += [*markdown_table(PAIR_HEAD, pair_rows(group)), ""]
    return "\n".join([*lines, *left_out_section(comparison.not_compared)])


def comma_separated(comparison: Comparison) -> str:
    """Return a line for every run, numbers in full; infinite is `inf`, not measured is empty."""
    known = [*AT_END, *CURVATURE]
    own = dict.fromkeys(group.metric for group in comparison.groups if group.metric not in known)
    head = ["problem", "optimizer", "seed", "status", "run", "rank", "rank_low", "rank_high"]
    rows = []
    for group in comparison.groups:
        for line in group.lines:
            for seed, run in line.runs.items():
                place = [plain(group.title), plain(line.name), seed, plain(run.status)]
                values = [_number(run.last.get(key)) for key in (*known, *own)]
                rows.append(
                    [*place, plain(run.name), line.rank, *line.ranks, *values, run.train_seconds]
                )
    return lines_of([*head, *known, *own, "train_seconds"], rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def page(comparison: Comparison) -> str:
    """Return the page."""
    sections = [{"id": "about", "title": "", "parts": [_text(UNTUNED), _text(PAIRED)]}]
    sections += [_section(number, group) for number, group in enumerate(comparison.groups)]
    sections += left_out_sections(comparison.not_compared)
    order = dict.fromkeys(line.name for group in comparison.groups for line in group.lines)
    runs = [
        (run, line.name, group.title)
        for group in comparison.groups
        for line in group.lines
        for run in line.runs.values()
    ]
    return comparison_page(comparison.title, sections, list(order), runs)


def _section(nth: int, group: Group) -> Part:
    name = f"group-{nth}"
    ends = [(line, line.value.low, line.value.value, line.value.high) for line in group.lines]
    plot = {
        "id": f"{name}-values",
        "title": f"{group.metric} at the last step: median, least and greatest over the seeds",
        "axis": group.metric,
        "rows": [
            interval_row(line.name, low, value, high, _value_text(line), row_link(name, line.name))
            for line, low, value, high in ends
        ],
    }
    conditions = ", ".join(f"{key}={value}" for key, value in group.conditions.items())
    parts: list[Part] = [
        *[_text(said) for said in group.said],
        intervals_part(plot),
        table_part(name, columns(group), rows(group), (2,)),
    ]
    if group.pairs:
        about = f"Pairs by seed: {group.metric} of the second minus that of the first, with its "
        parts.append(_text(f"{about}95 % interval, over the seeds that both have."))
        parts.append(table_part(f"{name}-pairs", PAIR_HEAD, pair_rows(group), (0, 1)))
    parts.append(_text(visible(f"Everything that is alike: {conditions}")))
    return {"id": f"{name}-title", "title": group.title, "parts": parts}


def _text(text: str) -> Part:
    return {"kind": "text", "text": text, "class": ""}
