"""Hand-worked cases, statsmodels' figures, and simulated instruments whose slope is known.

statsmodels 0.15.0 (with pandas 3.1.1) gave the figures; it is no dependency, for the two take
150 MB. A simulation of n repetitions has the Monte-Carlo error √(p(1−p)/n).
"""

import math

import numpy as np
import pytest

from optbench import statistics as s

Z = 1.959963984540054


def test_two_slopes_by_hand() -> None:
    """w = 1, 1: Q = 2, I² = 1/2, τ² = (2 − 1)/(2 − 2/2) = 1, so the random error is √(2/2)."""
    found = s.pool([0.0, 2.0], [1.0, 1.0])
    assert (found.q, found.degrees, found.i_squared, found.tau_squared) == (2.0, 1, 0.5, 1.0)
    assert found.p == pytest.approx(math.erfc(1.0))  # χ²₁ ≥ 2 is |z| ≥ √2
    assert (found.fixed.value, found.fixed.high) == pytest.approx((1.0, 1 + Z / math.sqrt(2)))
    assert (found.random.low, found.random.high) == pytest.approx((1 - Z, 1 + Z))


def test_pooling_is_statsmodels() -> None:
    """`combine_effects(slopes, errors ** 2, method_re="dl")`."""
    found = s.pool([0.8, 1.5, 0.2, 2.4], [0.3, 0.4, 0.25, 0.6])
    assert found.q == pytest.approx(15.916752071056457, rel=1e-12)
    assert found.i_squared == pytest.approx(0.811519335941954, rel=1e-12)
    assert found.tau_squared == pytest.approx(0.5305814769338714, rel=1e-12)
    assert found.fixed.value == pytest.approx(0.7784012298232128, rel=1e-12)
    assert found.fixed.high - found.fixed.value == pytest.approx(Z * 0.1663460919004283, rel=1e-12)
    assert found.random.value == pytest.approx(1.106479909495886, rel=1e-12)
    assert found.random.high - found.random.value == pytest.approx(
        Z * 0.4127998058298106, rel=1e-12
    )


def test_equal_slopes_and_one_slope() -> None:
    alike = s.pool([1.0, 1.0], [0.1, 0.2])
    assert (alike.q, alike.i_squared, alike.tau_squared, alike.p) == (0.0, 0.0, 0.0, 1.0)
    alone = s.pool([1.5], [0.1])
    assert (alone.q, alone.degrees, alone.p, alone.fixed.value) == (0.0, 0, 1.0, 1.5)
    assert alone.fixed == alone.random


def test_copies_have_no_error_and_are_refused() -> None:
    with pytest.raises(ValueError, match="copies of each other"):
        s.pool([1.0, 2.0], [0.1, 0.0])
    with pytest.raises(ValueError, match="got none"):
        s.pool([], [])


def test_wald_ratio_by_hand() -> None:
    slope, error = s.wald_ratio(6.0, 3.0, 0.3, 0.2)
    assert (slope, error) == pytest.approx((2.0, math.sqrt((0.09 + 4 * 0.04) / 9)))
    # an outcome that is twice the mediator, noise included: no error is left
    assert s.wald_ratio(6.0, 3.0, 0.4, 0.2, covariance=0.08) == pytest.approx((2.0, 0.0), abs=1e-8)


def test_the_slope_of_a_numeric_setting_is_the_wald_ratio_of_two_regressions() -> None:
    rng = np.random.default_rng(0)
    z, stratum = np.tile([0.0, 1.0, 2.0], 40), np.repeat(np.arange(4), 30)
    m = 0.8 * z + stratum + 0.5 * rng.normal(size=120)
    y = 1.5 * m + 0.7 * rng.normal(size=120)
    found = s.instrument_slope("lr", z, m, y, [stratum])
    assert isinstance(found, s.Instrument)
    design = np.column_stack([z, *(stratum == k for k in range(4))])
    coefficients, _, _, _ = np.linalg.lstsq(design, np.column_stack([y, m]), rcond=None)
    residuals = np.column_stack([y, m]) - design @ coefficients
    bread = np.linalg.inv(design.T @ design)[0]
    influence = (design @ bread)[:, None] * residuals
    covariance = influence.T @ influence * 120 / (120 - 5)
    on_outcome, on_mediator = coefficients[0]
    outcome_error, mediator_error = np.sqrt(np.diag(covariance))
    slope, error = s.wald_ratio(
        on_outcome, on_mediator, outcome_error, mediator_error, covariance[0, 1]
    )
    assert (found.slope, found.error) == pytest.approx((slope, error), rel=1e-10)
    assert found.f == pytest.approx(coefficients[0, 1] ** 2 / covariance[1, 1], rel=1e-10)


