"""`python -m optbench.tune suite=smoke optimizer=adam,sgd`: put optimizers through a suite's protocol.

Every optimizer gets the same number of scrambled-Sobol points of its own search space on every
task, the best by validation is run anew with fresh seeds, and the held-out task is run at the point
with the best mean rank on the others. What has run is found and not run again: give the same
command to go on. Given twice at once, on one results folder, the two share the runs.
"""

import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from optbench.boundary.command_line import Command, FilePath, Key, Names, Seconds
from optbench.boundary.kinds import Count, Device
from optbench.boundary.overrides import quoted
from optbench.cli.finished import PresentData
from optbench.errors import UserError
from optbench.launch.local import RUN_SECONDS, cores, launch
from optbench.protocol.index import read_index
from optbench.protocol.points import search_spaces, sobol_points
from optbench.protocol.selection import select
from optbench.protocol.suite import FINAL, TUNE, Suite, read_suite
from optbench.record import folder as record
from optbench.record.terminal import ManyRuns

# the folder of every command that has been given: finished ones are not given again
INDEX = "runs.jsonl"


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
        return [
            *suite.command(self.optimizer, self.task, self.phase, self.point, point, self.seed),
            "picture=false",
            f"wandb.group={quoted(f'{suite.label}-{self.optimizer}')}",
            f"wandb.job_type={self.phase}",
            f"wandb.tags=[{','.join(quoted(tag) for tag in (suite.label, self.task, self.optimizer))}]",
        ]


@dataclass
class Tuner:
    """Runs optimizers through one suite.

    Attributes:
        suite: The protocol.
        results: The results folder.
        jobs: Runs at a time.
        extra: Overrides that say where and how to run, and move no result.
        config_dir: The user's own YAMLs.
        run_seconds: Time limit of a run.
        failures: A line for every run that failed.
    """

    suite: Suite
    results: Path
    jobs: int
    extra: Sequence[str] = ()
    config_dir: Path | None = None
    run_seconds: float = math.inf
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._index = self.results / "suites" / self.suite.label / INDEX
        self._folders = dict(_read_index(self._index))
        self._present = PresentData()

    def run(self, optimizers: Mapping[str, list[list[str]]]) -> None:
        """Run what is missing of the protocol, for each optimizer (with its points)."""
        per_optimizer = len(self.suite.tuned) * self.suite.points * len(self.suite.tuning_seeds)
        per_optimizer += len(self.suite.tasks) * len(self.suite.final_seeds)
        with ManyRuns(per_optimizer * len(optimizers)) as shown:
            for optimizer, points in optimizers.items():
                for phase, plan in ((TUNE, self._tuning), (FINAL, self._finals)):
                    places = plan(optimizer, points)
                    shown.begin(f"{optimizer} {phase}")
                    for line in self._make(places, points, shown.say):
                        shown.advance()
                        if line:
                            shown.say(line)

    def _tuning(self, optimizer: str, points: Sequence[Sequence[str]]) -> list[Place]:
        return [
            Place(self.suite, task, optimizer, TUNE, point, seed)
            for task in self.suite.tuned
            for point in range(len(points))
            for seed in self.suite.tuning_seeds
        ]

    def _finals(self, optimizer: str, points: Sequence[Sequence[str]]) -> list[Place]:
        """The selected point of every task that has one, which is every task unless a run failed."""
        return [
            Place(self.suite, task, optimizer, FINAL, point, seed)
            for task, point in self._select(optimizer, points).items()
            for seed in self.suite.final_seeds
        ]

    def _select(self, optimizer: str, points: Sequence[Sequence[str]]) -> dict[str, int]:
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

    def _validation(
        self, task: str, optimizer: str, points: Sequence[Sequence[str]]
    ) -> list[float | None]:
        """What selects, a point each, a mean over the tuning seeds; ∞ if one diverged, None if one is missing."""
        found: list[float | None] = []
        for i, point in enumerate(points):
            places = [
                Place(self.suite, task, optimizer, TUNE, i, seed)
                for seed in self.suite.tuning_seeds
            ]
            values = [self._value(self._finished(place, point), task) for place in places]
            known = [value for value in values if value is not None]
            found.append(math.fsum(known) / len(known) if len(known) == len(values) else None)
        return found

    def _value(self, summary: Mapping[str, Any] | None, task: str) -> float | None:
        if summary is None:
            return None
        if summary["status"] == "diverged":
            return math.inf
        metric = self.suite.tasks[task].select
        if metric not in summary["last"]:
            raise UserError(
                f"suite {self.suite.name}: tasks.{task}.select is {metric}, which its runs do not "
                "record"
            )
        return float(summary["last"][metric])

    def _finished(self, place: Place, point: Sequence[str]) -> dict[str, Any] | None:
        folder = self._folders.get(" ".join(place.overrides(point)))
        return record.read_finished(self.results / "runs" / folder) if folder else None

    def _make(
        self, places: Sequence[Place], points: Sequence[Sequence[str]], say: Callable[[str], None]
    ) -> Iterator[str]:
        """Yield a line for each place when it is filled: empty, or why it is not."""
        missing = []
        for place in places:
            overrides = place.overrides(points[place.point])
            if self._finished(place, points[place.point]):
                folder = self.results / "runs" / self._folders[" ".join(overrides)]
                self._present.check_command(folder, overrides, self.config_dir)
                yield ""
            else:
                missing.append(overrides)
        where = [*self.extra]
        if self.config_dir is not None:
            where += ["--config-dir", str(self.config_dir.resolve())]
        runs = launch(
            missing,
            self.jobs,
            results=self.results,
            where=where,
            claims=self._index.parent / "claims",
            seconds=self.run_seconds,
            say=say,
        )
        with closing(runs):
            for run in runs:
                command = " ".join(run.overrides)
                if run.folder is None:
                    self.failures.append(f"failed: python -m optbench {command}: {run.why}")
                    yield self.failures[-1]
                    continue
                self._folders[command] = run.folder.name
                with self._index.open("a") as stream:
                    stream.write(json.dumps({"command": command, "folder": run.folder.name}) + "\n")
                yield ""


def _read_index(path: Path) -> Mapping[str, str]:
    """Return the run folder's name by the command; what is no line of it is said, one that was cut short is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and not (content := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
    folders, passed_over = read_index(path)
    for line in passed_over:
        print(f"optbench: passed over {line}", file=sys.stderr)
    return folders


@dataclass(frozen=True)
class Settings:
    """Put optimizers through a suite's protocol: tune each, then run the best anew with fresh seeds.

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
            "runs at a time, cores/N threads each; without it as many as cores, on a GPU at most 4",
            placeholder="N",
        ),
    ] = None
    device: Annotated[Device, Key("where the runs compute")] = "cpu"
    run_seconds: Annotated[
        Seconds, Key("a run that takes longer is stopped and has failed; the others go on")
    ] = RUN_SECONDS
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
    jobs = settings.jobs or (cores() if settings.device == "cpu" else min(4, cores()))
    extra = [f"device={quoted(settings.device)}", f"wandb.mode={settings.wandb_mode}"]
    tuner = Tuner(
        suite, settings.results_dir, jobs, extra, settings.config_dir, settings.run_seconds
    )
    tuner.run(points)
    for line in tuner.failures:
        print(line, file=sys.stderr)
    board = ["python", "-m", "optbench.leaderboard", f"suite={settings.suite}"]
    print(f"next: {shlex.join([*board, f'results_dir={tuner.results}'])}")
    return 1 if tuner.failures else 0
