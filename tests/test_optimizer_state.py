"""An optimizer's state comes back as it was, also where torch's own loading alters types and precisions."""

from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from optbench.run.optimizer_state import load_optimizer
from optbench.run.portable_state import digest

ODD: dict[str, Any] = {
    "scalar": np.float64(0.5),
    "array": np.ones(3),
    "text": "warm",
    "bytes": b"x",
    "set": {1, 2},
    "queue": deque([1, 2], maxlen=2),
    "precise": torch.full((2,), 0.1, dtype=torch.float64),
    "tensors": [torch.ones(2), (torch.zeros(1), 3)],
    "nothing": None,
}


def _parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]


@pytest.mark.parametrize("key", ODD)
def test_every_kind_of_state_comes_back_as_it_was(key: str) -> None:
    before, after = (
        SGD(_parameters(), lr=0.1, momentum=0.9),
        SGD(_parameters(), lr=0.2, momentum=0.9),
    )
    for p in before.param_groups[0]["params"]:
        before.state[p] = {"momentum_buffer": torch.ones_like(p), key: ODD[key]}
    load_optimizer(after, before.state_dict())
    assert digest(after.state_dict()) == digest(before.state_dict())
    loaded = after.state[after.param_groups[0]["params"][1]][key]
    assert type(loaded) is type(ODD[key])
    if isinstance(ODD[key], deque):
        assert loaded.maxlen == 2


def test_ordinary_state_is_left_to_torch() -> None:
    def stepped() -> Adam:
        parameters = _parameters()
        optimizer = Adam(parameters, lr=0.1)
        for p in parameters:
            p.grad = torch.ones_like(p)
        optimizer.step()
        return optimizer

    before, after = stepped(), Adam(_parameters(), lr=0.2)
    load_optimizer(after, before.state_dict())
    assert digest(after.state_dict()) == digest(before.state_dict())


def test_an_optimizer_with_a_layout_of_its_own_loads_it_itself() -> None:
    class Own(Optimizer):
        def __init__(self) -> None:
            super().__init__(_parameters(), {})
            self.memory: Any = None

        def state_dict(self) -> dict[str, Any]:
            return {"memory": self.memory}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.memory = state_dict["memory"]

    own = Own()
    load_optimizer(own, {"memory": "x"})
    assert own.memory == "x"
