"""The board as Markdown and as CSV."""

import math
import re
from collections.abc import Callable, Iterable, Sequence

from optbench import metrics
from optbench.boundary import visible
from optbench.boundary.comma_separated import comma_separated as lines_of
from optbench.boundary.counting import counted
from optbench.intervals import Interval
from optbench.leaderboard.board import Board, Standing
from optbench.leaderboard.scores import DISTANCE, SHARPNESS, Row
from optbench.leaderboard.tuned import Tuned

TASK_COLUMNS: dict[str, Callable[[Row], str]] = {
    "optimizer": lambda r: r.optimizer,
    "test loss": lambda r: _of_runs(r, metrics.TEST_LOSS),
    "test error": lambda r: _of_runs(r, metrics.TEST_ERROR),
    "gap, loss": lambda r: _of_runs(r, metrics.GAP_LOSS),
    "steps to target": lambda r: number(r.steps_to_target),
    "gradients": lambda r: number(r.gradients_to_target),
    "seconds": lambda r: number(r.seconds_to_target),
    "hit rate": lambda r: f"{r.hit_rate:.0%}",
    "λ₁, end": lambda r: number(r.metrics[f"{SHARPNESS} at the end"].value),
    "λ₁, best": lambda r: number(r.metrics[f"{SHARPNESS} at the best"].value),
    "edge, end": lambda r: number(r.metrics[f"{DISTANCE} at the end"].value),
    "edge, best": lambda r: number(r.metrics[f"{DISTANCE} at the best"].value),
    "edge, most": lambda r: number(r.metrics[f"{DISTANCE} at most"].value),
    "ms a step": lambda r: number(r.step_milliseconds),
    "peak GiB": lambda r: number(r.peak_gib),
    "state MiB": lambda r: number(r.state_mib),
    "diverged": lambda r: f"{r.diverged:.0%}",
}
STANDING_CELLS: dict[str, Callable[[Standing], str]] = {
    "rank": lambda s: str(s.rank),
    "may be": lambda s: f"{s.ranks[0]}–{s.ranks[1]}",
    "optimizer": lambda s: s.name,
    "score": lambda s: score(s),
    "mean rank": lambda s: f"{s.mean_rank:.2f}",
    "profile area": lambda s: f"{s.profile_area:.2f}",
    "hit rate": lambda s: f"{s.hit_rate:.0%}",
    "diverged": lambda s: f"{s.diverged:.0%}",
}
STANDING_COLUMNS = tuple(STANDING_CELLS)
MEANINGS = {
    "rank": "place by the score; equals share the least",
    "may be": "the ranks that are possible, for all entrants together with 95 % confidence",
    "optimizer": "name of its file in conf/optimizer/",
    "score": "0 at the start, 1 at a fixed reference: interquartile mean over tasks and seeds, "
    "with its 95 % interval",
    "mean rank": "rank of the mean score, averaged over the tasks; it depends on who else is in",
    "profile area": "mean of the performance profile: 1 if nobody ever needed fewer gradients",
    "hit rate": "share of the runs that reached the target",
    "diverged": "share of the runs whose loss exploded or became NaN; they rank last",
    "test loss": "at the last step: median over the seeds [least, greatest]",
    "test error": "at the last step: median over the seeds [least, greatest]",
    "gap, loss": "test loss minus training loss at the last step: median [least, greatest]",
    "steps to target": "updates to the target, median; ∞ if half of the runs or more missed it",
    "gradients": "batch gradients to the target, median; ∞ if half of the runs or more missed it",
    "seconds": "seconds of training to the target, without measuring; they depend on the machine",
    "λ₁, end": "largest eigenvalue of the Hessian at the last measurement, median",
    "λ₁, best": "the same at the step of the best validation, median",
    "edge, end": "measured sharpness over the optimizer's own threshold of stability, at the end",
    "edge, best": "the same at the step of the best validation",
    "edge, most": "the most that it was during training",
    "ms a step": "milliseconds of an update, without measuring; they depend on the machine",
    "peak GiB": "largest memory of the process (on a GPU: of the GPU)",
    "state MiB": "what the optimizer keeps between updates",
    "first": "the one of the pair that is ranked before the other",
    "second": "the other one",
    "difference": "mean score of the first minus that of the second, paired by task and seed, with "
    "its 95 % interval (BCa)",
    "effect r": "rank-biserial correlation in [−1, 1]: 1 if the first always wins",
    "wins": "share of the (task, seed) pairs that the first wins, a tie one half",
    "p (Holm)": "Wilcoxon's signed-rank test, corrected for the number of pairs",
    "best point": "number of the tuning point with the best validation",
    "its values": "what the point sets; ⚠ where no other point tried a lower or a higher value",
    "points that reach": "how many tuning points reach the easiest target of the validation",
}
"""What the columns say, by their names."""


