"""Runs that advance together: members of one configuration, a seed each, in lockstep.

Between the steps at which something is measured or recorded, a step costs one stacked update,
however many members there are. Each member keeps its own Runner, and so its own folder, series,
checkpoints and end: one that stops or diverges leaves the others.

Rounding: a stacked product sums in another order than a single one. An update agrees with that of
a run by itself to a few units of float rounding; over many steps two runs then come apart as they
do on two machines.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from optbench.curvature.isolation import kept_rng
from optbench.probes import SelfPaced, Value
from optbench.probes.after_update import flat
from optbench.run.loop import DivergenceError, Experiment, Runner, stop_signals
from optbench.run.stacked import NotTogetherError, Stack
from optbench.run.stacked_evaluation import StackedEvaluation
from optbench.run.threads import one_thread
from optbench.run.update import Update

SMALL = 2 * 10**9
"""Multiply-adds of a stacked forward pass below which one thread is quicker than several.

Below it an operation takes less than some 10 ms, and threads meet after each. Where others use the
cores one waits for a thread that is not running: 16 MLPs on 1,000 examples a step (2·10⁸) took 89 s
with two threads of two cores in use, 15 s with one. What several gain at best is their number."""
TRIAL_STEPS = 5
TOLERANCE = 1e-3
"""Largest difference of a trial's weights, relative to how far they have moved.

The optimizer's state counts too, relative to its size. Rounding alone gives 1e-6. Where an entry of
the gradient is nothing but rounding its sign counts, for Adam and its kin, which gives up to 1e-4.
Another formula gives 1e-2 and more."""


@dataclass(frozen=True)
class Way:
    """How members are updated together.

    Attributes:
        one_step: Whether one optimizer steps for all.
        forward: How the forward pass is stacked: `bmm`, products of stacks, or `vmap`.
        products: Multiply-adds of a member's forward pass, for layers without shared weights: B·P.
    """

    one_step: bool
    forward: str
    products: int

    @property
    def step(self) -> str:
        """The step's name in a summary: `stacked`, or `own` for one each."""
        return "stacked" if self.one_step else "own"

    def threads(self, count: int) -> AbstractContextManager[None]:
        """Context of one thread where that pays for so many members, else of as many as before.

        A function of the work, and of what the environment says, so that a resumed batch is
        computed as the first one was.
        """
        return one_thread(count * self.products < SMALL)


def way_together(build: Callable[[int], Experiment]) -> Way:
    """Try whether members are updated together as they are alone: by one step, or by one each.

    Args:
        build: Builds the experiment of a member by its place, each time anew.

    Raises:
        NotTogetherError: If neither gives what the members do alone; the message says why.
    """
    reasons = []
    with kept_rng(torch.device("cpu")):
        alone = [_advanced_alone(build(i)) for i in range(2)]
        for one_step in (True, False):
            try:
                way, apart = _trial([build(i) for i in range(2)], one_step, alone)
            except NotTogetherError as why:
                reasons.append(str(why))
                continue
            except Exception as why:  # the optimizer is anybody's, and so is what it raises
                reasons.append(f"{type(why).__name__}: {' '.join(str(why).split())[:200]}")
                continue
            if apart <= TOLERANCE:
                return way
            reasons.append(f"weights or state differ by {apart:.1g} of how far the weights move")
    raise NotTogetherError("; ".join(dict.fromkeys(reasons)))


@dataclass(frozen=True)
class _Advanced:
    """A member after a few updates by itself.

    Attributes:
        weights: Its weights θ_t, flat, shape (P,).
        moved: How far they have come, ‖θ_t − θ_0‖.
        state: Tensors of the optimizer's state.
    """

    weights: Tensor
    moved: float
    state: list[Tensor]

    def apart(self, update: Update) -> float:
        """Largest relative difference of another update's weights and state; ∞ for other shapes."""
        state = _state(update)
        if [x.shape for x in state] != [x.shape for x in self.state]:
            return math.inf
        parts = [float((flat(update.parameters).double() - self.weights).norm()) / self.moved]
        parts += [
            float((a - b).norm() / b.norm().clamp(min=torch.finfo(torch.float32).tiny))
            for a, b in zip(state, self.state, strict=True)
        ]
        return max(x if x == x else math.inf for x in parts)  # NaN is no agreement


