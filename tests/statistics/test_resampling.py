"""scipy's bootstrap, draw by draw, and simulated seeds whose mean is known."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from optbench import statistics as s
from optbench.statistics.resampling import bca_tails


def _mean(table: s.Table) -> float:
    return float(table["y"].mean())


@pytest.mark.parametrize(("ours", "theirs"), [("percentile", "percentile"), ("bca", "BCa")])
@pytest.mark.parametrize("ties", [False, True])
def test_clusters_of_one_size_are_scipys_bootstrap_of_their_means(
    ours: Any, theirs: str, ties: bool
) -> None:
    y = np.random.default_rng(0).exponential(size=(12, 4))
    y = np.round(y) if ties else y  # many draws equal the value; quarters have no rounding
    table = {"y": y.ravel(), "seed": np.repeat(np.arange(12), 4)}
    found = s.cluster_bootstrap(table, _mean, method=ours, expand=False, draws=999, seed=7)
    rng = np.random.default_rng(7)
    expected = stats.bootstrap((y.mean(axis=1),), np.mean, n_resamples=999, method=theirs, rng=rng)
    interval = expected.confidence_interval
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-10)
    assert found.value == pytest.approx(y.mean())


def test_a_seed_gives_one_interval_and_another_seed_another() -> None:
    rng = np.random.default_rng(1)
    table = {"y": rng.normal(size=20), "seed": np.repeat(np.arange(10), 2)}
    first, again, other = (s.cluster_bootstrap(table, _mean, draws=200, seed=k) for k in (3, 3, 4))
    assert first == again != other


def test_a_cluster_drawn_twice_counts_as_two() -> None:
    """So a statistic that needs distinct seeds sees as many as there were, each with its rows."""
    table = {"y": np.arange(6.0), "seed": np.array(["a", "a", "b", "b", "c", "c"])}

    def check(rows: s.Table) -> float:
        seeds, sizes = np.unique(rows["seed"], return_counts=True)
        assert len(seeds) in (2, 3) and (sizes == 2).all()  # 2 in the jackknife
        return float(rows["y"][0])

    s.cluster_bootstrap(table, check, draws=50)


def test_few_clusters_widen_the_tail() -> None:
    """Of 4 clusters the tail is Φ(−√(4/3) t₃)."""
    y = np.random.default_rng(3).normal(size=4)
    table = {"y": y, "seed": np.arange(4)}
    found = s.cluster_bootstrap(table, _mean, method="percentile", level=0.5, seed=7)
    rng = np.random.default_rng(7)
    draws = stats.bootstrap((y,), np.mean, n_resamples=2000, rng=rng).bootstrap_distribution
    tail = stats.norm.cdf(-math.sqrt(4 / 3) * stats.t.ppf(0.75, 3))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [tail, 1 - tail])))


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_copies_say_nothing_however_many(method: Any) -> None:
    table = {"y": np.tile([0.1, 0.2, 0.4], 8), "seed": np.repeat(np.arange(8), 3)}
    found = s.cluster_bootstrap(table, _mean, draws=100, method=method)
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_a_statistic_that_is_not_defined_in_a_draw_has_no_ends() -> None:
    table = {"y": np.array([1.0, 1.0, 2.0]), "seed": np.arange(3)}
    found = s.cluster_bootstrap(
        table, lambda t: math.nan if np.ptp(t["y"]) == 0 else float(t["y"].mean()), draws=100
    )
    assert found.value == pytest.approx(4 / 3) and (found.low, found.high) == (-math.inf, math.inf)
    with pytest.raises(ValueError, match=r"two clusters \(seed\) or more, got 1"):
        s.cluster_bootstrap({"y": np.ones(2), "seed": np.zeros(2)}, _mean)


def test_bca_is_not_defined_where_no_draw_is_below_the_value() -> None:
    table = {"y": np.arange(5.0), "seed": np.arange(5)}
    found = s.cluster_bootstrap(table, lambda t: float(-len(np.unique(t["y"]))), draws=100)
    assert found.value == -5 and found.high == math.inf


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_the_interval_of_ten_seeds_covers(method: Any) -> None:
    """Runs of a seed share an effect: as single runs they would cover 0.7 of the time. 400 repetitions: 0.011."""
    rng = np.random.default_rng(2)
    seed = np.repeat(np.arange(10), 4)
    by_seed, by_run = [], []
    for _ in range(400):
        y = rng.normal(size=10)[seed] + 0.5 * rng.normal(size=40)
        table = {"y": y, "seed": seed, "run": np.arange(40)}
        found = s.cluster_bootstrap(table, _mean, draws=400, method=method)
        by_seed.append(found.low <= 0 <= found.high)
        half = 1.96 * y.std(ddof=1) / math.sqrt(40)
        by_run.append(abs(y.mean()) <= half)
    assert np.mean(by_seed) == pytest.approx(0.95, abs=3 * 0.011)
    assert np.mean(by_run) < 0.8


def test_draws_that_are_the_table_in_another_order_count_as_equal() -> None:
    """Sums of whole numbers are exact, those of the same in tenths are not."""
    seeds = np.arange(7)
    whole = {"seed": seeds, "y": np.array([1.0, 2.0, 4.0, 7.0, 8.0, 9.0, 11.0])}
    tenths = {"seed": seeds, "y": whole["y"] / 10}
    exact = s.cluster_bootstrap(whole, lambda t: float(t["y"].sum()))
    rounded = s.cluster_bootstrap(tenths, lambda t: float(sum(t["y"].tolist())))
    assert (rounded.low * 10, rounded.high * 10) == pytest.approx(
        (exact.low, exact.high), rel=1e-12
    )


@pytest.mark.parametrize("power", [-120, 0, 120])
@pytest.mark.filterwarnings("error")
def test_bca_does_not_depend_on_the_unit(power: int) -> None:
    """Squares of 10⁻¹²⁰ and cubes of 10¹²⁰ are no numbers; times a power of two nothing moves."""
    values = np.random.default_rng(3).gamma(2.0, size=8)

    def ends(scale: float) -> Any:
        table = {"seed": np.arange(8.0), "y": scale * values}
        found = s.cluster_bootstrap(table, _mean, method="bca", draws=500)
        return np.array([found.low, found.high]) / scale

    np.testing.assert_array_equal(ends(2.0 ** round(power * np.log2(10))), ends(1.0))


@pytest.mark.filterwarnings("error")
def test_differences_without_end_leave_bca_undefined() -> None:
    d = np.array([[np.inf, 1.0, -1.0], [0.0, 0.0, 0.0], [1.0, np.nan, 2.0], [1.0, -0.5, -0.5]])
    drawn = np.tile(np.linspace(-1, 1, 100), (4, 1))
    found = bca_tails(np.array([0.025, 0.975]), np.zeros(4), drawn, d)
    assert np.isnan(found[:3]).all() and np.isfinite(found[3]).all()
