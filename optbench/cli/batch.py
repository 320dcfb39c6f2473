"""Runs of one configuration, a seed each, trained together in this process.

1. Pass over those that are finished. 2. Try whether they can be updated together. 3. Open every
folder, train in lockstep, close every folder. What cannot be updated together runs one by one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from optbench.boundary.counting import counted
from optbench.cli.job import Session, run_job
from optbench.configuration.build import build
from optbench.configuration.finished import PresentData
from optbench.record.folder import RunFolder, read_finished
from optbench.record.progress import Left
from optbench.record.provenance import looking_once
from optbench.record.terminal import Terminal
from optbench.run.loop import Experiment
from optbench.run.memory import keep_freed_memory
from optbench.run.stacked import NotTogetherError
from optbench.run.together import Outcome, Way, run_together, way_together

Say = Callable[[str], None]
Ended = str | Exception
"""How a run ended: its status, or the error that ended it."""


@dataclass(frozen=True)
class Member:
    """One run of a batch.

    Attributes:
        config: A checked configuration.
        name: Name of its folder.
        choices: The entry chosen of each group.
        words: What the command line said of it, for an error.
    """

    config: DictConfig
    name: str
    choices: Mapping[str, str]
    words: str = ""

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return Path(self.config.results_dir) / "runs" / self.name

    @property
    def is_finished(self) -> bool:
        """Whether its run is there, and may stay."""
        return not self.config.overwrite and read_finished(self.folder) is not None

    @property
    def group(self) -> str:
        """Everything but the seed: members of one group can be in one batch."""
        content: Any = OmegaConf.to_container(self.config, resolve=False)
        return repr({key: value for key, value in content.items() if key != "seed"})


def run_batch(members: Sequence[Member], present: PresentData, say: Say = print) -> list[Ended]:
    """Train members that differ in their seed; return how each ended, in their order.

    An error in one leaves the others.

    Args:
        members: Members of one group.
        present: Data and code as they are now.
        say: Takes a line for the person who waits.

    Raises:
        KeyboardInterrupt: On Ctrl-C, after a checkpoint of each.
    """
    missing = [m for m in members if not m.is_finished]
    ended: dict[str, Ended] = {}
    if len(missing) > 1:
        keep_freed_memory()
        try:
            way = way_together(lambda i: build(missing[i].config.copy()))
        except NotTogetherError as why:
            say(f"one by one, for these runs cannot be updated together: {why}")
        except Exception as error:  # it cannot be built: so it is with all that differ in the seed
            ended = {member.name: error for member in missing}
        else:
            ended = _train_together(missing, way, say)
    return [
        ended[member.name] if member.name in ended else _alone(member, present)
        for member in members
    ]


def _alone(member: Member, present: PresentData) -> Ended:
    try:
        status = run_job(member.config, member.name, member.choices, present)
    except Exception as error:  # a sweep goes on
        return error
    if status == "interrupted":
        raise KeyboardInterrupt
    return status


class _BatchTerminal(Terminal):
    """The terminal of a whole batch: the time left is that of all members together."""

    def __init__(self, steps: int, members: int) -> None:
        super().__init__(steps)
        self._members, self._foretold = members, False
        self.lefts: dict[str, Left] = {}
        self.expected: dict[str, float] = {}  # seconds of the probes' later calls, of each member
        self.updates: dict[str, float] = {}  # and what they are worth

    def foretell(self, line: str) -> None:
        """What the first one says, since the others differ in the seed alone."""
        if not self._foretold:
            self._foretold = True
            self.say(f"{line}; for each of {counted(self._members, 'run')}")

    def left(self) -> float | None:
        """Seconds left of all members."""
        seconds = [left() for left in self.lefts.values()]
        known = [s for s in seconds if s is not None]
        return math.fsum(known) if known else None


class _MembersTerminal(Terminal):
    """The batch's terminal, for one member: its lines begin with its name."""

    def __init__(self, steps: int, whole: _BatchTerminal, name: str) -> None:
        super().__init__(steps)
        self._whole, self._name = whole, name

    def say(self, line: str) -> None:
        self._whole.say(f"{self._name}: {line}")

    def measuring(self, step: int, probe: str) -> AbstractContextManager[None]:
        return self._whole.measuring(step, probe)

    def foretell(self, line: str) -> None:
        self._whole.foretell(line)

    def update(self, step: int, values: Mapping[str, Any], left: Left | None = None) -> None:
        if left is not None:
            self._whole.lefts[self._name] = left
        self._whole.update(step, values, self._whole.left)


