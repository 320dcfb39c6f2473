"""Sums of two processes against one process alone: exact in float64, within the stated bound in float32.

The bound: a mean of N terms x_i, added up in another order, moves by at most 2 N u · mean‖x_i‖, for
the unit roundoff u; docs/scale.md.
"""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from optbench.curvature import Hessian, top_eigenpairs, trace
from optbench.curvature.errors import MeasurementError
from optbench.curvature.loss import Loss
from optbench.curvature.product_strategy import Strategy
from optbench.errors import MachineError
from optbench.optimizers.sam import SAM
from optbench.probes import State, measure
from optbench.probes.generalization import evaluate
from optbench.ranks import ALONE, Ranks
from optbench.run.update import Update
from optbench.task import Split, classification
from tests.ranks.processes import answers

STRATEGIES: tuple[Strategy, ...] = ("cached", "recomputed")
N = 101  # examples: no two processes get as many


def _net(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).to(dtype)


def _data(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N, 6, generator=generator).to(dtype), torch.arange(N) % 4


def _measured(ranks: Ranks, dtype: torch.dtype) -> dict[str, Any]:
    net = _net(dtype)
    found: dict[str, Any] = {}
    for strategy in STRATEGIES:
        H = Hessian(net, cross_entropy, _data(dtype), ranks=ranks, strategy=strategy)
        v = torch.randn(H.size, 2, generator=torch.Generator().manual_seed(2)).to(dtype)
        found[f"product/{strategy}"] = H @ v
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(
                    1.1
                )  # at other weights it is checked again that the parts have the same loss
        found[f"moved/{strategy}"] = H @ v
    pairs = top_eigenpairs(H, k=2, seed=3)
    value, gradient = H.loss.value_and_gradient()
    found |= {"lambda": pairs.values, "bounds": pairs.bounds, "vector": pairs.vectors[:, 0].abs()}
    found |= {"trace": torch.tensor(trace(H, 10, seed=4).value), "gradient": gradient}
    return found | {"loss": torch.tensor([value, H.loss.value()])}


@pytest.mark.parametrize("size", [2, 3])
def test_products_eigenvalues_trace_and_gradient_are_those_of_one_process_in_float64(
    size: int, tmp_path: Path
) -> None:
    alone = _measured(ALONE, torch.float64)
    together = answers(size, tmp_path, _measured, torch.float64)
    for one in together:
        assert one.keys() == alone.keys()
        for name, value in alone.items():
            if name != "bounds":
                # 101 terms in another order: 2 N u = 2e-14, and a solve that magnifies it
                torch.testing.assert_close(one[name], value, rtol=1e-11, atol=1e-12, msg=name)
    for name in alone:  # the same bits in every process
        assert torch.equal(together[0][name], together[1][name]), name


def _per_example(v: Tensor) -> Tensor:
    """‖H_i v‖ of each example, (N,), in float64."""
    net, (x, y) = _net(torch.float64), _data(torch.float64)
    norms = []
    for i in range(N):
        loss = cross_entropy(net(x[i : i + 1]), y[i : i + 1])
        slopes = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
        along = torch.cat([s.flatten() for s in slopes]) @ v
        image = torch.autograd.grad(along, list(net.parameters()))
        norms.append(torch.cat([g.flatten() for g in image]).norm())
    return torch.stack(norms)


def _product(ranks: Ranks) -> Tensor:
    H = Hessian(_net(torch.float32), cross_entropy, _data(torch.float32), ranks=ranks)
    return H @ torch.ones(H.size)


def test_a_product_in_float32_differs_by_no_more_than_the_stated_bound(tmp_path: Path) -> None:
    together = answers(2, tmp_path, _product)[0]
    alone, unit = _product(ALONE), torch.finfo(torch.float32).eps / 2
    bound = 2 * N * unit * float(_per_example(torch.ones(len(alone), dtype=torch.float64)).mean())
    difference = float((together - alone).double().norm())
    assert difference <= bound
    assert bound < 1e-4 * float(alone.norm())  # it says something


