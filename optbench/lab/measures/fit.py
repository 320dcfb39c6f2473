"""What the measures are held against: losses and errors."""

import torch

from optbench.curvature.errors import MeasurementError
from optbench.lab import per_example
from optbench.lab.measures import measure
from optbench.lab.point import Point


@measure(
    meaning="Training loss, in the model's own mode",
    equation="L(w)",
    unit="loss",
    invariant="yes",
    source="the loss of the task",
    cost="1 gradient",
)
def train_loss(point: Point) -> float:
    """L."""
    return point.value_and_gradient[0]


@measure(
    meaning="Test loss",
    equation="mean ℓ over the test examples, in eval mode",
    unit="loss",
    invariant="yes",
    source="the loss of the task",
    cost="1 forward of the test examples",
)
def test_loss(point: Point) -> float:
    """The loss over `test_examples`."""
    split = point.held_out()
    with point.reading() as model, torch.no_grad():
        return float(point.task.loss(per_example.outputs(model, split.inputs), split.targets))


@measure(
    meaning="Test error",
    equation="share of test examples that are classified wrongly, in eval mode",
    unit="1",
    invariant="yes",
    source="the error of the task",
    cost="1 forward of the test examples",
)
def test_error(point: Point) -> float:
    """The error over `test_examples`.

    Raises:
        MeasurementError: If the task has no error.
    """
    split = point.held_out()
    if point.task.error is None:
        raise MeasurementError("the task has a loss and no error")
    with point.reading() as model, torch.no_grad():
        return float(point.task.error(per_example.outputs(model, split.inputs), split.targets))