def _train_together(members: Sequence[Member], way: Way, say: Say) -> dict[str, Ended]:
    """Train members in groups that stand at one step; return how each ended, by its name."""
    ended: dict[str, Ended] = {}
    with ExitStack() as stack:
        stack.enter_context(way.threads(len(members)))
        sessions: list[Session] = []
        whole: _BatchTerminal | None = None
        try:
            with looking_once():
                for member in members:
                    try:
                        experiment = build(member.config)
                        whole = whole or _BatchTerminal(experiment.settings.steps, len(members))
                        sessions.append(_begun(member, experiment, whole, stack))
                    except Exception as error:  # its folder is in use, most likely
                        ended[member.name] = error
            steps = sorted({session.runner.step for session in sessions})
            if len(steps) > 1:
                say(
                    f"these runs stand at steps {', '.join(map(str, steps))}: those at one step go "
                    "on together, which agrees with one batch of all to rounding"
                )
            for step in steps:
                at_step = [session for session in sessions if session.runner.step == step]
                assert whole is not None
                ended |= _train_at_one_step(at_step, way, whole, say)
        except BaseException as error:
            for session in sessions:
                if not session.is_closed:
                    _leave(session, error)
            raise
    return ended


def _begun(
    member: Member, experiment: Experiment, whole: _BatchTerminal, stack: ExitStack
) -> Session:
    """Open a member's folder until the stack closes it, and resume or start its run."""
    folder = stack.enter_context(RunFolder(member.folder))
    if member.config.overwrite:
        folder.clear()
    terminal = _MembersTerminal(experiment.settings.steps, whole, member.name)
    session = Session.begin(experiment, folder, member.config, member.choices, terminal)
    session.runner.costs.expected, session.runner.costs.updates = whole.expected, whole.updates
    return session


def _leave(session: Session, error: BaseException) -> None:
    """Close a session that something has ended which is not its own."""
    if isinstance(error, KeyboardInterrupt):
        session.close(session.runner.outcome("interrupted"))
        return
    session.crashed(error)
    session.mirror.close(session.config.wandb.wait_seconds)


_HOW = {"stacked": "one optimizer step for all", "own": "an optimizer step each"}


def _train_at_one_step(
    sessions: Sequence[Session], way: Way, whole: _BatchTerminal, say: Say
) -> dict[str, Ended]:
    about = {"with": len(sessions), "step": way.step, "forward": way.forward}
    threads = torch.get_num_threads()
    say(
        f"{counted(len(sessions), 'run')} together: one forward pass ({way.forward}), "
        f"{_HOW[way.step]}, {counted(threads, 'thread')}"
    )
    runners = [session.runner for session in sessions]
    for runner in runners:
        runner.about = {**runner.about, "batched": about}
    with whole:
        outcomes = run_together(runners, way.one_step)
    ended: dict[str, Ended] = {}
    for session, outcome in zip(sessions, outcomes, strict=True):
        name = session.folder.path.name
        try:
            ended[name] = _closed(session, outcome, say)
        except Exception as error:
            _leave(session, error)
            ended[name] = error
    if "interrupted" in ended.values():
        raise KeyboardInterrupt
    return ended


def _closed(session: Session, outcome: Outcome, say: Say) -> str:
    """Close a session, and return its status; raise the error that ended it."""
    if isinstance(outcome, Exception):
        raise outcome
    if outcome["status"] == "done":
        session.runner.save()
    summary, _ = session.close(outcome)
    say(_line(summary))
    say(str(session.folder.path))
    return str(outcome["status"])


def _line(summary: Mapping[str, Any]) -> str:
    last = summary["last"]
    shown = [
        f"{name} {last[name]:.4g}"
        for name in ("train/loss", "test/error", "sharpness/lambda_max", "edge/distance")
        if name in last
    ]
    return f"{summary['name']}: {summary['status']} at step {summary['step']}  {'  '.join(shown)}"
