"""With all training outputs held, does pulling flatness move the error, or does the function?"""

import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from optbench import lab
from optbench.boundary.counting import counted
from optbench.intervals import Interval
from optbench.lab import held_outputs
from optbench.lab.comparisons import function_displacement
from optbench.lab.held_outputs import HeldError, Network
from optbench.lab.point import Point
from optbench.lab.pull import Pulled, lever_values
from optbench.studies.figures import draw_forest, draw_heat
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
    subset,
)
from optbench.studies.judging import UNKNOWN, interval_of, judged
from optbench.studies.measured_once import measured_once

FLATNESS = ("sharpness", "trace")
FUNCTION = "input_jacobian_train"
RANDOM = "random"
WAYS = {"up": 1, "down": -1}
FARTHEST = math.log(10)
"""|Δ log m| at which a path ends."""

DRAWS = 400
POINT, NAT = 1.0, 0.2
"""Smallest changes of interest: of the error in percentage points, of a measure in nats."""


class TugOfWar:
    """Tasks x start optimizers x seeds, each pulled by every lever up and down, and at random.

    Args:
        declaration: What is declared; `sizes` has tasks, optimizers, levers, seeds, first_seed.
        tasks: {name: overrides}.
        optimizers: {name: overrides}.
        common: Overrides of all runs.
        loss: Training loss at which a run is stopped, and pulling begins.
        pull: `length` and `steps` of a path, and `look`, the steps between two looks.
    """

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "flatness": {"flatness": REFUTED},
        "function": {"flatness": SUPPORTED, "function": SUPPORTED, "dissociates": SUPPORTED},
        "nothing": {"flatness": SUPPORTED, "function": REFUTED, "dissociates": REFUTED},
        "displacement": {"flatness": SUPPORTED, "function": REFUTED, "dissociates": REFUTED},
    }

    def __init__(
        self,
        declaration: Declaration,
        tasks: Mapping[str, Sequence[str]],
        optimizers: Mapping[str, Sequence[str]],
        common: Sequence[str],
        loss: float,
        pull: Mapping[str, float],
    ) -> None:
        self.declaration = declaration
        self.tasks, self.optimizers, self.common = tasks, optimizers, common
        self.loss, self.pull = loss, pull

    def plan(self, size: Size) -> list[Cell]:
        """The runs of a size; what is pulled from each is part of its factors."""
        grid = self.declaration.sizes[size]
        cells = []
        for task, optimizer in product(grid["tasks"], grid["optimizers"]):
            for seed in range(grid["first_seed"], grid["first_seed"] + grid["seeds"]):
                words = (
                    *self.tasks[task],
                    *self.optimizers[optimizer],
                    *self.common,
                    f"seed={seed}",
                    "stop.metric=train/loss",
                    f"stop.below={self.loss}",
                )
                factors = {"task": task, "optimizer": optimizer, "seed": seed}
                cells.append(Cell(factors | {"levers": tuple(grid["levers"])}, words))
        return cells

    def read(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """A row for each look at each path; one alone for a run that did not come to the loss."""
        levers = list(cell.factors["levers"])
        settings = [levers, dict(self.pull), FARTHEST, _code()]
        found = measured_once(
            folder, "pulled", settings, lambda: {"rows": list(self._rows(folder, levers))}
        )
        factors = {name: cell.factors[name] for name in ("task", "optimizer", "seed")}
        return [factors | row for row in found["rows"]]

    def _rows(self, folder: Path, levers: Sequence[str]) -> Iterator[dict[str, Any]]:
        run = lab.open(folder)
        if run.status != "done" or not run.summary.get("stopped"):
            yield {"reached": 0.0, "diverged": float(run.status == "diverged")}
            return
        point = run.end.point()
        looker = Looker(point, levers)
        seed = int(run.config.seed)
        arms = [*product(levers, WAYS), (RANDOM, "up")]
        for lever, way in arms:
            try:
                for row in self._path(point, looker, lever, way, seed):
                    yield {"reached": 1.0, "diverged": 0.0, "lever": lever, "way": way, **row}
            except (HeldError, FloatingPointError, torch.linalg.LinAlgError) as why:  # type: ignore[attr-defined]
                yield {
                    "reached": 1.0,
                    "diverged": 0.0,
                    "lever": lever,
                    "way": way,
                    "failed": type(why).__name__,
                }

    def _path(
        self, point: Point, looker: "Looker", lever: str, way: str, seed: int
    ) -> Iterator[dict[str, float]]:
        what = lever if lever != RANDOM else lab.towards(lab.random_direction(point, seed))
        steps, look = int(self.pull["steps"]), int(self.pull["look"])
        states = lab.pull(
            point, what, WAYS[way], length=float(self.pull["length"]), steps=steps, tolerance=1e-3
        )
        start = next(states).value
        last: Pulled | None = None
        for state in states:
            last = state
            far = lever != RANDOM and abs(math.log(state.value / start)) >= FARTHEST
            if far or state.step % look == 0:
                last = None
                yield looker.look(state)
            if far:
                return
        if last is not None:
            yield looker.look(last)

    def rules(self, rows: Table) -> Mapping[str, "Rule"]:
        """{hypothesis: what it is judged by}.

        Args:
            rows: Looks at paths; see `pulled`.
        """
        at_one, at_end = contrasts(rows), ends(rows)
        return {
            "flatness": (at_one, _spared, lambda t: told_slopes(t, FLATNESS)),
            "function": (at_one, mean_slope(FUNCTION), lambda t: told_slopes(t, (FUNCTION,))),
            "dissociates": (at_end, dissociation, _told_ends),
        }

    def judge(self, table: Table) -> list[Finding]:
        """Apply the rules to the paths; see the statistic of each hypothesis."""
        rules = self.rules(pulled(table))
        findings = []
        for hypothesis in self.declaration.hypotheses:
            told, (of_rule, rule, tell) = left_out(table), rules[hypothesis.name]
            estimate = interval_of(of_rule, rule, self.declaration.level, DRAWS)
            if estimate is UNKNOWN:
                findings.append(judged(hypothesis, estimate, 0, told))
                continue
            n = len(np.unique(_runs(of_rule)))
            findings.append(judged(hypothesis, estimate, n, f"{told} {tell(of_rule)}"))
        return findings

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world, as large as that of the size small."""
        rng = np.random.default_rng([seed, list(TugOfWar.worlds).index(world)])
        return plant(rng, WORLDS[world], self.declaration.sizes["small"])

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        """Draw the slopes, each arm against random at equal displacement, and the responses."""
        rows = pulled(table)
        if len(np.unique(rows.get("seed", ()))) < 2:
            return
        levers = [str(name) for name in np.unique(rows["lever"]) if name != RANDOM]
        at_one, level = contrasts(rows), self.declaration.level
        unit = "pp per e-fold of the measure"
        yield draw_forest(slope_panels(at_one, level), unit, folder / "slopes", sesoi=POINT)
        net = net_panels(at_one, level)
        yield draw_forest(net, "error less random's, pp", folder / "against_random", sesoi=POINT)
        title = "change at the end of a pull: of measures in nats, of the error in pp"
        yield draw_heat(responses(ends(rows), levers), title, folder / "cross_response", limit=2.0)


Rule = tuple[Table, Callable[[Table], float], Callable[[Table], str]]
"""The rows that a hypothesis is judged by, its statistic, and what is told of it."""


class Looker:
    """What is read off a state: its error, its displacement, and every lever's measure.

    Args:
        point: The point that the paths begin at.
        levers: Names of the measures.
    """

    def __init__(self, point: Point, levers: Sequence[str]) -> None:
        self.point, self.levers = point, levers
        self.network = Network(point)
        test, error = point.task.test, point.task.error
        assert test is not None and error is not None, "these tasks have classes and a test split"
        self._test, self._error = test, error
        self.start = self._logs(self.network.start)
        self.start_error = self.error(self.network.start)
        self._twin = Network(point).model.to(point.weights.dtype).requires_grad_(True)

    def error(self, w: torch.Tensor) -> float:
        """Error at the whole test split, a share."""
        with torch.no_grad():
            outputs = self.network.outputs(w, self._test.inputs.double())
            return float(self._error(outputs, self._test.targets))

    def look(self, state: Pulled) -> dict[str, float]:
        """A row: displacement, deviation, change of the error in points and of measures in nats."""
        other = Point(state.load(self._twin), self.point.task)
        logs = self._logs(state.weights)
        row = {
            "step": state.step,
            "start_error": 100 * self.start_error,
            "displacement": function_displacement(self.point, other),
            "deviation": state.deviation,
            "error": 100 * (self.error(state.weights) - self.start_error),
            **{name: logs[name] - self.start[name] for name in self.levers},
        }
        return {name: float(f"{value:.5g}") for name, value in row.items()}

    def _logs(self, w: torch.Tensor) -> dict[str, float]:
        found = lever_values(self.network, w, self.levers)
        return {name: math.log(value) for name, value in found.items()}


def _code() -> str:
    files = (held_outputs.__file__, inspect.getfile(lab.pull), __file__)
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()


def pulled(table: Table) -> Table:
    """The rows that are looks at a path; {} if there is none."""
    if "lever" not in table or "displacement" not in table:
        return {}
    return subset(table, (table["reached"] == 1) & np.isfinite(table["displacement"]))


def _runs(rows: Table) -> NDArray[Any]:
    parts = (rows["task"], rows["optimizer"], rows["seed"].astype(int).astype(str))
    return np.array(["|".join(each) for each in zip(*parts, strict=True)])


def left_out(table: Table) -> str:
    """Say how many runs and paths a finding does not rest on."""
    if not length(table):
        return "There is no run."
    late = int(np.sum(table["reached"] == 0))
    said = f"Of {counted(len(np.unique(_runs(table))), 'run')} {late} did not come to the loss"
    if diverged := int(np.nansum(table["diverged"])):
        said += f", {diverged} of them diverged"
    if "failed" in table and (failed := int(np.sum(table["failed"] != ""))):
        said += f"; {counted(failed, 'path')} failed"
    return said + "."


Paths = Mapping[tuple[str, str], NDArray[np.intp]]


def _by_run(rows: Table) -> dict[tuple[str, str, float], Paths]:
    """{(task, optimizer, seed): {(lever, way): the rows of that path, in order}}."""
    index: dict[tuple[str, str, float], dict[tuple[str, str], list[int]]] = {}
    names = ("task", "optimizer", "seed", "lever", "way")
    for i, (task, optimizer, seed, *path) in enumerate(zip(*(rows[n] for n in names), strict=True)):
        run = (str(task), str(optimizer), float(seed))
        index.setdefault(run, {}).setdefault((str(path[0]), str(path[1])), []).append(i)
    return {run: {k: np.array(v) for k, v in paths.items()} for run, paths in index.items()}


def contrasts(rows: Table) -> Table:
    """The three paths of each run and lever at one displacement, a row each.

    1. d* is the least of the largest displacements of three paths: by the lever up, down, random.
    2. Each path is read off where it first reaches d*, linearly between its looks.

    Returns:
        Columns task, optimizer, seed, lever; d; the changes of the error up, down, random, in pp;
        those of the lever's measure, log_up and log_down, in nats.
    """
    found: list[dict[str, Any]] = []
    for (task, optimizer, seed), paths in _by_run(rows).items() if rows else ():
        for lever in dict.fromkeys(name for name, _ in paths if name != RANDOM):
            keys = ((lever, "up"), (lever, "down"), (RANDOM, "up"))
            if not all(key in paths for key in keys):
                continue
            up, down, random = (paths[key] for key in keys)
            d = min(float(rows["displacement"][path].max()) for path in (up, down, random))
            found.append(
                {
                    "task": task,
                    "optimizer": optimizer,
                    "seed": seed,
                    "lever": lever,
                    "d": d,
                    "up": _at(rows, up, "error", d),
                    "down": _at(rows, down, "error", d),
                    "random": _at(rows, random, "error", d),
                    "log_up": _at(rows, up, lever, d),
                    "log_down": _at(rows, down, lever, d),
                }
            )
    return columns(found)


def _at(rows: Table, path: NDArray[np.intp], column: str, d: float) -> float:
    """A column where a path first reaches a displacement; at the start all changes are 0."""
    along = np.append(0.0, rows["displacement"][path])
    values = np.append(0.0, rows[column][path])
    last = int(np.argmax(along >= d))
    if last == 0:
        return 0.0
    share = (d - along[last - 1]) / (along[last] - along[last - 1])
    return float(values[last - 1] + share * (values[last] - values[last - 1]))


def slopes(at_one: Table, lever: str) -> dict[str, float]:
    """{task: slope of the error along a measure at one displacement}, pp per e-fold.

        mean[(e_up − e_random) − (e_down − e_random)] / mean[log m_up − log m_down]

    What it costs to move at all, whatever the way, is in both errors and cancels.
    """
    found = {}
    for task in np.unique(at_one["task"]):
        of = subset(at_one, (at_one["task"] == task) & (at_one["lever"] == lever))
        if length(of):
            rise = (of["up"] - of["random"]).mean() - (of["down"] - of["random"]).mean()
            found[str(task)] = float(rise / (of["log_up"] - of["log_down"]).mean())
    return found


def _spared(at_one: Table) -> float:
    """1 pp less the greatest change of the error by a factor of ten of λ₁ or the trace."""
    each = [slope for lever in FLATNESS for slope in slopes(at_one, lever).values()]
    return POINT - FARTHEST * max(map(abs, each), default=math.nan)


def mean_slope(lever: str) -> Callable[[Table], float]:
    """Mean over the tasks of the slope along a measure, pp per e-fold."""
    return lambda at_one: float(np.mean(list(slopes(at_one, lever).values())))


def ends(rows: Table) -> Table:
    """The last look of each path."""
    last = [path[-1] for paths in _by_run(rows).values() for path in paths.values()] if rows else []
    return {name: values[np.array(last, dtype=int)] for name, values in rows.items()}


def dissociation(at_end: Table) -> float:
    """Greatest over tasks, levers and ways of min(fall of the error/1 pp, rise of ln λ₁/.2 nat).

    Of means over runs at the ends of the paths; pulling λ₁ or the trace itself does not count.
    """
    found = [
        min(-error / POINT, rise / NAT)
        for (_, lever, _), (error, rise) in _means(at_end, ("error", "sharpness")).items()
        if lever not in (*FLATNESS, RANDOM)
    ]
    return max(found, default=math.nan)


def _means(rows: Table, names: Sequence[str]) -> dict[tuple[str, str, str], list[float]]:
    """{(task, lever, way): mean of some columns}."""
    keys = [np.asarray(rows[name]).astype(str) for name in ("task", "lever", "way")]
    found: dict[tuple[str, str, str], list[float]] = {}
    for task, lever, way in sorted({*zip(*(k.tolist() for k in keys), strict=True)}):
        mask = (keys[0] == task) & (keys[1] == lever) & (keys[2] == way)
        found[task, lever, way] = [float(rows[name][mask].mean()) for name in names]
    return found


def responses(at_end: Table, levers: Sequence[str]) -> dict[str, dict[str, float]]:
    """{pull: {measure: mean over tasks of its change at the end, in nats}}, and of the error."""
    names = [*levers, "error"]
    by_task = _means(at_end, names)
    found = {}
    for lever, way in [*product(levers, WAYS), (RANDOM, "up")]:
        each = [means for (_, *pull), means in by_task.items() if pull == [lever, way]]
        label = RANDOM if lever == RANDOM else f"{lever} {way}"
        found[label] = dict(zip(names, np.mean(each, axis=0).tolist(), strict=True))
    return found


def slope_panels(at_one: Table, level: float) -> dict[str, list[tuple[str, Interval]]]:
    """{task: [(lever, slope with its interval), …]}."""
    panels: dict[str, list[tuple[str, Interval]]] = {}
    for lever in map(str, np.unique(at_one["lever"])):
        for task in slopes(at_one, lever):

            def slope(t: Table, lever: str = lever, task: str = task) -> float:
                return slopes(t, lever)[task]

            of_task = subset(at_one, at_one["task"] == task)
            panels.setdefault(task, []).append(
                (lever.replace("_", " "), interval_of(of_task, slope, level, DRAWS))
            )
    return panels


def net_panels(at_one: Table, level: float) -> dict[str, list[tuple[str, Interval]]]:
    """{task: [(lever and way, its error less that of the random path), …]}, at d*."""
    panels: dict[str, list[tuple[str, Interval]]] = {}
    for task, lever in product(*(map(str, np.unique(at_one[n])) for n in ("task", "lever"))):
        of = subset(at_one, (at_one["task"] == task) & (at_one["lever"] == lever))
        for way in WAYS if length(of) else ():

            def less_random(t: Table, way: str = way) -> float:
                return float((t[way] - t["random"]).mean())

            label = f"{lever.replace('_', ' ')} {way}"
            panels.setdefault(task, []).append((label, interval_of(of, less_random, level, DRAWS)))
    return panels


def told_slopes(at_one: Table, levers: Sequence[str]) -> str:
    """Say the means that the slopes along some levers are made of, by task."""
    told = []
    for lever in levers:
        for task, slope in slopes(at_one, lever).items():
            of = subset(at_one, (at_one["task"] == task) & (at_one["lever"] == lever))
            d, up, down, random, log_up, log_down = (
                float(of[name].mean())
                for name in ("d", "up", "down", "random", "log_up", "log_down")
            )
            told.append(
                f"{lever} on {task} at displacement {d:.3f}: up {up:+.2f} pp for {log_up:+.2f}, "
                f"down {down:+.2f} pp for {log_down:+.2f}, random {random:+.2f} pp, slope "
                f"{slope:+.2f}"
            )
    return "Means, in pp and nats: " + "; ".join(told) + "."


def _told_ends(at_end: Table) -> str:
    told = [
        f"{lever} {way} on {task}: error {error:+.2f} pp, ln λ₁ {rise:+.2f}"
        for (task, lever, way), (error, rise) in _means(at_end, ("error", "sharpness")).items()
        if lever not in (*FLATNESS, RANDOM)
    ]
    return "At the paths' ends: " + "; ".join(told) + "."


MOVES: Mapping[str, Mapping[str, float]] = {
    "sharpness": {"trace": 0.6, FUNCTION: 0.05},
    "trace": {"sharpness": 0.7, FUNCTION: 0.05},
    FUNCTION: {"sharpness": -0.6, "trace": -0.3},
}
"""Planted responses: nats of the column by a nat of the row; others do not move each other."""


@dataclass(frozen=True)
class World:
    """A planted test function.

    Attributes:
        effects: {measure: change of the error by a nat of it, in pp}.
        cost: Change of the error by displacement, whatever the way, in pp.
        random: Factor of the cost on the random path.
    """

    effects: Mapping[str, float] = field(default_factory=dict)
    cost: float = 0.0
    random: float = 1.0


WORLDS = {
    "flatness": World({"sharpness": 1.5}, cost=5),
    "function": World({FUNCTION: 2.0}, cost=5),
    "nothing": World(),
    "displacement": World(cost=40, random=2),
}
"""A factor of ten of λ₁ costs 3.5 pp in the first; in the last only a comparison at one
displacement is not fooled."""


def plant(
    rng: np.random.Generator,
    world: World,
    grid: Mapping[str, Any],
    moves: Mapping[str, Mapping[str, float]] = MOVES,
) -> Table:
    """A simulated table: paths of five looks, the pull up three times as far as that down.

    Args:
        rng: What it is drawn with.
        world: The test function.
        grid: A size of the declaration: tasks, optimizers, levers, seeds.
        moves: Responses of measures to pulls; see `MOVES`.
    """
    found: list[dict[str, Any]] = []
    levers = grid["levers"]
    runs = range(1, grid["seeds"] + 1)
    for task, optimizer, run in product(grid["tasks"], grid["optimizers"], runs):
        for lever, way in [*product(levers, WAYS), (RANDOM, "up")]:
            far = {"up": 2.0, "down": 0.7}[way] * rng.uniform(0.8, 1.2)
            size = (0.09 if way == "up" else 0.03) * rng.uniform(0.8, 1.2)
            bias = rng.normal(0, 0.3)
            for look in range(1, 6):
                share = look / 5
                logs = {name: rng.normal(0, 0.02) for name in levers}
                if lever != RANDOM:
                    x = WAYS[way] * far * share
                    for name in levers:
                        logs[name] += x * (name == lever or moves.get(lever, {}).get(name, 0.0))
                d = size * share
                error = world.cost * d * (world.random if lever == RANDOM else 1)
                error += sum(slope * logs[name] for name, slope in world.effects.items())
                found.append(
                    {
                        "task": task,
                        "optimizer": optimizer,
                        "seed": float(run),
                        "reached": 1.0,
                        "diverged": 0.0,
                        "lever": lever,
                        "way": way,
                        "displacement": d,
                        "error": error + bias * share + rng.normal(0, 0.1),
                        **logs,
                    }
                )
    return {name: np.asarray([row[name] for row in found]) for name in found[0]}
