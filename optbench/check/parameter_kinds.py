"""Parameters of every kind: groups, frozen, without gradient, sparse, empty, of other types."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from optbench.check import Check, Finding, passed
from optbench.check.subject import Subject, Training, batch, moved, net, same
from optbench.task import half_mse


def _rate(training: Training) -> float:
    return float(training.optimizer.param_groups[0]["lr"])


def groups_with_their_own_lr(subject: Subject) -> Finding:
    """Of two groups that one with a millionth of the learning rate stays nearly where it is."""
    rate = _rate(Training(subject))

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        first, second = list(model[0].parameters()), list(model[2].parameters())  # type: ignore[index]
        return [{"params": first}, {"params": second, "lr": rate * 1e-6}]

    alone, split = Training(subject), Training(subject, groups=groups)
    before = alone.weights()
    alone.steps(3)
    split.steps(3)
    share = moved(before[2:], split.weights()[2:]) / moved(before[2:], alone.weights()[2:])
    if not moved(before[:2], split.weights()[:2]) > 0:
        return Finding("fail", "the other group did not move either")
    return passed(share < 1e-3, f"it moved {share:.1g} of what it moves at the full rate")


def frozen_parameters(subject: Subject) -> Finding:
    """A parameter with requires_grad=False stays bit for bit, whatever the weight decay."""
    model = net()
    model[0].weight.requires_grad_(False)
    training = Training(subject, model)
    before = training.weights()
    training.steps(5)
    after = training.weights()
    return passed(torch.equal(before[0], after[0]) and not torch.equal(before[2], after[2]))


def gradients_that_come_late(subject: Subject) -> Finding:
    """A parameter without gradient stays, and starts to move when it gets one."""

    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.late, self.on = net(), nn.Linear(3, 3), False

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.trunk(x)
            return y + self.late(y) if self.on else y

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Late()
    training = Training(subject, model)
    start = [p.detach().clone() for p in model.late.parameters()]
    training.steps(3)
    stayed = same(start, (p.detach() for p in model.late.parameters()))
    model.on = True
    training.steps(3)
    moves = moved(start, [p.detach() for p in model.late.parameters()])
    finite = all(bool(w.isfinite().all()) for w in training.weights())
    return passed(stayed and finite and moves > 0, "" if stayed else "it moved without a gradient")


def sparse_gradients(subject: Subject) -> Finding:
    """Whether it takes sparse gradients, or refuses them in words."""
    model = nn.Embedding(10, 3, sparse=True)
    optimizer = subject.factory(list(model.parameters()))

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            loss: Tensor = model(torch.tensor([1, 2, 2])).square().sum()
            loss.backward()
        return loss

    before = model.weight.detach().clone()
    try:
        for _ in range(2):
            optimizer.step(closure)  # type: ignore[arg-type]
    except Exception as error:
        return Finding("reported", f"refuses them: {' '.join(str(error).split())[:120]}")
    finite = bool(model.weight.isfinite().all())
    return (
        passed(finite, "takes them")
        if torch.equal(before[5], model.weight[5])
        else Finding("reported", "moves rows without gradient")
    )


def empty_and_scalar_parameters(subject: Subject) -> Finding:
    """A parameter of no entries does no harm, and one of no dimensions is trained."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()
            self.empty, self.scale = nn.Parameter(torch.zeros(0)), nn.Parameter(torch.tensor(1.5))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(x) * self.scale + self.empty.sum()
            return y

    model = Odd()
    Training(subject, model).steps(3)
    finite = all(bool(p.isfinite().all()) for p in model.parameters())
    return passed(finite and float(model.scale) != 1.5)


def channels_last_weights(subject: Subject) -> Finding:
    """Convolutions in the memory format channels_last, as the main job has them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3))
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        training = Training(subject, model)
        before = training.weights()
        for step in range(3):
            x = torch.randn(11, 3, 4, 4).contiguous(memory_format=torch.channels_last)
            training.update(x, batch(step)[1])
    after = training.weights()
    return passed(all(bool(w.isfinite().all()) for w in after) and moved(before, after) > 0)


def float64(subject: Subject) -> Finding:
    """It trains in float64, with no float32 in its state, and float32 agrees to its rounding."""
    wide = Training(subject, net(torch.float64), dtype=torch.float64)
    narrow = Training(subject)
    before = wide.weights()
    wide.steps(3)
    narrow.steps(3)
    if any(w.dtype != torch.float64 for w in wide.weights()):
        return Finding("fail", "the weights are no longer float64")
    apart = moved([w.double() for w in narrow.weights()], wide.weights()) / moved(
        before, wide.weights()
    )
    low = sorted({str(t.dtype) for t in tensors(wide.optimizer.state_dict()) if _is_rounded(t)})
    detail = (
        f"float32 is {apart:.1g} of the way apart"
        + f"; its state holds {', '.join(low)}" * bool(low)
    )
    return Finding("warn" if low or not apart < 1e-2 else "pass", detail)


def _is_rounded(t: Tensor) -> bool:
    return t.is_floating_point() and t.dtype != torch.float64 and t.numel() > 1


def tensors(state: Any) -> Iterator[Tensor]:
    """Every tensor in a state, however deep."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors(value)
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from tensors(value)


def _on(subject: Subject, dtype: torch.dtype) -> Finding:
    if not torch.cuda.is_available():
        return Finding("not tried", "no GPU")
    model = net(dtype).cuda()
    training = Training(subject, model)
    before = training.weights()
    for step in range(3):
        x, y = (t.cuda() for t in batch(step, dtype))
        training.update(x, y)
    after = training.weights()
    finite = all(bool(w.isfinite().all()) for w in after)
    return passed(finite and moved(before, after) > 0 and half_mse(model(x), y).is_cuda)


def on_a_gpu(subject: Subject) -> Finding:
    """It trains on a GPU."""
    return _on(subject, torch.float32)


def weights_in_bf16(subject: Subject) -> Finding:
    """It trains weights in bfloat16 on a GPU."""
    return _on(subject, torch.bfloat16)


CHECKS: list[Check] = [
    groups_with_their_own_lr,
    frozen_parameters,
    gradients_that_come_late,
    sparse_gradients,
    empty_and_scalar_parameters,
    channels_last_weights,
    float64,
    on_a_gpu,
    weights_in_bf16,
]
