"""Behaviour: schedules, rescaling, the edge on a quadratic, and a first real problem."""

import math
from functools import cache, partial

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from optbench.boundary.counting import counted
from optbench.check import Check, Finding, passed
from optbench.check.subject import Subject, Training, batch, moved
from optbench.configuration.compose import compose_config
from optbench.configuration.construct import build_model, build_task
from optbench.curvature.errors import MeasurementError
from optbench.dynamics import EigenvalueEdge, described, edge
from optbench.dynamics.oscillating_eigenvalue import Multiplier, multiplier
from optbench.dynamics.training_map import TrainingMap
from optbench.run.batches import Batches
from optbench.run.update import Update
from optbench.task import half_mse


def follows_a_schedule(subject: Subject) -> Finding:
    """A hundred steps after the learning rate fell to a millionth, it all but stands still."""
    training = Training(
        subject, schedule=lambda o: LambdaLR(o, lambda step: 1.0 if step < 5 else 1e-6)
    )
    start = training.weights()
    training.steps(5)
    fast = moved(start, training.weights()) / 5
    training.steps(100)
    before = training.weights()
    training.steps(5)
    share = moved(before, training.weights()) / 5 / fast
    return passed(share < 1e-2, f"a step is {share:.1g} of what it was")


def _after(subject: Subject, scale: float, steps: int = 10) -> tuple[list[Tensor], list[Tensor]]:
    training = Training(subject, loss=lambda f, y: half_mse(f, y) * scale)
    before = training.weights()
    training.steps(steps)
    return before, training.weights()


def loss_times_ten(subject: Subject) -> Finding:
    """How ten steps change when the loss is ten times as large."""
    before, one = _after(subject, 1.0)
    _, ten = _after(subject, 10.0)
    apart, ratio = moved(one, ten) / moved(before, one), moved(before, ten) / moved(before, one)
    if apart < 1e-3:
        return Finding("reported", f"invariant (apart by {apart:.1g} of the way)")
    return Finding("reported", f"goes {ratio:.3g} times as far")


def layers_rescaled(subject: Subject) -> Finding:
    """How ten steps change the function after ReLU layers are rescaled to W₁·4, W₂/4."""
    ends = []
    for scale in (1.0, 4.0):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Linear(5, 7, bias=False), nn.ReLU(), nn.Linear(7, 3, bias=False)
            )
        with torch.no_grad():
            first, last = model.parameters()
            first.mul_(scale)
            last.div_(scale)
            start = model(batch()[0])
        Training(subject, model).steps(10)
        ends.append(model(batch()[0]).detach())
    apart = float((ends[0] - ends[1]).norm() / (ends[0] - start).norm())
    return Finding(
        "reported",
        "invariant" if apart < 1e-2 else f"the functions are {apart:.2g} of the way apart",
    )


def converges_inside_its_edge_and_diverges_outside(subject: Subject) -> Finding:
    """On ½wᵀHw with λ₁ = 0.8 and 1.2 of the threshold that `optbench.dynamics.edge` gives."""
    training = Training(subject)
    training.steps(30)
    known = edge(training.optimizer)
    said = described(known)
    if not (isinstance(known, EigenvalueEdge) and known.plain and known.source != "conjecture"):
        return Finding("not tried", f"no threshold on λ₁(H) alone: {said}"[:200])
    ends = [_on_quadratic(subject, share * known.threshold) for share in (0.8, 1.2)]
    detail = f"{said}: the loss goes to {ends[0]:.1g} and {ends[1]:.1g} of its start"
    return passed(ends[0] < 0.5 and ends[1] > 2, detail)


