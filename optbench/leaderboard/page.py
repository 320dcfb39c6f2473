"""One HTML page: a board, a comparison, or chosen runs. It needs no network and sends nothing.

A page is a title, where it comes from, and sections of parts; `page.js` draws each kind of part.
All data are packed (gzip, base64) into one element: a name in them can end no element, and a page
of some hundred runs stays below a megabyte. Where the curves of very many runs would make it larger
than `LARGEST_PAGE`, they are thinned, and the page says so.
"""

import base64
import gzip
import json
import math
import shlex
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache
from importlib.resources import files
from operator import itemgetter
from typing import Any
from urllib.parse import quote

from optbench import __version__
from optbench.boundary import visible
from optbench.boundary.counting import counted
from optbench.leaderboard import tables
from optbench.leaderboard.board import FACTORS, Board, runs_of
from optbench.leaderboard.run_line import Run
from optbench.leaderboard.side_by_side import FINALS, Comparison, thinned
from optbench.record.panels import Line

Cell = tuple[str, float | str]  # what is shown, and what it is sorted by
Part = dict[str, Any]
LARGEST = 1e308  # stands for infinity, which JSON does not have
LARGEST_PAGE = 2_800_000  # bytes
CURVE_POINTS = (60, 30, 16, 8, 0)  # of a curve, as many as fit
CURVE_DIGITS = 4
SAMPLE = 40  # runs that say how large all of them will be
COMPRESSION = 5  # of a page 2 % smaller, 6 takes nearly twice as long
GZIP = 31  # what zlib calls that format, with the largest window
SAMPLE_SLACK = 1.1  # how far that may be wrong, as a factor
MOST_DIFFERENCES = 40  # names in a diagram of critical differences


def board_page(board: Board) -> str:
    """Return the page of a board."""
    suite = board.suite
    shown = runs_of(board)
    tuning = [run for e in board.admitted.entrants for runs in e.tuning.values() for run in runs]
    about = (
        f"{counted(len(suite.tasks), 'task')}, {counted(suite.points, 'tuning point')} an "
        f"optimizer, {counted(len(suite.final_seeds), 'seed')}; {suite.held_out} is held out of "
        f"tuning."
    )
    sections = [
        _section("ranking", "Ranking", [_text(about), *_ranking(board)]),
        _section("sure", "How sure", _sure(board)),
        *_refused(board),
        *left_out_sections(board.admitted.left_out),
        *_curves(shown),
        *(_charts(board) if board.standings else []),
        *(_task_tables(board) if board.standings else []),
        *(_pairs(board) if board.pairs else []),
        *_runs(),
    ]
    return _page(
        {
            "title": f"Leaderboard: {suite.name}, version {suite.version}",
            "origin": origin([*tuning, *shown]),
            "order": [s.name for s in board.standings],
            "sections": sections,
            "runs": [describe(run, run.optimizer, run.task) for run in shown],
        }
    )


def report_page(runs: Sequence[Run], comparison: Comparison | None = None) -> str:
    """Return a page about these runs, which are not ranked; two or more are compared.

    Args:
        runs: The runs.
        comparison: The same runs in groups; None for a page without one.
    """
    compared = comparison is not None and len(runs) > 1
    return _page(
        {
            "title": comparison.title if comparison and compared else counted(len(runs), "run"),
            "origin": origin(runs, "report"),
            "order": [run.name for run in runs],
            "sections": [
                _section("about", "", [_text("Side by side, not ranked.")]),
                *(_compared(comparison) if comparison and compared else []),
                *_curves(runs),
                *_runs(),
            ],
            "runs": [describe(run, run.name, run.task) for run in runs],
        }
    )


def _compared(comparison: Comparison) -> list[Part]:
    """The panels, the table of what differs, and what could not be read."""
    about = (
        f"{comparison.differences()} A line is the median over a group's runs, its band from the "
        "least to the greatest. Point at a panel to read all four at that step; click a name to "
        "show or hide its lines."
    )
    heads, rows = comparison.table()
    meanings = {
        "group": "runs that differ in nothing but the seed",
        "ended": "how many ended how; a divergence is a loss that exploded or became NaN",
        **dict.fromkeys(
            [head for head in heads if head in FINALS],
            "last value of the finished runs: median [least, greatest]",
        ),
    }
    table = table_part("groups", heads, rows) | {"about": meanings}
    sections = [
        _section("comparison", "Comparison", [_text(about), _panels(comparison)]),
        _section("differences", "What differs, and where it ended", [table], "Differences"),
    ]
    if comparison.passed_over:
        lines = [{"kind": "list", "lines": list(comparison.passed_over)}]
        sections.append(_section("passed-over", "Passed over: not readable", lines, "Passed over"))
    return sections


