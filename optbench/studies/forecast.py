"""Do shadow steps taken before training foretell who wins on the leaderboard?

Two forecasters get the same number of steps of a task, and the board's order is held against both:

    shadow(o)  median over points of log gain(d_o)/gain(−∇L), d_o the step that optimizer o would
               take on the path of plain gradient steps, gain(d) = (gᵀd)²/(2 dᵀHd)
    loss(o)    minus the least, over learning rates, of the mean validation loss after real steps

The board orders a pair only where its final seeds tell the two apart; see `order`.

References:
    arXiv:2606.04662 (gain of a step).
"""

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from scipy import special, stats
from torch import Tensor, nn

from optbench import lab, search
from optbench.boundary.counting import counted as counted_words
from optbench.configuration.construct import construct, optimizer_factory
from optbench.configuration.keys import check
from optbench.curvature.selection import trainable
from optbench.intervals import Interval, t_quantile
from optbench.lab.shadow import Factory
from optbench.leaderboard.entrants import admit
from optbench.leaderboard.entries import read_entries
from optbench.probes.generalization import evaluate, evaluating
from optbench.protocol.suite import Suite, read_suite
from optbench.run.loop import Parts
from optbench.run.update import Update
from optbench.seeds import global_state, set_global_state
from optbench.statistics import friedman
from optbench.studies.figures import draw_heat
from optbench.studies.frame import (
    REFUTED,
    SUPPORTED,
    Cell,
    Declaration,
    Finding,
    Size,
    Table,
    columns,
    length,
    six_digits,
    subset,
)
from optbench.studies.judging import interval_of, judged
from optbench.studies.measured_once import measured_once
from optbench.studies.speed_curvature import measure_steps, with_parts
from optbench.task import Task

Array = NDArray[np.float64]

BOARD_LEVEL = 0.95
"""Level at which the board's final seeds tell a pair of optimizers apart."""

TIED = 0.01
"""A task counts where Friedman's test over the final seeds has a smaller p: else all tie."""

DRAWS = 2000


