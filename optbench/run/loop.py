"""The loop: probe, update, record, checkpoint."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from optbench import metrics
from optbench.probes import Probe, State, Stateful, Value, due, measure
from optbench.probes.cost import Costs
from optbench.probes.shared import Shared
from optbench.record.folder import RunFolder
from optbench.record.terminal import Terminal
from optbench.run import checkpoint
from optbench.run.batches import Batches
from optbench.run.milestones import Keep, Stop
from optbench.run.optimizer_state import load_optimizer
from optbench.run.update import Update
from optbench.seeds import global_state, set_global_state
from optbench.task import Task


@dataclass(frozen=True)
class Settings:
    """How long to train, and how to record it.

    Attributes:
        steps: Optimizer updates in all.
        seed: Of the run.
        log_every: Steps between records of the batch loss; a record holds the mean since the one
            before.
        checkpoint_seconds: Time between checkpoints.
        explosion_factor: A batch loss above this many initial losses is a divergence, as is one not
            finite.
        stop: Where to end before the last step, if anywhere.
        keep: Where to keep checkpoints.
    """

    steps: int
    seed: int
    log_every: int = 1
    checkpoint_seconds: float = 30.0
    explosion_factor: float = 1e6
    stop: Stop | None = None
    keep: Keep = field(default_factory=Keep)


@dataclass(frozen=True)
class Parts:
    """What a run consists of, built and on its device."""

    task: Task
    batches: Batches
    update: Update
    probes: Mapping[str, Probe]
    settings: Settings


@dataclass(frozen=True)
class Experiment(Parts):
    """Parts that fit together.

    Attributes:
        initial_loss: Training loss before the first update.
        inherited: What a fork took from another run, and what it left there; see `run.fork`.
    """

    initial_loss: float
    inherited: Mapping[str, Any] | None = None


class DivergenceError(Exception):
    """Training has diverged, at a step."""

    def __init__(self, step: int) -> None:
        self.step = step


@dataclass
class Runner:
    """Trains one experiment into one run folder, from a checkpoint of it if there is one."""

    experiment: Experiment
    folder: RunFolder
    terminal: Terminal
    about: Mapping[str, Any] = field(default_factory=dict)  # what the summary says first
    # of its provenance, what a checkpoint is held against
    origin: Mapping[str, Any] = field(default_factory=dict)
    step: int = 0
    train_seconds: float = 0.0
    probe_seconds: float = 0.0
    # (step, batch loss) still on the device
    _unread: list[tuple[int, Tensor]] = field(default_factory=list)
    _losses: list[float] = field(default_factory=list)  # batch losses since the last record
    _done: bool = False
    _stop: bool = False
    _readable: bool = False  # whether a checkpoint of this session has been read back
    _segment: float = 0.0  # when the time began that is not counted yet, on the monotonic clock
    _last_save: float = 0.0  # when the last checkpoint was written, likewise
    _shared: Shared = field(default_factory=Shared)
    # of the training losses at which to keep a checkpoint, those that were reached
    _reached: list[float] = field(default_factory=list)
    _stopped: bool = False  # before the last step, as `stop` has it
    costs: Costs = field(default_factory=Costs)  # of the probes, in this session
    # step and seconds of training at which this session began
    _began: tuple[int, float] = (0, 0.0)

    def __post_init__(self) -> None:
        self._shared.ranks = self.experiment.update.ranks

    def run(self) -> dict[str, Any]:
        """Train to the end, and return how it ended."""
        status = "done"
        self.begin()
        with stop_signals(self.request_stop):
            try:
                while not self.done:
                    self._one_step()
            except DivergenceError as divergence:
                status, self.step = "diverged", divergence.step
            except KeyboardInterrupt:
                status = "interrupted"
        self._count_training()
        return self.outcome(status)

    def begin(self) -> None:
        """Start the clocks, and put model and optimizer into train mode."""
        self.start_clock()
        self._last_save = self._segment
        self._began = self.step, self.train_seconds
        self.experiment.update.model.train()
        if callable(set_mode := getattr(self.experiment.update.optimizer, "train", None)):
            set_mode()

    def expect(self, evaluations: dict[str, dict[str, float]]) -> None:
        """Take the loss and the error of each split that were found for this step already."""
        self._shared.evaluations = evaluations

    def start_clock(self) -> None:
        """Count the time from now on."""
        self._segment = time.monotonic()

    def outcome(self, status: str) -> dict[str, Any]:
        """Return how it ended, how far it came, and what it cost."""
        measured = {"measured": self._shared.notes} if self._shared.notes else {}
        # of a part of a run, or of members that share measurements, they say nothing of the whole
        is_whole = self._began[0] == 0 and "batched" not in self.about
        each = {"each_probe_seconds": dict(self.costs.spent)} if is_whole else {}
        return {"status": status} | self.progress() | each | measured

    def progress(self) -> dict[str, Any]:
        """Return how far it is and what it has cost."""
        return {
            **self.about,
            "step": self.step,
            "steps": self.experiment.settings.steps,
            "gradients": self.experiment.update.gradients,
            "train_seconds": self.train_seconds,
            "probe_seconds": self.probe_seconds,
            **({"stopped": self._stopped} if self.experiment.settings.stop else {}),
        }

    def seconds_left(self) -> float | None:
        """Seconds to the last step: of updates as long as so far, and of each probe's schedule.

        None before the first update.
        """
        steps, (first, before) = self.experiment.settings.steps, self._began
        if self.step <= first:
            return None
        training = self.train_seconds - before
        if "batched" not in self.about:  # else it is told of its updates when it measures
            training += time.monotonic() - self._segment
        per_step = training / (self.step - first)
        return per_step * (steps - self.step) + self._measuring_left(self.step)

    def _measuring_left(self, after: int) -> float:
        """Seconds of measuring that are left after a step."""
        experiment, steps = self.experiment, self.experiment.settings.steps
        parts = self.costs.left(experiment.probes, after, steps, experiment.batches.per_epoch)
        return math.fsum(seconds for _, seconds in parts.values())

    def request_stop(self) -> None:
        """Stop before the next update, with a checkpoint."""
        self._stop = True

    @property
    def done(self) -> bool:
        """Whether the last step has been recorded."""
        return self._done

    def _one_step(self) -> None:
        """Probe at this step, update unless it is the last, and record."""
        found, last = self.look()
        if not last:
            batch = self.experiment.batches.next()
            self.take([(self.step, self.experiment.update(*batch))])
        self.record(found, last)

    def take(self, losses: Sequence[tuple[int, Tensor]]) -> None:
        """Take in (step, batch loss) of updates, still on the device."""
        self._unread += losses

    def is_due(self, step: int) -> bool:
        """Whether anything but the update has to happen at a step, as far as is known by now."""
        settings = self.experiment.settings
        return (
            step == settings.steps
            or step % settings.log_every == 0
            or step in settings.keep.steps
            or self.wants_save
            or bool(
                due(self.experiment.probes, step, settings.steps, self.experiment.batches.per_epoch)
            )
        )

    @property
    def wants_save(self) -> bool:
        """Whether a checkpoint is to be written before the next update."""
        age = time.monotonic() - self._last_save
        return self._stop or age > self.experiment.settings.checkpoint_seconds

    def look(self, save: bool | None = None) -> tuple[dict[str, Value], bool]:
        """Do what stands before the update of this step; return what was measured, and if it ends.

        Args:
            save: Whether to write a checkpoint; None for where it is time.

        Raises:
            KeyboardInterrupt: If it was asked to stop; a checkpoint is written.
            DivergenceError: If it has diverged.
        """
        settings, last = self.experiment.settings, self.step == self.experiment.settings.steps
        # clocks and signals differ between processes, which have to do the same
        save, stop = self.experiment.update.ranks.any(
            self.wants_save if save is None else save, self._stop
        )
        if stop or save:
            self.save()
        if stop:
            raise KeyboardInterrupt
        found = self._probe()
        if not last and settings.stop and settings.stop.is_reached(self.step, found):
            self._stopped = last = True
            found |= self._probe()  # those that are due on the last step alone
        self._keep(found)
        return found, last

    def record(self, found: dict[str, Value], last: bool) -> None:
        """Write down what was measured at this step, and go to the next."""
        settings = self.experiment.settings
        if last or self.step % settings.log_every == 0:
            self._read_losses()
            if self._losses:
                found[metrics.BATCH_LOSS] = math.fsum(self._losses) / len(self._losses)
                self._losses.clear()
        if found:
            self.folder.log(self.step, found)
        self.terminal.update(self.step, found, self.seconds_left)
        self.step += not last
        self._done = last

    def _keep(self, found: Mapping[str, Value]) -> None:
        """Keep a checkpoint of this step, if it is one that was asked for."""
        keep = self.experiment.settings.keep
        reached = keep.reached(found, self._reached)
        self._reached += reached
        if reached or self.step in keep.steps:
            self._read_losses()
            self._keep_checkpoint()

    def _keep_checkpoint(self) -> None:
        checkpoint.keep(self.folder.path, self.step, checkpoint.sealed(self.state()))

    def _read_losses(self) -> None:
        """Bring the batch losses over from the device, and stop at the first that diverged."""
        if not self._unread:
            return
        ceiling = self.experiment.settings.explosion_factor * self.experiment.initial_loss
        values = torch.stack([loss for _, loss in self._unread]).tolist()
        for (step, _), value in zip(self._unread, values, strict=True):
            if not value <= ceiling:
                raise DivergenceError(step)
        self._losses += values
        self._unread.clear()

    def _probe(self) -> dict[str, Value]:
        """Call the probes that are due; once stopped, those that have not measured this step."""
        experiment, settings = self.experiment, self.experiment.settings
        per_epoch = experiment.batches.per_epoch
        steps = self.step if self._stopped else settings.steps
        now = due(experiment.probes, self.step, steps, per_epoch)
        if self._stopped:
            before = due(experiment.probes, self.step, settings.steps, per_epoch)
            now = {name: probe for name, probe in now.items() if name not in before}
        if not now:
            return {}
        self._read_losses()
        if not all(bool(p.isfinite().all()) for p in experiment.update.parameters):
            raise DivergenceError(self.step)
        experiment.update.ranks.check_same(experiment.update.parameters, "weights")
        self._count_training()
        state = State(
            step=self.step,
            steps=steps,
            task=experiment.task,
            model=experiment.update.model,
            optimizer=experiment.update.optimizer,
            full_batch=experiment.batches.full,
            steps_per_epoch=per_epoch,
            seed=settings.seed,
            say=self.terminal.say,
            shared=self._shared,
        )
        first = not self.costs.first
        try:
            measure(now, state, self._watched)
        except (
            FloatingPointError
        ) as why:  # the weights are finite, but what follows from them overflows
            raise DivergenceError(self.step) from why
        loss = state.found.get(metrics.TRAIN_LOSS, 0.0)
        if isinstance(loss, float) and not math.isfinite(loss):
            raise DivergenceError(self.step)
        if first:
            self._foretell(state)
        now_seconds = time.monotonic()
        self.probe_seconds += now_seconds - self._segment
        self._segment = now_seconds
        clock = {
            metrics.TRAIN_SECONDS: self.train_seconds,
            metrics.PROBE_SECONDS: self.probe_seconds,
        }
        return state.found | clock | {metrics.GRADIENTS: experiment.update.gradients}

    @contextmanager
    def _watched(self, probe: str) -> Iterator[None]:
        """Context of a probe's call, which is told and timed."""
        with self.terminal.measuring(self.step, probe):
            start = time.perf_counter()
            yield
            self.costs.note(probe, time.perf_counter() - start)

    def _foretell(self, state: State) -> None:
        """Say what all measurements to come will cost."""
        experiment, per_epoch = self.experiment, state.steps_per_epoch
        self.costs.expect(experiment.probes, state)
        said = self.costs.foretold(experiment.probes, self.step, state.steps, per_epoch)
        if said is not None:
            self.terminal.foretell(said)

    def _count_training(self) -> None:
        """Count the time since the last measurement as training."""
        if self.experiment.update.parameters[0].is_cuda:
            torch.cuda.synchronize()
        now = time.monotonic()
        self.train_seconds += now - self._segment
        self._segment = now

    def save(self) -> None:
        """Write a checkpoint of everything that the rest of the run depends on.

        The series reach the disk before it: one that counts bytes that a power cut has taken is
        worth nothing. The first of a session is read back at once.
        """
        self._read_losses()
        self._count_training()
        self._save_checkpoint()
        self._segment = self._last_save = time.monotonic()

    def _save_checkpoint(self) -> None:
        self.folder.sync()
        state = checkpoint.sealed(self.state())
        checkpoint.save(self.folder.path, state)
        if not self._readable:
            checkpoint.check_readable(self.folder.path, state)
            self._readable = True
        self.folder.write_summary("running", self.progress())

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on."""
        update = self.experiment.update
        return (
            self.progress()
            | global_state()
            | {
                "model": update.model.state_dict(),
                "optimizer": update.optimizer.state_dict(),
                "schedule": update.schedule.state_dict() if update.schedule else {},
                "batches": self.experiment.batches.state_dict(),
                "probes": {
                    k: p.state_dict()
                    for k, p in self.experiment.probes.items()
                    if isinstance(p, Stateful)
                },
                "losses": self._losses,
                "measured": dict(self._shared.notes),
                # killed after this and before the summary, the last step is not done again
                "done": self._done,
                "offsets": self.folder.offsets,
                "metrics_digest": self.folder.metrics_digest,
                "origin": dict(self.origin),
            }
            | ({"reached": list(self._reached)} if self.experiment.settings.keep.losses else {})
        )

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; the series are opened by whoever holds the folder."""
        update = self.experiment.update
        update.model.load_state_dict(state["model"])
        load_optimizer(update.optimizer, state["optimizer"])
        if update.schedule:
            update.schedule.load_state_dict(state["schedule"])
        self.experiment.batches.load_state_dict(state["batches"])
        for name, probe in self.experiment.probes.items():
            if isinstance(probe, Stateful):
                probe.load_state_dict(state["probes"][name])
        set_global_state(state)
        self.step, update.gradients = state["step"], state["gradients"]
        self.train_seconds, self.probe_seconds = state["train_seconds"], state["probe_seconds"]
        self._losses, self._done = list(state["losses"]), state["done"]
        self._reached, self._stopped = list(state.get("reached", [])), state.get("stopped", False)
        self._shared.notes.update(state.get("measured", {}))
        if "batched" in state:  # how its first part was made; who goes on in a batch says so anew
            self.about = {**self.about, "batched": state["batched"]}


@contextmanager
def stop_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop; a second one acts at once."""
    names = [signal.SIGINT, signal.SIGTERM]
    before = {name: signal.getsignal(name) for name in names}

    def handle(number: int, _: FrameType | None) -> None:
        stop()
        signal.signal(number, before[signal.Signals(number)])

    try:
        for name in names:
            signal.signal(name, handle)
    except ValueError:  # not the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