def _panels(comparison: Comparison) -> Part:
    panels = [
        {
            "name": panel.name,
            "second": panel.second,
            "title": panel.title,
            "log": panel.is_log,
            "level": panel.level,
            "range": panel.view,
            "note": panel.note,
            "lines": [_line(thinned(line)) for line in panel.lines],
        }
        for panel in comparison.panels()
    ]
    names = [group.name for group in comparison.groups]
    return {"kind": "panels", "groups": names, "panels": panels}


def _line(line: Line) -> dict[str, Any]:
    bands = [[_short(v) for v in values] for values in (line.middle, line.low, line.high)]
    middle, low, high = bands
    return {
        "index": line.index,
        "second": line.is_second,
        "points": list(map(list, zip(line.steps, middle, strict=True))),
        "band": list(map(list, zip(line.steps, low, high, strict=True))) if low else [],
    }


def comparison_page(
    title: str, sections: Sequence[Part], order: Sequence[str], runs: Sequence[tuple[Run, str, str]]
) -> str:
    """Return the page of a comparison.

    Args:
        title: Its title.
        sections: What stands above the curves.
        order: Names of what is compared, the best first.
        runs: Every run with the name of what it is of, and of its problem.
    """
    own = [run for run, _, _ in runs]
    content = {
        "title": title,
        "origin": origin(own),
        "order": order,
        "sections": [*sections, *_curves(own), *_runs()],
        "runs": [describe(run, group, problem) for run, group, problem in runs],
    }
    return _page(content)


def origin(runs: Sequence[Run], command: str = "leaderboard") -> list[tuple[str, str]]:
    """Return when the page was made, and on what hardware, with what versions its runs were."""
    lines = [("made", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))]
    lines.append(("by", f"optbench {__version__}, python -m optbench.{command}"))
    if runs:
        lines += [
            ("runs", str(len(runs))),
            ("hardware", _frequent(run.device or "unknown" for run in runs)),
            ("versions", _frequent(f"torch {run.torch or 'unknown'}" for run in runs)),
            ("commits", _frequent((run.git_commit or "unknown")[:10] for run in runs)),
        ]
    return lines


def _frequent(words: Iterable[str], most: int = 4) -> str:
    """Each word with how often it occurs, the most frequent first."""
    ordered = sorted(Counter(words).items(), key=lambda item: (-item[1], item[0]))
    if len(ordered) == 1:
        return ordered[0][0]
    said = [f"{word} ({counted(count, 'run')})" for word, count in ordered[:most]]
    return ", ".join(said) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")


def _section(name: str, title: str, parts: Sequence[Part], short: str = "") -> Part:
    return {"id": name, "title": title, "short": short, "parts": list(parts)}


def _text(text: str, kind: str = "") -> Part:
    return {"kind": "text", "text": text, "class": kind}


def table_part(
    name: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    key: Sequence[int] = (0,),
    **more: Any,
) -> Part:
    """Return a table; `key` says which columns name a row."""
    cells = [_cells(row) for row in rows]
    about = {column: tables.MEANINGS[column] for column in head if column in tables.MEANINGS}
    return {
        "kind": "table",
        "id": name,
        "head": head,
        "rows": cells,
        "key": key,
        "about": about,
    } | more


def intervals_part(*plots: Part) -> Part:
    """Return one or more plots of intervals, side by side where there is room."""
    return {"kind": "intervals", "plots": plots}


def interval_row(name: str, low: float, value: float, high: float, text: str, href: str) -> Part:
    """Return a row of such a plot; an end that is infinite is drawn as open."""
    ends = {"low": _finite(low), "value": _finite(value), "high": _finite(high)}
    return {"name": name, "text": text, "href": href} | ends


def row_link(table: str, *key: str) -> str:
    """Return the address of a table's row within the page."""
    return f"#row/{table}/{quote(' '.join(key), safe='')}"


