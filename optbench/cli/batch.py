"""Runs of one configuration, a seed each, trained together in this process.

1. Pass over those that are finished. 2. Try whether they can be updated together. 3. Open every
folder, train in lockstep, close every folder. What cannot be updated together runs one by one.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from optbench.cli.job import Session, run_job
from optbench.configuration.build import build
from optbench.configuration.finished import PresentData
from optbench.record.folder import RunFolder, read_finished
from optbench.record.terminal import Terminal
from optbench.run.memory import keep_freed_memory
from optbench.run.stacked import NotTogetherError
from optbench.run.together import run_together, way_together

Say = Callable[[str], None]


@dataclass(frozen=True)
class Member:
    """One run of a batch: a checked configuration, the name of its folder, the entries chosen."""

    config: DictConfig
    name: str
    choices: Mapping[str, str]

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return Path(self.config.results_dir) / "runs" / self.name

    @property
    def group(self) -> str:
        """Everything but the seed: members of one group can be in one batch."""
        content: Any = OmegaConf.to_container(self.config, resolve=False)
        return repr({key: value for key, value in content.items() if key != "seed"})


def run_batch(members: Sequence[Member], present: PresentData, say: Say = print) -> list[str]:
    """Train members that differ in their seed; return how each ended, in their order.

    Args:
        members: Members of one group.
        present: Data and code as they are now.
        say: Takes a line for the person who waits.

    Raises:
        UserError: If something in the way can be mended by the user.
    """
    missing = [m for m in members if m.config.overwrite or read_finished(m.folder) is None]
    if len(missing) > 1:
        keep_freed_memory()
        try:
            one_step, engine = way_together(lambda i: build(missing[i].config.copy()))
        except NotTogetherError as why:
            say(f"one by one, for these runs cannot be updated together: {why}")
        else:
            _train_together(missing, one_step, engine, say)
    # finished before or by now, except where training together was not possible
    now = {member.name for member in missing}
    return [_status(member, present, say, made_now=member.name in now) for member in members]


def _status(member: Member, present: PresentData, say: Say, made_now: bool) -> str:
    finished = read_finished(member.folder)
    if finished is not None and not member.config.overwrite:
        if not made_now:
            way_out = "overwrite=true runs it again; or "
            present.check(member.folder, lambda: member.config, way_out)
        say(str(member.folder))
        return str(finished["status"])
    return run_job(member.config, member.name, member.choices, present)


def _train_together(members: Sequence[Member], one_step: bool, engine: str, say: Say) -> None:
    with ExitStack() as stack:
        sessions = []
        for number, member in enumerate(members):
            experiment = build(member.config)
            folder = stack.enter_context(RunFolder(member.folder))
            if member.config.overwrite:
                folder.clear()
                member.config.overwrite = False  # done: what follows must not do it again
            shown = None if number == 0 else Console(file=io.StringIO())
            terminal = Terminal(experiment.settings.steps, shown)
            config, choices = member.config, member.choices
            sessions.append(Session.begin(experiment, folder, config, choices, terminal))
        how = "stacked" if one_step else "own"
        for step in sorted({session.runner.step for session in sessions}):
            at_step = [session for session in sessions if session.runner.step == step]
            about = {"with": len(at_step), "step": how, "forward": engine}
            say(f"{len(at_step)} runs together: one forward pass ({engine}), {_HOW[how]}")
            _train_at_one_step(at_step, one_step, about, say)


_HOW = {"stacked": "one optimizer step for all", "own": "an optimizer step each"}


def _train_at_one_step(
    sessions: Sequence[Session], one_step: bool, about: Mapping[str, Any], say: Say
) -> None:
    runners = [session.runner for session in sessions]
    for runner in runners:
        runner.about = {**runner.about, "batched": dict(about)}
    try:
        with runners[0].terminal:
            outcomes = run_together(runners, one_step)
        for runner, outcome in zip(runners, outcomes, strict=True):
            if outcome["status"] == "done":
                runner.save()
    except BaseException as error:
        for session in sessions:
            session.crashed(error)
            session.mirror.close(session.config.wandb.wait_seconds)
        raise
    for session, outcome in zip(sessions, outcomes, strict=True):
        summary, _ = session.close(outcome)
        say(_line(summary))
    if any(outcome["status"] == "interrupted" for outcome in outcomes):
        raise KeyboardInterrupt


def _line(summary: Mapping[str, Any]) -> str:
    last = summary["last"]
    shown = [
        f"{name} {last[name]:.4g}"
        for name in ("train/loss", "test/error", "sharpness/lambda_max", "edge/distance")
        if name in last
    ]
    return f"{summary['name']}: {summary['status']} at step {summary['step']}  {'  '.join(shown)}"
