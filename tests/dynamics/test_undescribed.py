"""An optimizer that treats a number, a vector and a matrix differently gets no number from a copy of one of them."""

import pytest

from optbench.check.subject import Training, optimizer
from tests.dynamics.asked import edge, source

UNKNOWN = [
    "asam",
    "lookahead",
    "grokfast",
    "adahessian",
    "sophia",
    "lars",
    "mars",
    "lamb",
    "normuon",
    "adamuon",
    "sam_without_jacobian",
    "jacobian_reducer",
]


@pytest.mark.parametrize(
    "name", [*UNKNOWN, "prodigy", "dadapt_adam", "schedule_free_sgd", "schedule_free_adamw"]
)
def test_no_edge_is_given_and_the_reason_is(name: str) -> None:
    training = Training(optimizer(name))
    training.steps(30)
    here = edge(training.optimizer)
    assert source(here) == "unknown" and len(here.reason) > 20