def _ranking(board: Board) -> list[Part]:
    alarms = [_text(f"Alarm: {line}", "alarm") for line in board.admitted.alarms]
    if not board.standings:
        return alarms
    ranks = [
        interval_row(
            s.name,
            *(s.ranks[0], s.rank, s.ranks[1]),
            f"rank {s.rank}, may be {s.ranks[0]} to {s.ranks[1]}",
            row_link("standings", s.name),
        )
        for s in board.standings
    ]
    scores = [
        interval_row(
            s.name,
            s.score.low,
            s.score.value,
            s.score.high,
            tables.score(s),
            row_link("standings", s.name),
        )
        for s in board.standings
    ]
    count = len(board.standings)
    plots = intervals_part(
        {
            "id": "rank-intervals",
            "title": "Ranks that are possible (95 %, all together)",
            "axis": "rank, 1 is best",
            "rows": ranks,
            "range": [1, max(2, count)],
            "whole": True,
        },
        {
            "id": "score-intervals",
            "title": "Scores with 95 % intervals",
            "axis": "score",
            "rows": scores,
        },
    )
    key = tables.STANDING_COLUMNS.index("optimizer")
    standings = table_part("standings", tables.STANDING_COLUMNS, tables.standings(board), (key,))
    return [*alarms, plots, standings]


def _sure(board: Board) -> list[Part]:
    parts: list[Part] = [{"kind": "list", "lines": board.words}]
    if board.robust:
        rows = [
            [r.choice, ", ".join(r.first), f"{r.tau:.2f}", " · ".join(r.order)]
            for r in board.robust
        ]
        head = ("choice", "first", "Kendall's τ", "order")
        parts += [{"kind": "title", "text": "The ranking under other choices"}]
        parts += [table_part("robust", head, rows) | {"about": {}}]
    return parts


def _refused(board: Board) -> list[Part]:
    if not board.admitted.refused:
        return []
    lines = [f"{name}: {'; '.join(why)}" for name, why in board.admitted.refused.items()]
    return [_section("refused", "Listed, not ranked", [{"kind": "list", "lines": lines}])]


def left_out_sections(left_out: Iterable[tuple[str, str]]) -> list[Part]:
    """Return a section that names what is left out, with why; none where nothing is."""
    lines = [f"{name}: {why}" for name, why in left_out]
    return [_section("left-out", "Left out", [{"kind": "list", "lines": lines}])] if lines else []


def _curves(runs: Sequence[Run]) -> list[Part]:
    if not any(run.curve for run in runs):
        return []
    about = (
        "Median over the seeds, band from the least to the greatest. Click a name to show or hide "
        "it, drag to zoom; with the keyboard, the arrows read values off."
    )
    return [_section("curves", "Curves", [_text(about), {"kind": "curves"}])]


def _charts(board: Board) -> list[Part]:
    names = [s.name for s in board.standings]
    profile = {"kind": "profile", "names": names, "factors": FACTORS.tolist()}
    profile["series"] = board.profiles
    sections = [
        _section(
            "profile",
            "Performance profile",
            [
                _text(
                    "Share of (task, seed) problems whose target was reached with at most τ times "
                    "the fewest gradients that anyone needed. It depends on who else is in."
                ),
                profile,
            ],
            "Profile",
        )
    ]
    if len(names) > 1 and math.isfinite(board.critical_difference):
        sections.append(_section("ranks", "Critical differences", _differences(board)))
    return [*sections, _section("tuning", "What tuning buys", _tuning(board), "Tuning")]


def _differences(board: Board) -> list[Part]:
    about = (
        "Mean rank over the tasks, the best at the left. A bar joins those that Nemenyi's test "
        f"does not tell apart: mean ranks less than {board.critical_difference:.2f} apart."
    )
    if len(board.standings) > MOST_DIFFERENCES:
        return [_text(f"{about} Not drawn for more than {MOST_DIFFERENCES} names.")]
    diagram = {
        "kind": "differences",
        "names": [s.name for s in board.standings],
        "ranks": [s.mean_rank for s in board.standings],
        "cliques": board.cliques,
    }
    return [_text(about), diagram]