def multiplier_is_minus_one_at_its_edge(subject: Subject) -> Finding:
    """Of ½wᵀHw with λ₁ on the threshold; where no threshold is known, of a small network's step."""
    training = Training(subject)
    training.steps(30)
    known = edge(training.optimizer)
    if isinstance(known, EigenvalueEdge) and known.plain and known.source != "conjecture":
        found = _multiplier_on_quadratic(subject, known.threshold)
        detail = f"{_said(found)} at λ₁ = {known.threshold:.4g}"
        return passed(abs(found.value + 1) < 1e-3, detail)
    try:
        step = TrainingMap(training.model, half_mse, batch(), training.optimizer)
        found = multiplier(step.product, step.size, check=partial(step.product, step=1e-3))
    except MeasurementError as why:
        return Finding("not tried", str(why)[:200])
    if found.disagreement > 0.1 * max(1.0, found.growth):
        return Finding("reported", f"the step is not smooth (by {found.disagreement:.2g})")
    return Finding("reported", f"{_said(found)} on a small network")


def _said(found: Multiplier) -> str:
    z = found.value
    number = f"{z.real:.4f}" if z.imag == 0 else f"{z.real:.4f} ± {z.imag:.4f}i"
    return f"{number}, {counted(found.products, 'product')}, residual {found.residual:.1g}"


def _multiplier_on_quadratic(subject: Subject, largest: float) -> Multiplier:
    """Multiplier of the map on ½ Σ λ_i w_i², λ = largest · (1, ½, ⅕), after a few steps."""
    model = _Weights()
    curvature = largest * torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64)
    optimizer = subject.factory(list(model.parameters()))

    def loss(outputs: Tensor, _: Tensor) -> Tensor:
        return 0.5 * (curvature * outputs * outputs).sum()

    update = Update(model, loss, optimizer)
    nothing = torch.zeros(1, dtype=torch.float64)
    for _ in range(3):
        update(nothing, nothing)
    step = TrainingMap(model, loss, (nothing, nothing), optimizer)
    return multiplier(step.product, step.size, check=partial(step.product, step=1e-3))


class _Weights(nn.Module):
    """A model whose output is its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the weights, whatever the inputs."""
        return self.w


def _on_quadratic(subject: Subject, largest: float, steps: int = 300) -> float:
    """Final over initial loss of ½ Σ λ_i w_i² with λ = largest · (1, ½, ⅕)."""
    w = nn.Parameter(torch.ones(3, dtype=torch.float64))
    curvature = largest * torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64)
    optimizer = subject.factory([w])

    def loss() -> Tensor:
        return 0.5 * (curvature * w * w).sum()

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            value = loss()
            value.backward()
        return value

    start = float(loss().detach())
    for _ in range(steps):
        optimizer.step(closure)  # type: ignore[arg-type]
        if not float(loss().detach()) < 1e30 * start:
            break
    end = float(loss().detach()) / start
    return end if math.isfinite(end) else math.inf


def descends_on_digits(subject: Subject) -> Finding:
    """A hundred steps, or 300 gradients, on digits, full batch, ½-MSE: the main job's default."""
    config = _digits()
    task = build_task(config)
    model = build_model(config, task)
    batches = Batches(task, config.batch_size, config.seed)
    optimizer = subject.factory(list(model.parameters()))
    if callable(set_mode := getattr(optimizer, "train", None)):
        set_mode()
    update = Update(model, task.loss, optimizer)
    losses: list[float] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        while len(losses) < 101 and (update.gradients < 300 or len(losses) < 2):
            losses.append(float(update(*batches.next())))
    share = losses[-1] / losses[0]
    detail = (
        f"the loss goes from {losses[0]:.3f} to {losses[-1]:.3f} in "
        f"{counted(len(losses) - 1, 'step')}"
    )
    return Finding("pass" if share < 0.6 else "warn" if share < 0.95 else "fail", detail)


@cache
def _digits() -> DictConfig:
    return compose_config(["task=digits", "device=cpu"])


CHECKS: list[Check] = [
    follows_a_schedule,
    loss_times_ten,
    layers_rescaled,
    converges_inside_its_edge_and_diverges_outside,
    multiplier_is_minus_one_at_its_edge,
    descends_on_digits,
]
