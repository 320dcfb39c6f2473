"""Every optimizer's YAML trains, resumes bit for bit, and follows schedules."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from optbench.optimizers.by_shape import ByShape
from optbench.optimizers.lbfgs import LBFGS
from optbench.run.loop import Runner
from optbench.schedules import warmup_cosine
from tests.conftest import Command

ROOT = Path(__file__).resolve().parent.parent.parent
OPTIMIZERS = sorted(
    file.stem for file in (ROOT / "conf/optimizer").glob("*.yaml") if file.stem != "custom"
)


def test_every_dense_optimizer_of_torch_has_a_yaml() -> None:
    ours = "".join(file.read_text() for file in (ROOT / "conf/optimizer").glob("*.yaml"))
    missing = {
        name
        for name in torch.optim.__all__
        if isinstance(cls := getattr(torch.optim, name), type)
        and issubclass(cls, torch.optim.Optimizer)
        and f".{name}\n" not in ours
    }
    # the base class, and one that needs sparse gradients
    assert missing == {"Optimizer", "SparseAdam"}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_descends_on_digits(optbench: Command, optimizer: str) -> None:
    steps = {"lbfgs": 10}.get(optimizer, 100)  # of lbfgs each is 20 iterations
    folder = optbench(
        "task=digits",
        f"optimizer={optimizer}",
        f"steps={steps}",
        "probes=none",
        "task.train_size=200",
    ).folder
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert json.loads((folder / "summary.json").read_text())["status"] == "done"
    # Half of the start; adadelta begins with steps of about 1e-3 a gradient and is slow by design.
    assert lines[-1]["train/loss"] < {"adadelta": 0.9}.get(optimizer, 0.5) * lines[0]["train/loss"]


# The cadence that adapts, which measures nearly every step of so few, is resumed with an edge on λ₁(H),
# on λ₁(P⁻¹H) and in a norm. Each measurement may be a search for the edge where there is no rule.
ADAPTIVE = ("sgd", "adam", "muon")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_stopped_half_way_it_ends_as_if_it_had_not_been(
    optbench: Command, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    run = (
        "task=digits",
        "model.widths=[8]",
        f"optimizer={optimizer}",
        "steps=20",
        # changes before the stop and after it
        "schedule=step",
        "schedule.step_size=8",
        "schedule.gamma=0.5",
        "batch_size=100",
        "log_every=1",
        f"probes.sharpness.every={'adaptive' if optimizer in ADAPTIVE else 8}",
    )
    whole = optbench(*run, "results_dir=whole").folder
    step = Runner._one_step

    def stop_at_10(self: Runner) -> None:
        if self.step == 10:
            self.request_stop()
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "_one_step", stop_at_10)
        assert optbench(*run, "results_dir=parts").code == 130
    parts = optbench(*run, "results_dir=parts").folder
    assert (whole / "metrics.jsonl").read_bytes() == (parts / "metrics.jsonl").read_bytes()
    ours, theirs = (
        torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
        for folder in (whole, parts)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def _net(channels_last: bool) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 5))
    return net.to(memory_format=torch.channels_last) if channels_last else net  # type: ignore[call-overload]


def _step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = net(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels_last", [False, True])
def test_by_shape_sends_matrices_to_one_and_the_rest_to_the_other(channels_last: bool) -> None:
    net, reference = _net(channels_last), _net(False)
    ours = ByShape(
        net.parameters(),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, 1e-2),
    )
    assert [type(part).__name__ for part in ours.parts.values()] == ["SGD", "Adam"]
    sgd = torch.optim.SGD([p for p in reference.parameters() if p.ndim >= 2], 0.1, momentum=0.9)
    adam = torch.optim.Adam([p for p in reference.parameters() if p.ndim < 2], 1e-2)
    for _ in range(5):
        _step(net, ours)
        adam.zero_grad()
        _step(reference, sgd)
        adam.step()
    # float32, another memory layout, 5 steps: 1e-6 relative is about 10 roundings.
    for a, b in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_muon_of_a_convolution_does_not_depend_on_the_memory_format() -> None:
    nets = [_net(False), _net(True)]
    for net in nets:
        optimizer = ByShape(
            net.parameters(),
            lambda p: torch.optim.Muon(p, lr=0.1, weight_decay=0),
            lambda p: torch.optim.Adam(p),
        )
        _step(net, optimizer)
    # Columns in another order leave Newton–Schulz the same but for bfloat16's rounding, 2^-8 of
    # entries of at most 0.1·√(27/4) after one step.
    one, other, before = (next(net.parameters()).contiguous() for net in (*nets, _net(False)))
    torch.testing.assert_close(one, other, rtol=0, atol=5e-3)
    assert not torch.equal(one, before)


def test_schedules_reach_both_parts_of_by_shape() -> None:
    net = _net(False)
    optimizer = ByShape(
        net.parameters(), lambda p: torch.optim.SGD(p, 0.5), lambda p: torch.optim.Adam(p, 0.25)
    )
    schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    _step(net, optimizer)
    schedule.step()
    assert [part.param_groups[0]["lr"] for part in optimizer.parts.values()] == [0.25, 0.125]


def test_warmup_cosine_rises_in_a_line_then_falls_to_nothing() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    schedule = warmup_cosine(optimizer, steps=100, warmup=0.1)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10:] == pytest.approx([(1 + math.cos(math.pi * i / 90)) / 2 for i in range(90)])


def test_lbfgs_gives_torchs_numbers_and_takes_channels_last() -> None:
    inputs = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(1))

    def trained(cls: type[torch.optim.LBFGS], memory_format: torch.memory_format) -> Tensor:
        torch.manual_seed(0)
        net = nn.Conv2d(2, 3, 3).double().to(memory_format=memory_format)  # type: ignore[call-overload]
        optimizer = cls(net.parameters(), lr=0.1, max_iter=5)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = net(inputs.double()).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        return torch.cat([p.detach().reshape(-1) for p in net.parameters()])

    theirs = trained(torch.optim.LBFGS, torch.contiguous_format)
    assert torch.equal(trained(LBFGS, torch.contiguous_format), theirs)
    # Another memory format sums in another order: rounding, ε = 2.2e-16, amplified by five
    # iterations.
    torch.testing.assert_close(trained(LBFGS, torch.channels_last), theirs, rtol=1e-9, atol=1e-12)
