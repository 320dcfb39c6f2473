"""Rare classes under gradient descent: closed forms, the rule on hand-made tables, a tiny run."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from optbench.tasks.zipf_bigram import token_shares, zipf_bigram
from scipy.optimize import brentq
from torch import nn

from optbench.optimizers.sign import Signum
from optbench.studies.declaration import read_study
from optbench.studies.frame import REFUTED, SUPPORTED, UNDECIDED, Table, columns
from optbench.studies.imbalance import (
    GD,
    Imbalance,
    best,
    exponent,
    lead_slope,
    tilt,
    trained,
    weighted,
)
from optbench.studies.many_rates import RULES, ManyRates
from optbench.task import half_mse


@pytest.fixture(scope="module")
def study() -> Imbalance:
    found = read_study("imbalance").study
    assert isinstance(found, Imbalance)
    return found


@pytest.mark.parametrize("rule", list(RULES))
def test_each_copy_goes_where_it_would_alone(rule: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x, y = torch.randn(7, 3).double(), torch.randn(7, 1).double()
    rates = [0.003, 0.1]
    copies = ManyRates(model, rule, rates, half_mse)
    for _ in range(20):
        copies.step(x, y)
    for r, rate in enumerate(rates):
        torch.manual_seed(0)
        alone = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        optimizer = RULES[rule](list(alone.parameters()))
        for group in optimizer.param_groups:
            group["lr"] = rate
        for _ in range(20):
            optimizer.zero_grad()
            half_mse(alone(x), y).backward()
            optimizer.step()
        # float64: 20 steps of sums of at most 7 terms
        for name, weight in alone.named_parameters():
            torch.testing.assert_close(copies.weights[name][r], weight, rtol=1e-10, atol=1e-12)


def test_a_signed_step_is_of_one_size() -> None:
    p = nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([5.0, -1e-3])
    Signum([p], lr=0.1, momentum=0.0).step()
    torch.testing.assert_close(p.detach(), torch.tensor([-0.1, 0.1]))


def test_shares_are_zipfs_and_every_token_is_trained_on() -> None:
    shares = token_shares(50, 50).numpy()
    np.testing.assert_allclose(shares * np.arange(1, 51), shares[0])  # α = 1
    assert shares.sum() == pytest.approx(1) and token_shares(50, 1)[7] == pytest.approx(0.02)
    task = zipf_bigram(3, tokens=20, imbalance=100, train_size=500)
    counts = task.train.inputs.sum(0)
    assert len(task.train.targets) == 500 and counts.min() >= 1
    assert (counts[:-1] >= counts[1:]).all()
    assert zipf_bigram(3).data_hash() == zipf_bigram(3).data_hash() != zipf_bigram(4).data_hash()


def test_without_noise_a_token_has_one_successor_and_no_other_has_it() -> None:
    task = zipf_bigram(0, tokens=12, noise=0.0, train_size=300)
    pairs = set(zip(task.train.inputs.argmax(1).tolist(), task.train.targets.tolist(), strict=True))
    assert len(pairs) == len({label for _, label in pairs}) == 12


class _Start:
    """The closed form's start: a linear map from zero weights."""

    def __init__(self, tokens: int) -> None:
        self.task = zipf_bigram(0, tokens=tokens, imbalance=tokens, noise=0.0, train_size=4000)
        self.model = nn.Linear(tokens, tokens, bias=False)
        nn.init.zeros_(self.model.weight)


def _flow(shares: NDArray[np.float64], time: float) -> NDArray[np.float64]:
    """ℓ_k of gradient flow from zero weights: e^m − 1 + (C−1)m = C π_k t for the margin m."""
    C = len(shares)
    margins = [
        brentq(lambda m, share=share: math.expm1(m) + (C - 1) * m - C * share * time, 0, 50)
        for share in shares
    ]
    losses: NDArray[np.float64] = np.log1p((C - 1) * np.exp(-np.asarray(margins)))
    return losses


