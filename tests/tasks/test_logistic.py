import os
from pathlib import Path

import numpy as np
import pytest
import torch
from optbench.tasks.logistic import logistic, logistic_loss, optimum
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer

from optbench.errors import MachineError


def test_it_is_scikit_learns_breast_cancer_with_a_constant_and_smoothed_labels() -> None:
    task = logistic(0, normalise="none")
    assert [len(split) for split in task.splits.values()] == [400, 50, 119]
    everything = torch.cat([split.inputs for split in task.splits.values()])
    assert bool((everything[:, -1] == 1).all())
    reference = torch.from_numpy(load_breast_cancer().data).float()
    assert sorted(map(tuple, everything[:, :-1].tolist())) == sorted(map(tuple, reference.tolist()))
    assert set(task.train.targets.unique().tolist()) == {np.float32(0.05), np.float32(0.95)}
    malignant = sum(int((split.targets < 0.5).sum()) for split in task.splits.values())
    assert malignant == 212  # as scikit-learn's description says


@pytest.mark.parametrize("smoothing", [0.01, 0.05])
def test_the_optimum_is_that_of_an_independent_solver(smoothing: float) -> None:
    task = logistic(0, smoothing=smoothing)
    x, y = task.train.inputs.double().numpy(), task.train.targets.double().numpy()[:, 0]

    def loss_and_gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
        f = x @ w
        return float(np.mean(np.logaddexp(0, f) - y * f)), x.T @ (1 / (1 + np.exp(-f)) - y) / len(y)

    found = minimize(
        loss_and_gradient,
        np.zeros(31),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 20000, "maxfun": 40000, "ftol": 0, "gtol": 1e-10},
    )
    # L-BFGS stops a little above; the two gradients are below 1e-6 and 1e-12.
    assert 0 <= found.fun - float(str(task.facts["optimum"])) < 1e-6
    w = optimum(task.train).numpy()[:, 0]
    assert np.linalg.norm(loss_and_gradient(w)[1]) <= 1e-12


def test_error_reads_the_sign_against_the_smoothed_label() -> None:
    task = logistic(0)
    assert task.error is not None
    assert task.error(
        torch.tensor([[2.0], [-1.0], [1.0]]), torch.tensor([[0.95], [0.05], [0.05]])
    ) == pytest.approx(1 / 3)
    assert float(logistic_loss(torch.zeros(3, 1), torch.full((3, 1), 0.05))) == pytest.approx(
        np.log(2)
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is a FIFO, not a regular file"),
        (b"head\n1,2\n", "expected 569 rows"),
        (b"head\n1,x\n", "could not convert"),
        (b"head\n\xff\n", "ordinal not in range"),
        (bytes(2**21), "holds more than 1,048,576 bytes"),
    ],
)
def test_a_damaged_table_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, message: str
) -> None:
    monkeypatch.setattr("optbench.tasks.logistic.sklearn_data", lambda: tmp_path)
    file = tmp_path / "breast_cancer.csv"
    if content is None:
        os.mkfifo(file)
    else:
        file.write_bytes(content)
    with pytest.raises(
        MachineError,
        match=f"cannot read scikit-learn's breast cancer data at {file}: .*{message}.*nstall",
    ):
        logistic(0)
