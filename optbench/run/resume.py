"""Going on from the newest checkpoint that fits run, code, data and series; else from the start.

Nothing on disk is touched before a checkpoint has been loaded, and what cannot be gone on from is
set aside.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as declared

from optbench.boundary import LAX, ShapeError, printable, shaped
from optbench.boundary.counting import counted
from optbench.errors import UserError
from optbench.record import folder as record
from optbench.record.folder import RunFolder
from optbench.record.provenance import changed_versions, provenance
from optbench.record.series import is_file, sha256, whole_length
from optbench.record.sources import changed_code
from optbench.record.terminal import Terminal
from optbench.run import checkpoint
from optbench.run.loop import Experiment, Runner
from optbench.run.portable_state import digest
from optbench.run.update import Update

Count = Annotated[int, Field(ge=0)]
CONTAINERS = ("model", "optimizer", "schedule", "batches", "probes")


@declared(config=LAX)
class _Progress:
    """What every checkpoint says of how far it is."""

    name: str
    step: Count
    steps: Count
    gradients: Count
    train_seconds: float
    probe_seconds: float
    losses: list[float]
    done: bool
    offsets: dict[str, Count]


@dataclass(frozen=True)
class Start:
    """What a run begins with.

    Attributes:
        build: Builds the experiment, each time anew: one that took half of a foreign checkpoint is
            thrown away.
        about: What the summary says first.
        sources: Hashes of the code that the configuration names.
    """

    build: Callable[[], Experiment]
    about: Mapping[str, Any]
    sources: Mapping[str, str]


def resume_or_start(
    start: Start, experiment: Experiment, folder: RunFolder, terminal: Terminal
) -> Runner:
    """Return a runner at the newest checkpoint that fits, or at the start; trim the series to it.

    Args:
        start: What the run begins with.
        experiment: The first that was built.
        folder: Held by this process.
        terminal: Where it says what it passes over.

    Raises:
        UserError: If data, initial weights or code are not those that the run began with.
    """
    for line in folder.moved:
        terminal.say(line)
    now = provenance(
        experiment.task, experiment.update.model, experiment.initial_loss, start.sources
    )
    sessions = now.pop("sessions")
    sessions[-1] |= several(experiment.update)
    now = json.loads(json.dumps(now))
    runner = Runner(experiment, folder, terminal, start.about, now)
    unusable: list[str] = []
    for name, found in checkpoint.candidates(folder.path):
        reason = (
            found if isinstance(found, str) else _unfit(found, folder, experiment.settings.steps)
        )
        if not isinstance(found, str) and not reason:
            origin = _same_origin(found, now, folder, terminal)
            reason = _load(runner, found)
            if not reason:
                _go_on(runner, found, origin, sessions, unusable)
                return runner
            runner = Runner(start.build(), folder, terminal, start.about, now)
        terminal.say(f"{name} {reason}")
        unusable.append(name)
    _start_again(folder, terminal, bool(unusable))
    folder.open_series({})
    folder.write_json(record.PROVENANCE, {**now, "sessions": sessions})
    return runner


def _unfit(state: Mapping[str, Any], folder: RunFolder, steps: int) -> str:
    """Say why a whole checkpoint is none that this run can go on from; empty if it is one."""
    progress = {key: state[key] for key in _Progress.__annotations__ if key in state}
    try:
        known = shaped(_Progress, progress)
    except (ShapeError, TypeError, ValueError) as why:  # JSON has no tensors
        return f"is no checkpoint of a run ({printable(str(why))[: checkpoint.LONGEST_REASON]})"
    if missing := [key for key in CONTAINERS if not isinstance(state.get(key), dict)]:
        return f"is no checkpoint of a run ({', '.join(missing)} missing)"
    if known.name != folder.path.name:
        return f"is of another run ({printable(known.name)})"
    if known.steps != steps or known.step > steps:
        return f"is at step {known.step} of {known.steps}, and the run has {steps}"
    return _unfit_series(state, known.offsets.get(record.METRICS, 0), folder)


def _unfit_series(state: Mapping[str, Any], length: int, folder: RunFolder) -> str:
    path = folder.path / record.METRICS
    there = path.stat().st_size if is_file(path) else 0
    if there < length:
        return f"counts {length} bytes of {record.METRICS}, which has {there}"
    then = state.get("metrics_digest")
    same = whole_length(path, length) == length if then is None else sha256(path, length) == then
    return "" if same or length == 0 else f"was saved with another {record.METRICS} than is there"


def _same_origin(
    state: Mapping[str, Any], now: Mapping[str, Any], folder: RunFolder, terminal: Terminal
) -> dict[str, Any]:
    """Return what the run began with, if data, initial weights and code are still the same.

    The checkpoint knows; one of an earlier version leaves that to the provenance.
    """
    then: dict[str, Any] = state.get("origin") or folder.provenance or {}
    way_out = "so it cannot go on: overwrite=true starts again"
    for key, what in (("data_hash", "data"), ("init_hash", "initial weights")):
        if then.get(key, now[key]) != now[key]:
            raise UserError(
                f"the {what} of {folder.path.name} are not those that it began with, {way_out}"
            )
    if changed := changed_code(then.get("sources"), now["sources"]):
        raise UserError(
            f"{folder.path.name} is half done, and {changed}, {way_out}; or move {folder.path} "
            "away, or keep both with "
            "another results folder"
        )
    if changed := changed_versions(then, now):
        terminal.say(
            f"versions or hardware differ from those this run began with ({changed}): it may not "
            "end identical"
        )
    return {**now, **then}


def _load(runner: Runner, state: Mapping[str, Any]) -> str:
    """Load a checkpoint, and say why it could not be; empty if it was."""
    try:
        runner.load(state)
    except Exception as why:  # the state may be anything, and the optimizer anybody's
        reason = printable(str(why))[: checkpoint.LONGEST_REASON]
        return f"cannot be loaded ({type(why).__name__}: {reason})"
    return ""


def _go_on(
    runner: Runner,
    state: Mapping[str, Any],
    origin: dict[str, Any],
    sessions: list[Any],
    unusable: list[str],
) -> None:
    folder, say = runner.folder, runner.terminal.say
    if unusable:
        say(f"{', '.join(unusable)}: {folder.set_aside(unusable)}")
    checkpoint.forget_kept(folder.path, after=state["step"])
    timings = state["offsets"].get(record.TIMINGS, 0)
    kept = whole_length(folder.path / record.TIMINGS, timings)
    if kept < timings:
        say(f"{record.TIMINGS} is damaged: what the clock said is lost from byte {kept} on")
    folder.open_series({**state["offsets"], record.TIMINGS: kept})
    earlier = (folder.provenance or {}).get("sessions")
    if not isinstance(earlier, list):
        say(
            f"{record.PROVENANCE} is missing or damaged: written again, without the earlier "
            "sessions"
        )
        earlier = []
    if changed := changed_processes(earlier, sessions):
        say(changed)
    origin.pop("sessions", None)
    folder.write_json(record.PROVENANCE, {**origin, "sessions": [*earlier, *sessions]})
    runner.origin = origin
    update = runner.experiment.update
    if digest(state["optimizer"]) != digest(update.optimizer.state_dict()):
        say(
            f"{type(update.optimizer).__name__} does not take its state back as it was: it may not "
            "end bit-identical"
        )
    say(f"going on from step {state['step']}")


def several(update: Update) -> dict[str, Any]:
    """What the record of a session says of its processes; nothing of one alone."""
    size, dtype = update.ranks.size, update.parameters[0].dtype
    if size == 1:
        return {}
    rounding = (
        f"sums over examples are added up in {size} parts, other than in one process: a relative "
        f"{torch.finfo(dtype).eps / 2:.1e} an addition ({str(dtype).removeprefix('torch.')})"
    )
    return {"processes": size, "rounding": rounding}


def changed_processes(earlier: Sequence[Any], now: Sequence[Mapping[str, Any]]) -> str:
    """Say that a run goes on with another number of processes; empty if it does not."""
    last = next((s for s in reversed(earlier) if isinstance(s, dict)), {})
    before, after = last.get("processes", 1), now[-1].get("processes", 1)
    if before == after:
        return ""
    rounding = now[-1].get("rounding", last.get("rounding", ""))
    return (
        f"went on with {counted(before, 'process')} so far, and with {after} from here, so it may "
        f"not end bit-identical: {rounding}"
    )


def _start_again(folder: RunFolder, terminal: Terminal, unusable: bool) -> None:
    """Set aside what an earlier session did, if it came as far as a checkpoint."""
    metrics = folder.path / record.METRICS
    never_saved = (folder.summary or {}).get("step") == 0
    if unusable or (is_file(metrics) and metrics.stat().st_size > 0 and not never_saved):
        terminal.say(f"what is there cannot be gone on from: {folder.set_aside()}; starting again")
    checkpoint.forget_kept(folder.path, after=-1)
