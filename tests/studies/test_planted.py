"""Planted worlds hold what they say, and tell rules that are fooled from one that is not."""

import math

import numpy as np
import pytest

from optbench.statistics import (
    Interval,
    Table,
    Verdict,
    cluster_bootstrap,
    granulated_kendall,
    group_labels,
    kendall_tau,
    verdict,
)
from optbench.studies import planted
from tests.studies.verdict_rules import (
    AXES,
    confusion,
    naive_correlation,
    one_slope,
    strong_instruments,
)

DRAWS = 20


def test_a_table_has_a_row_a_run_and_its_seed_gives_it() -> None:
    table = planted.plant("cause", seed=1)
    assert {len(column) for column in table.values()} == {4 * 3 * 3 * 2 * 2 * 10}
    assert len(np.unique(group_labels([table[c] for c in (*AXES, "task", "seed")], 1440))) == 1440
    again, other = planted.plant("cause", seed=1), planted.plant("cause", seed=2)
    assert all(np.array_equal(table[name], again[name]) for name in table)
    assert not np.array_equal(table["test_error"], other["test_error"])
    with pytest.raises(ValueError, match=r"world must be one of cause, .*, got effect"):
        planted.plant("effect")


def test_the_cause_has_its_slope_by_every_setting() -> None:
    slopes = strong_instruments(planted.plant("cause"))
    assert len(slopes) == 8
    assert all(abs(i.slope - 2) < 4 * i.error for i in slopes)


def test_only_two_settings_move_sharpness_where_one_has_a_direct_effect() -> None:
    slopes = {i.name: i.slope for i in strong_instruments(planted.plant("direct_effect"))}
    assert {name.split()[0] for name in slopes} == {"lr", "batch"}
    assert slopes["batch on task 0"] == pytest.approx(2, abs=0.4)
    assert slopes["lr on task 0"] > 3


def test_the_naive_correlation_is_fooled_by_a_confounder_and_the_instruments_are_not() -> None:
    naive = confusion(naive_correlation, draws=DRAWS)
    assert naive["confounded"]["supported"] == DRAWS == naive["proxy"]["supported"]
    assert naive["cause"]["supported"] == DRAWS == naive["unrelated"]["refuted"]
    by_instruments = confusion(one_slope, draws=DRAWS)
    assert by_instruments["cause"]["supported"] >= 0.9 * DRAWS
    for world in set(planted.WORLDS) - {"cause"}:
        assert by_instruments[world]["supported"] == 0, world
    assert by_instruments["confounded"]["refuted"] == DRAWS


def test_the_mediator_behind_the_proxy_is_supported() -> None:
    given = [
        one_slope(planted.plant("proxy", seed), mediator="log_jacobian") for seed in range(DRAWS)
    ]
    assert given.count("supported") >= 0.9 * DRAWS


def test_the_confounder_shows_along_its_axis_alone() -> None:
    table = planted.plant("confounded")
    axes = {axis: table[axis] for axis in AXES}
    measure, outcome = table["log_sharpness"], table["test_error"]
    first = table["task"] == 0
    assert kendall_tau(measure[first], outcome[first]) > 0.4
    along = granulated_kendall(measure, outcome, axes, [table["task"], table["seed"]]).by_axis
    assert along["lr"] > 0.9
    assert all(abs(along[axis]) < 0.15 for axis in AXES if axis != "lr")


def test_seeds_that_share_their_start_fool_a_count_of_runs_and_not_one_of_seeds() -> None:
    counts = {
        rule.__name__: confusion(rule, ["pseudo_replicates"], draws=30)
        for rule in (_within_by_run, _within_by_seed)
    }
    by_run, by_seed = (counts[name]["pseudo_replicates"] for name in counts)
    # the truth is no correlation; 20 effects of seeds scatter theirs by 0.22
    assert by_run["supported"] >= 5
    assert by_seed["supported"] <= 1


def test_no_instrument_no_verdict() -> None:
    table = dict(planted.plant("unrelated"))
    table["log_sharpness"] = np.random.default_rng(0).normal(size=1440)
    assert one_slope(table) == "undecided"


def _deviations(table: Table) -> Table:
    """Log λ₁ and error less the means of their configuration and task, and the seed."""
    label = group_labels([table[name] for name in (*AXES, "task")], len(table["seed"]))
    columns = {}
    for name in ("log_sharpness", "test_error"):
        means = np.bincount(label, table[name]) / np.bincount(label)
        columns[name] = table[name] - means[label]
    return {**columns, "seed": table["seed"]}


def _correlation(table: Table) -> float:
    return float(np.corrcoef(table["log_sharpness"], table["test_error"])[0, 1])


def _within_by_run(table: Table) -> Verdict:
    rows = _deviations(table)
    r, half = _correlation(rows), 1.96 / math.sqrt(len(rows["seed"]) - 3)
    ends = math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)
    return verdict(Interval(r, *ends), 0.15, 1)


def _within_by_seed(table: Table) -> Verdict:
    return verdict(cluster_bootstrap(_deviations(table), _correlation, draws=200), 0.15, 1)
