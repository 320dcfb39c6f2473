"""`python -m optbench.tune suite=smoke optimizer=adam,sgd`: tune by a suite's protocol.

Every optimizer gets the same number of scrambled-Sobol points of its own search space on every
task, the best by validation is run anew with fresh seeds, and the held-out task is run at the point
with the best mean rank on the others. What has run is found and not run again: give the same
command to go on. Given twice at once, on one results folder, the two share the runs.
"""

import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from optbench.boundary.command_line import Command, FilePath, Key, Names
from optbench.boundary.kinds import Count, Device
from optbench.boundary.overrides import quoted
from optbench.errors import UserError
from optbench.launch.engines import LOCAL, EngineName, EngineSettings, RunSeconds, make_launcher
from optbench.launch.index import INDEX
from optbench.launch.launcher import RUN_SECONDS, Order
from optbench.launch.runs import Runs
from optbench.protocol.points import search_spaces, sobol_points
from optbench.protocol.selection_rule import select
from optbench.protocol.suite import FINAL, TUNE, Suite, read_suite

Points = Sequence[Sequence[str]]  # of an optimizer: the overrides of each


@dataclass(frozen=True)
class Place:
    """One run of the protocol."""

    suite: Suite
    task: str
    optimizer: str
    phase: str
    point: int
    seed: int

    def overrides(self, point: Sequence[str]) -> list[str]:
        """The main job's overrides: the protocol's, and how to mirror the run in W&B."""
        suite = self.suite
        tags = ",".join(quoted(tag) for tag in (suite.label, self.task, self.optimizer))
        return [
            *suite.command(self.optimizer, self.task, self.phase, self.point, point, self.seed),
            "picture=false",
            f"wandb.group={quoted(f'{suite.label}-{self.optimizer}')}",
            f"wandb.job_type={self.phase}",
            f"wandb.tags=[{tags}]",
        ]


@dataclass(frozen=True)
class Tuner:
    """Runs optimizers through one suite.

    Attributes:
        suite: The protocol.
        runs: Runs that have been made, and what makes more.
        together: Whether all optimizers are tuned at once, for an engine that has room for them.
            One after the other, a part of the board is whole early.
    """

    suite: Suite
    runs: Runs
    together: bool = False

    def run(self, optimizers: Mapping[str, Points]) -> None:
        """Make the runs that are missing of the protocol, for each optimizer with its points."""
        groups = [optimizers] if self.together else [{name: p} for name, p in optimizers.items()]
        with self.runs:
            for group in groups:
                names = f"{len(group)} optimizers" if len(group) > 1 else "".join(group)
                for phase, plan in ((TUNE, self._tuning), (FINAL, self._finals)):
                    tasks = {
                        tuple(place.overrides(points[place.point])): place.task
                        for optimizer, points in group.items()
                        for place in plan(optimizer, points)
                    }
                    commands = [list(command) for command in tasks]
                    self.runs.make(f"{names} {phase}", commands, _kind(tasks))

    def _tuning(self, optimizer: str, points: Points) -> list[Place]:
        return [
            Place(self.suite, task, optimizer, TUNE, point, seed)
            for task in self.suite.tuned
            for point in range(len(points))
            for seed in self.suite.tuning_seeds
        ]

    def _finals(self, optimizer: str, points: Points) -> list[Place]:
        """The selected point of every task; a task has none if a run of it failed."""
        return [
            Place(self.suite, task, optimizer, FINAL, point, seed)
            for task, point in self._select(optimizer, points).items()
            for seed in self.suite.final_seeds
        ]

    def _select(self, optimizer: str, points: Points) -> dict[str, int]:
        values = {task: self._validation(task, optimizer, points) for task in self.suite.tuned}
        whole = {
            task: [v for v in column if v is not None]
            for task, column in values.items()
            if None not in column
        }
        chosen = select(whole, self.suite.held_out) if whole else {}
        # the held-out task waits until all that selects for it is known
        if len(whole) < len(values):
            chosen.pop(self.suite.held_out, None)
        return chosen

    def _validation(self, task: str, optimizer: str, points: Points) -> list[float | None]:
        """The value that selects at each point: its mean over the tuning seeds.

        It is infinite if a run diverged, None if one is missing.
        """
        means: list[float | None] = []
        for i, point in enumerate(points):
            values = []
            for seed in self.suite.tuning_seeds:
                place = Place(self.suite, task, optimizer, TUNE, i, seed)
                summary = self.runs.summary(place.overrides(point))
                values.append(None if summary is None else self._value(summary, task))
            known = [value for value in values if value is not None]
            means.append(math.fsum(known) / len(known) if len(known) == len(values) else None)
        return means

    def _value(self, summary: Mapping[str, Any], task: str) -> float:
        if summary["status"] == "diverged":
            return math.inf
        metric = self.suite.tasks[task].select
        if metric not in summary["last"]:
            raise UserError(
                f"suite {self.suite.name}: tasks.{task}.select is {metric}, which its runs do not "
                "record"
            )
        return float(summary["last"][metric])


