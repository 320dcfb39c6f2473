"""Curvature along mini-batch gradients, and gradient noise."""

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
    """Batch sharpness, gradient-noise interaction, interaction-aware sharpness; 95 % intervals.

    - `batch/sharpness` = E_B[g_BᵀH_Bg_B/‖g_B‖²], which settles at 2/η for SGD;
    - `batch/interaction` = E_B[g_BᵀHg_B]/‖g‖²;
    - `batch/interaction_aware_sharpness` = E_B[g_BᵀHg_B]/E_B‖g_B‖².

    H and g are over `examples`; g_B and H_B over batch B. `…_low` and `…_high` are the ends of the
    t interval over `batch/count` batches of `size` examples. Batches are drawn anew at every
    measurement, without augmentation, and without replacement within a batch. Absent for the full
    batch, where all three are gᵀHg/‖g‖². Cost per batch: its gradient, its product, and one product
    with H.

    Args:
        every: Cadence: steps between measurements, `epoch`, `log`, `never`, or the name of a probe
            whose cadence is taken.
        size: Examples per batch, by default the run's.
        batches: Largest number of batches, at least 2.
        until: Relative half width of batch sharpness's interval at which to stop drawing.
        examples: Number of training examples of H, always the first ones; None for all.

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
        gradient = state.shared.loss_and_gradient(state, self.examples)[1]

        def hvp(g: Tensor) -> Tensor:
            return products[id(g)]  # computed once, since two measures need the same products

        measured = {
            metrics.BATCH_SHARPNESS: first,
            metrics.INTERACTION: interaction(gradients, hvp, gradient, self.batches),
            metrics.INTERACTION_AWARE: interaction_aware_sharpness(gradients, hvp, self.batches),
        }
        values: dict[str, Value] = {metrics.BATCH_COUNT: first.batches}
        for name, estimate in measured.items():
            values |= _named(name, estimate)
        return values | {metrics.BATCH_SECONDS: time.perf_counter() - start}


def draw(state: State, like: Hessian, size: int, count: int, stream: str) -> Iterator[Batch]:
    """Gradient and Hessian product of `count` random batches of the training set.

    Args:
        state: Training.
        like: Hessian of the same loss over more examples, which has passed the checks of model and
            loss; they are not repeated.
        size: Examples per batch.
        count: Number of batches.
        stream: Name of the random stream, derived from the run's seed.
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