@pytest.mark.parametrize(
    ("by_seed", "error", "f"),
    [
        (True, 0.07726113641575028, 579.5459613846907),
        (False, 0.07614669564416855, 446.34323181817815),
    ],
)
def test_categories_are_statsmodels_two_stage_regression(
    by_seed: bool, error: float, f: float
) -> None:
    """`IV2SLS(y, X, Z)`, the sandwich of its scores, `OLS(m, Z)` with cov_type "cluster" or "HC1"."""
    rng, n = np.random.default_rng(5), 120
    group, seed = np.arange(n) % 4, np.arange(n) // 12
    z = np.array(["a", "b", "c"])[(np.arange(n) // 4) % 3]
    shared = rng.normal(size=10)[seed]
    m = (z == "b") * 1.0 - (z == "c") * 0.7 + group * 0.3 + 0.3 * rng.normal(size=n)
    y = 1.4 * m + group * 0.5 + 0.3 * shared + 0.5 * rng.normal(size=n)
    found = s.instrument_slope("z", z, m, y, [group], seed if by_seed else None)
    assert isinstance(found, s.Instrument)
    assert found.slope == pytest.approx(1.5258178623017635, rel=1e-10)
    assert (found.error, found.f) == pytest.approx((error, f), rel=1e-10)


def test_strata_within_one_cluster_cost_no_degree_of_freedom() -> None:
    """Data less the means of the seeds, and the seeds as strata, differ in what they count alone."""
    rng, seed = np.random.default_rng(6), np.repeat(np.arange(10), 6)
    z = np.tile([0.0, 1.0, 2.0], 20)
    m = z + rng.normal(size=10)[seed] + 0.3 * rng.normal(size=60)
    y = m + rng.normal(size=60)
    nested = s.instrument_slope("lr", z, m, y, [seed], clusters=seed)
    m, y = (v - (np.bincount(seed, v) / 6)[seed] for v in (m, y))
    before = s.instrument_slope("lr", z, m, y, clusters=seed)
    assert isinstance(nested, s.Instrument) and isinstance(before, s.Instrument)
    assert nested.slope == pytest.approx(before.slope)
    # N − q, and N − q − 1 for the one stratum of all runs
    assert nested.error == pytest.approx(before.error * math.sqrt(58 / 59))


def test_a_setting_that_does_not_move_the_mediator_is_refused() -> None:
    rng = np.random.default_rng(1)
    z = np.tile([0.0, 1.0], 50)
    found = s.instrument_slope("decay", z, rng.normal(size=100), z + rng.normal(size=100))
    match found:
        case s.WeakInstrument(name, f, least_f):
            assert name == "decay" and f < least_f == 10
        case _:
            pytest.fail(f"{found}")


def test_a_setting_that_the_strata_hold_is_refused() -> None:
    z, m = np.repeat([0.0, 1.0], 10), np.arange(20.0)
    with pytest.raises(ValueError, match="setting lr does not vary within the strata"):
        s.instrument_slope("lr", z, m, m, [z])
    with pytest.raises(ValueError, match="needs more than 2 clusters"):
        s.instrument_slope("lr", z, m, m, clusters=z)


def _simulated(rng: np.random.Generator, direct: float = 0.0) -> tuple[s.Instrument, ...]:
    """Three settings move m; y = 1.5 m + direct · third + noise that m shares."""
    a, b, c = (v.ravel() for v in np.meshgrid([-1.0, 0, 1], [-1.0, 0, 1], np.linspace(-1, 1, 10)))
    noise = rng.normal(size=90)
    m = 0.8 * a - 0.6 * b + c + 0.3 * noise
    y = 1.5 * m + direct * c + 0.5 * noise + 0.5 * rng.normal(size=90)
    found = [
        s.instrument_slope(name, z, m, y, least_f=0) for name, z in {"a": a, "b": b, "c": c}.items()
    ]
    return tuple(i for i in found if isinstance(i, s.Instrument))


def test_intervals_cover_the_slope_that_a_regression_misses() -> None:
    """Noise that moves m and y alike biases a regression of y on m, not an instrument."""
    rng = np.random.default_rng(2)
    every = [_simulated(rng) for _ in range(1000)]
    for k in range(3):
        covered = np.mean([abs(i[k].slope - 1.5) < Z * i[k].error for i in every])
        assert covered == pytest.approx(0.95, abs=3 * 0.007 + 0.01)
    rejected = np.mean([s.pool_instruments(i).p < 0.05 for i in every])
    assert rejected == pytest.approx(0.05, abs=3 * 0.007 + 0.01)


def test_one_instrument_with_a_direct_effect_is_found_by_leaving_it_out() -> None:
    instruments = _simulated(np.random.default_rng(3), direct=2.0)
    assert s.pool_instruments(instruments).p < 1e-6
    without = s.leave_one_out(instruments)
    assert without["c"].p > 0.05 and without["c"].fixed.value == pytest.approx(1.5, abs=0.4)
    assert without["a"].p < 0.01 and without["b"].p < 0.01
    with pytest.raises(ValueError, match="two instruments or more"):
        s.leave_one_out(instruments[:1])


def test_sign_count_by_hand() -> None:
    found = [s.Instrument(str(v), v, 1.0, 99.0) for v in (3.0, 1.0, -2.5, 2.0)]
    assert s.sign_count(found) == s.SignCount(positive=2, negative=1, unclear=1)
    assert s.sign_count(found).flips and not s.sign_count(found[:2]).flips
