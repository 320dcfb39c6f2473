"""Handwritten digits, embedded in scikit-learn: real images without a download, in seconds."""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from optbench.boundary.kinds import CountFromZero
from optbench.boundary.regular_files import read_gzip, reason
from optbench.data.splits import Handling, Labelled, balanced_split, labelled
from optbench.errors import MachineError
from optbench.task import Split, Task

CLASSES = 10
TEST_SIZE, VAL_SIZE = 500, 297
MOST_BYTES = 2**20  # the table has a quarter of that


def digits(
    seed: int,
    loss: Literal["ce", "mse"] = "mse",
    val_size: CountFromZero = VAL_SIZE,
    **handling: Labelled,
) -> Task:
    """1,797 images of 8×8 pixels in [0, 1]: 1,000 training, 297 validation, 500 test.

    Args:
        seed: See `optbench.data.splits.Handling`, as for the others.
        loss: Loss: `mse` (½‖f − y‖²) or `ce` (mean cross-entropy, natural log).
        val_size: Examples to choose with, of the 1,297 that are not for reporting.
        handling: Other label options (train_size, label_noise, imbalance, …).
    """
    table = torch.from_numpy(_read())
    images, labels = table[:, :64].float().reshape(-1, 1, 8, 8) / 16, table[:, 64].long()
    test, rest = balanced_split(labels, TEST_SIZE)
    return labelled(
        "digits",
        Split(images[rest], labels[rest]),
        Split(images[test], labels[test]),
        CLASSES,
        Handling(seed, loss, val_size=val_size, **handling),
        facts={"source": "scikit-learn digits (UCI)"},
    )


def _read() -> np.ndarray:
    # Importing sklearn.datasets takes longer than training's first hundred steps; its data file is
    # all we need.
    file = sklearn_data() / "digits.csv.gz"
    try:
        lines = read_gzip(file, MOST_BYTES).decode("ascii").splitlines()
        table = np.loadtxt(lines, delimiter=",", dtype=np.float64)
        if table.shape != (1797, 65) or not np.isin(table[:, 64], range(CLASSES)).all():
            raise ValueError(
                f"expected 1,797 rows of 64 pixels and a class 0-9, got shape {table.shape}"
            )
    except (OSError, ValueError) as why:
        raise MachineError(
            f"cannot read scikit-learn's digits at {file}: {reason(why)}. Install scikit-learn "
            "again."
        ) from why
    return table


def sklearn_data() -> Path:
    """The folder of scikit-learn's embedded data, found without importing it."""
    spec = find_spec("sklearn")
    folder = (
        Path(spec.submodule_search_locations[0])
        if spec and spec.submodule_search_locations
        else Path()
    )
    return folder / "datasets" / "data"
