"""Hand-worked cases, brute force over all runs, and scipy."""

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from optbench import statistics as s
from optbench.statistics.grouping import pairs_within

GRID = {"lr": (0.1, 0.3, 1.0), "batch": (8, 64), "optimizer": ("adam", "gd", "muon", "sam")}


def _grid(seeds: int) -> dict[str, NDArray[Any]]:
    rows = itertools.product(*GRID.values(), range(seeds))
    columns = zip(*rows, strict=True)
    return {n: np.array(c) for n, c in zip([*GRID, "seed"], columns, strict=True)}


def _axes(table: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: table[name] for name in GRID}


def _integers(seed: int, size: int, high: int = 6) -> s.Array:
    """Integers, so that many values tie."""
    return np.random.default_rng(seed).integers(0, high, size=size).astype(float)


def test_kendall_by_hand() -> None:
    assert s.kendall_tau([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)  # 5 − 1 of 6 pairs
    # pairs of (1, 1, 2) and (1, 2, 3): a tie, and two that agree
    assert s.kendall_tau([1, 1, 2], [1, 2, 3], ties="sign") == pytest.approx(2 / 3)
    assert s.kendall_tau([1, 1, 2], [1, 2, 3], ties="b") == pytest.approx(2 / math.sqrt(2 * 3))
    assert math.isnan(s.kendall_tau([1, 1], [1, 2])) and math.isnan(s.kendall_tau([1], [1]))
    assert s.kendall_tau([1, 1], [1, 2], ties="sign") == 0.0


def test_a_value_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="y must be finite, got 1 of 2"):
        s.kendall_tau([1, 2], [1, math.inf])
    with pytest.raises(ValueError, match="one length"):
        s.kendall_tau([1, 2], [1, 2, 3])


def test_pairs_and_groups_by_hand() -> None:
    labels = s.group_labels([["b", "a", "b", "b"], [1.0, 1.0, 1.0, 2.0]], 4)
    assert labels.tolist() == [1, 0, 1, 2]
    first, second = pairs_within(np.array([0, 1, 0, 0, 1]))
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == {
        (0, 2),
        (0, 3),
        (2, 3),
        (1, 4),
    }
    assert s.group_labels([], 3).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="shape"):
        s.group_labels([[1, 2]], 3)


def test_granulated_kendall_by_hand() -> None:
    axes = {"a": [0, 0, 1, 1], "b": [0, 1, 0, 1]}
    follows = s.granulated_kendall([1, 2, 3, 4], [1, 3, 2, 4], axes)
    assert (follows.value, follows.by_axis) == (1.0, {"a": 1.0, "b": 1.0})
    # a rises with g at b=0 and falls at b=1; b rises with g at a=0 and falls at a=1
    mixed = s.granulated_kendall([1, 2, 3, 4], [1, 3, 2, 1.5], axes)
    assert (mixed.value, mixed.by_axis) == (0.0, {"a": 0.0, "b": 0.0})
    along_a_only = s.granulated_kendall([1, 1, 2, 2], [1, 2, 3, 4], axes)
    assert along_a_only.by_axis == {"a": 1.0, "b": 0.0}
    undefined = s.granulated_kendall([1, 1, 2, 2], [1, 2, 3, 4], axes, ties="b")
    assert undefined.by_axis["a"] == 1.0 and math.isnan(undefined.by_axis["b"])
    assert math.isnan(undefined.value)


@pytest.mark.parametrize("ties", ["sign", "b"])
@pytest.mark.parametrize("lost", [0, 7])
def test_granulated_kendall_is_that_of_all_groups_one_by_one(ties: Any, lost: int) -> None:
    """Also with cells that are missing, as of diverged runs."""
    table = _grid(seeds=3)
    kept = np.random.default_rng(1).permutation(len(table["seed"]))[lost:]
    table = {name: column[kept] for name, column in table.items()}
    measure, outcome = _integers(2, len(kept)), _integers(3, len(kept))
    found = s.granulated_kendall(measure, outcome, _axes(table), [table["seed"]], ties)
    for axis in GRID:
        others = [n for n in (*GRID, "seed") if n != axis]
        cells = list(zip(*(table[n].tolist() for n in others), strict=True))
        groups = [np.array([c == cell for c in cells]) for cell in set(cells)]
        taus = [s.kendall_tau(measure[g], outcome[g], ties) for g in groups if g.sum() > 1]
        assert found.by_axis[axis] == pytest.approx(np.nanmean(taus), abs=1e-12)
    assert found.value == pytest.approx(np.mean(list(found.by_axis.values())))


