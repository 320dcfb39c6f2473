"""Trajectories of our YAMLs against the papers' equations, written down anew in numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from optbench.check.subject import optimizer

from .reference import REFERENCES

STEPS = 50
# Sums in another order, about 1e-16 a step, amplified by the division by √v of a small v;
# schedule_free_adamw: the library adds 1e-15 to v. A wrong constant anywhere shows at 1e-4 or more.
TOLERANCE = 1e-9


@pytest.mark.parametrize("name", REFERENCES)
def test_the_trajectory_is_that_of_the_papers_equations(name: str) -> None:
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((12, 12))
    H = basis @ basis.T / 12 + 0.1 * np.eye(12)  # couples all entries; λ₁ about 3
    start = rng.standard_normal((4, 3))
    subject = optimizer(name)
    reference = REFERENCES[name](start, dict(subject.settings))
    w = nn.Parameter(torch.from_numpy(start.copy()))
    ours = subject.factory([w])
    at = next(reference)

    def closure() -> torch.Tensor:
        nonlocal at
        # Signs of entries that are rounding of 0 are drawn by lot: the same point, to begin with.
        np.testing.assert_allclose(w.detach().numpy(), at, rtol=TOLERANCE, atol=TOLERANCE)
        gradient = (H @ at.reshape(-1)).reshape(at.shape)
        w.grad = torch.from_numpy(gradient.copy())
        at = reference.send(gradient)
        return torch.zeros(())

    for _ in range(STEPS):
        ours.step(closure)  # type: ignore[arg-type]
    np.testing.assert_allclose(w.detach().numpy(), at, rtol=TOLERANCE, atol=TOLERANCE)
    assert np.linalg.norm(at - start) > 1e-2  # it went somewhere
