"""A linear map of white inputs: with `model=deep_linear` its dynamics have a closed form."""

from collections.abc import Sequence

import torch
from optbench.tasks.quadratic import random_orthogonal

from optbench.boundary.kinds import Positive, Size
from optbench.errors import UserError
from optbench.seeds import generator
from optbench.task import Split, Task, half_mse


def deep_linear(
    seed: int,
    inputs: Size = 16,
    outputs: Size = 4,
    modes: Sequence[Positive] = (2.0, 1.0, 0.5, 0.25),
) -> Task:
    """Regression on y = Ax, A = Σ_i s_i u_i v_iᵀ with given singular values, mean_i x_i x_iᵀ = I.

    For a product W = W_L … W_1 of matrices, the loss is exactly L = ½‖W − A‖²_F. From small,
    balanced weights gradient flow learns one mode after the other, the strongest first, with
    plateaus at ½ Σ_{i>k} s_i²; for L = 2 the strength of an aligned mode that starts at a_0 is

        a(t) = s / (1 + (s/a_0 − 1) e^(−2st)).

    Modes that A lacks (fewer than the outputs) fade as 1/t only.

    The flattest minimum has sharpness L·s₁^(2−2/L) (Mulayoff and Michaeli, 2020, arXiv:2002.04710).

    Args:
        seed: Seed of the run; the singular vectors depend on it.
        inputs: Number of inputs, and of examples.
        outputs: Number of outputs.
        modes: Singular values s_i, positive and descending.

    References:
        Saxe et al. (2014), arXiv:1312.6120.
    """
    s = torch.tensor([float(x) for x in modes], dtype=torch.float64)
    if not 1 <= len(s) <= min(inputs, outputs) or not bool((s > 0).all() and (s.diff() <= 0).all()):
        raise UserError(
            f"task.modes must be between 1 and {min(inputs, outputs)} positive numbers, "
            f"descending, got {list(modes)}"
        )
    stream = generator(seed, "rotation")
    X, U, V = (random_orthogonal(size, stream) for size in (inputs, outputs, inputs))
    A = U[:, : len(s)] @ torch.diag(s) @ V[:, : len(s)].T
    x = inputs**0.5 * X
    plateaus = s.square().sum() / 2 - torch.cat([torch.zeros(1), s.square().cumsum(0) / 2])
    facts: dict[str, object] = {"optimum": 0.0, "plateaus": plateaus.tolist(), "modes": s.tolist()}
    return Task(Split(x.float(), (x @ A.T).float()), None, None, outputs, half_mse, facts=facts)
