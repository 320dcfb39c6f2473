"""A run from Python: start it, train it, open it again, go back to what it kept, fork it."""

import contextlib
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from optbench import metrics
from optbench.cli.batch import Member
from optbench.cli.batch_processes import run_batch_in_processes
from optbench.cli.command_job import prepare
from optbench.cli.job import run_job
from optbench.configuration.compose import compose_with_choices, find_plugins
from optbench.configuration.explain import explain
from optbench.configuration.finished import PresentData
from optbench.configuration.naming import run_name
from optbench.errors import UserError
from optbench.lab.snapshot import Snapshot
from optbench.record import folder as record
from optbench.record.later_keys import LATER
from optbench.run import checkpoint
from optbench.run.fork import saved_config

QUIET = ("wandb.mode=disabled", "picture=false")
"""Overrides for many small runs: no mirror, no picture. Neither moves a result."""


@dataclass(frozen=True)
class Below:
    """Where to stop: the first measurement of a metric that is at most a value."""

    metric: str
    value: float


class Run:
    """One run: its configuration, and its folder once it has begun.

    Attributes:
        config: The configuration, as the command line would compose it.
        choices: The entry chosen of each group.
        said: What training printed.
    """

    def __init__(
        self, config: DictConfig, choices: dict[str, str], overrides: Sequence[str] = ()
    ) -> None:
        self.config, self.choices = config, choices
        self.said = ""
        self._overrides = list(overrides)

    def __repr__(self) -> str:
        return f"<Run {self.name}: {self.status}>"

    @property
    def name(self) -> str:
        """Name of its folder: task, model, optimizer, seed and a hash of the configuration."""
        return run_name(self.config, self.choices)

    @property
    def folder(self) -> Path:
        """Its folder, `results_dir/runs/name`."""
        return Path(self.config.results_dir) / "runs" / self.name

    @property
    def summary(self) -> dict[str, Any]:
        """Content of `summary.json`; empty before it has begun."""
        return record.read_json(self.folder / record.SUMMARY) or {}

    @property
    def status(self) -> str:
        """`new`, `running`, `done`, `diverged`, `interrupted` or `crashed`."""
        return str(self.summary.get("status", "new"))

    @property
    def last(self) -> dict[str, float]:
        """The last value of each metric."""
        return dict(self.summary.get("last", {}))

    def train(
        self,
        until: Below | None = None,
        keep: Iterable[float] = (),
        keep_steps: Iterable[int] = (),
        steps: int | None = None,
    ) -> "Run":
        """Train to the end, and return this run; a finished one is not run again.

        The same settings on the command line make the same run, in the same folder. Divergence is a
        result: `status` says so.

        Args:
            until: Where to stop before the last step: `stop.metric` and `stop.below`.
            keep: Training losses at which to keep a checkpoint.
            keep_steps: Steps at which to keep one.
            steps: Largest number of updates.

        Raises:
            UserError: If the configuration cannot be; with the value and the way out.
            KeyboardInterrupt: On Ctrl-C, after a checkpoint.
        """
        words = [*map(_word, _settings(until, list(keep), list(keep_steps), steps).items())]
        for word in words:
            key, _, value = word.partition("=")
            OmegaConf.update(self.config, key, OmegaConf.create(f"v: {value}").v)
        with _as_user_errors():
            prepare(self.config, self.choices, [*self._overrides, *words])
            heard = io.StringIO()
            try:
                with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
                    status = run_job(self.config.copy(), self.name, self.choices, PresentData())
            finally:
                self.said = heard.getvalue()
        if status == "interrupted":
            raise KeyboardInterrupt
        return self

    @property
    def kept(self) -> list[int]:
        """Steps of which there is a checkpoint to go back to, the last one included."""
        steps = set(checkpoint.kept_steps(self.folder))
        if self.status == "done":
            steps.add(int(self.summary["step"]))
        return sorted(steps)

    def at(self, step: int | None = None, loss: float | None = None) -> Snapshot:
        """Return the run as it was at a step that it kept; without arguments, at its end.

        Args:
            step: Number of updates.
            loss: One of the losses given as `keep`: the first step that was measured at or below.

        Raises:
            UserError: If it kept no such checkpoint; the message lists those that there are.
        """
        if step is not None and loss is not None:
            raise UserError("at(step=…) and at(loss=…) are two ways to say one thing: give one")
        if loss is not None:
            step = self._step_of(loss)
        return Snapshot(self.folder, step, self.config.copy(), dict(self.choices))

    def _step_of(self, loss: float) -> int:
        steps, losses = self.series(metrics.TRAIN_LOSS)
        kept = set(self.kept)
        for step, value in zip(steps.tolist(), losses.tolist(), strict=True):
            if value <= loss:
                if step in kept:
                    return int(step)
                break
        there = ", ".join(f"{self._loss_at(s):.4g} (step {s})" for s in sorted(kept)) or "none"
        raise UserError(
            f"{self.name} has kept no checkpoint at its first loss of {loss:g} or less; it has "
            f"kept: {there}. Say keep=[{loss:g}] of that run"
        )

    def _loss_at(self, step: int) -> float:
        steps, losses = self.series(metrics.TRAIN_LOSS)
        where = np.flatnonzero(steps == step)
        return float(losses[where[0]]) if len(where) else math.nan

    def series(self, metric: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return (steps, values) of a metric, in the order of training.

        Raises:
            UserError: If it was never measured; the message lists what was.
        """
        rows = [(r["step"], r[metric]) for r in self.records if metric in r]
        if not rows:
            known = sorted({key for r in self.records for key in r} - {"step"})
            raise UserError(f"{self.name} has no {metric}; it has {', '.join(known) or 'nothing'}")
        steps, values = zip(*rows, strict=True)
        return np.asarray(steps, dtype=np.int64), np.asarray(values, dtype=np.float64)

    @property
    def records(self) -> list[dict[str, Any]]:
        """Lines of `metrics.jsonl`: what was measured at each step."""
        return list(record.read_lines(self.folder / record.METRICS))

    @cached_property
    def end(self) -> Snapshot:
        """The run at its end: task, model with its weights, optimizer with its state, batches."""
        return self.at()


def start(*overrides: str, **settings: Any) -> Run:
    """Return a new run of the main job: `start("task=digits", "optimizer=adam", seed=3)`.

    Nothing is trained before `train`. The same words on the command line make the same run.

    Args:
        overrides: Words of the command line.
        settings: More of them, for keys without a dot: `seed=3` is `"seed=3"`.

    Raises:
        UserError: If the command line would not take them.
    """
    words = [*overrides, *map(_word, settings.items())]
    with _as_user_errors():
        find_plugins()
        config, choices = compose_with_choices(words)
    return Run(config, choices, words)


def sweep(
    *overrides: str,
    seeds: Iterable[int],
    until: Below | None = None,
    keep: Iterable[float] = (),
    keep_steps: Iterable[int] = (),
    steps: int | None = None,
    processes: int | None = None,
    **settings: Any,
) -> list[Run]:
    """Train runs of one configuration, a seed each, together; return them.

    Each is the run that `start(…, seed=…).train(…)` makes, in the same folder, to rounding; its
    summary says `batched`. What cannot be updated together runs one by one.

    Args:
        overrides: Words of the command line.
        seeds: Seeds.
        until: See `Run.train`, as for the next three.
        keep: Training losses at which to keep a checkpoint.
        keep_steps: Steps at which to keep one.
        steps: Largest number of updates.
        processes: Processes of one thread that the seeds are split over; 1 for none but this one.
            None for what pays: one a core, for a batch of more than a few seconds on the CPU.
        settings: More words, for keys without a dot.

    Raises:
        UserError: If the command line would not take them.
    """
    if processes is not None and not (isinstance(processes, int) and processes >= 1):
        raise UserError(f"processes must be 1 or more, got {processes}")
    words = [*map(_word, _settings(until, list(keep), list(keep_steps), steps).items())]
    first = start(*overrides, *words, **settings)
    runs, heard = [], io.StringIO()
    with _as_user_errors():
        prepare(first.config, first.choices, first._overrides)
        for seed in seeds:
            config = first.config.copy()
            config.seed = seed
            runs.append(Run(config, dict(first.choices), first._overrides))
        members = [Member(run.config.copy(), run.name, run.choices) for run in runs]
        try:
            with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
                ended = run_batch_in_processes(members, PresentData(), processes)
        finally:
            for run in runs:
                run.said = heard.getvalue()
        for error in ended:
            if isinstance(error, Exception):  # the others have come to their ends
                raise error
    return runs


def open(folder: str | Path) -> Run:
    """Return a run by its folder, finished or not.

    Raises:
        UserError: If it is no run folder.
    """
    path = Path(folder)
    content = {**LATER, **saved_config(path)}
    choices = content.pop("choices", None)
    if not isinstance(choices, dict):
        raise UserError(f"{path} is of an earlier version: its {record.CONFIG} names no choices")
    config = OmegaConf.create(content)
    assert isinstance(config, DictConfig)
    return _Opened(config, {str(k): str(v) for k, v in choices.items()}, path)


class _Opened(Run):
    """A run found by its folder, wherever that lies now."""

    def __init__(self, config: DictConfig, choices: dict[str, str], path: Path) -> None:
        super().__init__(config, choices)
        self._path = path
        self.config.results_dir = str(path.parent.parent)

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def folder(self) -> Path:
        return self._path


def fork(snapshot: Snapshot, *overrides: str, **settings: Any) -> Run:
    """Return a new run that begins where another one was; see `Snapshot.fork`."""
    words = [*overrides, *(_word(item) for item in settings.items() if item[0] != "lr")]
    if "lr" in settings:
        words.append(f"optimizer.lr={settings['lr']}")
    groups = [word for word in words if word.partition("=")[0] in snapshot.choices]
    with _as_user_errors():
        config, choices = _with_groups(snapshot, groups)
        own = [
            *(word for word in words if word not in groups),
            *(
                f"{key}={value}"
                for key, value in (
                    ("stop.metric", "null"),
                    ("stop.below", "null"),
                    ("keep", "[]"),
                    ("keep_steps", "[]"),
                )
                if not any(word.startswith(f"{key}=") for word in words)
            ),
        ]
        for word in own:
            key, _, value = word.lstrip("+").partition("=")
            if OmegaConf.select(config, key, default=_ABSENT) is _ABSENT and key != OPTIONAL:
                raise UserError(f"there is no key {key} in {snapshot.folder.name}")
            OmegaConf.update(config, key, OmegaConf.create(f"v: {value}").v, force_add=True)
    config.start_from.run, config.start_from.step = str(snapshot.folder), snapshot.step
    config.overwrite = False
    return Run(config, choices, words)


OPTIONAL = "optimizer.scale"
_ABSENT = object()


def _with_groups(snapshot: Snapshot, groups: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """The snapshot's configuration, with other entries chosen for some groups."""
    config, choices = snapshot.config.copy(), dict(snapshot.choices)
    OmegaConf.set_struct(config, False)
    if not groups:
        return config, choices
    named = [word.partition("=")[0] for word in groups]
    # an optimizer that no YAML names is in no entry of the group
    kept = [f"{k}={v}" for k, v in choices.items() if k not in named and k != "optimizer"]
    fresh, chosen = compose_with_choices([*kept, *groups])
    for name in named:
        config[name], choices[name] = fresh[name], chosen[name]
    return config, choices


def _settings(
    until: Below | None, keep: list[float], keep_steps: list[int], steps: int | None
) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if until is not None:
        settings |= {"stop.metric": until.metric, "stop.below": until.value}
    if keep:
        settings["keep"] = keep
    if keep_steps:
        settings["keep_steps"] = keep_steps
    if steps is not None:
        settings["steps"] = steps
    return settings


def _word(item: tuple[str, Any]) -> str:
    key, value = item
    if value is None or isinstance(value, bool):
        value = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, (list, tuple)):
        value = "[" + ",".join(str(x) for x in value) + "]"
    return f"{key}={value}"


@contextlib.contextmanager
def _as_user_errors() -> Iterator[None]:
    """Tell what a user can mend as a UserError, in the words of the command line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        message, _ = explain(error)
        if message is None:
            raise
        raise UserError(message) from error