def _trained(ranks: Ranks, dtype: torch.dtype, kind: str) -> tuple[list[Tensor], list[float], int]:
    net = _net(dtype)
    makers: dict[str, Any] = {
        "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, 0.01),
        "lbfgs": lambda p: torch.optim.LBFGS(p, max_iter=5, line_search_fn="strong_wolfe"),
        "sam": lambda p: SAM(p, lambda q: torch.optim.SGD(q, 0.1), rho=0.05),
    }
    update = Update(
        net,
        cross_entropy,
        makers[kind](net.parameters()),
        micro_batch_size=17 if kind == "adam" else None,
        clip_norm=0.3 if kind == "sgd" else None,
        ranks=ranks,
    )
    x, y = _data(dtype)
    losses = [float(update(x, y)) for _ in range(5)]
    return [p.detach() for p in net.parameters()], losses, update.gradients


@pytest.mark.parametrize("kind", ["sgd", "adam", "lbfgs", "sam"])
def test_updates_are_those_of_one_process(kind: str, tmp_path: Path) -> None:
    weights, losses, gradients = _trained(ALONE, torch.float64, kind)
    together = answers(2, tmp_path, _trained, torch.float64, kind)
    for one in together:
        torch.testing.assert_close(one[0], weights, rtol=1e-10, atol=1e-12)
        assert one[1] == pytest.approx(losses, rel=1e-11)
        assert one[2] == gradients
    for a, b in zip(together[0][0], together[1][0], strict=True):
        assert torch.equal(a, b)


def test_updates_in_float32_differ_by_rounding(tmp_path: Path) -> None:
    weights = torch.cat([p.flatten() for p in _trained(ALONE, torch.float32, "sgd")[0]])
    together = answers(2, tmp_path, _trained, torch.float32, "sgd")[0]
    moved = torch.cat([p.flatten() for p in together[0]]) - weights
    # 5 steps along clipped gradients of norm .3 at rate .1, momentum ·10 at most, each 2 N u off
    assert 0 < float(moved.norm()) <= 5 * 0.1 * 10 * 0.3 * 2 * N * 6e-8