def standings(board: Board) -> list[list[str]]:
    """Return the rows of the table over all tasks, under `STANDING_COLUMNS`."""
    return [[cell(s) for cell in STANDING_CELLS.values()] for s in board.standings]


def markdown(board: Board) -> str:
    """Return the whole board as Markdown; what came from runs is escaped."""
    suite = board.suite
    lines = [
        f"# Leaderboard: {suite.name}, version {suite.version}",
        "",
        f"{counted(len(suite.tasks), 'task')}, {counted(suite.points, 'tuning point')} an "
        f"optimizer, {counted(len(suite.final_seeds), 'seed')}; {suite.held_out} is held out of "
        f"tuning. Score: 0 at the "
        "start, 1 at a fixed reference, interquartile mean over tasks and seeds with a 95 % "
        "interval. `may be`: the ranks that are possible, for all together with 95 % confidence. "
        "Written by `python -m optbench.leaderboard`; `leaderboard.html` has the curves.",
        "",
        *markdown_table(STANDING_COLUMNS, standings(board)),
        "",
        "## How sure",
        "",
        *[f"- {escape(line)}" for line in board.words],
        *[f"- **ALARM**: {escape(line)}" for line in board.admitted.alarms],
        "",
        "## Task by task",
        "",
        "Medians over the seeds [least, greatest]; a divergence counts as worse than any number. A "
        "target missed by half of the runs or more "
        "takes forever (∞). Edge: measured sharpness over the optimizer's own threshold.",
        "",
    ]
    place = {s.name: i for i, s in enumerate(board.standings)}
    for name, task in suite.tasks.items():
        rows = sorted((r for r in board.rows if r.task == name), key=lambda r: place[r.optimizer])
        held = ", held out of tuning" if name == suite.held_out else ""
        lines += [
            f"### {name} ({task.kind}{held})",
            "",
            f"Target: {task.select} ≤ {task.target:g}.",
            "",
        ]
        lines += [*markdown_table(list(TASK_COLUMNS), [task_cells(r) for r in rows]), ""]
    lines += [
        "## Pairs",
        "",
        "The first minus the second, paired by task and seed; `r` is the rank-biserial "
        "correlation.",
        "",
    ]
    lines += [*markdown_table(PAIR_COLUMNS, pairs(board)), ""]
    lines += [
        "## Where tuning ended",
        "",
        "The best point by validation of each optimizer on each task. ⚠: no other point tried a "
        f"lower (or a higher) value; of {suite.points} points drawn at random "
        f"{edge_chance(board):.0%} would lie there, an axis.",
        "",
        *markdown_table(TUNED_COLUMNS, tuned_rows(board)),
        "",
    ]
    if board.admitted.refused:
        lines += ["## Listed, not ranked", ""]
        lines += [
            f"- {escape(name)}: {escape('; '.join(why))}"
            for name, why in board.admitted.refused.items()
        ]
        lines.append("")
    return "\n".join([*lines, *left_out_section(board.admitted.left_out)])


def left_out_section(left_out: Iterable[tuple[str, str]]) -> list[str]:
    """Return the lines that name what is left out, with why; none where nothing is."""
    lines = [f"- {escape(name)}: {escape(why)}" for name, why in left_out]
    return ["## Left out", "", *lines, ""] if lines else []


PAIR_CELLS: dict[str, Callable[[Board, tuple[str, str]], str]] = {
    "first": lambda _, names: names[0],
    "second": lambda _, names: names[1],
    "difference": lambda board, names: _difference(board, names),
    "effect r": lambda board, names: f"{board.pairs[names].effect:.2f}",
    "wins": lambda board, names: f"{board.pairs[names].wins:.0%}",
    "p (Holm)": lambda board, names: f"{board.adjusted[names]:.2g}",
}
PAIR_COLUMNS = tuple(PAIR_CELLS)


def pairs(board: Board) -> list[list[str]]:
    """Return the rows of the table of pairs, under `PAIR_COLUMNS`, the surest difference first."""
    surest_first = sorted(board.pairs, key=board.adjusted.__getitem__)
    return [[cell(board, names) for cell in PAIR_CELLS.values()] for names in surest_first]


TUNED_COLUMNS = ("task", "optimizer", "best point", "its values", "validation", "points that reach")


def tuned_rows(board: Board) -> list[list[str]]:
    """Return the rows of the table of best tuning points, under `TUNED_COLUMNS`."""
    place = {s.name: i for i, s in enumerate(board.standings)}
    order = {task: i for i, task in enumerate(board.suite.tasks)}
    found = sorted(board.tuned, key=lambda t: (order[t.task], place[t.optimizer]))
    return [
        [
            t.task,
            t.optimizer,
            str(t.point),
            ", ".join(_setting(t, key) for key in t.settings),
            f"{board.suite.tasks[t.task].select} {number(t.value)}",
            f"{t.reached} of {board.suite.points}",
        ]
        for t in found
    ]


