import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from optbench.errors import UserError
from optbench.models.cnn import cnn
from optbench.models.cnn1d import cnn1d
from optbench.models.deep_linear import deep_linear
from optbench.models.gpt import gpt
from optbench.models.mlp import mlp
from optbench.models.resnet import resnet
from optbench.models.vit import vit
from optbench.task import half_mse

CIFAR = (3, 32, 32)


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("factory", [mlp, cnn, resnet, vit])
@pytest.mark.parametrize("shape", [CIFAR, (1, 8, 8)])
def test_any_image_task_takes_any_model_and_every_parameter_learns(
    factory: Callable[..., nn.Module], shape: tuple[int, ...]
) -> None:
    model = factory(shape, 7)
    outputs = model(torch.randn(4, *shape))
    assert outputs.shape == (4, 7)
    outputs.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_sizes_are_those_of_the_papers() -> None:
    # He et al. (2016), table 6, counts 0.27 M for ResNet-20 and 0.85 M for ResNet-56.
    assert round(_size(resnet(CIFAR, 10)) / 1e6, 2) == 0.27
    assert round(_size(resnet(CIFAR, 10, depth=56)) / 1e6, 2) == 0.85
    assert 0.08e6 < _size(cnn(CIFAR, 10)) < 0.13e6


def test_cnn1d_is_that_of_mnist1d() -> None:
    """25·(1·5 + 1) + 2·25·(25·3 + 1) + 10·(125 + 1): 40 points become 19, 10 and 5."""
    model = cnn1d((1, 40), 10)
    assert _size(model) == 150 + 3800 + 1260
    outputs = model(torch.randn(4, 1, 40))
    assert outputs.shape == (4, 10)
    outputs.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_norm_is_what_was_asked_for(norm: Any) -> None:
    kinds = {type(module) for module in resnet(CIFAR, 10, norm=norm).modules()}
    kinds |= {type(module) for module in cnn(CIFAR, 10, norm=norm).modules()}
    assert (nn.BatchNorm2d in kinds) == (norm == "batch")
    assert (nn.GroupNorm in kinds) == (norm == "group")


def test_resnet_without_norm_starts_as_the_identity_in_every_block() -> None:
    torch.manual_seed(0)
    outputs = resnet(CIFAR, 10, depth=110, norm="none")(torch.randn(8, *CIFAR))
    assert float(outputs.detach().abs().max()) < 100


