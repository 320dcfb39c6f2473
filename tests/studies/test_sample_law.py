"""Sample complexity: the crossing, the exponents of exact power laws, the rule, a tiny pass."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from optbench.studies.declaration import read_study
from optbench.studies.frame import UNDECIDED, Table, columns
from optbench.studies.sample_law import (
    EVERY,
    LEARNED,
    SampleLaw,
    _crossing,
    best,
    by_seed,
    exponents,
    one_pass,
    statistic,
)
from optbench.task import Split, Task, half_mse


@pytest.fixture(scope="module")
def study() -> SampleLaw:
    found = read_study("sample_law").study
    assert isinstance(found, SampleLaw)
    return found


def test_the_crossing_is_linear_in_the_log_of_the_loss() -> None:
    before, now = np.array([[LEARNED * 2, 0.2]]), np.array([[LEARNED / 2, 0.1]])
    np.testing.assert_allclose(_crossing(before, now, 300, 100), [[250, math.inf]])
    assert math.isinf(_crossing(np.array([[math.nan, 1]]), np.array([[0.1, 1]]), 9, 5).min())


class _Linear:
    """One weight from 0, y = x with x = ±1: the loss after t steps of SGD is ½(1 − η)^(2t)."""

    def __init__(self) -> None:
        x = torch.ones(400, 1)
        x[::2] = -1
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        split = Split(x, x.clone())
        self.task = Task(split, split, split, 1, half_mse)


def test_a_pass_counts_what_the_closed_form_says() -> None:
    rates = [0.01, 0.02, 1e-6]
    counts = one_pass(_Linear(), "sgd", rates, 4)  # type: ignore[arg-type]
    for (val, test), rate in zip(counts[:2], rates[:2], strict=True):
        # the log of the loss is linear in t, so that interpolating costs nothing; float32
        assert val == test == pytest.approx(4 * math.log(0.5) / (2 * math.log(1 - rate)), rel=1e-3)
    assert math.isinf(counts[2][0])
    assert EVERY > 1


def _table(laws: dict[str, float], best_at: int = 1) -> Table:
    """Three rates, two seeds, four dimensions: n* = 100 d^a at the best rate, twice elsewhere."""
    rows = []
    for optimizer, a in laws.items():
        for link in ("staircase", "he2", "he3"):
            for d in (10, 16, 25, 40):
                for rate in (0, 1, 2):
                    for seed in (1, 2):
                        n = 100 * d ** (a + (link == "he3")) * (1 if rate == best_at else 2)
                        row = {"link": link, "dimension": d, "seed": seed, "rate": rate}
                        rows.append(row | {"optimizer": optimizer, "val": n, "test": n})
    return columns(rows)


def test_exponents_of_power_laws_are_exact() -> None:
    rows, said = best(_table({"sgd": 1.0, "adam": 1.25}), ["staircase", "he2", "he3"])
    assert exponents(rows, "he3") == pytest.approx({"sgd": 2.0, "adam": 2.25})
    assert "sgd 1.00" in said
    wide = {**by_seed(rows), "span": np.full(2, math.log(4))}
    assert statistic(wide, "rises") == pytest.approx(1)
    assert statistic(wide, "same_he2") == pytest.approx(0.6 - 0.25)
    assert statistic(wide, "first_step") == pytest.approx(0)
    # the two part by .25 log d: .25 times the mean of log d, less .25 times half its range
    middle = float(np.log([10, 16, 25, 40]).mean())
    assert statistic(wide, "prefactor") == pytest.approx(0.25 * middle - 0.25 * math.log(4) / 2)


def test_a_best_rate_at_the_end_is_undecided(study: SampleLaw) -> None:
    table = _table({"sgd": 1.0, "adam": 1.0}, best_at=2)
    assert "grid's end: adam on he2, d = 10" in best(table, ["he2"])[1]
    assert {f.verdict for f in study.judge(table)} == {UNDECIDED}
    assert {f.verdict for f in study.judge({})} == {UNDECIDED}


def test_the_rate_is_chosen_on_validation_and_read_on_test() -> None:
    table = dict(_table({"sgd": 1.0}))
    table["test"] = np.where(table["rate"] == 2, 1.0, table["test"])  # tempting, and not looked at
    rows, _ = best(table, ["he2"])
    assert (rows["rate"] == 1).all()


def test_a_rate_that_leaves_the_grid_does_not_look_like_an_exponent(study: SampleLaw) -> None:
    said = {f.hypothesis: f.verdict for f in study.judge(study.planted("out_of_grid", 0))}
    assert {said[f"same_{link}"] for link in study.links} == {UNDECIDED}
