"""Where a study of generalization has power: `python -m perf.power`, which writes docs/power.md.

Each task is trained with every configuration at every seed until its training loss is matched.
Two-way analysis of variance, configurations × seeds, of the test error e_cs = μ + c + s + r_cs:
seeds change initial weights and data order, and are shared by all configurations.
"""

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.stats import nct, t

from optbench.boundary.command_line import Command, FilePath, Key
from optbench.boundary.kinds import Count, Positive, Several
from optbench.configuration.build import build
from optbench.configuration.compose import compose_config
from optbench.probes.generalization import evaluate, evaluating
from optbench.run.loop import Experiment
from optbench.task import Split

ROOT = Path(__file__).resolve().parent.parent
PAGE, RUNS = ROOT / "docs" / "power.md", ROOT / "perf" / "power.json"
CHECK_EVERY = 25  # steps between looks at the training loss
RESOLVED_SEEDS, LEVEL, POWER = 10, 0.05, 0.8

RATES = {  # key of the learning rate, and its values
    "sgd": ("optimizer.lr", (0.2, 0.4, 0.8)),
    "momentum": ("optimizer.lr", (0.03, 0.06, 0.1)),
    "adam": ("optimizer.lr", (2e-3, 5e-3, 1e-2)),
    "muon": ("optimizer.matrices.lr", (5e-3, 1e-2, 2e-2)),
    "sam": ("optimizer.base.lr", (0.2, 0.4, 0.8)),
    "signum": ("optimizer.lr", (5e-4, 1e-3, 2e-3)),
}


@dataclass(frozen=True)
class Data:
    """A task of the table: its overrides, and the two batch sizes."""

    overrides: tuple[str, ...]
    batch_sizes: tuple[int, int]


DATA = {
    "MNIST-1D, n=1000, one layer of 100 relus": Data(
        ("task=mnist1d", "model.widths=[100]"), (32, 128)
    ),
    "digits, n=100, two layers of 64 tanhs": Data(
        ("task=digits_small", "task.train_size=100"), (10, 50)
    ),
    "parity of 2 of 20, n=120, one layer of 128 relus": Data(("task=parity",), (10, 40)),
}


@dataclass(frozen=True)
class Settings:
    """Measure the variance of test errors over seeds and configurations; write docs/power.md."""

    seeds: Annotated[Several, Key("seeds of each configuration")] = 3
    target: Annotated[Positive, Key("training loss at which a run stops, cross-entropy")] = 0.02
    steps: Annotated[Count, Key("steps after which a run stops all the same")] = 6000
    page: Annotated[FilePath, Key("page to write", placeholder="FILE")] = PAGE
    runs: Annotated[FilePath, Key("file of the runs to write", placeholder="FILE")] = RUNS


COMMAND = Command("perf.power", Settings, examples=("", "seeds=10"))


@dataclass(frozen=True)
class Run:
    """How a run ended.

    Attributes:
        data: Name of the task in the table.
        configuration: Overrides of the run, but for the seed.
        seed: Its seed.
        steps: Updates that it took.
        loss: Training loss at the end.
        error: Test error at the end.
    """

    data: str
    configuration: str
    seed: int
    steps: int
    loss: float
    error: float


@dataclass(frozen=True)
class Spread:
    """Variance of the test error of one task, in shares of examples.

    Attributes:
        arrived: Share of the runs that reached the target loss.
        configurations: Configurations all of whose seeds did; the rest of the columns is of these.
        lowest, highest: Mean errors of configurations.
        seeds: √(mean over configurations of the variance over seeds).
        between: √(variance of configuration effects), the method-of-moments estimate.
        paired: √(variance of a difference at one seed) = √(2 · residual mean square).
        degrees: Degrees of freedom of that mean square, (C − 1)(S − 1).
    """

    arrived: float
    configurations: int
    lowest: float
    highest: float
    seeds: float
    between: float
    paired: float
    degrees: int

    @property
    def share(self) -> float:
        """Share of the variance of a run's error that is between configurations."""
        return self.between**2 / (self.between**2 + self.seeds**2)

    @property
    def resolved(self) -> float:
        """Smallest difference of two configurations that RESOLVED_SEEDS seeds resolve."""
        return self.paired * smallest_effect(RESOLVED_SEEDS)


def main() -> None:
    """Measure, and write the page."""
    COMMAND.run(measure)


def measure(settings: Settings) -> int:
    """Train everything, write both files, and return the exit code."""
    torch.set_num_threads(1)
    runs = []
    for name, data in DATA.items():
        for configuration in configurations(data):
            print(name, *configuration, file=sys.stderr, flush=True)
            words = " ".join(configuration)
            for seed in range(1, settings.seeds + 1):
                outcome = train([*data.overrides, *configuration], seed, settings)
                runs.append(Run(name, words, seed, *outcome))
    page = {"target": settings.target, "steps": settings.steps, "seeds": settings.seeds}
    lines = ",\n".join(json.dumps(asdict(run), ensure_ascii=False) for run in runs)
    settings.runs.write_text(f'{{"settings": {json.dumps(page)}, "runs": [\n{lines}\n]}}\n')
    settings.page.write_text(render(settings.runs))
    print(settings.page)
    return 0


def configurations(data: Data) -> Iterator[tuple[str, ...]]:
    """Yield the overrides of every optimizer, learning rate and batch size."""
    for (optimizer, (key, rates)), size in itertools.product(RATES.items(), data.batch_sizes):
        for lr in rates:
            yield f"optimizer={optimizer}", f"{key}={lr:g}", f"batch_size={size}"