def test_granulation_undoes_a_confounder() -> None:
    """lr moves both up; within each lr the measure orders wrongly (Simpson's paradox)."""
    axes = {"lr": np.repeat([0, 1, 2], 4), "batch": np.tile([0, 1, 2, 3], 3)}
    measure, outcome = axes["lr"] * 10 + axes["batch"], axes["lr"] * 10 - axes["batch"]
    assert s.kendall_tau(measure, outcome) > 0.4
    assert s.granulated_kendall(measure, outcome, axes).by_axis == {"lr": 1.0, "batch": -1.0}


def test_two_runs_of_the_same_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="average over the seeds"):
        s.granulated_kendall([1, 2], [1, 2], {"lr": [0.1, 0.1]})


def test_conditional_information_by_hand() -> None:
    # of 6 ordered pairs 4 agree: 1 − H(1/3)/log 2
    found = s.conditional_information([1, 3, 2], [1, 2, 3], {"lr": [0, 0, 0]}, most=0)
    surprise = -(math.log2(1 / 3) / 3 + math.log2(2 / 3) * 2 / 3)
    assert found.value == pytest.approx(1 - surprise)
    axes = {"lr": [0, 0, 1, 1], "batch": [0, 1, 0, 1]}
    perfect = s.conditional_information([1, 2, 3, 4], [1, 2, 3, 4], axes, most=1)
    assert perfect.by_condition[()] == pytest.approx(1)
    constant = s.conditional_information([1, 1, 1, 1], [1, 2, 3, 4], axes)
    assert constant.by_condition[()] == 0
    # each pair of configurations has one pair of runs, whose order U_S tells
    assert math.isnan(constant.by_condition["lr", "batch"])


def test_a_measure_that_copies_a_setting_tells_nothing_once_it_is_known() -> None:
    table = _grid(seeds=10)
    rng = np.random.default_rng(0)
    outcome = np.log(table["lr"]) + 0.3 * rng.normal(size=len(table["lr"]))
    found = s.conditional_information(np.log(table["lr"]), outcome, _axes(table))
    assert found.by_condition[()] > 0.3
    assert found.value == pytest.approx(0, abs=1e-12) and "lr" in found.condition
    follows = s.conditional_information(outcome + 0.1 * rng.normal(size=240), outcome, _axes(table))
    assert follows.value > 0.3


def test_conditional_information_is_that_of_counted_pairs() -> None:
    table = _grid(seeds=3)
    n = len(table["seed"])
    measure, outcome = _integers(4, n), _integers(5, n)
    measure[::2] = outcome[::2]
    found = s.conditional_information(measure, outcome, _axes(table), [table["seed"]])
    for condition in [(), ("batch",), ("lr", "optimizer")]:
        triples: list[Any] = []
        for i, j in itertools.permutations(range(n), 2):
            if outcome[i] == outcome[j] or table["seed"][i] != table["seed"][j]:
                continue
            setting = tuple((table[c][i], table[c][j]) for c in (*condition, "seed"))
            triples.append((np.sign(measure[i] - measure[j]), outcome[i] > outcome[j], setting))

        def entropy(*parts: int, triples: list[Any] = triples) -> float:
            counts = Counter(tuple(t[p] for p in parts) for t in triples)
            shares = np.array(list(counts.values())) / len(triples)
            return float(-(shares * np.log(shares)).sum())

        told = entropy(0, 2) + entropy(1, 2) - entropy(0, 1, 2) - entropy(2)
        assert found.by_condition[condition] == pytest.approx(told / (entropy(1, 2) - entropy(2)))


def test_partial_rank_correlation_without_covariates_is_spearmans() -> None:
    x, y = _integers(6, 30), _integers(7, 30)
    found, theirs = s.partial_rank_correlation(x, y, {}), stats.spearmanr(x, y)
    assert found.value == pytest.approx(theirs.statistic, rel=1e-12)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-10) and found.degrees == 28