def _advanced_alone(experiment: Experiment) -> _Advanced:
    update = experiment.update
    update.model.train()
    before = flat(update.parameters).double()
    for _ in range(TRIAL_STEPS):
        update(*experiment.batches.next())
    after = flat(update.parameters).double()
    moved = float((after - before).norm())
    return _Advanced(after, moved if moved else math.nan, _state(update))


def _state(update: Update) -> list[Tensor]:
    states = [update.optimizer.state.get(p, {}) for p in update.parameters]
    return [
        value.detach().double()
        for state in states
        for _, value in sorted(state.items(), key=lambda item: str(item[0]))
        if isinstance(value, Tensor)
    ]


def _trial(
    members: Sequence[Experiment], one_step: bool, alone: Sequence[_Advanced]
) -> tuple[Way, float]:
    for member in members:
        member.update.model.train()
    stack = Stack([member.update for member in members], one_step)
    feed = Feed(members)
    for _ in range(TRIAL_STEPS):
        stack(*feed.next())
    stack.sync()
    pairs = zip(members, alone, strict=True)
    parameters = members[0].update.parameters
    products = members[0].batches.size * sum(p.numel() for p in parameters)
    way = Way(one_step, stack.engine, products)
    return way, max(single.apart(member.update) for member, single in pairs)


class Feed:
    """The members' next batches, stacked; from one tensor where all train on the same data."""

    def __init__(self, members: Sequence[Experiment]) -> None:
        self._members = list(members)
        first = members[0].task
        self._shared = all(
            m.task.augment is None
            and torch.equal(m.task.train.inputs, first.train.inputs)
            and torch.equal(m.task.train.targets, first.train.targets)
            for m in members
        )
        self._train = first.train

    def next(self) -> tuple[Tensor, Tensor]:
        """Return inputs (S, B, …) and targets (S, B, …)."""
        if not self._shared:
            batches = [member.batches.next() for member in self._members]
            return torch.stack([x for x, _ in batches]), torch.stack([y for _, y in batches])
        chosen = [member.batches.next_indices() for member in self._members]
        train, count = self._train, len(self._members)
        indices = [index for index in chosen if index is not None]
        if not indices:
            return (
                train.inputs.expand(count, *train.inputs.shape),
                train.targets.expand(count, *train.targets.shape),
            )
        together = torch.stack(indices)
        return train.inputs[together], train.targets[together]


Outcome = dict[str, Any] | Exception
"""How a run ended, as `Runner.outcome` has it, or the error that ended it."""

Seen = tuple[Runner, dict[str, Value], bool]
"""A runner, what it has measured at this step, and whether that was its last."""


