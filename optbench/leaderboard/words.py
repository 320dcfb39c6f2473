"""What the board shows, in words."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from optbench.boundary.counting import agreeing, counted
from optbench.intervals import LEVEL
from optbench.leaderboard.board import Board
from optbench.leaderboard.tuned import DECLARED, MorePoints, Place, Tuned


def words(
    board: Board, more_points: Mapping[Place, Sequence[MorePoints]] | None = None
) -> list[str]:
    """Return lines on what is sure, what is not, and what it depends on.

    Args:
        board: The board.
        more_points: What more tuning points gave, by (task, optimizer).
    """
    if not board.standings:
        return ["Nobody is ranked: see who is listed, and why."]
    return [
        *_first(board),
        *_groups(board),
        *_friedman(board),
        *_choices(board),
        *_held_out(board),
        *_at_edges(board),
        *_nowhere(board, more_points or {}),
    ]


def _first(board: Board) -> list[str]:
    best = board.standings[0]
    if len(board.standings) == 1:
        return [f"{best.name} is alone: there is nobody to compare it with."]
    beaten = [
        second
        for (first, second) in board.pairs
        if first == best.name and _sure(board, (first, second))
    ]
    rest = len(board.standings) - 1
    if len(beaten) == rest:
        return [f"{best.name} is first, and sure to be ahead of every other entrant."]
    equals = [s.name for s in board.standings[1:] if s.name not in beaten]
    return [
        f"{best.name} has the highest score, and is sure to be ahead of {len(beaten)} of the "
        f"{counted(rest, 'other')}; "
        f"it cannot be told apart from {_and(equals)}."
    ]


def _groups(board: Board) -> list[str]:
    """Neighbours that cannot be told apart: a rank is easily misread as a difference."""
    names = [s.name for s in board.standings]
    lines, chain = [], names[1:2]  # those that are like the first one have been said
    for name in [*names[2:], None]:
        if name is not None and not _sure(board, (chain[-1], name)):
            chain.append(name)
            continue
        if len(chain) == 2:
            lines.append(f"{chain[0]} and {chain[1]} cannot be told apart.")
        elif len(chain) > 2:
            lines.append(f"None of {_and(chain)} can be told apart from the next.")
        chain = [name] if name is not None else []
    total = len(board.pairs)
    sure = sum(_sure(board, pair) for pair in board.pairs)
    lines.append(
        f"Of {counted(total, 'pair')}, {sure} {agreeing(sure, 'is', 'are')} told apart "
        f"(Wilcoxon, Holm, all "
        "claims together "
        f"wrong at most {1 - LEVEL:.0%} of the time)."
    )
    problems = len(board.suite.tasks) * len(board.suite.final_seeds)
    if (least := 2.0 ** (1 - problems)) * total >= 1 - LEVEL:
        lines.append(
            f"With {counted(problems, 'run')} an entrant the least possible p is {least:.2g}: "
            f"too few to tell "
            "anybody apart among "
            f"{counted(total, 'pair')}."
        )
    return lines


def _sure(board: Board, pair: tuple[str, str]) -> bool:
    return board.adjusted.get(pair, 1.0) < 1 - LEVEL


def _friedman(board: Board) -> list[str]:
    if len(board.standings) < 2:
        return []
    verdict = "differ" if board.friedman_p < 1 - LEVEL else "cannot be shown to differ"
    tasks = len(board.suite.tasks)
    return [
        f"Over the {counted(tasks, 'task')} as blocks, mean ranks {verdict} (Friedman p = "
        f"{board.friedman_p:.2g}); two must lie "
        f"{board.critical_difference:.1f} apart to differ (Nemenyi), and there "
        f"{agreeing(tasks, 'is', 'are')} only "
        f"{counted(tasks, 'task')}."
    ]


WITHOUT = "mean rank without "  # how the choices that leave an entrant out begin


def _choices(board: Board) -> list[str]:
    """What the first place and the order depend on."""
    best = board.standings[0].name
    lines = _other_firsts(board, best) + _absences(board)
    if not math.isnan(board.halves):
        lines.append(f"{best} is first under {board.halves:.0%} of the halves of the seeds.")
    return lines


def _other_firsts(board: Board, best: str) -> list[str]:
    """Who else would be first, and by which choices."""
    other = [r for r in board.robust if best not in r.first and not r.choice.startswith(WITHOUT)]
    lines = []
    for first in dict.fromkeys(tuple(r.first) for r in other):
        same = [r for r in other if tuple(r.first) == first]
        tau = min(r.tau for r in same)
        choices = "; ".join(r.choice for r in same)
        lines.append(
            f"{_and(list(first))} would be first by: {choices} (Kendall's τ with the board "
            f"{tau:.2f} or more)."
        )
    return lines


def _absences(board: Board) -> list[str]:
    """Whose absence changes the order of the others."""
    left_out = [r for r in board.robust if r.choice.startswith(WITHOUT)]
    moved = [r.choice.removeprefix(WITHOUT) for r in left_out if r.tau < 1]
    if moved:
        return [
            f"Mean ranks of the others change their order without {_and(moved)}; scores never do."
        ]
    return ["No entrant's absence changes the order of the others."] if left_out else []


def _held_out(board: Board) -> list[str]:
    held_out = board.suite.held_out
    best = max(
        (r for r in board.rows if r.task == held_out), key=lambda r: sum(r.score) / len(r.score)
    )
    return [
        f"On {held_out}, which nobody was tuned on, {best.optimizer} has the highest mean score."
    ]


def _at_edges(board: Board) -> list[str]:
    """Which settings end at the edge of what was tried, on more tasks than chance would have it."""
    points, tasks = board.suite.points, len(board.suite.tuned)
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for t in board.tuned:
        for key, end in t.at_edge.items():
            found[f"{end} {key}", t.optimizer].append(t.task)
    often = {place: on for place, on in found.items() if len(on) >= max(2, tasks / 2)}
    by_edge: dict[str, list[str]] = defaultdict(list)
    for (edge, optimizer), on in often.items():
        by_edge[edge].append(f"{optimizer} ({len(on)} of {tasks} tasks)")
    return [
        f"WARNING: the best tuning point has the {edge} of the {points} values tried, so that a "
        f"better one may lie beyond: {_and(who)}."
        for edge, who in sorted(by_edge.items())
    ]


def _nowhere(board: Board, more: Mapping[Place, Sequence[MorePoints]]) -> list[str]:
    """Who misses even the easiest target of a task at every point, and what is to blame."""
    lines = []
    for task in board.suite.tuned:
        stuck = [t for t in board.tuned if t.task == task and not t.reached]
        if not stuck:
            continue
        about, names = board.suite.tasks[task], _and(sorted(t.optimizer for t in stuck))
        lines.append(
            f"WARNING: on {task} no tuning point of {names} reaches {about.select} ≤ "
            f"{about.targets[0]:g}, the easiest target.{_by_heart(board, stuck)} "
            f"{_blame(task, stuck, more, board.suite.points)}"
        )
    return lines


def _by_heart(board: Board, stuck: list[Tuned]) -> str:
    learnt = [t.learnt for t in stuck if t.learnt is not None]
    if not learnt:
        return ""
    total = len(learnt) * board.suite.points * len(board.suite.tuning_seeds)
    if not any(learnt):
        return f" None of these {total} runs fits its training set either."
    return (
        f" {sum(learnt)} of these {total} runs fit their training set to 1 % error: they learn it "
        "by heart and do not generalize."
    )


def _blame(
    task: str, stuck: list[Tuned], more: Mapping[Place, Sequence[MorePoints]], points: int
) -> str:
    """Whether more points of the same space help, or points of a wider one."""
    names = sorted(t.optimizer for t in stuck)
    tried = {name: more.get((task, name), ()) for name in names}
    same = {name: m for name in names for m in tried[name] if m.space == DECLARED}
    if not same:
        return (
            f"Whether the {points} points or the search space are to blame has not been tried: "
            "python -m perf.more_points tries."
        )
    said = []
    if late := {name: m for name, m in same.items() if m.first}:
        count = max(m.count for m in late.values())
        said.append(
            f"The budget of {points} points is to blame for {_and(_firsts(late))}, among {count} "
            "points of the same space."
        )
    never = [name for name, m in same.items() if not m.first]
    if never:
        count = min(same[name].count for name in never)
        said.append(
            f"Not the budget is to blame for {_and(never)}: none of {count} points of the same "
            "space reaches it."
        )
    others = {name: m for name in never for m in tried[name] if m.space != DECLARED}
    if wider := {name: m for name, m in others.items() if m.first}:
        said.append(f"The search space is, for {_and(_firsts(wider))} of a wider one.")
    if nowhere := [name for name, m in others.items() if not m.first]:
        count = min(others[name].count for name in nowhere)
        said.append(
            f"Nor does any of {count} points of a wider space help {_and(nowhere)}: the steps or "
            "the optimizer are."
        )
    if unknown := [name for name in names if name not in same]:
        said.append(f"Nobody has tried more points for {_and(unknown)}.")
    return " ".join(said)


def _firsts(found: Mapping[str, MorePoints]) -> list[str]:
    return [f"{name} (point {m.first} is the first to reach it)" for name, m in found.items()]


def _and(names: list[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
