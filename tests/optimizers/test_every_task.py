"""Every optimizer on every kind of problem, through the real runner with its default probes."""

import json
import math

import pytest

from optbench.check.subject import entries
from tests.conftest import Command

# Full batch and squared loss; convolutions, mini-batches and cross-entropy; attention, embeddings
# and norms; one vector and a known optimum.
PROBLEMS = {
    "digits": ("task=digits", "model.widths=[8]", "schedule=linear", "schedule.end_factor=0.5"),
    "digits_cnn": (
        "task=digits",
        "model=cnn",
        "task.loss=ce",
        "batch_size=50",
        "probes.sharpness.examples=50",
    ),
    "char_lm": (
        "task=char_lm_small",
        "task.characters=4000",
        "probes.sharpness.examples=16",
        "schedule=constant",
    ),
    "quadratic": ("task=quadratic", "dtype=float64"),
}


# Those that differentiate the outputs in the inputs refuse tokens, which have no derivative.
INPUT_JACOBIAN = ("jacobian_reducer", "sam_without_jacobian")

PAIRS = [
    # each optimizer on one kind of problem, in turn; on the others with `-m slow`
    pytest.param(optimizer, problem, marks=[] if i % len(PROBLEMS) == j else [pytest.mark.slow])
    for i, optimizer in enumerate(entries("optimizer"))
    for j, problem in enumerate(PROBLEMS)
]


@pytest.mark.parametrize(("optimizer", "problem"), PAIRS)
def test_it_runs(optbench: Command, optimizer: str, problem: str) -> None:
    outcome = optbench(*PROBLEMS[problem], f"optimizer={optimizer}", "steps=5")
    if optimizer in INPUT_JACOBIAN and problem == "char_lm":
        assert outcome.code == 2 and "inputs that are tokens have none" in outcome.err
        return
    assert outcome.code == 0, outcome.err
    summary = json.loads((outcome.folder / "summary.json").read_text())
    assert summary["status"] == "done" and summary["step"] == 5
    assert math.isfinite(summary["last"]["train/loss"])
    distance = summary["last"].get("edge/distance")
    assert distance is not None or "edge" in outcome.err  # absent only with its reason
