"""One HTML page: the board, or a report on chosen runs. It needs no network and sends nothing."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from optbench.boundary import visible
from optbench.boundary.counting import counted
from optbench.leaderboard import tables
from optbench.leaderboard.board import FACTORS, Board, runs_of
from optbench.leaderboard.run_line import Run

Cell = tuple[str, float | str]  # what is shown, and what it is sorted by
LARGEST = 1e308  # stands for infinity, which JSON does not have


def board_page(board: Board) -> str:
    """Return the page of a board."""
    suite = board.suite
    order = [s.name for s in board.standings]
    content = {
        "title": f"{suite.name}, version {suite.version}",
        "about": f"{counted(len(suite.tasks), 'task')}, {counted(suite.points, 'tuning point')} an "
        f"optimizer, {counted(len(suite.final_seeds), 'seed')}; {suite.held_out} is held out of "
        f"tuning.",
        "words": board.words,
        "alarms": board.admitted.alarms,
        "refused": [[name, "; ".join(why)] for name, why in board.admitted.refused.items()],
        "order": order,
        "standings": {
            "head": tables.STANDING_COLUMNS,
            "rows": [_cells(line) for line in tables.standings(board)],
        },
        "tasks": [_task(board, name, order) for name in suite.tasks],
        "pairs": {
            "head": tables.PAIR_COLUMNS,
            "rows": [_cells(line) for line in tables.pairs(board)],
        },
        "profiles": {"factors": FACTORS.tolist(), "series": board.profiles},
        "ranks": {
            "names": order,
            "ranks": [s.mean_rank for s in board.standings],
            "difference": _finite(board.critical_difference),
            "cliques": board.cliques,
        },
        "tuning": {
            task: {
                name: [[_finite(i.value), _finite(i.low), _finite(i.high)] for i in intervals]
                for name, intervals in curves.items()
            }
            for task, curves in board.tuning.items()
        },
        "robust": {
            "head": ("choice", "first", "Kendall's τ", "order"),
            "rows": [
                _cells([r.choice, ", ".join(r.first), f"{r.tau:.2f}", " · ".join(r.order)])
                for r in board.robust
            ],
        },
        "runs": [_run(run, run.optimizer) for run in runs_of(board)],
    }
    return _page(content)


def report_page(runs: Sequence[Run]) -> str:
    """Return a page about these runs, which are not ranked."""
    content = {
        "title": counted(len(runs), "run"),
        "about": "Side by side, not ranked: a ranking needs a suite's protocol.",
        "order": [run.name for run in runs],
        "runs": [_run(run, run.name) for run in runs],
    }
    return _page(content)


def _page(content: dict[str, Any]) -> str:
    from plotly.offline import get_plotlyjs

    folder = files("optbench.leaderboard")
    text = (folder / "page.html").read_text(encoding="utf-8")
    # In a script element nothing is markup but `<`: escaped, no name can end it.
    data = json.dumps(_visible(content), allow_nan=False, ensure_ascii=False).replace(
        "<", "\\u003c"
    )
    parts = {
        "STYLE": (folder / "page.css").read_text(encoding="utf-8"),
        "PLOTLY": get_plotlyjs(),
        "DATA": data,
        "SCRIPT": (folder / "page.js").read_text(encoding="utf-8"),
    }
    before, *rest = text.split("<!--")
    return before + "".join(
        parts[key] + tail for key, _, tail in (part.partition("-->") for part in rest)
    )


def _task(board: Board, name: str, order: Sequence[str]) -> dict[str, Any]:
    task = board.suite.tasks[name]
    rows = sorted((r for r in board.rows if r.task == name), key=lambda r: order.index(r.optimizer))
    return {
        "name": name,
        "about": f"{task.kind}; ranked by {task.metric}, target {task.select} ≤ {task.target:g}"
        + (", held out of tuning" if name == board.suite.held_out else ""),
        "select": task.select,
        "head": list(tables.TASK_COLUMNS),
        "rows": [_cells(tables.task_cells(r)) for r in rows],
    }


def _cells(texts: Sequence[str]) -> list[Cell]:
    return [(text, _sort_key(text)) for text in texts]


def _sort_key(text: str) -> float | str:
    """Read the number that a cell begins with, to sort by.

    Infinite ones stand at the ends, cells without a number last.
    """
    first = text.split(" ")[0].split("–")[0].rstrip("%")
    special = {"∞": LARGEST, "−∞": -LARGEST, "": LARGEST}
    if first in special:
        return special[first]
    try:
        return float(first)
    except ValueError:
        return text


def _run(run: Run, group: str) -> dict[str, Any]:
    return {
        "name": run.name,
        "group": group,
        "task": run.task,
        "optimizer": run.optimizer,
        "seed": run.seed,
        "status": run.status,
        "step": run.step,
        "command": "python -m optbench " + shlex.join(run.command),
        "settings": dict(run.settings),
        "last": dict(run.last),
        "curve": {key: list(series) for key, series in run.curve.items()},
        "facts": {
            "problem": run.problem,
            "data": run.data_hash,
            "initial weights": run.init_hash,
            "initial loss": run.initial_loss,
            "gradients": run.gradients,
            "training seconds": run.train_seconds,
            "device": run.device,
            "torch": run.torch,
            "commit": run.git_commit or "unknown",
        },
    }


def _visible(node: Any) -> Any:
    """All that is shown, without control characters, which a browser or terminal might act on."""
    if isinstance(node, str):
        return visible(node)
    if isinstance(node, Mapping):
        return {visible(key): _visible(value) for key, value in node.items()}
    return [_visible(value) for value in node] if isinstance(node, (list, tuple)) else node


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
