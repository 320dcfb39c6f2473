"""A model at its weights with a task: what the measures look at, each quantity computed once."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optbench.curvature import Eigenpairs, Hessian, Loss, Scaled, top_eigenpairs
from optbench.curvature.errors import MeasurementError
from optbench.curvature.isolation import kept_rng
from optbench.curvature.selection import trainable
from optbench.lab import per_example
from optbench.probes.generalization import evaluating
from optbench.run.threads import fitting_threads
from optbench.task import Split, Task

ACCURACY = 1e-3
"""Relative accuracy of the eigenvalues."""

LARGEST_INPUT = 4096
"""Numbers of one input up to which the outer product of gradients is taken: 128 MiB."""


class Point:
    """A model at its weights with a task. It is read, never changed.

    Curvature is of the training loss in the mode that the model is in (train, for a run's), every
    quantity of the function in eval mode.

    Args:
        model: Model.
        task: Task, on the model's device.
        optimizer: Its optimizer, for what depends on learning rates; None without.
        examples: Number of training examples, the first ones; None for all.
        test_examples: Number of test examples likewise.
        kernel_examples: Number of training examples of the neural tangent kernel.
        seed: Seed of estimates that draw random numbers.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optimizer: Optimizer | None = None,
        *,
        examples: int | None = None,
        test_examples: int | None = 1000,
        kernel_examples: int = 100,
        seed: int = 0,
    ) -> None:
        # derivatives of derivatives are of the model itself: compiled graphs have none
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        self.task, self.optimizer = task, optimizer
        self.train = task.train.first(examples)
        self.test = None if task.test is None else task.test.first(test_examples)
        self.kernel_examples, self.seed = kernel_examples, seed
        self.parameters = trainable(self.model)

    @contextmanager
    def reading(self) -> Iterator[nn.Module]:
        """Context with the model in eval mode; model and random state are restored."""
        with (
            kept_rng(self.train.inputs.device),
            evaluating(self.model, self.optimizer, self.task),
        ):
            yield self.model

    def fitting_threads(self) -> AbstractContextManager[None]:
        """Context of the threads that fit passes over the training examples."""
        return fitting_threads(self.model, self.optimizer, self.task, len(self.train))

    def held_out(self) -> Split:
        """The test split.

        Raises:
            MeasurementError: If the task has none.
        """
        if self.test is None:
            raise MeasurementError("the task has no test split")
        return self.test

    def classes(self) -> Tensor:
        """Class of each training example, (N,).

        Raises:
            MeasurementError: If targets are no classes.
        """
        targets, width = self.train.targets, self.logits.shape[-1]
        if targets.is_floating_point():
            one_hot = targets.ndim == 2 and bool(((targets == 0) | (targets == 1)).all())
            if not one_hot or not bool((targets.sum(1) == 1).all()):
                raise MeasurementError("targets are numbers, and no classes")
            return targets.argmax(1)
        if targets.ndim != 1 or self.logits.ndim != 2 or width < 2:
            raise MeasurementError("the task has not one class for each example")
        return targets

    @cached_property
    def logits(self) -> Tensor:
        """Outputs at the training inputs, (N, C)."""
        with self.reading() as model:
            return per_example.outputs(model, self.train.inputs)

    @cached_property
    def logit_scale(self) -> float:
        """Root mean square of the training outputs."""
        return float(self.logits.double().square().mean().sqrt())

    @cached_property
    def features(self) -> Tensor:
        """Inputs of the last linear layer at the training inputs, (N, H)."""
        with self.reading() as model:
            return per_example.features(model, self.train.inputs)

    @cached_property
    def last_layer(self) -> nn.Linear:
        """A copy of the last linear layer, as it is in eval mode.

        Some optimizers, such as Schedule-Free, have other weights then.
        """
        with self.reading() as model:
            layer = per_example.last_layer(model)
            bias = layer.bias is not None
            copy = nn.Linear(layer.in_features, layer.out_features, bias=bias, device="meta")
            copy.load_state_dict(
                {name: p.detach().clone() for name, p in layer.named_parameters()}, assign=True
            )
        return copy

    @cached_property
    def weights(self) -> Tensor:
        """All trained weights as one vector, (P,)."""
        return torch.cat([p.detach().flatten() for p in self.parameters])

    @cached_property
    def loss(self) -> Loss:
        """The training loss, in the model's mode."""
        data = (self.train.inputs, self.train.targets)
        return Loss(self.model, self.task.loss, data, weight=self.task.weight)

    @cached_property
    def value_and_gradient(self) -> tuple[float, Tensor]:
        """L and ∇L, (P,)."""
        return self.loss.value_and_gradient()

    @cached_property
    def hessian(self) -> Hessian:
        """∇²L."""
        return self.loss.hessian()

    @cached_property
    def top(self) -> Eigenpairs:
        """The largest eigenvalue of ∇²L and its vector."""
        return top_eigenpairs(self.hessian, 1, accuracy=ACCURACY, seed=self.seed)

    @cached_property
    def adaptive(self) -> Scaled:
        """|W| ∇²L |W|, |W| = diag |w|."""
        return Scaled(self.hessian, self.weights.abs())

    @cached_property
    def adaptive_top(self) -> Eigenpairs:
        """The largest eigenvalue of |W| ∇²L |W| and its vector."""
        return top_eigenpairs(self.adaptive, 1, accuracy=ACCURACY, seed=self.seed)

    @cached_property
    def logit_normalized(self) -> Hessian:
        """∇² mean ℓ(f/s, y), s the outputs' root mean square, held constant.

        Raises:
            MeasurementError: If all outputs are 0.
        """
        scale = self.logit_scale
        if not scale > 0:
            raise MeasurementError("all outputs are 0: they have no scale")

        def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
            return self.task.loss(outputs / scale, targets)  # a constant: detached

        data = (self.train.inputs, self.train.targets)
        return Loss(self.model, criterion, data, weight=self.task.weight).hessian()

    @cached_property
    def logit_normalized_top(self) -> Eigenpairs:
        """The largest eigenvalue of it and its vector."""
        return top_eigenpairs(self.logit_normalized, 1, accuracy=ACCURACY, seed=self.seed)

    @cached_property
    def gradient_moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (P,) and variance (P,) of the per-example gradients, and means of batches (B, P).

        The batches are consecutive training examples, ten of equal size.
        """
        with self.reading() as model:
            chunks = per_example.gradients(
                model, self.task.loss, self.train.inputs, self.train.targets
            )
            return _moments(chunks, len(self.train), min(10, len(self.train)))

    @cached_property
    def input_jacobian_train(self) -> float:
        """E‖∂f/∂x‖²_F at the training inputs."""
        with self.reading() as model:
            return _mean_square(per_example.input_jacobians(model, self.train.inputs))

    @cached_property
    def input_jacobian_test(self) -> float:
        """The same at the test inputs."""
        inputs = self.held_out().inputs
        with self.reading() as model:
            return _mean_square(per_example.input_jacobians(model, inputs))

    @cached_property
    def gradient_outer_product(self) -> Tensor:
        """E ∂f/∂xᵀ ∂f/∂x at the training inputs, (D, D), D the numbers of one input.

        Raises:
            MeasurementError: If it has more than `LARGEST_INPUT`² entries.
        """
        size = self.train.inputs[0].numel()
        if size > LARGEST_INPUT:
            raise MeasurementError(
                f"an outer product of gradients of {size} inputs has {size}² entries; at most "
                f"{LARGEST_INPUT}² are taken"
            )
        with self.reading() as model:
            return _outer(per_example.input_jacobians(model, self.train.inputs), len(self.train))


def _moments(chunks: Iterator[Tensor], count: int, batches: int) -> tuple[Tensor, Tensor, Tensor]:
    total: Tensor | None = None
    squares: Tensor | None = None
    size, position = count // batches, 0
    sums: Tensor | None = None
    for rows in chunks:
        exact = rows.double()
        if total is None or squares is None or sums is None:
            total, squares = torch.zeros_like(exact[0]), torch.zeros_like(exact[0])
            sums = exact.new_zeros(batches, exact.shape[1])
        total += exact.sum(0)
        squares += exact.square().sum(0)
        places = torch.arange(position, position + len(exact), device=exact.device) // size
        kept = places < batches
        sums.index_add_(0, places[kept], exact[kept])
        position += len(exact)
    assert total is not None and squares is not None and sums is not None
    mean = total / count
    return mean, (squares / count - mean.square()).clamp(min=0), sums / size


def _mean_square(jacobians: Iterator[Tensor]) -> float:
    total, count = 0.0, 0
    for rows in jacobians:
        total += float(rows.double().square().sum())
        count += len(rows)
    return total / count


def _outer(jacobians: Iterator[Tensor], count: int) -> Tensor:
    products = ((rows := jacobian.flatten(0, 1)).T @ rows for jacobian in jacobians)
    total = next(products).double()
    for product in products:
        total += product
    return total / count
