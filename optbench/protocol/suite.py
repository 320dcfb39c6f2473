"""A suite: the protocol under which optimizers are compared; needs no torch."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from optbench.boundary import (
    STRICT,
    Name,
    ShapeError,
    Text,
    UnreadableError,
    printable,
    read_yaml,
    shaped,
)
from optbench.boundary.overrides import quoted
from optbench.errors import UserError, nearest
from optbench.paths import conf_folder

TUNE, FINAL = "tune", "final"

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Number = int | float  # as it is written: the digest is of that
Word = Annotated[str, Field(min_length=1, max_length=4096)]


@dataclass(frozen=True)
class SuiteTask:
    """One task of a suite: what is run, and how the result is read.

    Attributes:
        kind: Regression, vision, language, algorithmic.
        run: Overrides of the main job.
        final: More overrides, for the runs that are reported: probes. They move no result.
        metric: What is ranked, less is better, at the last step.
        select: What hyperparameters are chosen by, less is better, at the last step; never a test
            metric.
        start: Value of `metric` that scores 0, such as chance.
        good: Value of `metric` that scores 1. score(x) = (start − x)/(start − good).
        targets: Values of `select` to be reached, from easy to hard; the middle one is the suite's.
        floor: No learner can have a smaller expected `metric` (a proof, not a record); None where
            none is known.
        floor_slack: How far a finite test set may undercut the floor: several standard errors.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    kind: Text
    run: tuple[Word, ...]
    metric: Text
    select: Text
    start: Number
    good: Number
    targets: Annotated[tuple[Number, ...], Field(min_length=1, max_length=100)]
    final: tuple[Word, ...] = ()
    floor: Number | None = None
    floor_slack: Number = 0.0

    @property
    def target(self) -> float:
        """The target in the middle."""
        return self.targets[len(self.targets) // 2]

    def score(self, value: float) -> float:
        """Return (start − value)/(start − good): 0 at the start, 1 at the reference."""
        return (self.start - value) / (self.start - self.good)


@dataclass(frozen=True)
class Suite:
    """A protocol.

    Attributes:
        name: Name of the file.
        version: Raised whenever a change moves results; boards of two versions never mix.
        points: Scrambled-Sobol points of every optimizer's search space, the same number for all.
        sobol_seed: Seed of the scrambling.
        tuning_seeds: Every point is run with these, and their mean selects.
        final_seeds: The selected point is run anew with these, and reported; none is a tuning seed.
        held_out: The task that is not tuned on: it is run at the point with the best mean rank on
            the others.
        common: Overrides of every run.
        tasks: Tasks by name.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: Name
    version: Annotated[int, Field(ge=0, lt=2**31)]
    points: Annotated[int, Field(ge=1, le=4096)]
    sobol_seed: Seed
    tuning_seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1000)]
    final_seeds: Annotated[tuple[Seed, ...], Field(min_length=2, max_length=1000)]
    held_out: Name
    common: tuple[Word, ...]
    tasks: Annotated[Mapping[Name, SuiteTask], Field(max_length=200)]

    @property
    def label(self) -> str:
        """Name and version."""
        return f"{self.name}-v{self.version}"

    @property
    def tuned(self) -> list[str]:
        """The tasks that are tuned on."""
        return [name for name in self.tasks if name != self.held_out]

    def command(
        self, optimizer: str, task: str, phase: str, number: int, point: Sequence[str], seed: int
    ) -> tuple[str, ...]:
        """Return the main job's overrides for one place of the protocol; `board` says which place.

        Args:
            optimizer: Name of the optimizer.
            task: Name of the task.
            phase: `tune` or `final`.
            number: Number of the point.
            point: Overrides below `optimizer`: where the point lies in the optimizer's search
                space.
            seed: Seed of the run.
        """
        suite_task = self.tasks[task]
        probes = suite_task.final if phase == FINAL else ("probes=none",)
        # Hydra refuses to be given a group twice
        later = {override.split("=")[0] for override in probes}
        place = {
            "suite": self.name,
            "version": self.version,
            "digest": self.digest[:16],
            "task": task,
        }
        place |= {"phase": phase, "point": number}
        return (
            f"optimizer={quoted(optimizer)}",
            *(
                override
                for override in (*self.common, *suite_task.run)
                if override.split("=")[0] not in later
            ),
            *probes,
            *point,
            f"seed={seed}",
            "board={" + ",".join(f"{key}:{_spelled(value)}" for key, value in place.items()) + "}",
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything in it: another digest under one version is another protocol."""
        return hashlib.sha256(json.dumps(_plain(self), sort_keys=True).encode()).hexdigest()


def _spelled(value: object) -> str:
    return quoted(value) if isinstance(value, str) else str(value)


def known_suites() -> list[str]:
    """Return the names of the suites that come with optbench."""
    return sorted(file.stem for file in (conf_folder() / "suite").glob("*.yaml"))


def read_suite(name: str) -> Suite:
    """Read a suite by name, or from a path that ends in `.yaml`.

    Raises:
        UserError: If there is none, or it says something that no protocol can.
    """
    path = Path(name) if name.endswith(".yaml") else conf_folder() / "suite" / f"{name}.yaml"
    said = printable(name)
    try:
        if not name.endswith(".yaml") and name not in known_suites():
            raise UnreadableError("missing")
        content = read_yaml(Path(os.path.realpath(path)), aliases=True)
    except (UnreadableError, ValueError) as why:
        if str(why) == "missing":
            known = known_suites()
            hint = f"{nearest(said, known)} Known: {', '.join(known)}, or a path to a .yaml"
            raise UserError(f"there is no suite called {said}.{hint}") from why
        raise UserError(f"cannot read the suite {said}: {printable(str(why))}") from why
    if isinstance(content, dict):
        if "name" in content:
            raise ShapeError(f"there is no key name, in {said}: a suite is called as its file is")
        content = content | {"name": path.stem}
    suite = shaped(Suite, content, said)
    _check(suite)
    return suite


def _check(suite: Suite) -> None:
    """Hold the parts of a suite against each other, which no shape can."""

    def refuse(what: str) -> None:
        raise UserError(f"suite {suite.name}: {what}")

    if both := set(suite.tuning_seeds) & set(suite.final_seeds):
        refuse(
            f"seed {min(both)} both selects and reports: tuning_seeds and final_seeds must be "
            "disjoint"
        )
    for seeds in (suite.tuning_seeds, suite.final_seeds):
        if len(set(seeds)) < len(seeds):
            refuse(f"seeds must differ from each other, got {list(seeds)}")
    if suite.held_out not in suite.tasks or len(suite.tasks) < 2:
        refuse(f"held_out must be one of two or more tasks, got {suite.held_out}")
    for name, task in suite.tasks.items():
        if not task.good < task.start:
            refuse(f"tasks.{name}.good must be below start, got {task.good} and {task.start}")
        if list(task.targets) != sorted(set(task.targets), reverse=True):
            refuse(f"tasks.{name}.targets must fall from easy to hard, got {list(task.targets)}")
        if task.select.startswith("test/"):
            refuse(f"tasks.{name}.select is {task.select}: the test set reports, it never selects")


def _plain(node: Any) -> Any:
    if isinstance(node, (Suite, SuiteTask)):
        return {field.name: _plain(getattr(node, field.name)) for field in fields(node)}
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items()}
    return list(node) if isinstance(node, tuple) else node
