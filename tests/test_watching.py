import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import optbench
from optbench.curvature import Hessian, top_eigenpairs
from optbench.probes.spectrum import Spectrum
from optbench.watching import Watch, watch

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "unknown": lambda p: torch.optim.ASGD(p, lr=0.1),
}


def _data(seed: int, N: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, 6, generator=generator), torch.randint(0, 3, (N,), generator=generator)


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3)
    )


def _train(name: str, watched: bool) -> tuple[list[Tensor], list[dict[str, object]]]:
    """A script of somebody else's: shuffled batches, dropout, batch norm, random numbers of three libraries."""
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    model = _model()
    optimizer = OPTIMIZERS[name](model.parameters())
    loader = DataLoader(TensorDataset(*_data(0)), batch_size=10, shuffle=True)
    watching: Watch | None = None
    if watched:
        watching = watch(
            model, optimizer, F.cross_entropy, loader, every=3, test=_data(1), say=lambda _: None
        )
    trace, found = [], []
    for epoch in range(6):
        model.eval() if epoch == 1 else model.train()
        model.get_submodule("3").train()
        for inputs, targets in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            if watching is not None and (numbers := watching()):
                found.append(dict(numbers))
            trace += [p.detach().clone() for p in [*model.parameters(), *model.buffers()]]
            trace += [p.grad.clone() for p in model.parameters() if p.grad is not None]
            trace.append(torch.tensor([m.training for m in model.modules()]))
        trace.append(torch.tensor([random.random(), np.random.rand(), float(torch.rand(()))]))  # noqa: NPY002
    trace += [
        value
        for state in optimizer.state_dict()["state"].values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    return trace, found  # type: ignore[return-value]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_of_the_users_training_changes_bit_for_bit(name: str) -> None:
    plain, _ = _train(name, False)
    watched, found = _train(name, True)
    assert len(plain) == len(watched) and len(found) == 8
    assert all(torch.equal(one, other) for one, other in zip(plain, watched, strict=True))
    keys = {
        "sharpness/lambda_max",
        "sharpness/lambda_max_bound",
        "edge/distance",
        "gap/loss",
        "gap/error",
        "test/error",
    }
    assert keys <= found[-1].keys()


def test_the_numbers_are_those_of_the_engine() -> None:
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = _data(0)
    found = watch(model, optimizer, F.cross_entropy, (x, y), test=_data(1), say=lambda _: None)()
    sharpness = float(
        top_eigenpairs(Hessian(model, F.cross_entropy, (x, y), mode="train"), accuracy=1e-6).values[
            0
        ]
    )
    # the accuracy of the probe
    assert found["sharpness/lambda_max"] == pytest.approx(sharpness, rel=5e-3)
    assert found["edge/threshold"] == pytest.approx(20)
    assert found["edge/distance"] == pytest.approx(float(str(found["sharpness/lambda_max"])) / 20)
    model.eval()
    with torch.no_grad():
        assert found["train/error"] == pytest.approx(
            float((model(x).argmax(1) != y).double().mean())
        )
        losses = [
            float(F.cross_entropy(model(inputs), targets)) for inputs, targets in ((x, y), _data(1))
        ]
    assert found["gap/loss"] == pytest.approx(losses[1] - losses[0], rel=1e-5)


def test_it_measures_at_the_first_and_every_so_many_calls_and_resumes() -> None:
    def make() -> Watch:
        model = _model()
        return watch(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            F.cross_entropy,
            _data(0),
            every=4,
            say=lambda _: None,
        )

    one = make()
    assert [bool(one()) for _ in range(9)] == [True, False, False, False] * 2 + [True]
    other = make()
    other.load_state_dict(one.state_dict())
    assert other.step == 9
    assert {k: v for k, v in other.measure().items() if "seconds" not in k} == {
        k: v for k, v in one.measure().items() if "seconds" not in k
    }


def test_examples_bound_what_is_read_and_any_probe_can_be_had() -> None:
    model, (x, y) = _model(), _data(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    few = watch(
        model,
        optimizer,
        F.cross_entropy,
        DataLoader(TensorDataset(x, y), batch_size=8),
        examples=12,
        probes={"spectrum": Spectrum(samples=4, steps=8)},
    )
    assert torch.equal(few.task.train.inputs, x[:12])
    assert "spectrum/trace" in few()


def test_regression_has_no_error_and_lines_are_said_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = nn.Linear(6, 1)
    x, _ = _data(0)
    measure = watch(
        model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), (x, x[:, :1]), every=1
    )
    assert "train/error" not in measure() and "gap/loss" not in measure()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(set(lines)) and any(
        "edge of stability: λ₁(H) = 2/η" in line for line in lines
    )


def test_the_distance_of_adam_is_absent_until_it_means_something_and_then_of_order_1() -> None:
    model, (x, y), lines = _model(), _data(0), list[str]()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    # in single precision the first P, of dead units nearly 0, cancels on some processors: no edge
    measure = watch(
        model,
        optimizer,
        F.cross_entropy,
        (x, y),
        every=1,
        full_batch=True,
        say=lines.append,
        dtype=torch.float64,
    )
    distances = {}
    for update in range(1, 101):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        found = measure()
        if "edge/distance" in found:
            distances[update] = float(str(found["edge/distance"]))
    assert list(distances) == list(range(20, 101)) and max(distances.values()) < 3
    assert len({line for line in lines if "edge/distance is absent until step 19" in line}) == 1


def test_what_cannot_be_is_refused() -> None:
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="every must be a positive number of steps, got 0"):
        watch(model, optimizer, F.cross_entropy, _data(0), every=0)
    with pytest.raises(ValueError, match="which can be read once: pass a list or a DataLoader"):
        watch(model, optimizer, F.cross_entropy, iter([_data(0)]))


def test_three_lines_in_a_plain_script_far_from_the_checkout(tmp_path: Path) -> None:
    assert optbench.watch is watch
    (tmp_path / "train.py").write_text(
        """import torch
from optbench import watch

torch.manual_seed(0)
x, y = torch.randn(64, 5), torch.randn(64, 1)
model = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
measure = watch(model, optimizer, torch.nn.functional.mse_loss, (x, y), every=50)
for step in range(101):
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()
    if found := measure():
        print(step, sorted(found))
"""
    )
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["0", "50", "100"]
    assert all("'edge/distance'" in line and "'sharpness/lambda_max'" in line for line in lines)