@dataclass
class _Group:
    """Runners at one step, and the stack that updates them.

    Attributes:
        runners: Those that have not ended.
        one_step: Whether one optimizer steps for all.
        losses: (step, losses (S,)) of updates that the members have not been told of.
        outcomes: How each runner ended, by its identity.
        stopping: Whether all are to end before the next update.
    """

    runners: list[Runner]
    one_step: bool
    losses: list[tuple[int, Tensor]] = field(default_factory=list)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    stopping: bool = False

    def __post_init__(self) -> None:
        self.step = self.runners[0].step
        self._clock = time.monotonic()
        self._stack_again()

    def _stack_again(self) -> None:
        experiments = [runner.experiment for runner in self.runners]
        if not experiments:
            return
        self.stack = Stack([e.update for e in experiments], self.one_step)
        self.feed = Feed(experiments)
        self.evaluation = StackedEvaluation(experiments, self.stack)
        self._paced = [
            probe
            for runner in self.runners
            for probe in runner.experiment.probes.values()
            if isinstance(probe, SelfPaced) and probe.every == "adaptive"
        ]

    def is_due(self) -> bool:
        """Whether any member has to measure, record or save at this step."""
        # cadences are the configuration's: one member answers for all, but for adaptive ones
        return (
            self.stopping
            or self.runners[0].is_due(self.step)
            or any(probe.next_step <= self.step for probe in self._paced)
        )

    def look(self) -> list[Seen]:
        """Let every member measure; return those that go on."""
        self._hand_out()
        seen, there = list[Seen](), len(self.runners)
        if self.stopping:
            for runner in self.runners:
                runner.request_stop()
        # one decision for all, so that their checkpoints are of one step, and they resume together
        save = any(runner.wants_save for runner in self.runners)
        self._evaluate()
        for runner in list(self.runners):
            runner.start_clock()
            with self._ending(runner):
                seen.append((runner, *runner.look(save)))
        for runner, found, last in seen:
            if last:
                with self._ending(runner):
                    runner.record(found, last)
                    self._end(runner, "done")
        if len(self.runners) < there:
            self._stack_again()
        self._clock = time.monotonic()
        return [row for row in seen if not row[2]]

    def _evaluate(self) -> None:
        """Find all members' losses and errors at once, where they are due; a share each."""
        found = [] if self.stopping else self.evaluation(self.step)
        seconds = (time.monotonic() - self._clock) / len(self.runners)
        for runner, evaluations in zip(self.runners, found, strict=False):
            runner.expect(evaluations)
            runner.probe_seconds += seconds

    def update(self) -> None:
        """Update all members."""
        self.losses.append((self.step, self.stack(*self.feed.next())))

    def record(self, seen: Sequence[Seen]) -> None:
        """Let the members that have measured at this step write it down."""
        self._hand_out()
        there = len(self.runners)
        for runner, found, last in seen:
            with self._ending(runner):
                runner.record(found, last)
        if len(self.runners) < there:
            self._stack_again()
        self._clock = time.monotonic()

    def _hand_out(self) -> None:
        """Give each member its losses, its share of the time, and its optimizer's state."""
        self.stack.sync()
        seconds = (time.monotonic() - self._clock) / len(self.runners)
        for i, runner in enumerate(self.runners):
            runner.take([(step, losses[i]) for step, losses in self.losses])
            runner.step = self.step
            runner.train_seconds += seconds
            # a view through .data does not see that its base has changed, and operators ask
            torch.autograd.graph.increment_version(runner.experiment.update.parameters)
        self.losses.clear()
        self._clock = time.monotonic()

    @contextmanager
    def _ending(self, runner: Runner) -> Iterator[None]:
        """Context in which a divergence, an error or a request to stop ends this member alone."""
        try:
            yield
        except DivergenceError as divergence:
            runner.step = divergence.step
            self._end(runner, "diverged")
        except KeyboardInterrupt:
            if not self.stopping:  # a second Ctrl-C, which acts at once
                raise
            self._end(runner, "interrupted")
        except Exception as error:  # a probe is anybody's: the others go on
            self._leave(runner, error)

    def _end(self, runner: Runner, status: str) -> None:
        self._leave(runner, runner.outcome(status))

    def _leave(self, runner: Runner, outcome: Outcome) -> None:
        self.outcomes[id(runner)] = outcome
        self.runners = [other for other in self.runners if other is not runner]


def run_together(runners: Sequence[Runner], one_step: bool) -> list[Outcome]:
    """Train members that stand at one step to their ends; return how each ended.

    Args:
        runners: The members' runners, of one configuration but for the seed.
        one_step: Whether one optimizer steps for all, as `way_together` says.
    """
    for runner in runners:
        runner.begin()
    group = _Group(list(runners), one_step)

    def stop() -> None:
        group.stopping = True

    with stop_signals(stop):
        while group.runners:
            seen = group.look() if group.is_due() else []
            if group.runners:
                group.update()
            if seen:
                group.record(seen)
            group.step += 1
    return [group.outcomes[id(runner)] for runner in runners]