def _tuning(board: Board) -> list[Part]:
    curves = {
        task: {
            name: [[_finite(i.value), _finite(i.low), _finite(i.high)] for i in of_name]
            for name, of_name in of_task.items()
        }
        for task, of_task in board.tuning.items()
    }
    chart = {
        "kind": "tuning",
        "names": [s.name for s in board.standings],
        "curves": curves,
        "select": {task: board.suite.tasks[task].select for task in curves},
    }
    return [
        _text(
            "Median of the best validation among k random points of the search space, with its "
            "exact 95 % interval; where the line is flat, no tuning is needed. An open end of an "
            "interval is not drawn."
        ),
        chart,
        {"kind": "title", "text": "Where tuning ended"},
        _text(
            "The best point by validation. ⚠: no other point tried a lower (least) or a higher "
            f"(greatest) value; of {board.suite.points} points drawn at random, "
            f"{tables.edge_chance(board):.0%} would lie there, an axis."
        ),
        table_part("tuned", tables.TUNED_COLUMNS, tables.tuned_rows(board), (0, 1)),
    ]


def _task_tables(board: Board) -> list[Part]:
    parts: list[Part] = [
        _text(
            "Medians over the seeds [least, greatest]; a divergence counts as worse than any "
            "number."
        )
    ]
    order = {s.name: i for i, s in enumerate(board.standings)}
    for name, task in board.suite.tasks.items():
        rows = sorted((r for r in board.rows if r.task == name), key=lambda r: order[r.optimizer])
        held = ", held out of tuning" if name == board.suite.held_out else ""
        about = (
            f"{task.kind}; ranked by {task.metric}, target {task.select} ≤ {task.target:g}{held}."
        )
        parts += [{"kind": "title", "text": name}, _text(about)]
        parts += [
            table_part(f"task-{name}", list(tables.TASK_COLUMNS), map(tables.task_cells, rows))
        ]
    return [_section("tasks", "Task by task", parts, "Tasks")]


def _pairs(board: Board) -> list[Part]:
    about = (
        "The first minus the second, paired by task and seed: BCa interval, rank-biserial "
        "correlation, Wilcoxon's p after Holm."
    )
    table = table_part("pairs", tables.PAIR_COLUMNS, tables.pairs(board), (0, 1))
    return [_section("pairs-title", "Pairs", [_text(about), table])]


def _runs() -> list[Part]:
    about = "Choose one for its configuration, the command that makes it again, and its curves."
    return [_section("runs-title", "Runs", [_text(about), {"kind": "runs"}])]


def _page(content: dict[str, Any]) -> str:
    """Put the page together, its curves as fine as fit into it."""
    folder = files("optbench.leaderboard")
    text = (folder / "page.html").read_text(encoding="utf-8")
    parts = {
        "STYLE": (folder / "page.css").read_text(encoding="utf-8"),
        "CHART": (folder / "chart.js").read_text(encoding="utf-8"),
        "SCRIPT": (folder / "page.js").read_text(encoding="utf-8"),
    }
    room = LARGEST_PAGE - len(text) - sum(map(len, parts.values()))
    parts["DATA"] = _data_that_fits(content, room)
    before, *after = text.split("<!--")
    return before + "".join(
        parts[key] + tail for key, _, tail in (part.partition("-->") for part in after)
    )


def unpacked(page: str) -> dict[str, Any]:
    """Return the data of a page: the inverse of what it was packed with."""
    start = page.index('id="data">') + len('id="data">')
    content: dict[str, Any] = json.loads(
        gzip.decompress(base64.b64decode(page[start : page.index("</script>", start)]))
    )
    return content