def test_partial_rank_correlation_is_that_of_the_inverse_correlation_matrix() -> None:
    rng = np.random.default_rng(8)
    w, kind = rng.normal(size=40), np.array(list("abc"))[rng.integers(3, size=40)]
    x, y = w + rng.normal(size=40), w - (kind == "b") + rng.normal(size=40)
    columns = [*(stats.rankdata(v) for v in (x, y, w)), kind == "b", kind == "c"]
    precision = np.linalg.inv(np.corrcoef(np.stack([np.asarray(c, float) for c in columns])))
    partial = -precision[0, 1] / math.sqrt(precision[0, 0] * precision[1, 1])
    found = s.partial_rank_correlation(x, y, {"w": w, "kind": kind})
    assert found.value == pytest.approx(partial, rel=1e-10) and found.degrees == 40 - 2 - 3


def test_a_covariate_that_explains_all_leaves_no_correlation() -> None:
    lr = np.repeat([0.1, 0.3, 1.0], 4)
    found = s.partial_rank_correlation(np.log(lr), _integers(9, 12), {"lr": lr})
    assert math.isnan(found.value) and math.isnan(found.p)
    # the rank of lr is not linear in its effect, its categories are
    bent = (lr == 0.3) * 1.0
    assert not math.isnan(s.partial_rank_correlation(bent, _integers(9, 12), {"lr": lr}).value)
    assert math.isnan(
        s.partial_rank_correlation(bent, _integers(9, 12), {"lr": lr.astype(str)}).value
    )


def test_sign_error_by_hand() -> None:
    axes, outcome, seed = {"a": [0, 0, 1, 1]}, [1, 2, 3, 4], [0, 1, 0, 1]
    # run 0 is ordered rightly to both of a=1, run 1 wrongly
    found = s.sign_error([0, 5, 1, 1], outcome, axes)
    assert (found.worst, found.mean, found.environments[0].pairs) == (0.5, 0.5, 4)
    assert s.sign_error([0, 1, 1, 5], outcome, axes).worst == 0.125  # one tie of four
    assert s.sign_error([0, 5, 1, 1], outcome, axes, paired=[seed]).environments[0].pairs == 2
    # |Δg| ≥ 3 leaves (1, 4) alone
    assert s.sign_error([0, 5, 1, -1], outcome, axes, least_difference=3).worst == 1.0
    few = s.sign_error([0, 5, 1, 1], outcome, axes, least_difference=3, least_pairs=2)
    assert math.isnan(few.worst) and few.left_out == 1
    assert s.sign_error([0, 5, 1, 1], [1, 1, 1, 1], axes).left_out == 1


@pytest.mark.parametrize("least_difference", [0.0, 2.0])
def test_sign_error_is_that_of_all_pairs_of_configurations(least_difference: float) -> None:
    table = _grid(seeds=3)
    table["task"] = np.array([0, 1, 1])[table["seed"]]  # task 1 has two seeds
    n = len(table["seed"])
    measure, outcome = _integers(10, n), _integers(11, n)
    found = s.sign_error(
        measure, outcome, _axes(table), [table["task"]], least_difference=least_difference
    )
    names = [*GRID, "task"]
    cells = list(zip(*(table[name].tolist() for name in names), strict=True))
    expected, left_out = [], 0
    for one, other in itertools.combinations(sorted(set(cells)), 2):
        apart = [name for name, a, b in zip(names, one, other, strict=True) if a != b]
        if len(apart) != 1 or apart == ["task"]:
            continue
        losses = []
        for i, j in itertools.product(range(n), repeat=2):
            gap = outcome[i] - outcome[j]
            if (cells[i], cells[j]) == (one, other) and gap != 0 and abs(gap) >= least_difference:
                losses.append((1 - np.sign(measure[i] - measure[j]) * np.sign(gap)) / 2)
        left_out += not losses
        if losses:
            expected.append((apart[0], len(losses), float(np.mean(losses))))
    assert sorted(expected) == sorted((e.axis, e.pairs, e.error) for e in found.environments)
    assert found.left_out == left_out
    assert found.worst == max(error for *_, error in expected)