def test_an_mlp_without_hidden_layers_is_linear() -> None:
    model = mlp((5,), 2, widths=[], bias=False)
    x = torch.randn(3, 5)
    assert torch.equal(model(x), x @ next(model.parameters()).T)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mlp((4,), 2, activation="rleu"), r"got rleu\. Did you mean relu"),  # type: ignore[arg-type]
        (lambda: cnn((4,), 2), r"needs images .* got inputs of shape \(4,\)"),
        (lambda: cnn((1, 8, 8), 2, channels=[8, 8, 8, 8]), r"8×8 pixels: give fewer"),
        (lambda: cnn(CIFAR, 2, norm="layer"), r"batch, group or none, got layer"),  # type: ignore[arg-type]
        (lambda: cnn1d(CIFAR, 2), r"needs signals .* got inputs of shape \(3, 32, 32\)"),
        (lambda: cnn1d((1, 40), 2, kernels=[5]), r"one entry for each of the 3 .*, got 1"),
        (
            lambda: cnn1d((1, 4), 2, kernels=[5, 3, 9]),
            r"width of 9, and 1 points are left .* narrower",
        ),
        (lambda: resnet(CIFAR, 2, depth=18), r"6n\+2 .* got 18"),
        (lambda: vit(CIFAR, 2, patch=5), r"must divide the image \(32×32 pixels\), got 5"),
        (lambda: vit(CIFAR, 2, heads=5), r"must divide model\.width \(64\), got 5"),
        (lambda: gpt((8,), 2, heads=5), r"must divide model\.width \(64\), got 5"),
        (lambda: gpt(CIFAR, 2), r"needs sequences of tokens, got inputs of shape \(3, 32, 32\)"),
        (lambda: gpt((8,), 2, norm="batch"), r"layer or none, got batch"),  # type: ignore[arg-type]
        (lambda: mlp((4,), 2, norm="group"), r"layer, batch or none, got group"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_refused_with_the_value_and_the_way_out(
    make: Callable[[], nn.Module], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_gpt_sees_the_past_only_and_every_parameter_learns() -> None:
    torch.manual_seed(0)
    model = gpt((6,), 11)
    tokens = torch.randint(0, 11, (4, 6))
    outputs = model(tokens)
    assert outputs.shape == (4, 6, 11)
    changed = tokens.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 11
    torch.testing.assert_close(model(changed)[:, :4], outputs[:, :4])
    assert not torch.allclose(model(changed)[:, 4], outputs[:, 4])
    outputs.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("init", ["orthogonal", "gaussian"])
def test_deep_linear_is_linear_and_starts_at_its_scale(init: Any) -> None:
    torch.manual_seed(0)
    model = deep_linear((30,), 30, width=30, depth=3, init=init, scale=0.1)
    x, y = torch.randn(2, 5, 30)
    torch.testing.assert_close(model(x) + model(y), model(x + y))
    for p in model.parameters():
        values = torch.linalg.svdvals(p.detach())
        if init == "orthogonal":
            torch.testing.assert_close(values, torch.full((30,), 0.1))
        else:
            # 900 draws: 4 standard errors
            assert float(values.square().mean()) == pytest.approx(0.1**2, rel=0.2)
    assert len(list(model.parameters())) == 3


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("residual", [False, True])
def test_mlp_takes_norms_and_shortcuts(norm: Any, residual: bool) -> None:
    model = mlp((6,), 3, widths=[8, 8, 4], norm=norm, residual=residual)
    kinds = [type(module) for module in model.modules()]
    assert (nn.LayerNorm in kinds) == (norm == "layer") and (nn.BatchNorm1d in kinds) == (
        norm == "batch"
    )
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        # the first layer alone passes anything on
        next(iter(model.parameters())).copy_(torch.eye(8, 6))
    assert model(torch.randn(5, 6)).shape == (5, 3)
    assert sum("inner" in name for name, _ in model.named_parameters()) == (
        residual * (2 if norm == "none" else 4)
    )


SGD, ADAM = functools.partial(torch.optim.SGD, lr=0.1), functools.partial(torch.optim.Adam, lr=1e-2)


def _coordinates(
    width: int, scaling: Any, optimizer: Callable[..., torch.optim.Optimizer]
) -> list[float]:
    """Root mean square of the change of each layer's output over four updates: μP's coordinate check."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 10, generator=generator), torch.randn(32, 1, generator=generator)
    changes = torch.zeros(3)
    for seed in range(4):
        torch.manual_seed(seed)
        model = mlp((10,), 1, [width, width], "relu", scaling=scaling, base_width=32)
        linears = [module for module in model if isinstance(module, nn.Linear)]  # type: ignore[attr-defined]
        optimizer_ = optimizer(_groups(model, optimizer.keywords["lr"]))  # type: ignore[attr-defined]
        seen: dict[int, list[torch.Tensor]] = {id(linear): [] for linear in linears}
        hooks = [
            linear.register_forward_hook(
                lambda module, _, out, seen=seen: seen[id(module)].append(out.detach())
            )
            for linear in linears
        ]
        for _ in range(5):
            optimizer_.zero_grad()
            half_mse(model(x), y).backward()
            optimizer_.step()
        for hook in hooks:
            hook.remove()
        changes += (
            torch.stack([(outs[4] - outs[0]).square().mean().sqrt() for outs in seen.values()]) / 4
        )
    return changes.tolist()


def _groups(model: nn.Module, lr: float) -> list[dict[str, object]]:
    factors = getattr(model, "lr_factors", {})
    return [
        {"params": [p], "lr": lr * factors.get(name, 1)} for name, p in model.named_parameters()
    ]


@pytest.mark.parametrize(("scaling", "optimizer"), [("mup_sgd", SGD), ("mup_adam", ADAM)])
def test_coordinate_check_of_mup(
    scaling: str, optimizer: Callable[..., torch.optim.Optimizer]
) -> None:
    """With μP every layer's output changes as much at any width; in the standard scaling some do not.

    Slope of log change against log width over a factor of 64; a layer that is off by one power has
    ±½ or ±1.
    """
    widths = [32, 128, 512, 2048]

    def slopes(chosen: str) -> list[float]:
        table = torch.tensor([_coordinates(width, chosen, optimizer) for width in widths]).log()
        logs = torch.tensor(widths).log()
        centred = logs - logs.mean()
        return ((centred @ table) / (centred @ centred)).tolist()

    assert all(abs(slope) < 0.2 for slope in slopes(scaling)), slopes(scaling)
    assert any(abs(slope) > 0.35 for slope in slopes("standard")), slopes("standard")


def test_mup_at_its_base_width_is_the_standard_scaling() -> None:
    for scaling in ("mup_sgd", "mup_adam"):
        torch.manual_seed(0)
        scaled = mlp((5,), 2, [48, 48], norm="layer", scaling=scaling, base_width=48)
        torch.manual_seed(0)
        plain = mlp((5,), 2, [48, 48], norm="layer")
        for p, q in zip(scaled.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p, q)
        assert isinstance(scaled.lr_factors, dict) and set(scaled.lr_factors.values()) == {1.0}


def test_mup_follows_the_papers_table() -> None:
    """Table 3 of arXiv:2203.03466, at four times the base width: input, hidden, output."""
    scaling: Any
    for scaling, weights, biases in (
        ("mup_sgd", [4, 1, 1 / 4], [4, 4, 1]),
        ("mup_adam", [1, 1 / 4, 1 / 4], [1, 1, 1]),
    ):
        factors = mlp((5,), 2, [64, 64], scaling=scaling, base_width=16).lr_factors
        assert isinstance(factors, dict)
        assert [factors[name] for name in factors if name.endswith("weight")] == weights
        assert [factors[name] for name in factors if name.endswith("bias")] == biases


def test_mup_draws_output_weights_smaller_and_no_bias_smaller_with_width() -> None:
    """Variances of U(−a, a) are a²/3; those of table 3, with 4 times the base width."""
    torch.manual_seed(0)
    parameters = dict(
        mlp((5,), 400, [4000, 4000], scaling="mup_adam", base_width=1000).named_parameters()
    )
    expected = (1 / 5, 1 / 5, 1 / 4000, 1 / 1000, 1 / (4 * 4000), 1 / 1000)
    for p, variance in zip(parameters.values(), expected, strict=True):
        # The mean of n squares is off by √(4/5n), 5 % for the smallest of 400.
        assert float(p.detach().square().mean()) == pytest.approx(variance / 3, rel=0.2)