def _data_that_fits(content: Mapping[str, Any], room: int) -> str:
    """Pack the data of a page, their curves as fine as fit.

    1. Pack all that is always there, once.
    2. Try the most points that a sample of the runs does not forbid.
    3. While the whole is too large, try fewer.
    """
    runs: Sequence[Part] = content["runs"]
    longest = max((len(run["curve"].get("step", ())) for run in runs), default=0)
    heads = [_json({key: part for key, part in run.items() if key != "curve"}) for run in runs]
    above = [
        f'"{key}":{_json(part)},' for key, part in content.items() if key not in ("origin", "runs")
    ]
    packer = zlib.compressobj(level=COMPRESSION, wbits=GZIP)
    packed = packer.compress(("{" + "".join(above)).encode()) + packer.flush(zlib.Z_SYNC_FLUSH)
    sample = range(0, len(runs), max(1, len(runs) // SAMPLE))

    def packed_runs(chosen: range, points: int) -> bytes:
        texts = [_run_text(heads[i], runs[i]["curve"], points) for i in chosen]
        origin = _json([*content["origin"], *_left_out(longest, points)])
        own = packer.copy()
        rest = f'"origin":{origin},"runs":[{",".join(texts)}]}}'
        return own.compress(rest.encode()) + own.flush()

    data = b""
    for points in CURVE_POINTS:
        of_runs = len(packed_runs(sample, points)) * len(runs) / max(1, len(sample))
        if points and 4 / 3 * (len(packed) + of_runs) > SAMPLE_SLACK * room:
            continue
        data = base64.b64encode(packed + packed_runs(range(len(runs)), points))
        if len(data) <= room:
            break
    return data.decode()


def _left_out(longest: int, points: int) -> list[tuple[str, str]]:
    """The line that says so where a page has not all points of its curves."""
    if longest <= points:
        return []
    note = f"curves have at most {points} of their {longest} points, to keep this page small"
    if not points:
        note = "curves are left out, to keep this page small"
    return [("left out", note)]


def _run_text(head: str, curve: Mapping[str, Sequence[Any]], points: int) -> str:
    """A run as JSON, with so many points of each of its series."""
    if not points:
        return head[:-1] + ',"curve":{}}'
    thin = _thinner(len(curve.get("step", ())), points)
    series = [f"{_key(key)}:[{_numbers(thin(values))}]" for key, values in curve.items()]
    return f'{head[:-1]},"curve":{{{",".join(series)}}}}}'


@cache
def _thinner(length: int, points: int) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """Return what takes so many of the values of a series, the first and the last among them."""
    if length <= points:
        return lambda values: values
    return itemgetter(*sorted({round(i * (length - 1) / (points - 1)) for i in range(points)}))


def _numbers(values: Sequence[float | None]) -> str:
    """Numbers as JSON, as fine as a curve can show; whole numbers stay, what is not finite is null.

    One format for all of them takes a fifth of the time of one each.
    """
    kinds = set(map(type, values))
    if kinds == {float}:
        text = _format_of(len(values)) % tuple(values)
        if "n" not in text:  # as nan and inf have, and no number
            return text
    if kinds == {int}:
        return ",".join(map(str, values))
    return _dumped([_short(value) for value in values])[1:-1]


@cache
def _key(name: str) -> str:
    return _json(name)


@cache
def _format_of(count: int) -> str:
    return ",".join([f"%.{CURVE_DIGITS}g"] * count)


def _cells(texts: Sequence[str]) -> list[Cell]:
    return [(text, _sort_key(text)) for text in texts]


@lru_cache(maxsize=2**16)  # names and small numbers come again in many rows
def _sort_key(text: str) -> float | str:
    """Read the number that a cell begins with, to sort by.

    Infinite ones stand at the ends, as do divergences; cells without a number last.
    """
    if text.startswith("diverged"):
        return LARGEST
    first = text.split(" ")[0].split("–")[0].rstrip("%")
    special = {"∞": LARGEST, "−∞": -LARGEST, "": LARGEST}
    if first in special:
        return special[first]
    try:
        return float(first)
    except ValueError:
        return text


def describe(run: Run, group: str, task: str) -> dict[str, Any]:
    """Return a run as the page shows it, under the names of its group and its task."""
    return {
        "name": run.name,
        "group": group,
        "task": task,
        "optimizer": run.optimizer,
        "seed": run.seed,
        "status": run.status,
        "step": run.step,
        "command": "python -m optbench " + shlex.join(run.command),
        "settings": dict(run.settings),
        "last": dict(run.last),
        "curve": run.curve,
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


def _short(value: float | None) -> float | None:
    """A value as fine as a curve can show; whole numbers stay, what is not finite is None."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.{CURVE_DIGITS}g}") if math.isfinite(value) else None


def _json(node: Any) -> str:
    """What is shown, as JSON without control characters, which a browser might act on.

    JSON writes one as it is or behind a backslash: where there is neither, there is none.
    """
    text = _dumped(node)
    return text if text.isprintable() and "\\" not in text else _dumped(_visible(node))


def _dumped(node: Any) -> str:
    return json.dumps(node, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def _visible(node: Any) -> Any:
    """All that is shown, without control characters, which a browser or terminal might act on."""
    if isinstance(node, float) or node is None or isinstance(node, int):
        return node
    if isinstance(node, str):
        return visible(node)
    if isinstance(node, Mapping):
        return {visible(key): _visible(value) for key, value in node.items()}
    return [_visible(value) for value in node] if isinstance(node, (list, tuple)) else node


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
