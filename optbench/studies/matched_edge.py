"""How much of what sets optimizers apart is left at equal distance to the own edge, and equal loss?

Each optimizer runs at its usual learning rate, and with the `EdgeThermostat`, which holds its
distance to its own edge. All runs stop at one training loss.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy import stats

from optbench import lab, metrics
from optbench.boundary.counting import counted
from optbench.errors import UserError
from optbench.intervals import Interval
from optbench.lab.matching import at_loss
from optbench.statistics import cluster_bootstrap, verdict
from optbench.studies.figures import LOOKS, new_figure, save
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
    rounded,
    subset,
)
from optbench.studies.judging import UNKNOWN

USUAL = "usual"
HELD = 0.1
"""Largest relative difference of the distance to the dial that counts as held."""
LEAST = 5
"""Fewest optimizers that a comparison must have."""
DRAWS = 300


class MatchedEdge:
    """Optimizers at their usual rates and at equal distances to their edges, stopped at one loss.

    Args:
        declaration: What is declared; `sizes` has tasks, dials, seeds and steps.
        tasks: {name: {words, loss}}, the overrides and the training loss that is matched.
        optimizers: {name: {base, every}}: the base at its usual rate, as a word of the command
            line, and the updates between two measurements of the thermostat.
        common: Overrides of all runs.
        most: Largest factor on a learning rate, per update between two measurements.
    """

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "remains": {"remains": SUPPORTED, "spread": SUPPORTED},
        "vanishes": {"remains": REFUTED, "spread": REFUTED},
        "a third remains": {"remains": REFUTED, "spread": SUPPORTED},
        "scale passes for distance": {"remains": REFUTED, "spread": REFUTED},
    }

    def __init__(
        self,
        declaration: Declaration,
        tasks: Mapping[str, Mapping[str, Any]],
        optimizers: Mapping[str, Mapping[str, Any]],
        common: Sequence[str],
        most: float,
    ) -> None:
        self.declaration = declaration
        self.tasks, self.optimizers = tasks, optimizers
        self.common, self.most = common, most

    def plan(self, size: Size) -> list[Cell]:
        """The runs of a size."""
        grid = self.declaration.sizes[size]
        modes = {USUAL: None} | {f"dial {dial:g}": dial for dial in grid["dials"]}
        seeds = range(grid["first_seed"], grid["last_seed"] + 1)
        cells = []
        for task, (mode, dial), name in product(grid["tasks"], modes.items(), self.optimizers):
            for seed in seeds:
                command = (
                    *self.tasks[task]["words"],
                    *self._optimizer(name, dial),
                    *self.common,
                    f"seed={seed}",
                    f"steps={grid['steps']}",
                    "stop.metric=train/loss",
                    f"stop.below={self.tasks[task]['loss']}",
                )
                factors = {"task": task, "mode": mode, "optimizer": name, "seed": seed}
                cells.append(Cell(factors, command))
        return cells

    def _optimizer(self, name: str, dial: float | None) -> list[str]:
        base, every = self.optimizers[name]["base"], self.optimizers[name]["every"]
        return [
            "optimizer=custom",
            "optimizer._target_=optbench.dynamics.thermostat.EdgeThermostat",
            f"+optimizer.base={base}",
            "optimizer.lr=null",
            f"+optimizer.dial={'null' if dial is None else dial}",
            f"+optimizer.every={every}",
            f"+optimizer.most={self.most**every:g}",
        ]

    def read(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """One row: how the run ended, its error at the matched loss, and the distance it held."""
        run, loss = lab.open(folder), self.tasks[cell.factors["task"]]["loss"]
        row: dict[str, Any] = dict(cell.factors) | {
            "steps": run.summary["step"],
            "diverged": float(run.status == "diverged"),
            "reached": float(run.status == "done" and bool(run.summary.get("stopped"))),
        }
        distance, lr = (_second_half(run, n) for n in (metrics.EDGE_DISTANCE, metrics.EDGE_LR))
        row |= {"distance": distance, "lr_held": lr}
        if row["reached"]:
            losses, errors = run.series(metrics.TRAIN_LOSS)[1], run.series(metrics.TEST_ERROR)[1]
            points = list(zip(losses.tolist(), (100 * errors).tolist(), strict=True))
            row["error"] = at_loss(points, loss).value
        return [rounded(row)]

    def judge(self, table: Table) -> list[Finding]:
        """Apply the declared rules to the runs that are comparable.

        A hypothesis `RULE_TASK` or `RULE_dial_VALUE` is judged on that task, or at that distance.
        """
        rows, why = comparable(table)
        rules: Mapping[str, Callable[[Errors], float]] = {
            "remains": remaining_share,
            "spread": _mean_range,
            "order": _order,
        }
        found = []
        for hypothesis in self.declaration.hypotheses:
            rule, _, where = hypothesis.name.partition("_")
            of_rule = _part(rows, where) if where else rows
            estimate = _bootstrap(of_rule, rules[rule], self.declaration.level)
            said = verdict(estimate, hypothesis.sesoi, hypothesis.sign)
            found.append(Finding(hypothesis.name, estimate, said, length(of_rule), why))
        return found

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world."""
        first, second = [*self.declaration.sizes["small"]["tasks"], "another"][:2]
        return _planted(world, seed, (first, second))

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        """Draw the mean error of each optimizer, at its usual rate and at each dial."""
        rows, _ = comparable(table)
        if not length(rows):
            return
        names = sorted(set(map(str, rows["task"])))
        figure = new_figure(4.6 * len(names), 3.8)
        axes = figure.subplots(1, len(names), squeeze=False)[0]
        modes = [m for m in dict.fromkeys(map(str, table["mode"])) if m in set(rows["mode"])]
        for axis, task in zip(axes, names, strict=True):
            for i, optimizer in enumerate(sorted(set(map(str, rows["optimizer"])))):
                color, marker = LOOKS[i % len(LOOKS)]
                at, means, halves = [], [], []
                for j, mode in enumerate(modes):
                    errors = rows["error"][_where(rows, task, mode, optimizer)]
                    if len(errors) > 1:
                        at.append(j + 0.08 * (i - 2.5))
                        means.append(errors.mean())
                        halves.append(2 * errors.std(ddof=1) / math.sqrt(len(errors)))
                axis.errorbar(
                    at, means, halves, color=color, marker=marker, markersize=5, label=optimizer,
                    linewidth=0.8, capsize=2,
                )  # fmt: skip
            axis.set_xticks(range(len(modes)), [m.replace("dial", "distance") for m in modes])
            axis.set_title(task, fontsize=10, loc="left")
            axis.grid(alpha=0.25, axis="y")
        axes[0].set_ylabel("test error at equal training loss, %")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        yield save(figure, folder / "errors")


