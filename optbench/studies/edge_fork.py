"""What does training above the edge do to the loss of groups, and to features, at equal loss?

A run of gradient descent below its edge is forked at three times, see `edge_fork_runs`. The forks
are compared at one training loss, and at one Σηt.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optbench import lab
from optbench.intervals import Interval
from optbench.lab import per_example
from optbench.lab.flat_model import FlatModel, losses
from optbench.lab.measures import definitions
from optbench.lab.point import Point
from optbench.lab.similarity import feature_distance, outer_product_distance
from optbench.statistics import partial_rank_correlation
from optbench.studies import edge_fork_runs as forks
from optbench.studies.figures import draw_forest
from optbench.studies.frame import (
    REFUTED,
    SUPPORTED,
    Cell,
    Declaration,
    Finding,
    Hypothesis,
    Size,
    Table,
    columns,
    length,
    rounded,
    subset,
)
from optbench.studies.judging import UNKNOWN, interval_of, judged, mean_of_values
from optbench.studies.measured_once import measured_once

ARMS = ("below", "near", "above", "random", "pushed", "minibatch")
BATCH = 32
"""Examples of an update of the arm minibatch."""
MATCHED = 0.01
"""Largest difference in log training loss between two forks that count as equal."""
DRAWS = 500
NOTHING = dict.fromkeys(
    (
        "classes_digits",
        "classes_mnist1d",
        "examples",
        "features",
        "error_digits",
        "error_mnist1d",
        "tasks_differ",
    ),
    REFUTED,
)
"""What is right where the arm above does nothing at equal loss."""
Value = Callable[[Mapping[str, Mapping[str, float]]], float]
"""From {arm: its columns} of one fork to a number."""


class EdgeFork:
    """Forks below, near and above the edge, with a random arm of the same displacement.

    Args:
        declaration: What is declared; `sizes` has tasks, seeds and marks.
        tasks: {name: overrides of the trunk}.
        common: Overrides of all trunks.
        times: {name: step at which the trunk is forked}.
        shares: η over 2/λ₁ of the arms below, near and above.
    """

    worlds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "shift": {
            **dict.fromkeys(("classes_digits", "classes_mnist1d", "examples"), SUPPORTED),
            "features": SUPPORTED,
            **dict.fromkeys(("error_digits", "error_mnist1d", "tasks_differ"), REFUTED),
        },
        "nothing": NOTHING,
        "any displacement": NOTHING,
        "unmatched loss": NOTHING,
        # pooled over tasks nothing would be seen
        "opposite signs": {
            **NOTHING,
            "error_digits": SUPPORTED,
            "error_at_equal_time_digits": SUPPORTED,
            "tasks_differ": SUPPORTED,
        },
    }

    def __init__(
        self,
        declaration: Declaration,
        tasks: Mapping[str, Sequence[str]],
        common: Sequence[str],
        times: Mapping[str, int],
        shares: Mapping[str, float],
    ) -> None:
        self.declaration = declaration
        self.tasks, self.common = tasks, common
        self.times, self.shares = times, shares

    def plan(self, size: Size) -> list[Cell]:
        """The trunks of a size."""
        grid = self.declaration.sizes[size]
        steps = sorted(self.times.values())
        cells = []
        for task, seed in product(grid["tasks"], range(grid["first_seed"], grid["last_seed"] + 1)):
            command = (
                *self.tasks[task],
                *self.common,
                f"seed={seed}",
                f"steps={steps[-1]}",
                f"keep_steps=[{','.join(map(str, steps))}]",
            )
            factors = {"task": task, "seed": seed, "marks": grid["marks"]}
            cells.append(Cell(factors, command))
        return cells

    def read(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """Rows of a trunk: fork times x arms x {equal loss, equal time}."""
        marks = int(cell.factors["marks"])
        content = [marks, dict(self.times), dict(self.shares), definitions(), _source()]
        found = measured_once(
            folder, "edge-fork", content, lambda: {"rows": self._rows(folder, marks)}
        )
        factors = {name: cell.factors[name] for name in ("task", "seed")}
        return [factors | row for row in found["rows"]]

    def _rows(self, folder: Path, marks: int) -> list[dict[str, Any]]:
        run = lab.open(folder)
        if run.status != "done":
            return [{"time": name, "match": "loss", "arm": "above", "diverged": 1.0}
                    for name in self.times]  # fmt: skip
        rows = []
        for name, step in self.times.items():
            found = fork_once(run.at(step=step).point(), self.shares, marks, int(run.config.seed))
            rows += [{"time": name} | row for row in found]
        return rows

    def judge(self, table: Table) -> list[Finding]:
        """Apply the declared rules."""
        return [self._finding(h, table) for h in self.declaration.hypotheses]

    def _finding(self, hypothesis: Hypothesis, table: Table) -> Finding:
        name, task = of_task(hypothesis.name, self.tasks)
        match, value = STATISTICS[name]
        rows, all_forks = effects(of(table, task), match, value)
        why = ""
        if length(rows) < all_forks:
            why = f"Of {all_forks} forks {all_forks - length(rows)} could not be compared."
        if 2 * length(rows) < all_forks or len(np.unique(rows.get("seed", []))) < 3:
            return judged(hypothesis, UNKNOWN, length(rows), why)
        by_task = "; ".join(
            f"{task} {part.value:+.2f} [{part.low:+.2f}, {part.high:+.2f}]"
            for task, part in _by_task(rows, self.declaration.level)
        )
        level = self.declaration.level
        if name == DIFFER:
            estimate = interval_of(rows, digits_less_mnist1d, level, DRAWS, least=3)
        else:
            estimate = mean_of_values(rows, level, DRAWS)
        said = f"{why} {by_task}." if task is None else why
        return judged(hypothesis, estimate, length(rows), said.strip())

    def planted(self, world: str, seed: int) -> Table:
        """A simulated table of a world."""
        return _planted(world, seed)

    def draw(self, table: Table, findings: Sequence[Finding], folder: Path) -> Iterator[str]:
        """Draw what the arms do to the loss of examples, to features and to the error."""
        for name, (titles, unit, sesoi) in FIGURES.items():
            panels = {}
            for title, hypothesis in titles.items():
                match, value = STATISTICS[hypothesis]
                panels[title] = list(_by_cell(table, match, value, self.declaration.level))
            if any(panels.values()):
                yield draw_forest(panels, unit, folder / name, sesoi)


FIGURES: Mapping[str, tuple[Mapping[str, str], str, float]] = {
    "groups": (
        {
            "classes: above − random": "classes",
            "examples: above − random": "examples",
            "classes: pushed along u₁ − random": "pushed",
        },
        "difference of partial rank correlation",
        0.15,
    ),
    "features": ({"1 − CKA": "features", "1 − cos AGOP": "sensitive_inputs"}, "nat", 0.2),
    "error": (
        {"at equal loss": "error", "at equal Σηt": "error_at_equal_time"},
        "test error above − below the edge, pp",
        1.0,
    ),
}


def fork_once(
    point: Point, shares: Mapping[str, float], marks: int, seed: int
) -> list[dict[str, Any]]:
    """Walk all arms from a point, and compare each with the arm below.

    Args:
        point: The trunk at the time of the fork.
        shares: η over 2/λ₁ of the arms below, near and above.
        marks: Updates of the arm above; the others walk as far in Σηt.
        seed: Seed of the random direction.
    """
    start = FlatModel(point.model, point.task.loss, point.train)
    sharpness = float(point.top.values[0])
    u = point.top.vectors[:, 0].to(start.weights)
    first = start.loss_at(start.weights)
    edge = 2 / sharpness
    horizon = marks * shares["above"] * edge
    facts = {"sharpness_at_fork": sharpness, "loss_at_fork": first, "horizon": horizon}
    paths: dict[str, forks.Path] = {}
    for arm in ("above", "near", "below"):
        steps = round(marks * shares["above"] / shares[arm])
        paths[arm] = forks.walk(start, shares[arm] * edge, steps, marks)
    if any(path.diverged for path in paths.values()):
        arms = {arm: float(path.diverged) for arm, path in paths.items()}
        return [
            rounded({"arm": arm, "match": "loss", "diverged": flag} | facts)
            for arm, flag in arms.items()
        ]
    steps = round(marks * shares["above"] / shares["below"])
    batches = forks.drawn_batches(len(point.train), BATCH, seed)
    paths["minibatch"] = forks.walk(start, shares["below"] * edge, steps, marks, None, batches)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(len(u), generator=generator).to(u)
    for arm, direction in (("random", drawn / drawn.norm()), ("pushed", u)):
        kick = forks.amplitude(paths["above"], horizon, direction)
        paths[arm] = forks.walk(start, shares["below"] * edge, steps, marks, kick)
    alive = {arm: path for arm, path in paths.items() if not path.diverged}
    loss = forks.common_loss(first, list(alive.values()))
    groups = Groups(point, u)
    rows: list[dict[str, Any]] = []
    for match in ("loss", "time"):
        places = {}
        for arm, path in alive.items():
            if match == "time":
                places[arm] = path.weights[-1]
            elif loss is not None:
                found = forks.first_at(start, path, loss)
                if found is not None:
                    places[arm] = found
        rows += [facts | {"match": match} | row for row in _compare(start, point, places, groups)]
    return [rounded(row) for row in rows]


class Groups:
    """Training examples by the alignment of their gradients with u₁, where the trunk was forked.

    Groups are the examples themselves, and the classes. What is held is the size of the group's
    gradient, and for examples their loss: one of a large gradient moves more anyhow.

    Args:
        point: The trunk at the fork.
        u: u₁, (P,).
    """

    def __init__(self, point: Point, u: Tensor) -> None:
        direction = u.double()
        classes = point.classes()
        sums = torch.zeros(int(classes.max()) + 1, len(u), dtype=torch.float64)
        along, sizes = list[Tensor](), list[Tensor]()
        with point.reading() as model:
            data = point.train
            each = losses(model, point.task.loss, data)
            for rows in per_example.gradients(model, point.task.loss, data.inputs, data.targets):
                seen = sum(map(len, along))
                sums.index_add_(0, classes[seen : seen + len(rows)], rows.double())
                along.append((rows.double() @ direction).abs())
                sizes.append(rows.double().norm(dim=1))
        self._classes = classes.numpy()
        self._counts = np.bincount(self._classes)
        self._along = torch.cat(along).numpy()
        self._held = {"gradient": torch.cat(sizes).numpy(), "loss": each.double().numpy()}
        self._class_along = (sums @ direction).abs().numpy() / self._counts
        self._class_held = {"gradient": sums.norm(dim=1).numpy() / self._counts}

    def by_example(self, change: NDArray[np.float64]) -> float:
        """Partial rank correlation of Δℓ_i with |g_iᵀu₁|, given ‖g_i‖ and ℓ_i."""
        return partial_rank_correlation(self._along, change, self._held).value

    def by_class(self, change: NDArray[np.float64]) -> float:
        """Partial rank correlation over classes of the mean Δℓ with |ḡᵀu₁|, given ‖ḡ‖."""
        means = np.bincount(self._classes, change) / self._counts
        return partial_rank_correlation(self._class_along, means, self._class_held).value


def _compare(
    start: FlatModel, point: Point, places: Mapping[str, Tensor], groups: Groups
) -> Iterator[dict[str, Any]]:
    """One row an arm; what has to do with the arm below is absent where that arm is."""
    seen = {arm: _seen(start, point, weights) for arm, weights in places.items()}
    for arm, (here, each) in seen.items():
        outputs = start.weights.new_zeros(0) if here.test is None else _outputs(here)
        row = {
            "arm": arm,
            "diverged": 0.0,
            "loss": float(each.mean()),
            "error": 100 * float(point.task.error(outputs, here.test.targets)),  # type: ignore[misc, union-attr]
            "sharpness": float(here.top.values[0]),
            "displacement": float((places[arm] - start.weights).norm()),
            "rank": lab.measure(here, "effective_rank")["effective_rank"].value,
        }
        if arm != "below" and "below" in seen:
            base, base_losses = seen["below"]
            change = (each - base_losses).double().numpy()
            row |= {
                "correlation": groups.by_example(change),
                "class_correlation": groups.by_class(change),
                "moved_loss": float(np.abs(change).mean()),
                "features": feature_distance(here, base),
                "sensitive": outer_product_distance(here, base),
            }
        yield row


def _outputs(point: Point) -> Tensor:
    with point.reading() as model:
        return per_example.outputs(model, point.held_out().inputs)


def _seen(start: FlatModel, point: Point, weights: Tensor) -> tuple[Point, Tensor]:
    """A point at these weights, and the loss of each training example."""
    kept = start.weights.clone()
    start.weights.copy_(weights)
    model = copy.deepcopy(start.model)
    start.weights.copy_(kept)
    here = Point(model, point.task, test_examples=None, seed=point.seed)
    return here, losses(model, point.task.loss, point.train)


def _source() -> str:
    files = (Path(__file__), Path(forks.__file__))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan


def _beyond(column: str) -> Value:
    """How much farther the arm above is from that below than the controls are, in nat."""

    def value(arms: Mapping[str, Mapping[str, float]]) -> float:
        controls = max(arms[arm][column] for arm in ("near", "random", "minibatch"))
        return _log(arms["above"][column]) - _log(controls)

    return value


def _difference(column: str, arm: str, other: str) -> Value:
    return lambda arms: arms[arm][column] - arms[other][column]


DIFFER = "tasks_differ"

STATISTICS: Mapping[str, tuple[str, Value]] = {
    "classes": ("loss", _difference("class_correlation", "above", "random")),
    "examples": ("loss", _difference("correlation", "above", "random")),
    "features": ("loss", _beyond("features")),
    "error": ("loss", _difference("error", "above", "below")),
    "pushed": ("loss", _difference("class_correlation", "pushed", "random")),
    "sensitive_inputs": ("loss", _beyond("sensitive")),
    "rank": ("loss", lambda a: _log(a["above"]["rank"]) - _log(a["below"]["rank"])),
    "error_at_equal_time": ("time", _difference("error", "above", "below")),
    DIFFER: ("time", _difference("error", "above", "below")),
}
"""{hypothesis, without the task that it is of: (what is equal, statistic of one fork)}."""


def of_task(name: str, tasks: Iterable[str]) -> tuple[str, str | None]:
    """Return the statistic of a hypothesis and its task: error_digits is error, on digits.

    One without a task is of all tasks together.
    """
    for task in tasks:
        if name.endswith(f"_{task}"):
            return name.removesuffix(f"_{task}"), task
    return name, None


def of(table: Table, task: str | None) -> Table:
    """The rows of a task; all of them for None."""
    return table if task is None or not table else subset(table, table["task"] == task)


def digits_less_mnist1d(rows: Table) -> float:
    """Mean over the forks on digits less that on MNIST-1D; NaN where one of them has none."""
    means = [of(rows, task)["value"] for task in ("digits", "mnist1d")]
    return float(means[0].mean() - means[1].mean()) if all(map(len, means)) else math.nan


def effects(table: Table, match: str, value: Value) -> tuple[Table, int]:
    """Return the statistic of each fork that can be compared, and the number of all forks.

    At equal loss, all arms that the statistic may use must have the loss of the arm below, to 1 %.
    """
    by_fork: dict[tuple[str, float, str], dict[str, dict[str, float]]] = {}
    numbers = [n for n, v in table.items() if v.dtype.kind == "f" and n != "seed"]
    for i in range(length(table)):
        key = (str(table["task"][i]), float(table["seed"][i]), str(table["time"][i]))
        arms = by_fork.setdefault(key, {})
        if table["match"][i] == match and not table["diverged"][i] > 0:
            arms[str(table["arm"][i])] = {n: float(table[n][i]) for n in numbers}
    rows = []
    for (task, seed, time), arms in by_fork.items():
        if set(arms) < set(ARMS) or (match == "loss" and not _equal(arms)):
            continue
        found = value(arms)
        if math.isfinite(found):
            rows.append({"task": task, "seed": seed, "time": time, "value": found})
    return columns(rows), len(by_fork)


def _equal(arms: Mapping[str, Mapping[str, float]]) -> bool:
    base = _log(arms["below"]["loss"])
    return all(abs(_log(arm["loss"]) - base) <= MATCHED for arm in arms.values())


def _by_task(rows: Table, level: float) -> Iterator[tuple[str, Interval]]:
    for task in np.unique(rows["task"]):
        part = subset(rows, rows["task"] == task)
        if len(np.unique(part["seed"])) > 2:
            yield str(task), mean_of_values(part, level, DRAWS)


def _by_cell(
    table: Table, match: str, value: Value, level: float
) -> Iterator[tuple[str, Interval]]:
    rows, _ = effects(table, match, value)
    for task in np.unique(rows.get("task", [])):
        for time in dict.fromkeys(map(str, table["time"])):
            part = subset(rows, (rows["task"] == task) & (rows["time"] == time))
            if len(np.unique(part["seed"])) > 2:
                yield f"{task}, {time}", mean_of_values(part, level, DRAWS)


def _planted(world: str, seed: int) -> Table:
    """Tables of 2 tasks x 10 seeds x 3 times, all arms.

    - shift: the arm above moves the loss toward aligned groups, and its features away.
    - nothing: no arm does more than another.
    - any displacement: a kick in a random direction does as much as the oscillation.
    - unmatched loss: nothing happens; in a third of the forks the loss was not met by the arm
      above, which moves groups, features and error there.
    - opposite signs: the arm above raises the error by 3 pp on one task and lowers it by as much on
      the other.
    """
    rng = np.random.default_rng([seed, list(EdgeFork.worlds).index(world)])
    rows = []
    for task, of, time in product(("digits", "mnist1d"), range(1, 11), ("early", "middle", "late")):
        missed = world == "unmatched loss" and rng.random() < 1 / 3
        off = 4.0 * missed
        if world == "opposite signs":
            off = 3.0 if task == "digits" else -3.0
        for arm, match in product(ARMS, ("loss", "time")):
            alone = arm in ("above", "pushed") and (world == "shift" or missed)
            moved = alone or (world == "any displacement" and arm not in ("below", "near"))
            rows.append(
                {
                    "task": task,
                    "seed": of,
                    "time": time,
                    "arm": arm,
                    "match": match,
                    "diverged": 0.0,
                    "loss": 0.1 * (1.3 if missed and arm == "above" else 1.0),
                    "error": 10 + rng.normal(0, 0.5) + (off if arm == "above" else 0),
                    "rank": 5 * math.exp(rng.normal(0, 0.05)),
                    "correlation": 0.5 * moved + rng.normal(0, 0.15),
                    "class_correlation": 0.5 * moved + rng.normal(0, 0.3),
                    "features": 0.01 * math.exp(1.2 * moved + rng.normal(0, 0.2)),
                    "sensitive": 0.01 * math.exp(1.2 * moved + rng.normal(0, 0.2)),
                }
            )
    return columns(rows)