def _setting(t: Tuned, key: str) -> str:
    mark = f" ⚠ {t.at_edge[key]}" if key in t.at_edge else ""
    return f"{key} {t.settings[key]:.4g}{mark}"


def edge_chance(board: Board) -> float:
    """Return how often chance alone puts the best point at an edge of an axis."""
    return min(1.0, 2 / board.suite.points)


def task_cells(r: Row) -> list[str]:
    """Return the cells of one entrant on one task, under `TASK_COLUMNS`."""
    return [cell(r) for cell in TASK_COLUMNS.values()]


def comma_separated(board: Board) -> str:
    """Return a line for every entrant and task, numbers in full.

    Infinite is `inf`, not measured is empty.
    """
    ranks = {s.name: s for s in board.standings}
    names = list(board.rows[0].metrics) if board.rows else []
    costs: tuple[str, ...] = (
        "hit_rate",
        "steps_to_target",
        "gradients_to_target",
        "seconds_to_target",
        "step_milliseconds",
    )
    costs += ("gradients_per_step", "peak_gib", "state_mib", "diverged", "point")
    head = [
        "suite",
        "version",
        "optimizer",
        "rank",
        "rank_low",
        "rank_high",
        "score_iqm",
        "score_low",
        "score_high",
    ]
    rows = []
    for r in board.rows:
        s = ranks[r.optimizer]
        cells = [plain(board.suite.name), board.suite.version, plain(r.optimizer), s.rank, *s.ranks]
        cells += [_csv(x) for x in (s.score.value, s.score.low, s.score.high)]
        cells += [plain(r.task), len(r.score), *[_csv(r.metrics[name].value) for name in names]]
        rows.append([*cells, *[_csv(getattr(r, key)) for key in costs]])
    return lines_of([*head, "task", "seeds", *names, *costs], rows)


def plain(text: str) -> str:
    """Keep a spreadsheet from taking a name for a formula."""
    text = visible(text)
    return f"'{text}" if text[:1] in "=+-@" else text


def _csv(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def number(value: float) -> str:
    """Return three or four digits, ∞ for infinite, – for not measured."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def _of_runs(r: Row, metric: str) -> str:
    """Return median [least, greatest] over the seeds, and how many of the runs diverged."""
    total = len(r.score)
    return spread_text(r.metrics[metric], round(r.diverged * total), total)


def spread_text(spread: Interval, diverged: int, total: int) -> str:
    """Return median [least, greatest]; in place of what is ∞, how many of the runs diverged."""
    if math.isnan(spread.value):
        return "–"
    if math.isinf(spread.low):
        return said_diverged(diverged)
    if math.isinf(spread.value):
        return f"{said_diverged(diverged, total)} [{number(spread.low)}, –]"
    if math.isinf(spread.high):
        low = number(spread.low)
        return f"{number(spread.value)} [{low}, {said_diverged(diverged)}]"
    return interval(spread)


def score(s: Standing) -> str:
    """Return the score with its interval, and how many runs diverged where that makes it −∞."""
    diverged = round(s.diverged * s.runs)
    if math.isinf(s.score.value):
        return said_diverged(diverged, s.runs)
    if math.isinf(s.score.low):
        return f"{number(s.score.value)} [{said_diverged(diverged)}, {number(s.score.high)}]"
    return interval(s.score)


def _difference(board: Board, names: tuple[str, str]) -> str:
    difference = board.pairs[names].difference
    if math.isfinite(difference.value):
        return interval(difference)
    counts = {s.name: round(s.diverged * s.runs) for s in board.standings}
    who = [f"{name} {said_diverged(counts[name])}" for name in names if counts[name]]
    return f"without bound: {', '.join(who)}"


def said_diverged(count: int, total: int | None = None) -> str:
    """Say that so many runs diverged, of how many if that is given."""
    of = "" if total is None else f"{count:,} of "
    return f"diverged in {of}{counted(count if total is None else total, 'run')}"


def interval(i: Interval) -> str:
    """Return value [low, high]."""
    return f"{number(i.value)} [{number(i.low)}, {number(i.high)}]"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown, its cells escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(escape(str(cell)) for cell in line) + " |" for line in lines]


def escape(text: str) -> str:
    """Escape what Markdown and the HTML in it would take for themselves."""
    text = visible(text)
    if not _TAKEN.search(text):  # nearly always
        return text
    for sign, escaped in _SIGNS.items():
        text = text.replace(sign, escaped)
    return text


_SIGNS = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "\\|", "`": "'", "](": "]\\("}
_TAKEN = re.compile("|".join(map(re.escape, _SIGNS)))