def _kind(tasks: Mapping[tuple[str, ...], str]) -> Callable[[Sequence[str]], str]:
    """Return the function from a command to its task, by which the costs of runs differ."""
    return lambda command: tasks.get(tuple(command), "")


@dataclass(frozen=True)
class Settings:
    """Put optimizers through a suite's protocol: tune each, then run the best with fresh seeds.

    Every optimizer gets the same number of points of its search space on every task. A run that has
    finished is not made again: the same command goes on where an earlier one was stopped.
    """

    suite: Annotated[
        str,
        Key(
            "the protocol: smoke (minutes on 2 cores), small (under an hour), full (a GPU), or a "
            "path to a .yaml"
        ),
    ] = "smoke"
    optimizer: Annotated[
        Names, Key("entries of conf/optimizer; all: every one that has a search space")
    ] = ("all",)
    results_dir: Annotated[FilePath, Key("folder of the run folders")] = Path("results")
    jobs: Annotated[
        Count | None,
        Key(
            "runs at a time, cores/N threads each; without it as many as cores, on a GPU at most "
            "4, on a cluster as it has room",
            placeholder="N",
        ),
    ] = None
    device: Annotated[Device, Key("where the runs compute")] = "cpu"
    launcher: EngineName = LOCAL
    launcher_settings: EngineSettings = ()
    run_seconds: RunSeconds = RUN_SECONDS
    wandb_mode: Annotated[
        Literal["auto", "online", "offline", "disabled"],
        Key("mirror of every run in W&B, grouped by suite and optimizer", name="wandb.mode"),
    ] = "disabled"
    config_dir: Annotated[
        FilePath | None,
        Key("folder of your YAMLs: DIR/optimizer/mine.yaml, with its `search`", placeholder="DIR"),
    ] = None


COMMAND = Command(
    "optbench.tune",
    Settings,
    examples=(
        "suite=smoke",
        "suite=small optimizer=adam,sgd jobs=2",
        "suite=small launcher=ray launcher.cores=2",
        "suite=small launcher=slurm launcher.partition=short launcher.memory_gb=8",
        "optimizer=mine config_dir=my_conf results_dir=elsewhere",
    ),
)


def main() -> None:
    """Tune as the command line says; exit code 1 if a run failed."""
    COMMAND.run(tune)


def tune(settings: Settings) -> int:
    """Put the optimizers through the suite, and return the exit code."""
    suite = read_suite(settings.suite)
    spaces = search_spaces(settings.optimizer, settings.config_dir)
    points = {
        name: sobol_points(space, suite.points, suite.sobol_seed) for name, space in spaces.items()
    }
    runs = _runs(settings, suite, len(points))
    Tuner(suite, runs, together=settings.launcher != LOCAL).run(points)
    for line in runs.failures:
        print(line, file=sys.stderr)
    board = ["python", "-m", "optbench.leaderboard", f"suite={settings.suite}"]
    print(f"next: {shlex.join([*board, f'results_dir={settings.results_dir}'])}")
    return 1 if runs.failures else 0


def _runs(settings: Settings, suite: Suite, optimizers: int) -> Runs:
    """Return the runs of so many optimizers, on the engine that is named."""
    where = [f"device={quoted(settings.device)}", f"wandb.mode={settings.wandb_mode}"]
    if settings.config_dir is not None:
        where += ["--config-dir", str(settings.config_dir.resolve())]
    results = settings.results_dir
    folder = results / "suites" / suite.label
    order = Order(
        results=results,
        state=folder,
        where=where,
        jobs=settings.jobs,
        seconds=settings.run_seconds,
        device=settings.device,
    )
    launcher = make_launcher(
        settings.launcher, settings.launcher_settings, order, settings.config_dir
    )
    tuning = len(suite.tuned) * suite.points * len(suite.tuning_seeds)
    final = len(suite.tasks) * len(suite.final_seeds)
    total = (tuning + final) * optimizers
    each = {task: len(suite.final_seeds) for task in suite.tasks}
    for task in suite.tuned:
        each[task] += suite.points * len(suite.tuning_seeds)
    kinds = {task: count * optimizers for task, count in each.items()}
    return Runs(launcher, results, folder / INDEX, total, settings.config_dir, kinds)