class _Sometimes(nn.Module):
    """Uses a layer for some of the examples only, and another for none."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.last, self.never = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.always(x)
        if bool((x[:, 0] > 90).any()):
            out = out + torch.where(x[:, :1] > 90, self.last(x), torch.zeros_like(out))
        return out


def _sometimes(ranks: Ranks) -> list[Tensor | None]:
    torch.manual_seed(0)
    net = _Sometimes().double()
    x, y = _data(torch.float64)
    x[-1] = 100.0  # an example of the last process alone
    update = Update(net, cross_entropy, torch.optim.SGD(net.parameters(), 1e-3), ranks=ranks)
    update(x, y)
    return [p.grad for p in net.parameters()]


def test_a_parameter_that_one_process_alone_uses_has_its_gradient_in_all(tmp_path: Path) -> None:
    alone = _sometimes(ALONE)
    assert [g is None for g in alone] == [False] * 4 + [True] * 2
    for one in answers(2, tmp_path, _sometimes):
        for a, b in zip(one, alone, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def _evaluated(ranks: Ranks) -> dict[str, float]:
    task = classification({"train": _data(torch.float32)}, 4, "ce")
    net = _net(torch.float32).eval()
    return evaluate(task, net, Split(*_data(torch.float32)), chunk=10, ranks=ranks)


def test_an_evaluation_is_that_of_one_process_to_the_bit(tmp_path: Path) -> None:
    assert answers(3, tmp_path, _evaluated) == [_evaluated(ALONE)] * 3


def _mapped(ranks: Ranks) -> list[Any]:
    def work(i: int) -> Any:
        if i == 3:
            return {"i": i}  # no tensor
        return torch.full((i, 2), float(i), dtype=torch.float64)

    return [(i, result) for i, result in ranks.map(work, range(1, 6))]


def test_results_that_are_no_tensors_are_computed_by_every_process(tmp_path: Path) -> None:
    for found in answers(2, tmp_path, _mapped):
        assert [i for i, _ in found] == [1, 2, 3, 4, 5]
        assert found[2][1] == {"i": 3}
        for i, result in found[:2] + found[3:]:
            assert torch.equal(result, torch.full((i, 2), float(i), dtype=torch.float64))


def _drifted(ranks: Ranks) -> str:
    same = [torch.ones(3), torch.ones(2, dtype=torch.bfloat16)]
    ranks.check_same(same, "weights")
    same[0][1] += ranks.rank * 1e-7
    with pytest.raises(MachineError) as raised:
        ranks.check_same(same, "weights")
    return str(raised.value)


def test_weights_that_differ_in_one_bit_are_an_error(tmp_path: Path) -> None:
    assert all("different weights" in said for said in answers(2, tmp_path, _drifted))


def _weighted(ranks: Ranks) -> list[str]:
    """What is said of losses that processes cannot share."""
    x, y = _data(torch.float64)
    said = []
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    norm = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).double()
    drop = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5)).double()
    for net, criterion, data in (
        (_net(torch.float64), lambda o, t: cross_entropy(o, t, weights), (x, y)),
        (norm, cross_entropy, (x, y)),
        (drop, cross_entropy, (x, y)),
        (_net(torch.float64), cross_entropy, (x[:1], y[:1])),
    ):
        with pytest.raises(ValueError) as raised:
            Loss(net, criterion, data, ranks=ranks).value()
        said.append(str(raised.value))
    return said


def test_losses_that_processes_cannot_share_are_refused(tmp_path: Path) -> None:
    for said in answers(2, tmp_path, _weighted):
        for line, word in zip(
            said, ["not the mean over examples", "batch norm", "dropout", "1 example"], strict=True
        ):
            assert word in line


class _UnpicklableError(ValueError):
    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("no")


def _failing(ranks: Ranks, failing: tuple[int, ...], kind: type[Exception]) -> list[object]:
    """Some processes fail before a sum that the others are in; then all add up once more."""
    said: list[object] = []
    for depth in (1, 2):
        try:
            with ranks.one_fate():
                try:
                    with ranks.one_fate() if depth == 2 else contextlib.nullcontext():
                        if ranks.rank in failing:
                            raise kind(f"of {ranks.rank}")
                        # what only some processes catch must not part them
                        with contextlib.suppress(Exception):
                            ranks.sums(1.0)
                except kind as why:
                    if depth == 1:
                        raise
                    said.append(f"inside: {why}")
                ranks.check_same([torch.ones(2)], "weights")
        except Exception as why:
            said.append(f"{type(why).__name__}: {why}")
        said.append(ranks.sums(1.0, 2.0))
    return said


def test_what_one_process_raises_is_raised_in_all_and_later_sums_are_right(tmp_path: Path) -> None:
    sums = (3.0, 6.0)
    for failing in ((1,), (1, 2), (0, 1, 2)):
        error = f"MeasurementError: of {failing[0]}"
        for said in answers(3, tmp_path / str(failing), _failing, failing, MeasurementError):
            assert said == [error, sums, f"inside: of {failing[0]}", sums]
    why = "MachineError: process 1 of this run failed: _UnpicklableError: of 1"
    for said in answers(3, tmp_path / "odd", _failing, (1,), _UnpicklableError):
        assert said == [why, sums, why, sums]
    assert _failing(ALONE, (0,), MeasurementError)[0] == "MeasurementError: of 0"


def _probed(ranks: Ranks) -> tuple[list[str], dict[str, Any]]:
    """A probe that fails between two products in the last process alone, and one that measures."""
    net, (x, y) = _net(torch.float64), _data(torch.float64)
    splits = dict.fromkeys(("train", "val", "test"), (x, y))
    task, said = classification(splits, 4, "ce"), list[str]()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    state = State(0, 10, task, net, optimizer, True, 1, 0, say=said.append)
    state.shared.ranks = ranks

    class Odd:
        every: int | str = 1

        def __call__(self, state: State) -> dict[str, float]:
            H = Hessian(net, cross_entropy, (x, y), ranks=ranks)
            first = H @ torch.ones(H.size).double()
            if ranks.rank == ranks.size - 1:
                raise MeasurementError("this process cannot")
            return {"odd": float((H @ first).norm())}

    class Plain:
        every: int | str = 1

        def __call__(self, state: State) -> dict[str, float]:
            return {"plain": trace(state.shared.hessian(state, None), 2, seed=0).value}

    return said, dict(measure({"odd": Odd(), "plain": Plain()}, state))


def test_a_probe_that_fails_in_one_process_is_absent_in_all_and_the_next_one_is_right(
    tmp_path: Path,
) -> None:
    _, alone = _probed(ALONE)
    for said, found in answers(2, tmp_path, _probed):
        assert said == ["odd is absent: this process cannot"]
        # 101 terms in another order: 2 N u = 2e-14
        assert found == {"plain": pytest.approx(alone["plain"], rel=1e-11)}