def _second_half(run: lab.Run, metric: str) -> float:
    """Median of a metric over the second half of a run; NaN where it was not measured."""
    try:
        steps, values = run.series(metric)
    except UserError:  # the edge was unknown all along
        return math.nan
    late = values[steps >= run.summary["step"] / 2]
    return float(np.median(late)) if len(late) else math.nan


def _where(rows: Table, task: str, mode: str, optimizer: str) -> Any:
    return (rows["task"] == task) & (rows["mode"] == mode) & (rows["optimizer"] == optimizer)


def comparable(table: Table) -> tuple[Table, str]:
    """Return the runs that can be compared, and what to say of the others.

    1. A run must have come to the matched loss.
    2. With the thermostat, it must have held the dial's distance to 10 %, as the edge's own probe
       measured it.
    3. An optimizer counts on a task and at a dial if half of its seeds do, there and at its usual
       rate; a dial counts on a task with five optimizers or more.
    """
    if not length(table) or "error" not in table:
        return {}, "No run came to the matched loss."
    reached = (table["reached"] == 1) & np.isfinite(table["error"])
    dials = np.array([_dial(m) for m in table["mode"]])
    thermostat = np.isfinite(dials)
    held = np.abs(table["distance"] / np.where(thermostat, dials, 1) - 1) <= HELD
    good = reached & (held | ~thermostat)
    seeds = len(np.unique(table["seed"]))
    mask = np.zeros(len(good), dtype=bool)
    left_out = []
    for task, mode in dict.fromkeys(zip(table["task"], table["mode"], strict=True)):
        if mode == USUAL:
            mask |= good & (table["task"] == task) & (table["mode"] == USUAL)
            continue
        there, missing = list[str](), list[str]()
        for optimizer in np.unique(table["optimizer"]):
            here, usual = (good & _where(table, task, m, optimizer) for m in (mode, USUAL))
            enough = 2 * min(here.sum(), usual.sum()) >= seeds
            (there if enough else missing).append(str(optimizer))
            if enough:
                mask |= here
        if len(there) < LEAST:
            mask &= ~((table["task"] == task) & (table["mode"] == mode))
        if missing:
            left_out.append(f"{', '.join(missing)} at {mode} on {task}")
    counts = (
        (int((table["reached"] != 1).sum()), "did not come to the matched loss"),
        (int((reached & thermostat & ~held).sum()), "did not hold the distance"),
    )
    said = [f"{n} {what}" for n, what in counts if n]
    words = f"Of {counted(len(good), 'run')} {', '.join(said)}." if said else ""
    if left_out:
        words += f" Not compared: {'; '.join(left_out)}."
    return subset(table, mask), words.strip()


def _part(rows: Table, where: str) -> Table:
    """Rows of a task, or those at a dial with those at the usual rates."""
    if not length(rows):
        return rows
    kind, _, value = where.partition("_")
    if kind == "dial":
        return subset(rows, (rows["mode"] == USUAL) | (rows["mode"] == f"dial {value}"))
    return subset(rows, rows["task"] == where)


def _dial(mode: str) -> float:
    word, _, value = str(mode).partition(" ")
    return float(value) if word == "dial" else math.nan


Errors = dict[tuple[str, str, str], np.ndarray[Any, Any]]
"""{(task, mode, optimizer): error of each seed, NaN where it does not count}."""