class Forecast:
    """A cell a task: its forecast is written, and only then is the task's board read.

    Args:
        declaration: What is declared; `sizes` has tasks, optimizers, seeds.
        suite: Suite whose committed board is foretold.
        share: Share of a task's steps that either forecaster gets.
        points: Number of points of the path at which steps are measured, equally spaced.
        driver: Overrides of the optimizer whose path the shadows follow.
        rates: Learning rates tried, as shares of the logarithm of the suite's search range.
        common: Overrides of all runs.
    """

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "foretells": {"shadow": SUPPORTED, "beats_loss": SUPPORTED, "calibrated": SUPPORTED},
        "noise": {"shadow": REFUTED, "beats_loss": REFUTED, "calibrated": REFUTED},
        "loss_only": {"shadow": REFUTED, "beats_loss": REFUTED, "calibrated": REFUTED},
        "ties": {"shadow": SUPPORTED, "beats_loss": SUPPORTED, "calibrated": SUPPORTED},
    }

    def __init__(
        self,
        declaration: Declaration,
        suite: str,
        share: float,
        points: int,
        driver: Sequence[str],
        rates: Sequence[float],
        common: Sequence[str],
    ) -> None:
        self.declaration, self.suite = declaration, suite
        self.share, self.points, self.rates = share, points, rates
        self.driver, self.common = driver, common

    def plan(self, size: Size) -> list[Cell]:
        """A run of the driver a task: the path of the first seed."""
        grid = self.declaration.sizes[size]
        suite = read_suite(self.suite)
        cells = []
        for task in grid["tasks"]:
            words = suite.tasks[task].run
            command = (
                *(word for word in words if not word.startswith("steps=")),
                *self.driver,
                *self.common,
                f"seed={grid['seeds'][0]}",
                f"steps={budget(words, self.share)}",
            )
            factors = {"task": task, "seeds": grid["seeds"], "optimizers": grid["optimizers"]}
            cells.append(Cell(factors, command))
        return cells

    def read(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """Write the task's forecast to the run's folder, then read the board; rows of both."""
        rule = [self.share, self.points, list(self.rates), "1"]
        settings = [dict(cell.factors), cell.command, rule]
        found = measured_once(folder, "forecast", settings, lambda: self._forecast(cell))
        task = cell.factors["task"]
        written = {"kind": "forecast", "written": found["written"], "sha256": found["sha256"]}
        board = board_rows(
            folder.parent.parent, read_suite(self.suite), task, cell.factors["optimizers"]
        )
        return [{"task": task} | row for row in (written, *found["rows"], *board)]

    def _forecast(self, cell: Cell) -> dict[str, Any]:
        names: Sequence[str] = cell.factors["optimizers"]
        select = read_suite(self.suite).tasks[cell.factors["task"]].select
        rows: list[dict[str, Any]] = []
        for seed in cell.factors["seeds"]:
            parts = initial((*cell.command, f"seed={seed}"))
            batches = [parts.batches.next() for _ in range(parts.settings.steps)]
            for name, u in product(names, self.rates):
                value = after(parts, batches, factory(name, u), select)
                rows.append({"kind": "short", "optimizer": name, "rate": u, "seed": seed})
                rows[-1]["value"] = value
            makers = {name: factory(name) for name in names}
            rows += [
                {"seed": seed} | row for row in along_path(parts, batches, makers, self.points)
            ]
        said = {"written": datetime.now(UTC).isoformat(timespec="seconds"), "rows": rows}
        return said | {"sha256": "sha256:" + hashlib.sha256(json.dumps(said).encode()).hexdigest()}

    def judge(self, table: Table) -> list[Finding]:
        """Hold the forecasts of each task whose optimizers the board tells apart against it."""
        scored = score_tasks(table)
        counted = columns([row for row in scored if row["counts"]])
        found = []
        for h in self.declaration.hypotheses:
            estimate, n = self._estimate(counted, h.name)
            why = _why(table, scored, h.name)
            found.append(judged(h, estimate, n, why))
        return found

    def _estimate(self, counted: Table, name: str) -> tuple[Interval, int]:
        statistics: dict[str, Callable[[Table], float]] = {
            "shadow": lambda t: float(np.mean(t["shadow"])),
            "beats_loss": lambda t: float(np.mean(t["shadow"] - t["loss"])),
            "calibrated": lambda t: float(np.mean(t["brier"])) - 0.25,
        }
        level = self.declaration.level
        estimate = interval_of(counted, statistics[name], level, DRAWS, "task")
        return estimate, length(counted)

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world."""
        return planted_table(self, world, seed)

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        """Draw ρ by task and forecaster, and how far each optimizer was misplaced."""
        scored = score_tasks(table)
        if not scored:
            return
        correlations = {
            f"{row['task']} ({counted_words(round(row['pairs']), 'pair')})"
            + ("" if row["counts"] else ", all tie: not counted"): {
                "shadow steps": row["shadow"],
                "short loss": row["loss"],
                "other tasks": row["others"],
            }
            for row in scored
        }
        title = "Spearman's ρ with the board's order"
        yield draw_heat(correlations, title, folder / "correlations", 1.0)
        for name, title in (("shadow", "shadow steps"), ("loss", "short loss")):
            yield draw_heat(
                misplaced(table, name),
                f"places by which the {title} put an optimizer behind its place on the board",
                folder / f"misplaced_{name}",
            )


def budget(words: Sequence[str], share: float) -> int:
    """Return the steps of a forecaster: a share of the `steps=` among a task's words.

    Raises:
        ValueError: If the words do not say the steps.
    """
    said = [int(word.removeprefix("steps=")) for word in words if word.startswith("steps=")]
    if len(said) != 1:
        raise ValueError(f"a task of a suite says its steps once, got {list(words)}")
    return max(1, round(share * said[0]))


def initial(words: Sequence[str]) -> Parts:
    """Return task, batches and initial weights of a run; the last word of a key holds."""
    last = {word.partition("=")[0]: word for word in words}
    before = global_state()
    try:
        config = lab.start(*last.values()).config
        check(config)
        return construct(config)
    finally:
        set_global_state(before)


@cache
def _settings(name: str) -> DictConfig:
    return cast(DictConfig, lab.start("task=digits", f"optimizer={name}").config.optimizer)


def factory(name: str, u: float | None = None) -> Factory:
    """Return a maker of an optimizer, with all its learning rates at a share of its search range.

    Args:
        name: Name of its YAML.
        u: Share of the logarithm of the range, the same for each of its rates; None for the YAML's.
    """
    settings = _settings(name).copy()
    for key, axis in search.read(settings.get("search")).items() if u is not None else ():
        if key.split(".")[-1] == "lr":
            OmegaConf.update(settings, key, axis.at(cast(float, u)))
    return optimizer_factory(settings)


def along_path(
    parts: Parts,
    batches: Sequence[tuple[Tensor, Tensor]],
    makers: Mapping[str, Factory],
    points: int,
) -> list[dict[str, Any]]:
    """Follow the driver's path with shadows beside it; return a row an optimizer a point.

    The last of the points is at the last step; a path that diverges ends there.

    Args:
        parts: Task, and the driver's update, which moves its model.
        batches: Batches of the path, one a step.
        makers: {name: maker of the shadow's optimizer}.
        points: Number of points.
    """
    model, task = parts.update.model.train(), parts.task
    shadows = {name: lab.Shadow(model, task.loss, make) for name, make in makers.items()}
    seen = {round(len(batches) * (k + 1) / points): k for k in range(points)}
    rows: list[dict[str, Any]] = []
    for step, (inputs, targets) in enumerate(batches, 1):
        directions = {name: shadow.step(inputs, targets) for name, shadow in shadows.items()}
        if step in seen:
            about = {"kind": "step", "point": seen[step], "step": step}
            measured = measure_steps(model, task, directions)
            rows += [about | {"optimizer": row.pop("probe")} | row for row in measured]
        if not math.isfinite(float(parts.update(inputs, targets))):
            break
    return rows


def after(
    parts: Parts, batches: Sequence[tuple[Tensor, Tensor]], make: Factory, select: str
) -> float | None:
    """Return a held-out metric after real updates on the batches; None if they diverge."""
    model = copy.deepcopy(parts.update.model).train()
    update = Update(model, parts.task.loss, make(trainable(model)))
    for inputs, targets in batches:
        try:
            loss = float(update(inputs, targets))
        except RuntimeError:  # a decomposition of weights or gradients that are not finite
            return None
        if not math.isfinite(loss):
            return None
    return six_digits(_held_out(parts.task, model, update, select))


def _held_out(task: Task, model: nn.Module, update: Update, select: str) -> float:
    split, _, quantity = select.partition("/")
    with evaluating(model, update.optimizer, task), torch.no_grad():
        return evaluate(task, model, task.splits[split])[quantity]


def board_rows(
    results: Path, suite: Suite, task: str, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the ranked metric of every final run on a task that the committed board holds.

    The runs are those of admitted entrants. A run that diverged has no value.
    """
    runs = [run for entry in read_entries(results, suite.label) for run in entry.runs]
    rows = []
    for entrant in admit(suite, runs).entrants:
        for run in entrant.finals[task] if entrant.name in names else ():
            value = run.last[suite.tasks[task].metric] if run.status == "done" else None
            row = {"kind": "board", "optimizer": entrant.name, "seed": run.seed, "value": value}
            rows.append(row)
    return rows


def order(values: Array) -> tuple[Array, float]:
    """Return who is surely better on a task, (O, O) of −1, 0, 1, and Friedman's p over the seeds.

    A pair is told apart where the paired t interval of its difference excludes 0: the seeds are the
    same for all. Entry (i, j) is 1 where i is better, that is, less.

    Args:
        values: Metric of O optimizers on S seeds, less is better; NaN, a run that diverged, counts
            as the worst value there is.
    """
    filled = np.where(np.isfinite(values), values, np.nanmax(values))
    entrants, seeds = filled.shape
    signs = np.zeros((entrants, entrants))
    for i, j in combinations(range(entrants), 2):
        d = filled[j] - filled[i]
        error = d.std(ddof=1) / math.sqrt(seeds)
        if abs(d.mean()) > t_quantile(seeds - 1, BOARD_LEVEL) * error:
            signs[i, j] = np.sign(d.mean())
            signs[j, i] = -signs[i, j]
    return signs, friedman(filled.T)[1]


def spearman(forecast: Array, truth: Array) -> float:
    """Return Spearman's ρ, ties sharing ranks; 0 of a forecast that says nothing, NaN of no truth.

    Values may be infinite.
    """
    x, y = stats.rankdata(forecast), stats.rankdata(truth)
    if np.ptp(y) == 0:
        return math.nan
    return 0.0 if np.ptp(x) == 0 else float(np.corrcoef(x, y)[0, 1])


def brier(gains: Array, signs: Array) -> float:
    """Return the mean of (P − y)² over the pairs that the board tells apart; 1/4 is chance.

        P(i beats j) = Φ(mean d/std d),    d = log gain of i less that of j at the same points

    Args:
        gains: Log gains of O optimizers at M points of the paths of all seeds, (O, M).
        signs: Of `order`, (O, O).
    """
    scores = []
    for i, j in combinations(range(len(gains)), 2):
        if signs[i, j]:
            d = gains[i] - gains[j]
            d = d[np.isfinite(d)]
            mean, spread = (d.mean(), d.std(ddof=1)) if len(d) > 1 else (0.0, 1.0)
            ratio = mean / spread if spread > 0 else math.copysign(math.inf, mean) if mean else 0.0
            scores.append((float(special.ndtr(ratio)) - (signs[i, j] > 0)) ** 2)
    return float(np.mean(scores)) if scores else math.nan


class _TaskTable:
    """What a table holds of one task: names (O,), gains (O, M), losses (O,), board (O, S)."""

    def __init__(self, table: Table, task: str) -> None:
        rows = subset(table, table["task"] == task)
        self.task = task
        board = subset(rows, rows["kind"] == "board")
        self.names = np.unique(board["optimizer"]).tolist()
        self.board = _wide(board, board["value"], self.names)
        steps = with_parts(rows)
        self.gains = _wide(steps, steps["log_gain"], self.names, ("seed", "point"))
        short = subset(rows, rows["kind"] == "short")
        self.losses = np.array([_best(short, name) for name in self.names])

    @property
    def shadow(self) -> Array:
        """Median log gain of each; −∞ where none was measured."""
        return np.array([np.median(g) if len(g) else -math.inf for g in map(_finite, self.gains)])


def _finite(values: Array) -> Array:
    return values[np.isfinite(values)]


def _wide(rows: Table, values: Array, names: Sequence[str], by: Sequence[str] = ("seed",)) -> Array:
    """Values as (O, M), M the combinations of the columns `by`; NaN where there is none."""
    keys = list(zip(*(rows[name] for name in by), strict=True))
    places = {key: m for m, key in enumerate(sorted(set(keys)))}
    wide = np.full((len(names), len(places)), math.nan)
    for name, key, value in zip(rows["optimizer"], keys, values, strict=True):
        if name in names:
            wide[names.index(name), places[key]] = value
    return wide


def _best(short: Table, name: str) -> float:
    """Least over rates of the mean over seeds; a rate at which one diverged is infinite."""
    own = subset(short, short["optimizer"] == name)
    means = [own["value"][own["rate"] == rate].mean() for rate in np.unique(own["rate"])]
    return min((float(m) for m in means if np.isfinite(m)), default=math.inf)


def _tasks(table: Table) -> list[_TaskTable]:
    if "kind" not in table or not {"board", "step"} <= set(table["kind"].tolist()):
        return []
    with_board = np.unique(table["task"][table["kind"] == "board"])
    return [_TaskTable(table, str(task)) for task in with_board]


def score_tasks(table: Table) -> list[dict[str, Any]]:
    """Return a row a task.

    - pairs: Pairs that the board tells apart; p: Friedman's.
    - counts: Whether p < `TIED` and there is a pair.
    - shadow, loss: ρ of each forecaster with the board's net wins, the optimizers that one is
      surely better than less those that are surely better.
    - shadow_mean, loss_mean: The same with the mean of the metric, whether or not pairs are told
      apart.
    - others: ρ of the mean of the net wins on the other tasks that count.
    - brier: Of the shadows, see `brier`.
    """
    rows: list[dict[str, Any]] = []
    wins: dict[str, dict[str, float]] = {}
    for t in _tasks(table):
        signs, p = order(t.board)
        net = signs.sum(1)
        filled = np.where(np.isfinite(t.board), t.board, np.nanmax(t.board))
        pairs = float(np.abs(signs).sum() / 2)
        row: dict[str, Any] = {"task": t.task, "pairs": pairs, "p": p}
        row["counts"] = p < TIED and pairs > 0
        for name, forecast in (("shadow", t.shadow), ("loss", -t.losses)):
            row[name] = spearman(forecast, net)
            row[f"{name}_mean"] = spearman(forecast, -filled.mean(1))
        row["brier"] = brier(t.gains, signs)
        wins[t.task] = dict(zip(t.names, net.tolist(), strict=True))
        rows.append(row)
    for row in rows:
        row["others"] = _by_others(row["task"], wins, [r["task"] for r in rows if r["counts"]])
    return rows


def _by_others(task: str, wins: Mapping[str, Mapping[str, float]], counted: Sequence[str]) -> float:
    others = [wins[other] for other in counted if other != task]
    if not others:
        return math.nan
    names = list(wins[task])
    mean = np.array([np.mean([other.get(name, 0.0) for other in others]) for name in names])
    return spearman(mean, np.array([wins[task][name] for name in names]))


def misplaced(table: Table, forecaster: str) -> dict[str, dict[str, float]]:
    """Return {optimizer: {task: its place in the forecast less its place on the board}}."""
    found: dict[str, dict[str, float]] = {}
    for t in _tasks(table):
        forecast = -t.shadow if forecaster == "shadow" else t.losses
        places = stats.rankdata(forecast) - stats.rankdata(-order(t.board)[0].sum(1))
        for name, place in zip(t.names, places, strict=True):
            found.setdefault(name, {})[t.task] = float(place)
    return found


def _why(table: Table, scored: Sequence[Mapping[str, Any]], name: str) -> str:
    if not scored:
        return "no board was read, or no step was measured"
    counted = [row for row in scored if row["counts"]]
    ties = [row["task"] for row in scored if not row["counts"]]
    pairs = sum(row["pairs"] for row in counted)
    said = (
        f"{counted_words(round(pairs), 'pair')} told apart by the board; all tie on: "
        f"{', '.join(ties) or 'no task'}."
    )

    def mean(column: str) -> str:
        values = [row[column] for row in counted if math.isfinite(row[column])]
        return f"{np.mean(values):+.2f}" if values else "none"

    def each(column: str) -> str:
        known = [row for row in scored if math.isfinite(row[column])]
        return ", ".join(f"{row['task']} {row[column]:+.2f}" for row in known)

    if name == "shadow":
        return (
            f"{said} By task: {each('shadow')}. With the mean of the metric, pairs that it does "
            f"not tell apart included: {mean('shadow_mean')}. The order of the board on the other "
            f"tasks, which is no forecast from this task, has {mean('others')}."
        )
    if name == "beats_loss":
        return (
            f"{said} Short loss: {mean('loss')}; by task: {each('loss')}. With the mean of the "
            f"metric: {mean('loss_mean')}. {_ends(table)}"
        )
    return f"{said} Brier score by task, chance being .25: {each('brier')}."


def _ends(table: Table) -> str:
    """Say how often the best rate is an end of the rates tried."""
    short = subset(table, table["kind"] == "short")
    ends = total = 0
    for task, name in sorted(set(zip(short["task"], short["optimizer"], strict=True))):
        own = subset(short, (short["task"] == task) & (short["optimizer"] == name))
        rates = np.unique(own["rate"])
        means = np.array([own["value"][own["rate"] == rate].mean() for rate in rates])
        means = np.where(np.isfinite(means), means, math.inf)
        total += 1
        ends += int(np.argmin(means)) in (0, len(rates) - 1)
    return (
        f"The best of the rates is the least or the greatest of them in {ends} of "
        f"{counted_words(total, 'case')}."
    )


def planted_table(study: Forecast, world: str, seed: int) -> Table:
    """Simulate a table: who is better by task, a normal number, and what forecasters see of it.

    - foretells: the shadows see it with an error of .3, the short loss sees nothing.
    - noise: neither sees anything.
    - loss_only: the short loss sees it with an error of .3, the shadows see nothing.
    - ties: as foretells, and on three tasks the board is noise: what the shadows see there is of no
      consequence.
    """
    random = np.random.default_rng([seed, sorted(study.worlds).index(world)])
    grid = study.declaration.sizes["small"]
    names = grid["optimizers"]
    rows: list[dict[str, Any]] = []
    for number, task in enumerate(grid["tasks"]):
        truth = random.normal(size=len(names))
        seen = truth + 0.3 * random.normal(size=len(names))
        blind = random.normal(size=(2, len(names)))
        shadow = seen if world in ("foretells", "ties") else blind[0]
        loss = seen if world == "loss_only" else blind[1]
        weight = 0.0 if world == "ties" and number < 3 else 1.0
        for o, name in enumerate(names):
            about = {"task": task, "optimizer": name}
            for s, point in product(grid["seeds"], range(study.points)):
                gain = shadow[o] + 0.5 * random.normal()
                row = {"kind": "step", "seed": s, "point": point, "alignment": math.exp(-0.5)}
                bend = math.exp(-1 - gain)
                row |= {"curvature": bend, "gd_curvature": 1.0, "gn": bend, "gn_gd": 1.0}
                rows.append(about | row)
            for s, (place, rate) in product(grid["seeds"], enumerate(study.rates)):
                off = (place - (len(study.rates) - 1) / 2) ** 2
                value = off - loss[o] + 0.1 * random.normal()
                rows.append(about | {"kind": "short", "seed": s, "rate": rate, "value": value})
            for s in range(5):
                value = -weight * truth[o] + 0.2 * random.normal()
                rows.append(about | {"kind": "board", "seed": s, "value": value})
    return columns(rows)
