"""Logistic regression on real, badly conditioned data: convex, with an optimum that is known."""

from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from optbench.tasks.digits import sklearn_data
from pydantic import Field
from torch import Tensor

from optbench.boundary.kinds import CountFromZero
from optbench.boundary.regular_files import read_bytes, reason
from optbench.data.splits import Handling, Labelled, balanced_split, divide
from optbench.errors import MachineError
from optbench.task import Split, Task

TEST_SIZE = 119
MOST_BYTES = 2**20  # the table has an eighth of that


def logistic(
    seed: int,
    smoothing: Annotated[float, Field(gt=0, lt=0.5)] = 0.05,
    val_size: CountFromZero = 50,
    normalise: Literal["standard", "none"] = "standard",
    **handling: Labelled,
) -> Task:
    """Benign or malignant from 30 features of a cell (Wisconsin breast cancer, scikit-learn).

    With `model=linear` the loss L(w) = mean_i [log(1 + e^{f_i}) − y_i f_i], f_i = w·x_i, is convex;
    the last feature is the constant 1. Labels are smoothed, y = smoothing or 1 − smoothing, so that
    a finite optimum exists although the classes can nearly be separated: L grows without bound in
    every direction that the data span. `provenance.json` holds it, found by Newton's method in
    float64 (‖∇L‖ ≤ 1e-12).

    Args:
        seed: See `optbench.data.splits.Handling`, as for the others.
        smoothing: Smoothing of the labels, between 0 and ½, neither included.
        val_size: Examples to choose with, of the 450 that are not for reporting.
        normalise: Scaling of features: `standard` subtracts mean and divides by standard deviation
            of the training examples, feature by feature; `none` leaves a condition number of about
            1e12.
        handling: Other label options, but for the loss.
    """
    table = torch.from_numpy(_read())
    features, labels = table[:, :-1].float(), table[:, -1].long()
    test, pool = balanced_split(labels, TEST_SIZE)
    options = Handling(seed, "ce", val_size=val_size, normalise=normalise, **handling)
    parts = divide(
        "logistic",
        Split(features[pool], labels[pool]),
        Split(features[test], labels[test]),
        2,
        options,
    )
    splits = {
        name: Split(
            torch.cat([x, torch.ones(len(x), 1)], 1),
            smoothing + (1 - 2 * smoothing) * y.float()[:, None],
        )
        for name, (x, y) in parts.items()
    }
    w = optimum(splits["train"])
    facts: dict[str, object] = {
        "source": "scikit-learn breast cancer (UCI)",
        "optimum": float(
            logistic_loss(splits["train"].inputs.double() @ w, splits["train"].targets.double())
        ),
    }
    return Task(
        splits["train"], splits.get("val"), splits["test"], 1, logistic_loss, _error, facts=facts
    )


def logistic_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean of log(1 + e^f) − y f over examples, f and y of shape (N, 1), y in [0, 1]; nats."""
    return F.binary_cross_entropy_with_logits(outputs, targets)


def _error(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs > 0) != (targets > 0.5)).double().mean()


def optimum(train: Split) -> Tensor:
    """Minimiser of a linear model's loss, shape (features, 1), float64: damped Newton's method."""
    x, y = train.inputs.double(), train.targets.double()
    w = torch.zeros(x.shape[1], 1, dtype=torch.float64)
    for _ in range(100):
        p = torch.sigmoid(x @ w)
        gradient = x.T @ (p - y) / len(x)
        if float(gradient.norm()) <= 1e-12:
            break
        curvature = (x * (p * (1 - p))).T @ x / len(x)
        step = torch.linalg.lstsq(curvature, gradient, driver="gelsd").solution
        loss, length = logistic_loss(x @ w, y), 1.0
        while length > 1e-6 and not bool(logistic_loss(x @ (w - length * step), y) <= loss):
            length /= 2
        w = w - length * step
    return w


def _read() -> np.ndarray:
    """Thirty features and the class of 569 cases, shape (569, 31)."""
    file = sklearn_data() / "breast_cancer.csv"
    try:
        lines = read_bytes(file, MOST_BYTES).decode("ascii").splitlines()
        table = np.loadtxt(lines, delimiter=",", skiprows=1)
        if table.shape != (569, 31):
            raise ValueError(f"expected 569 rows of 31 numbers, got shape {table.shape}")
    except (OSError, ValueError) as why:
        raise MachineError(
            f"cannot read scikit-learn's breast cancer data at {file}: {reason(why)}. Install it "
            "again"
        ) from why
    return table