def test_gd_follows_the_closed_form_and_sign_descent_treats_all_alike() -> None:
    """ℓ_k → 1/(π_k t) for GD, arXiv:2402.19449, theorem 1; e^(−ct) for signs, for all k."""
    start, rate = _Start(12), 0.2
    data = weighted(start.task)
    ((step, found),) = trained(start, data, "sgd", [rate], 0.05, 2000)  # type: ignore[arg-type]
    assert step is not None and found is not None
    # Euler's error of the margin, η π_1/2 · d log(e^m + C − 1) < .2, is less than 2 % of the tilt
    expected = tilt(_flow(data.weights.double().numpy()[::-1], rate * step), data.places)
    assert found == pytest.approx(expected, rel=0.02)
    late = tilt(_flow(data.weights.double().numpy()[::-1], 1e5), data.places)
    assert late / math.log(12) == pytest.approx(-1, abs=0.02)  # logarithms of t fade
    ((_, found),) = trained(start, data, "sign", [0.1], 0.05, 1000)  # type: ignore[arg-type]
    assert found == pytest.approx(0, abs=1e-4)  # the same by symmetry; float32


def test_the_excess_is_zero_at_the_best_prediction_and_groups_are_means() -> None:
    data = weighted(zipf_bigram(1, tokens=8, imbalance=8, train_size=400))
    outputs = data.targets.clamp_min(1e-30).log()[None]
    # float32 sums of 8 terms
    torch.testing.assert_close(data.excess(outputs), torch.zeros(1, 8), atol=1e-6, rtol=0)
    values = torch.arange(8.0)[data.groups][None]
    torch.testing.assert_close(data.group_losses(values)[0], torch.arange(8.0))


def test_the_tilt_is_the_exponent_times_log_imbalance() -> None:
    places = -np.linspace(0, 1, 10)
    assert tilt(3 * np.exp(-0.7 * places * math.log(100)), places) == pytest.approx(
        -0.7 * math.log(100)
    )


def _table(steps: dict[str, dict[int, list[float]]]) -> Table:
    """Three rates an optimizer, two seeds: {optimizer: {imbalance: [steps at each rate]}}."""
    rows = []
    for optimizer, by_ratio in steps.items():
        for ratio, counts in by_ratio.items():
            for (rate, count), seed in ((p, s) for p in enumerate(counts) for s in (1, 2)):
                row = {"task": "digits", "imbalance": ratio, "seed": seed, "optimizer": optimizer}
                rows.append(row | {"rate": rate, "steps": count, "tilt": -math.log(ratio)})
    return columns(rows)


def test_the_best_rate_must_be_inside_its_grid() -> None:
    inside = {GD: {1: [9.0, 4.0, 9.0], 10: [80.0, 40.0, math.nan]}}
    rows, said = best(_table(inside), "digits", [GD])
    assert sorted(rows["steps"]) == [4, 4, 40, 40] and "40 steps at 1" in said
    assert exponent(rows, GD) == pytest.approx(-1)
    at_end = {GD: {1: [9.0, 4.0, 9.0], 10: [80.0, 40.0, 20.0]}}
    assert best(_table(at_end), "digits", [GD])[1].endswith("end: sgd at imbalance 10")
    never = {GD: {1: [9.0, 4.0, 9.0], 10: [math.nan] * 3}}
    assert "did not come to the loss" in best(_table(never), "digits", [GD])[1]


def test_a_lead_that_doubles_a_decade_is_log_2() -> None:
    steps = {
        GD: {1: [9.0, 4.0, 9.0], 10: [90.0, 8.0, 90.0], 100: [90.0, 16.0, 90.0]},
        "adam_without_momentum": {ratio: [9.0, 2.0, 9.0] for ratio in (1, 10, 100)},
    }
    rows, _ = best(_table(steps), "digits", list(steps))
    assert lead_slope(rows) == pytest.approx(math.log(2))


def test_a_truncated_grid_is_undecided_and_hard_classes_fool_no_rule(study: Imbalance) -> None:
    said = {f.hypothesis: f.verdict for f in study.judge(study.planted("truncated", 0))}
    assert said["lead_digits"] == said["lead_bigram"] == UNDECIDED
    said = {f.hypothesis: f.verdict for f in study.judge(study.planted("hard_classes", 0))}
    assert said["gd_digits"] in (REFUTED, UNDECIDED) and said["gap_digits"] != SUPPORTED


def test_a_study_without_rows_is_undecided(study: Imbalance) -> None:
    assert {f.verdict for f in study.judge({})} == {UNDECIDED}
