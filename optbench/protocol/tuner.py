"""`python -m optbench.tune suite=smoke optimizer=adam,sgd`: put optimizers through a suite's protocol.

Every optimizer gets the same number of scrambled-Sobol points of its own search space on every
task, the best by validation is run anew with fresh seeds, and the held-out task is run at the point
with the best mean rank on the others. What has run is found and not run again: give the same
command to go on. Given twice at once, on one results folder, the two share the runs.

keys:
  suite=smoke         smoke (minutes on 2 cores), small (under an hour), full (a GPU), or a path to
  a .yaml optimizer=all       names of conf/optimizer, separated by commas; all: those that have a
  search space results_dir=results where the run folders go
  jobs=N              runs at a time, cores/N threads each (default: as many as cores; on a GPU, 4
  pay) device=cpu          auto, cpu, cuda, mps
  run_seconds=86400   a run that takes longer is stopped and has failed; the others go on
  wandb.mode=disabled auto, online, offline: mirror every run, grouped by optimizer, typed tune and
  final config_dir=DIR      your own YAMLs: DIR/optimizer/mine.yaml, with its `search`

then: python -m optbench.leaderboard
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
from typing import Any

from optbench.boundary.command_line import VERSION
from optbench.boundary.overrides import quoted
from optbench.cli.finished import PresentData
from optbench.errors import UserError, exit_with, nearest
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


def read_arguments(arguments: Sequence[str], defaults: Mapping[str, str]) -> dict[str, str]:
    """Read KEY=VALUE arguments.

    Raises:
        UserError: If one has an unknown key, or is none.
    """
    given = dict(defaults)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in defaults:
            raise UserError(
                f"there is no setting called {key}.{nearest(key, defaults)} Known: "
                f"{', '.join(defaults)}"
            )
        given[key] = value
    return given


def positive_seconds(text: str) -> float:
    """Read a time limit.

    Raises:
        UserError: If it is none.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise UserError(f"the time limit of a run must be a positive number of seconds, got {text}")
    return seconds


def main() -> None:
    """Parse the command line and tune."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    if "--version" in sys.argv[1:]:
        print(VERSION)
        return
    exit_with(lambda: _main(sys.argv[1:]))


def _main(arguments: Sequence[str]) -> int:
    defaults = {
        "suite": "smoke",
        "optimizer": "all",
        "results_dir": "results",
        "jobs": "",
        "device": "cpu",
        "run_seconds": f"{RUN_SECONDS:g}",
        "wandb.mode": "disabled",
        "config_dir": "",
    }
    given = read_arguments(arguments, defaults)
    suite = read_suite(given["suite"])
    config_dir = Path(given["config_dir"]) if given["config_dir"] else None
    spaces = search_spaces(given["optimizer"], config_dir)
    points = {
        name: sobol_points(space, suite.points, suite.sobol_seed) for name, space in spaces.items()
    }
    jobs = given["jobs"] or str(cores() if given["device"] == "cpu" else min(4, cores()))
    if not jobs.isdigit() or int(jobs) < 1:
        raise UserError(f"jobs must be a positive number of runs at a time, got {jobs}")
    extra = [f"{key}={quoted(given[key])}" for key in ("device", "wandb.mode")]
    seconds = positive_seconds(given["run_seconds"])
    tuner = Tuner(suite, Path(given["results_dir"]), int(jobs), extra, config_dir, seconds)
    tuner.run(points)
    for line in tuner.failures:
        print(line, file=sys.stderr)
    board = ["python", "-m", "optbench.leaderboard", str(tuner.results), "--suite", given["suite"]]
    print(f"next: {shlex.join(board)}")
    return 1 if tuner.failures else 0