def train(overrides: Sequence[str], seed: int, settings: Settings) -> tuple[int, float, float]:
    """Train to the target loss or the last step; return steps, training loss and test error."""
    fixed = ["device=cpu", "probes=none", "schedule=constant", f"steps={settings.steps}"]
    experiment = build(compose_config([*overrides, *fixed, f"seed={seed}"]))
    test = experiment.task.test
    assert test is not None
    experiment.update.model.train()
    step, loss = 0, experiment.initial_loss
    while settings.target < loss < np.inf and step < settings.steps:
        for _ in range(min(CHECK_EVERY, settings.steps - step)):
            experiment.update(*experiment.batches.next())
            step += 1
        loss = _values(experiment, experiment.task.train)["loss"]
    return step, loss, _values(experiment, test)["error"]


def _values(experiment: Experiment, split: Split) -> dict[str, float]:
    update = experiment.update
    with evaluating(update.model, update.optimizer):
        return evaluate(experiment.task, update.model, split, chunk=2500)


def spread(runs: Sequence[Run], target: float) -> Spread:
    """Analyse the runs of one task.

    With C configurations, S seeds and errors e_cs,

        seeds² = Σ_cs (e_cs − ē_c)² / C(S − 1)
        between² = max(0, MS_configurations − MS_residual) / S,  MS_configurations = S Σ_c (ē_c − ē)² / (C − 1)
        MS_residual = Σ_cs (e_cs − ē_c − ē_s + ē)² / (C − 1)(S − 1)
    """
    rows: dict[str, list[Run]] = {}
    for run in runs:
        rows.setdefault(run.configuration, []).append(run)
    kept = [row for row in rows.values() if all(run.loss <= target for run in row)]
    e = np.array([[run.error for run in sorted(row, key=lambda run: run.seed)] for row in kept])
    C, S = e.shape
    of_configuration, of_seed = e.mean(1, keepdims=True), e.mean(0, keepdims=True)
    degrees = (C - 1) * (S - 1)
    residual = np.square(e - of_configuration - of_seed + e.mean()).sum() / degrees
    return Spread(
        arrived=sum(run.loss <= target for run in runs) / len(runs),
        configurations=C,
        lowest=float(of_configuration.min()),
        highest=float(of_configuration.max()),
        seeds=float(e.var(1, ddof=1).mean() ** 0.5),
        between=max(0.0, float(of_configuration.var(ddof=1) - residual / S)) ** 0.5,
        paired=float((2 * residual) ** 0.5),
        degrees=degrees,
    )


def smallest_effect(n: int, level: float = LEVEL, power: float = POWER) -> float:
    """Mean of n differences, in units of their deviation, that a two-sided t test finds.

    The δ with P(T > t_{1−level/2, n−1}) = power for T ~ noncentral t(n − 1, δ√n): a finding of the
    wrong sign does not count.
    """
    bound = t.ppf(1 - level / 2, n - 1)

    def excess(noncentrality: float) -> float:
        return float(nct.sf(bound, n - 1, noncentrality)) - power

    return float(brentq(excess, 0, 3 * bound)) / float(n**0.5)


HEAD = """# Power

Made by `python -m perf.power seeds={seeds} target={target:g} steps={steps}`, which trains, and writes `perf/power.json` and
this page; do not edit by hand.

How much do test errors differ over seeds (initial weights and data order; the data are fixed), and how much over
configurations ({optimizers}; each with three learning rates and two batch sizes)? A run
stops at a training cross-entropy of {target:g}, or after {steps:,} steps; **arrived** is the share that reached that loss. The
other columns are of the configurations all of whose seeds did.

- **sd over seeds**: of the test error within a configuration, in percentage points (pp).
- **sd over configurations**: of their effects, the sampling error of {seeds} seeds taken out.
- **between**: share of the variance of a run's error that is between configurations.
- **10 seeds resolve**: smallest difference of two configurations that a paired t test (two-sided, 5 %) finds with power
  80 %: {ten:.3f} sd of the differences, ± its standard error. With 20 seeds it is {twenty:.0f} % of that, with 5 seeds {five:.0f} %.

| data and model | test error | sd over seeds | sd over configurations | between | 10 seeds resolve | arrived | configurations |
|---|---|---|---|---|---|---|---|
"""


def render(file: Path = RUNS) -> str:
    """Return the page that says what the runs in a file come to."""
    record = json.loads(file.read_text())
    settings, runs = record["settings"], [Run(**run) for run in record["runs"]]
    ten, twenty, five = (smallest_effect(n) for n in (RESOLVED_SEEDS, 20, 5))
    head = HEAD.format(
        **settings,
        optimizers=", ".join(RATES),
        ten=ten,
        twenty=100 * twenty / ten,
        five=100 * five / ten,
    )
    names = dict.fromkeys(run.data for run in runs)
    rows = [
        _row(name, [run for run in runs if run.data == name], settings["target"]) for name in names
    ]
    return head + "".join(rows)


def _row(name: str, runs: Sequence[Run], target: float) -> str:
    of_task = spread(runs, target)
    relative_error = (2 * of_task.degrees) ** -0.5
    cells = [
        name,
        f"{100 * of_task.lowest:.1f} to {100 * of_task.highest:.1f} %",
        f"{100 * of_task.seeds:.2f} pp",
        f"{100 * of_task.between:.2f} pp",
        f"{of_task.share:.2f}",
        f"{100 * of_task.resolved:.2f} ± {100 * relative_error * of_task.resolved:.2f} pp",
        f"{100 * of_task.arrived:.0f} %",
        f"{of_task.configurations} of {len({run.configuration for run in runs})}",
    ]
    return "| " + " | ".join(cells) + " |\n"


if __name__ == "__main__":
    main()
