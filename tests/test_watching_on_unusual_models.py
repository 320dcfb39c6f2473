"""`watch` on layers, losses and outputs that are unlike others: the number of a reference, or a reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optbench.probes.generalization import evaluate, evaluating
from optbench.watching import Watch, watch
from tests.references import lambda_by_differences, lambda_by_double_backward

Loss = Callable[[Tensor, Tensor], Tensor]
CLASSES = torch.tensor([0.2, 1.0, 4.0])
# Relative error of a solved λ₁ in single precision. The probe asks for a bound of .5 %; residuals
# enter squared.
CLOSE = 1e-4
HELD = 5e-3  # and of one held from the measurement before: the bound that the probe asks for
# relative error of a mean of at most 600 losses in single precision, summed in another order
SUMS = 2e-6


def _watch(
    model: nn.Module, loss: Any, data: Any, said: list[str] | None = None, **options: Any
) -> Watch:
    optimizer = options.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=0.1)
    return watch(
        model,
        optimizer,
        loss,
        data,
        every=1,
        say=(said if said is not None else []).append,
        **options,
    )


def _mlp(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, outputs))


def _data(N: int = 40) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(N, 6), torch.arange(N) % 3


def _right(found: Any, expected: float) -> None:
    """λ₁ is as close as its own bound says, and that is close."""
    assert abs(found["sharpness/lambda_max"] - expected) <= found["sharpness/lambda_max_bound"]
    assert found["sharpness/lambda_max"] == pytest.approx(
        expected, rel=CLOSE if found["sharpness/solved"] else HELD
    )


class _Waves(nn.Module):
    """Few parameters, and a graph of 19 kB an example, which for 600 examples is one that a mean is cut in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.sin(
            self.inner(x).unsqueeze(-1) * torch.linspace(0.5, 1.5, 200, dtype=x.dtype)
        )
        out: Tensor = self.outer(waves.mean(-1))
        return out


def _class_weighted(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, weight=CLASSES.to(outputs.dtype))


def _info_nce(outputs: Tensor, _: Tensor) -> Tensor:
    one, other = F.normalize(outputs, dim=1), F.normalize(outputs.flip(1), dim=1)
    return F.cross_entropy(one @ other.T / 0.3, torch.arange(len(outputs)))


