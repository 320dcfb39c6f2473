"""What the README says to copy works when copied."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def test_certified_sharpness_for_your_own_model(capsys: pytest.CaptureFixture[str]) -> None:
    block = re.search(r"```python\n(.*?)```", README, re.S)
    assert block is not None
    assert len(block.group(1).splitlines()) <= 10
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    data = torch.utils.data.TensorDataset(torch.randn(50, 5), torch.randint(0, 3, (50,)))
    loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
    exec(block.group(1), {"model": model, "loader": loader})
    assert "each at most" in (out := capsys.readouterr().out) and "found no larger one" in out


@pytest.mark.parametrize(
    "command", ["pip install -c constraints.txt -e .", "-m optbench", "-m pytest"]
)
def test_the_two_commands_are_there(command: str) -> None:
    assert command in README.split("## The main job")[0]


WATCH = (Path(__file__).resolve().parent.parent / "docs/watch.md").read_text()


def test_three_lines_of_watch() -> None:
    block = re.search(r"```python\n(.*?)```", WATCH, re.S)
    assert block is not None
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    data = torch.utils.data.TensorDataset(torch.randn(32, 5), torch.randint(0, 3, (32,)))
    logged: list[dict[str, float]] = []

    class Wandb:
        log = staticmethod(logged.append)

    loader = torch.utils.data.DataLoader(data, batch_size=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names = {"model": model, "loss": torch.nn.functional.cross_entropy, "wandb": Wandb}
    exec(block.group(1), {**names, "optimizer": optimizer, "loader": loader, "test_loader": loader})
    assert (
        len(logged) == 1
        and {"sharpness/lambda_max", "edge/distance", "gap/error"} <= logged[0].keys()
    )