def _sd(groups: Sequence[np.ndarray[Any, Any]]) -> float:
    """Standard deviation of the optimizers' means, without what the seeds' noise adds.

    √max(0, Var_o(x̄_o) − mean_o(s_o²/n_o))
    """
    means = np.array([g.mean() for g in groups])
    noise = np.mean([g.var(ddof=1) / len(g) for g in groups])
    return math.sqrt(max(0.0, float(means.var(ddof=1) - noise)))


def _range(groups: Sequence[np.ndarray[Any, Any]]) -> float:
    means = [float(g.mean()) for g in groups]
    return max(means) - min(means)


def _comparisons(errors: Errors) -> list[list[tuple[np.ndarray[Any, Any], ...]]]:
    """For each task and dial, (errors at the dial, errors at the usual rate) of each optimizer."""
    found: dict[tuple[str, str], list[tuple[np.ndarray[Any, Any], ...]]] = {}
    for (task, mode, optimizer), values in errors.items():
        if mode != USUAL and (task, USUAL, optimizer) in errors:
            pair = tuple(v[np.isfinite(v)] for v in (values, errors[task, USUAL, optimizer]))
            if min(map(len, pair)) > 1:
                found.setdefault((task, mode), []).append(pair)
    return [pairs for pairs in found.values() if len(pairs) > 2]


def remaining_share(errors: Errors) -> float:
    """Σ sd at equal distance over Σ sd at usual rates, both over tasks and dials."""
    spreads = [[_sd(side) for side in zip(*pairs, strict=True)] for pairs in _comparisons(errors)]
    below = sum(usual for _, usual in spreads)
    return sum(held for held, _ in spreads) / below if below > 0 else math.nan


def _mean_range(errors: Errors) -> float:
    found = [_range([here for here, _ in pairs]) for pairs in _comparisons(errors)]
    return float(np.mean(found)) if found else math.nan


def _order(errors: Errors) -> float:
    """Mean rank correlation of the optimizers' means, usual with equal distance."""
    found = []
    for pairs in _comparisons(errors):
        means = [[float(g.mean()) for g in side] for side in zip(*pairs, strict=True)]
        found.append(float(stats.spearmanr(*means).statistic))
    return float(np.mean(found)) if found else math.nan


def _bootstrap(rows: Table, rule: Callable[[Errors], float], level: float) -> Interval:
    if not length(rows) or len(np.unique(rows["seed"])) < 3:
        return UNKNOWN
    keys, wide = _wide(rows)

    def statistic(table: Table) -> float:
        return rule({key: table[str(i)] for i, key in enumerate(keys)})

    return cluster_bootstrap(wide, statistic, draws=DRAWS, level=level, method="percentile")


def _wide(rows: Table) -> tuple[list[tuple[str, str, str]], Table]:
    """One row a seed and one column a (task, mode, optimizer): what the bootstrap draws."""
    names = [rows[name].astype(str) for name in ("task", "mode", "optimizer")]
    labels = list(zip(*names, strict=True))
    keys, seeds = list(dict.fromkeys(labels)), np.unique(rows["seed"])
    grid = np.full((len(keys), len(seeds)), np.nan)
    for label, seed, error in zip(labels, rows["seed"], rows["error"], strict=True):
        grid[keys.index(label), np.searchsorted(seeds, seed)] = error
    return keys, {"seed": seeds} | {str(i): column for i, column in enumerate(grid)}


def _planted(world: str, seed: int, tasks: tuple[str, str]) -> Table:
    """Tables of 2 tasks x 6 optimizers x {usual, 2 dials} x 10 seeds, noise .7 pp, sd 2 pp usual.

    - remains: an optimizer is as far from the mean at equal distance as at its usual rate.
    - vanishes: it is not off the mean at equal distance.
    - a third remains: it is .3 times as far off.
    - scale passes for distance: what sets optimizers apart is their distance. Half of them are held
      at what their preconditioner's scale makes of it, at other distances than the dial's.
    """
    rng = np.random.default_rng([seed, list(MatchedEdge.worlds).index(world)])
    kept = {"remains": 1.0, "a third remains": 0.3}.get(world, 0.0)
    rows = []
    for task in tasks:
        own = dict(zip("abcdef", 2 * np.array([-1.3, -0.8, -0.2, 0.2, 0.8, 1.3]), strict=True))
        for (name, effect), mode in product(own.items(), (USUAL, "dial 0.6", "dial 0.95")):
            scaled = world == "scale passes for distance" and name in "abf"
            share = 1.0 if mode == USUAL or scaled else kept
            for s in range(1, 11):
                factor = {"a": 3.0, "b": 2.0}.get(name, 0.3) if scaled else 1 + rng.normal(0, 0.02)
                rows.append(
                    {
                        "task": task,
                        "mode": mode,
                        "optimizer": name,
                        "seed": s,
                        "diverged": 0.0,
                        "reached": 1.0,
                        "distance": factor * (0.1 if mode == USUAL else _dial(mode)),
                        "error": 50 + share * effect + rng.normal(0, 0.7),
                    }
                )
    return columns(rows)