@pytest.mark.parametrize(
    ("loss", "weight", "cut"),
    [
        (F.cross_entropy, None, True),
        (_class_weighted, None, False),
        (_class_weighted, lambda _, targets: CLASSES[targets].sum(), True),
        (_class_weighted, lambda _, targets: CLASSES.double()[targets].sum(), True),
        (_info_nce, None, False),
        (lambda o, t: F.cross_entropy(o, torch.where(t == 1, -100, t)), None, False),
        (
            lambda o, t: F.cross_entropy(o, torch.where(t == 1, -100, t)),
            lambda _, t: (t != 1).sum(),
            True,
        ),
    ],
)
@pytest.mark.parametrize("order", ["mixed", "sorted"])
def test_a_loss_is_taken_in_parts_only_where_that_is_the_same_loss(
    loss: Loss, weight: Any, cut: bool, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optbench.curvature.product_strategy.GRAIN", 2 << 20)
    (x, y), model = _data(600), _Waves()
    y = y.sort().values if order == "sorted" else y[torch.randperm(600)]
    measure = _watch(model, loss, (x, y), test=(x[:300], y[:300]), weight=weight, error=None)
    found = measure()
    _right(found, lambda_by_double_backward(model, loss, x, y))
    ((_, _, hessian),) = measure._shared._hessians.values()
    assert hessian._plan is not None and (hessian._plan.chunks > 1) == cut
    with torch.no_grad():
        train, test = (float(loss(model(x[:n]), y[:n])) for n in (600, 300))
    assert found["train/loss"] == pytest.approx(train, rel=SUMS)
    assert found["test/loss"] == pytest.approx(test, rel=SUMS)
    assert found["gap/loss"] == pytest.approx(test - train, abs=2 * SUMS * train)


class _OwnNorm(nn.Module):
    """Statistics of the batch, in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x.var(0) + 1e-3).sqrt()


@pytest.mark.parametrize("layer", [_OwnNorm, lambda: nn.BatchNorm1d(4, track_running_stats=False)])
def test_statistics_of_the_batch_in_eval_mode_are_of_all_examples(
    layer: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.Linear(6, 4), layer(), nn.Tanh(), nn.Linear(4, 3)), _data(600)
    found = _watch(model, F.cross_entropy, (x, y), test=(x[100:], y[100:]))()
    _right(found, lambda_by_double_backward(model, F.cross_entropy, x, y))
    with torch.no_grad():
        outputs = model(x[100:])
    assert found["test/loss"] == pytest.approx(float(F.cross_entropy(outputs, y[100:])), rel=SUMS)
    assert found["test/error"] == pytest.approx(
        float((outputs.argmax(1) != y[100:]).double().mean())
    )


class _Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = _mlp()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(x), x


@pytest.mark.parametrize("ignored", [range(401, 600, 2), range(500, 600), range(250)])
def test_targets_ignored_in_one_place_with_outputs_that_are_no_tensor(ignored: range) -> None:
    model, (x, y) = _Pair(), _data(600)
    y = y.sort().values
    y[list(ignored)] = -100

    def loss(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs[0], targets)

    found = _watch(model, loss, (x, y), test=(x, y), error=None)()
    _right(found, lambda_by_double_backward(model, loss, x, y))  # type: ignore[arg-type]
    with torch.no_grad():
        assert found["test/loss"] == pytest.approx(float(loss(model(x), y)), rel=SUMS)


class _Tokens(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(9, 3, **options)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.table(tokens)
        return found.tanh().sum(1)


def test_sparse_gradients_with_sparse_adam() -> None:
    model, said = _Tokens(sparse=True), list[str]()
    tokens, labels = torch.randint(0, 9, (40, 4)), torch.arange(40) % 3
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.1)
    measure = _watch(model, F.cross_entropy, (tokens, labels), said, optimizer=optimizer)
    for _ in range(3):
        _right(measure(), lambda_by_differences(model, F.cross_entropy, tokens, labels))
        optimizer.zero_grad()
        F.cross_entropy(model(tokens), labels).backward()
        assert model.table.weight.grad is not None and model.table.weight.grad.is_sparse
        optimizer.step()
    assert any(line.startswith("edge/distance is absent: SparseAdam") for line in said)


def test_gradients_scaled_by_frequency_are_not_those_of_the_loss() -> None:
    tokens, labels = torch.randint(0, 9, (40, 4)), torch.arange(40) % 3
    found = _watch(_Tokens(scale_grad_by_freq=True), F.cross_entropy, (tokens, labels))()
    _right(found, lambda_by_double_backward(_Tokens(), F.cross_entropy, tokens, labels))


@pytest.mark.parametrize(
    "layer", [nn.Hardsigmoid, nn.Hardswish, lambda: nn.Hardsigmoid(inplace=True)]
)
def test_hard_activations(layer: Callable[[], nn.Module]) -> None:
    model, (x, y) = _mlp(), _data()
    model[1] = layer()  # none of the 320 inputs is within STEP of a kink
    _right(
        _watch(model, F.cross_entropy, (x, y))(),
        lambda_by_differences(model, F.cross_entropy, x, y),
    )


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_weight_norm(norm: Any, dim: Any) -> None:
    model, (x, y) = _mlp(), _data()
    norm(model[0], dim=dim)
    # torch cannot copy the old one; its g and v have the same values and spectrum
    reference = _mlp()
    nn.utils.parametrizations.weight_norm(reference[0], dim=dim)
    _right(
        _watch(model, F.cross_entropy, (x, y))(),
        lambda_by_differences(reference, F.cross_entropy, x, y),
    )


class _Writing(nn.Module):
    """Writes to weights, counters, tensors and new attributes when it is called, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.out = nn.Embedding(9, 4, max_norm=0.5), nn.Linear(12, 3)
        self.calls, self.memory = 0, torch.zeros(3)

    def forward(self, tokens: Tensor) -> Tensor:
        self.out.weight.data.clamp_(-0.1, 0.1)
        outputs: Tensor = self.out(torch.tanh(self.table(tokens).flatten(1)))
        self.calls += 1
        self.memory += outputs.detach().mean(0).float()
        self.memory = 2 * self.memory
        self.last = outputs
        return outputs


def test_what_a_forward_pass_writes_is_put_back_also_by_evaluate() -> None:
    model, (tokens, labels) = _Writing(), (torch.randint(0, 9, (600, 3)), torch.arange(600) % 3)
    before, memory = copy.deepcopy(model.state_dict()), model.memory
    measure = _watch(model, F.cross_entropy, (tokens, labels), test=(tokens[:300], labels[:300]))

    def same() -> bool:
        weights = all(torch.equal(before[name], now) for name, now in model.state_dict().items())
        own = model.memory is memory and not memory.any() and model.calls == 0
        return weights and own and not hasattr(model, "last")

    found = measure()
    assert same()
    with evaluating(model):
        losses = evaluate(measure.task, model, measure.task.train)
    assert same() and losses["loss"] == found["train/loss"]
    model(tokens)  # now the weights are what a forward pass makes of them
    del model.last
    _right(found, lambda_by_double_backward(model, F.cross_entropy, tokens, labels))
    with torch.no_grad():
        assert found["train/loss"] == pytest.approx(
            float(F.cross_entropy(model(tokens), labels)), rel=SUMS
        )


def test_weights_that_are_not_finite_for_a_while() -> None:
    model, data, said = _mlp(), _data(), list[str]()
    measure = _watch(model, F.cross_entropy, data, said, test=data)
    good, weight = measure(), model.get_parameter("0.weight").detach()
    kept, weight[0, 0] = float(weight[0, 0]), torch.nan
    assert measure() == {} and any("nothing can be measured at step 1" in line for line in said)
    weight[0, 0] = kept
    assert measure()["train/loss"] == good["train/loss"]


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (lambda *_: None, "got NoneType"),
        (nn.CrossEntropyLoss(reduction="none"), r"got torch.float32 of shape (40,)"),
    ],
)
def test_a_loss_that_is_no_number_is_said_and_training_goes_on(loss: Any, got: str) -> None:
    said = list[str]()
    assert _watch(_mlp(), loss, _data(), said)() == {}
    assert {line.split(" ")[0] for line in said if "absent" in line} == {
        "sharpness",
        "edge/distance",
        "generalization",
    }
    assert any(got in line for line in said)


