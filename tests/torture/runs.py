"""Tiny runs, each in a process of its own that is forked from this one: torch is imported once."""

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401  every run imports it: once, before all
import torch
from omegaconf import DictConfig

from optbench.cli.job import run_job
from optbench.configuration.compose import compose_config
from optbench.configuration.explain import explain
from optbench.configuration.finished import PresentData
from optbench.configuration.naming import run_name
from optbench.record import folder as record
from optbench.run.portable_state import digest

STEPS = 12
WORDS = (
    *(
        "task=digits",
        "task.train_size=100",
        "model.widths=[8]",
        "optimizer=adam",
        "batch_size=20",
        f"steps={STEPS}",
    ),
    *("probes.sharpness.every=6", "probes.generalization.every=4", "log_every=1"),
    *("checkpoint_seconds=1e-9", "wandb.mode=disabled"),
)
WITHOUT_PICTURE = (*WORDS, "picture=false")
PATIENCE_SECONDS = 120
TIMED = ("seconds", "process", "peak_gib", "optimizer_gib")


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (minus the signal's number where one ended it), and all that it said."""

    code: int
    said: str


@dataclass(frozen=True)
class Outcome:
    """What a finished run comes to, without what the clock says."""

    metrics: bytes
    state: str
    summary: dict[str, Any]


class Child:
    """The main job in a forked process.

    Args:
        results: Its results folder; what it says goes to a file beside.
        words: Its overrides.
        before: Called in the new process first, such as to lie in wait for a moment to die at.
    """

    def __init__(
        self,
        results: Path,
        words: tuple[str, ...] = WITHOUT_PICTURE,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        results.parent.mkdir(parents=True, exist_ok=True)
        self._log = results.with_name(results.name + ".said")
        config = _composed(words).copy()
        config.results_dir = str(results)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(config, before)

    def _run(self, config: DictConfig, before: Callable[[], None]) -> None:
        code = 70
        try:
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout, sys.stderr = (
                os.fdopen(1, "w", closefd=False),
                os.fdopen(2, "w", closefd=False),
            )
            torch.set_num_threads(1)
            before()
            code = _main_job(config)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self) -> Ended:
        """Wait for its end."""
        _, status = os.waitpid(self.pid, 0)
        return Ended(os.waitstatus_to_exitcode(status), self._log.read_text(errors="replace"))


@lru_cache
def _composed(words: tuple[str, ...]) -> DictConfig:
    """The configuration of a command, for which Hydra takes longer than the run itself."""
    return compose_config(words)


def _main_job(config: DictConfig) -> int:
    """What `optbench.cli.command_job` does with a configuration."""
    choices = {"task": "digits", "model": "mlp", "optimizer": "adam"}
    try:
        status = run_job(config, run_name(config, choices), choices, PresentData())
    except Exception as error:
        message, code = explain(error)
        if message is None:
            raise
        print(f"optbench: {message}", file=sys.stderr)
        return code
    return 130 if status == "interrupted" else 0


def run_folder(results: Path) -> Path:
    """The only run folder in a results folder."""
    (only,) = (results / "runs").iterdir()
    return only


def outcome(folder: Path) -> Outcome:
    """What a finished run has come to."""
    state = torch.load(folder / record.CHECKPOINT, weights_only=True)
    for key in ("train_seconds", "probe_seconds", "offsets"):
        state.pop(key)
    summary = json.loads((folder / record.SUMMARY).read_text())
    return Outcome((folder / record.METRICS).read_bytes(), digest(state), _without_clocks(summary))


def _without_clocks(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: _without_clocks(value) for key, value in node.items() if not key.endswith(TIMED)
        }
    return node


def fault(results: Path, ended: Ended, truth: Outcome) -> str:
    """Say what is wrong with how a command ended that should have finished the run; empty if nothing is."""
    if "Traceback" in ended.said:
        return f"a traceback: {ended.said.strip().splitlines()[-1]}"
    if ended.code != 0:
        return f"exit {ended.code}: {(ended.said.strip().splitlines() or [''])[-1]}"
    found = outcome(run_folder(results))
    for part in ("metrics", "state", "summary"):
        if getattr(found, part) != getattr(truth, part):
            return f"another {part}"
    if left := record.leftovers(run_folder(results)):
        return f"left {[part.name for part in left]}"
    return ""
