"""Curvature that mini-batch gradients meet, and their noise."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from optbench import metrics
from optbench.boundary.kinds import Count, Positive, Several
from optbench.boundary.signature import check_fields
from optbench.curvature import Hessian
from optbench.dynamics.minibatch_curvature import (
    Batch,
    Estimate,
    batch_sharpness,
    interaction,
    interaction_aware_sharpness,
)
from optbench.probes import State, Value
from optbench.seeds import generator


@dataclass
class BatchSharpness:
    """Batch sharpness, gradient–noise interaction and interaction-aware sharpness, with 95 % intervals.

    `batch/sharpness` = E_B[g_BᵀH_Bg_B/‖g_B‖²], which settles at 2/η for SGD; `batch/interaction` =
    E_B[g_BᵀHg_B]/‖g‖²; `batch/interaction_aware_sharpness` = E_B[g_BᵀHg_B]/E_B‖g_B‖², H and g over
    `examples`. `…_low` and `…_high` are the ends of the t interval over `batch/count` batches of
    `size` examples, drawn afresh at every measurement without replacement within a batch, without
    augmentation. Absent for the full batch, where all three are gᵀHg/‖g‖². Cost: a batch's gradient
    and product, and one product with H, a batch.

    Args:
        every: Cadence.
        size: Examples a batch: the run's.
        batches: Most batches, at least 2.
        until: Stop when the half width of the interval of batch sharpness is below this share of
            it.
        examples: How many training examples H is over, always the same, the first ones; None for
            all.

    References:
        Andreyev and Beneventano (2024), arXiv:2412.20553; Lee and Jang (2023), ICLR, openreview
        bH-kCY6LdKg.
    """

    every: int | str = "log"
    size: Count | Literal["full"] = "full"
    batches: Several = 32
    until: Positive | None = 0.05
    examples: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self, "batch_sharpness.")

    def __call__(self, state: State) -> dict[str, Value]:
        """Draw batches and measure on each."""
        if state.full_batch or isinstance(self.size, str):
            state.say(
                "batch/sharpness is absent: the full batch is trained on, so it would be gᵀHg/‖g‖²"
            )
            return {}
        start = time.perf_counter()
        hessian = state.shared.hessian(state, self.examples)
        drawn = list(draw(state, hessian, self.size, self.batches, "batch_sharpness"))
        first = batch_sharpness(drawn, self.batches, until=self.until)
        gradients = [g for g, _ in drawn[: first.batches]]
        products = {id(g): hessian @ g for g in gradients}
        slope = state.shared.loss_and_gradient(state, self.examples)[1]

        def hvp(g: Tensor) -> Tensor:
            return products[id(g)]  # both measures want the same products

        measured = {
            metrics.BATCH_SHARPNESS: first,
            metrics.INTERACTION: interaction(gradients, hvp, slope, self.batches),
            metrics.INTERACTION_AWARE: interaction_aware_sharpness(gradients, hvp, self.batches),
        }
        found: dict[str, Value] = {metrics.BATCH_COUNT: first.batches}
        for name, estimate in measured.items():
            found |= _named(name, estimate)
        return found | {metrics.BATCH_SECONDS: time.perf_counter() - start}


def draw(state: State, like: Hessian, size: int, count: int, stream: str) -> Iterator[Batch]:
    """Gradient and Hessian product of `count` batches of the training set, of a stream of the run's seed.

    What a product needs to be trusted was looked at for `like`, the Hessian of the same loss over
    more examples.
    """
    random = generator(state.seed, f"{stream}/{state.step}")
    train = state.task.train
    for _ in range(count):
        chosen = torch.randperm(len(train), generator=random)[:size].to(train.inputs.device)
        data = (train.inputs[chosen], train.targets[chosen])
        hessian = Hessian(
            state.model, state.task.loss, data, dtype=like.dtype, weight=state.task.weight
        )
        hessian.trust_symmetry_of(like)
        yield hessian.loss.gradient(), hessian.__matmul__


def _named(name: str, estimate: Estimate) -> dict[str, Value]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
