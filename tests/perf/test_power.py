"""The table of power: each column against a closed form, a simulation, or a small table by hand."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from perf.power import (
    COMMAND,
    DATA,
    PAGE,
    Data,
    Run,
    Settings,
    configurations,
    measure,
    render,
    smallest_effect,
    spread,
)
from perf.power import train as train_one


def runs_of(errors: np.ndarray, loss: float = 0.01) -> list[Run]:
    """A run for each entry of (configurations, seeds)."""
    return [
        Run("data", f"lr={c}", s, 100, loss, float(error))
        for c, row in enumerate(errors)
        for s, error in enumerate(row)
    ]


def test_the_committed_page_is_what_the_runs_come_to() -> None:
    assert PAGE.read_text() == render(), "say python -m perf.power"


def test_the_smallest_effect_is_that_of_the_published_tables() -> None:
    """Cohen's d of a paired t test: .996 for n=10, .660 for n=20; normal quantiles for many."""
    assert smallest_effect(10) == pytest.approx(0.996, abs=1e-3)
    assert smallest_effect(20) == pytest.approx(0.660, abs=1e-3)
    quantiles = norm.ppf(0.975) + norm.ppf(0.8)
    assert smallest_effect(1000) == pytest.approx(quantiles / 1000**0.5, rel=2e-3)


def test_the_smallest_effect_is_found_four_times_in_five() -> None:
    random = np.random.default_rng(0)
    differences = random.standard_normal((20_000, 10)) + smallest_effect(10)
    t = differences.mean(1) / (differences.std(1, ddof=1) / 10**0.5)
    # 2.262 is the 97.5 % quantile of t with 9 degrees; 3 standard errors of a share of 20,000
    assert float((abs(t) > 2.262).mean()) == pytest.approx(0.8, abs=3 * (0.16 / 20_000) ** 0.5)


def test_the_columns_of_a_table_by_hand() -> None:
    """Rows (.1, .3) and (.5, .7): seeds differ by .2 everywhere, so pairs of runs differ by none."""
    table = spread(runs_of(np.array([[0.1, 0.3], [0.5, 0.7]])), target=0.02)
    assert table.seeds == pytest.approx(0.02**0.5)  # variance of .1 and .3
    assert table.between == pytest.approx(0.08**0.5)  # variance of .2 and .6
    assert table.paired == pytest.approx(0, abs=1e-12) == table.resolved
    assert (table.lowest, table.highest) == pytest.approx((0.2, 0.6))
    assert table.share == pytest.approx(0.8) and table.arrived == 1


def test_the_variances_of_a_simulated_table_are_found() -> None:
    random = np.random.default_rng(0)
    effects, seeds = (
        0.03 * random.standard_normal((400, 1)),
        0.02 * random.standard_normal((1, 100)),
    )
    errors = 0.5 + effects + seeds + 0.01 * random.standard_normal((400, 100))
    table = spread(runs_of(errors), target=0.02)
    assert table.between == pytest.approx(0.03, rel=4 / (2 * 400) ** 0.5)
    assert table.seeds == pytest.approx((0.02**2 + 0.01**2) ** 0.5, rel=4 / (2 * 100) ** 0.5)
    assert table.paired == pytest.approx(0.01 * 2**0.5, rel=0.02)


def test_a_configuration_with_a_run_that_did_not_arrive_is_left_out() -> None:
    runs = runs_of(np.array([[0.1, 0.3], [0.5, 0.7]]))
    runs += [Run("data", "slow", 0, 100, 0.5, 0.9), Run("data", "slow", 1, 50, 0.01, 0.9)]
    table = spread(runs, target=0.02)
    assert table.arrived == 5 / 6 and table.configurations == 2 and table.highest < 0.7


def test_a_run_stops_at_its_loss_or_at_its_last_step() -> None:
    data = DATA["parity of 2 of 20, n=120, one layer of 128 relus"]
    words = [*data.overrides, "optimizer=momentum"]
    steps, loss, error = train_one(words, 1, Settings())
    assert loss <= 0.02 and 25 <= steps < 1000 and steps % 25 == 0 and 0 < error < 0.5
    steps, loss, _ = train_one(words, 1, Settings(steps=30))
    assert steps == 30 and loss > 0.02


def test_the_command_of_the_page_is_taken_and_writes_both_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = re.findall(r"`python -m perf\.power (.*?)`", PAGE.read_text())[0].split()
    assert COMMAND.read(words) == Settings()
    monkeypatch.setattr("perf.power.RATES", {"sgd": ("optimizer.lr", (0.1, 0.4))})
    monkeypatch.setattr("perf.power.DATA", {"parity": Data(("task=parity",), (10, 40))})
    files = {"page": tmp_path / "power.md", "runs": tmp_path / "power.json"}
    assert measure(Settings(seeds=2, target=0.3, steps=200, **files)) == 0
    assert files["page"].read_text() == render(files["runs"])
    assert "| parity | " in files["page"].read_text()


def test_there_are_six_optimizers_three_rates_and_two_batch_sizes() -> None:
    for data in DATA.values():
        assert len(set(configurations(data))) == 6 * 3 * 2
