"""Steps: they move, repeat bit for bit, call the closure, and can be saved in between."""

import io
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from optbench.boundary.counting import counted
from optbench.check import Check, Finding, passed
from optbench.check.subject import Subject, Training, batch, moved, net, same
from optbench.optimizers.looking import look
from optbench.probes.generalization import evaluating
from optbench.task import half_mse


def takes_a_step(subject: Subject) -> Finding:
    """Three steps move every tensor and leave it finite."""
    training = Training(subject)
    before = training.weights()
    training.steps(3)
    after = training.weights()
    still = sum(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    finite = all(bool(w.isfinite().all()) for w in after)
    return passed(
        finite and not still, f"moved by {moved(before, after):.2g}, {still} tensors stood still"
    )


def state_round_trip(subject: Subject) -> Finding:
    """Saved after 7 of 14 steps and loaded into a new optimizer, it ends bit for bit the same."""

    def training() -> Training:
        return Training(subject, schedule=lambda o: LambdaLR(o, lambda step: 1 / (1 + step)))

    whole, parts = training(), training()
    whole.steps(14)
    parts.steps(7)
    content = io.BytesIO()
    schedule = parts.update.schedule
    assert schedule is not None
    torch.save(
        [parts.model.state_dict(), parts.optimizer.state_dict(), schedule.state_dict()], content
    )
    content.seek(0)
    state = torch.load(content, weights_only=True)
    rest = training()
    rest.model.load_state_dict(state[0])
    rest.optimizer.load_state_dict(state[1])
    assert rest.update.schedule is not None
    rest.update.schedule.load_state_dict(state[2])
    rest.done = 7
    rest.steps(7)
    return passed(
        same(whole.weights(), rest.weights()),
        f"differs by {moved(whole.weights(), rest.weights()):.2g} at the end",
    )


def deterministic(subject: Subject) -> Finding:
    """Two trainings from one seed are bit for bit the same."""
    one, other = Training(subject), Training(subject)
    one.steps(10)
    other.steps(10)
    return passed(same(one.weights(), other.weights()))


def no_leak_between_instances(subject: Subject) -> Finding:
    """Two instances that take turns end as each does alone."""
    alone, one, other = Training(subject), Training(subject), Training(subject)
    alone.steps(10)
    other.steps(3)
    for _ in range(10):
        one.steps(1)
        other.steps(1)
    return passed(same(alone.weights(), one.weights()))


def _counting(training: Training) -> tuple[Callable[[], Tensor], list[Tensor]]:
    losses: list[Tensor] = []
    look(training.optimizer, training.model, batch()[0])

    def closure() -> Tensor:
        training.optimizer.zero_grad()
        with torch.enable_grad():
            loss = half_mse(training.model(batch()[0]), batch()[1])
            loss.backward(create_graph=bool(getattr(training.optimizer, "create_graph", False)))
        losses.append(loss.detach())
        return loss

    return closure, losses


def closure_is_called(subject: Subject) -> Finding:
    """`step(closure)` calls it and returns its first loss; how often is reported."""
    training = Training(subject)
    closure, losses = _counting(training)
    with torch.random.fork_rng():
        returned = training.optimizer.step(closure)  # type: ignore[arg-type]
    training.optimizer.zero_grad()
    if not losses:
        return Finding("fail", "step(closure) never called the closure")
    calls = f"called {counted(len(losses), 'time')} a step"
    if returned is None:
        return Finding("warn", f"{calls}, and step() returns nothing")
    return passed(
        float(torch.as_tensor(returned).detach()) == float(losses[0]), f"{calls}, returns the loss"
    )


def closure_keeps_gradients_on(subject: Subject) -> Finding:
    """The closure is called with gradients on, as torch's own optimizers do."""
    training = Training(subject)
    seen: list[bool] = []
    closure, _ = _counting(training)

    def watched() -> Tensor:
        seen.append(torch.is_grad_enabled())
        return closure()

    with torch.random.fork_rng():
        training.optimizer.step(watched)  # type: ignore[arg-type]
    return (
        Finding("pass")
        if all(seen)
        else Finding("warn", "off: a closure must say torch.enable_grad() itself")
    )


def evaluation_between_steps(subject: Subject) -> Finding:
    """Modes, where it has them, are swapped for an evaluation and back without a trace."""
    training, watched = Training(subject), Training(subject)
    if not (
        callable(getattr(training.optimizer, "eval", None))
        and callable(getattr(training.optimizer, "train", None))
    ):
        return Finding("not tried", "has no train() and eval()")
    differs = 0.0
    for _ in range(10):
        training.steps(1)
        watched.steps(1)
        before = watched.weights()
        with evaluating(watched.model, watched.optimizer):
            differs = max(differs, moved(before, watched.weights()))
    unchanged = same(training.weights(), watched.weights())
    return passed(
        unchanged and differs > 0,
        f"weights of evaluation are up to {differs:.2g} away from those trained",
    )


def leaves_the_model_alone(subject: Subject) -> Finding:
    """It leaves shapes, dtypes, devices and requires_grad, and no graph in `.grad`."""
    training, fresh = Training(subject), net()
    training.steps(3)
    pairs = list(zip(training.model.parameters(), fresh.parameters(), strict=True))
    kept = all(
        (p.shape, p.dtype, p.requires_grad) == (q.shape, q.dtype, q.requires_grad) for p, q in pairs
    )
    return passed(kept and not any(p.grad is not None and p.grad.requires_grad for p, _ in pairs))


CHECKS: list[Check] = [
    takes_a_step,
    state_round_trip,
    deterministic,
    no_leak_between_instances,
    closure_is_called,
    closure_keeps_gradients_on,
    evaluation_between_steps,
    leaves_the_model_alone,
]