@pytest.mark.parametrize(
    ("weights", "measured"), [(torch.bfloat16, None), (torch.float32, torch.float64)]
)
def test_constants_of_a_loss_in_another_precision_are_said(
    weights: torch.dtype, measured: Any
) -> None:
    constants, said = CLASSES.to(weights), list[str]()
    model, (x, y) = _mlp().to(weights), _data()
    found = _watch(
        model, lambda o, t: F.cross_entropy(o, t, weight=constants), (x, y), said, dtype=measured
    )()
    assert "train/loss" in found and "sharpness/lambda_max" not in found
    precision = measured or torch.float32
    assert any(
        line.startswith(f"sharpness is absent: the model or its loss does not run in {precision}")
        for line in said
    )


class _Counting:
    """A loss whose scale grows with its calls, as one with a warm-up does."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        return F.cross_entropy(outputs, targets) * (1 + self.calls / 100)


def test_a_loss_that_counts_is_left_as_it_was_and_training_with_it() -> None:
    weights = []
    for watched in (True, False):
        model, loss, (x, y) = _mlp(), _Counting(), _data()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        probes = _watch(model, loss, (x, y), optimizer=optimizer, test=_data(20))
        for step in range(5):
            if watched:
                found = probes()
                assert loss.calls == step
                scale = 1 + (step + 1) / 100  # of the next call
                assert found["train/loss"] == pytest.approx(
                    F.cross_entropy(model(x), y).item() * scale, rel=SUMS
                )
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)
