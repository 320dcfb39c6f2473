"""The rate that is named to a run that starts far above its edge is one at which it would not."""

import pytest
import torch
from torch import Tensor, nn

from optbench.dynamics.starting_rate import scaled_rates
from optbench.optimizers.sign import Signum
from optbench.probes import State, measure
from optbench.probes.edge import Edge
from optbench.probes.sharpness import Sharpness
from optbench.task import Split, Task, half_mse


def _said(make: "type[torch.optim.Optimizer]", **settings: object) -> list[str]:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    x: Tensor = torch.randn(64, 4)
    split = Split(x, x.sum(1, keepdim=True))
    task = Task(split, None, None, 1, half_mse, None)
    optimizer = make(model.parameters(), **settings)  # type: ignore[arg-type]
    said: list[str] = []
    state = State(0, 10, task, model, optimizer, True, 1, 0, say=said.append)
    measure({"sharpness": Sharpness(), "edge": Edge()}, state)
    return [line for line in said if "far above" in line]


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (torch.optim.SGD, {"momentum": 0.0}),
        (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 1e-3}),
        (Signum, {"momentum": 0.0}),
    ],
)
def test_the_rate_that_is_named_would_not_start_above(
    make: "type[torch.optim.Optimizer]", settings: dict[str, float]
) -> None:
    [line] = _said(make, lr=100.0, **settings)
    rate = float(line.partition("; lr=")[2].partition(" ")[0])
    assert 0 < rate < 100 and _said(make, lr=rate, **settings) == []
    assert _said(make, lr=3.5 * rate, **settings)  # it is no timid one


def test_nothing_is_said_where_no_edge_is_known_yet() -> None:
    assert _said(torch.optim.Adam, lr=100.0) == []


def test_rates_are_restored_to_the_same_objects() -> None:
    rate = torch.tensor(0.1)
    inner = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=rate)
    with scaled_rates(inner, 0.5):
        assert float(inner.param_groups[0]["lr"]) == pytest.approx(0.05)
    assert inner.param_groups[0]["lr"] is rate
