"""Does a measure order the runs as their outcome does? Correlations over a grid of settings.

A table has N rows, one a run; its axes are the hyperparameters of the grid. Ties: a pair of runs
of equal outcome has no order that a measure could find, and a measure that ties says nothing. Each
function states what it does with both.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from optbench.statistics.grouping import (
    Array,
    Labels,
    average_ranks,
    finite_columns,
    group_labels,
    indicators,
    is_categorical,
    pairs_within,
)

Ties = Literal["sign", "b"]
Axes = Mapping[str, ArrayLike]


@dataclass(frozen=True)
class GranulatedKendall:
    """Kendall's correlation along each hyperparameter, all others held.

    Attributes:
        value: Ψ, the mean of ψ_i over the axes; NaN if one of them is.
        by_axis: ψ_i by the axis' name; NaN where no group of runs has a τ.
    """

    value: float
    by_axis: dict[str, float]


@dataclass(frozen=True)
class ConditionalInformation:
    """What a measure's order tells of the outcome's, once some hyperparameters are known.

    Attributes:
        value: The least of `by_condition`; NaN if all are.
        condition: The hyperparameters S at which it is least.
        by_condition: I(V_μ; V_g | U_S)/H(V_g | U_S) in [0, 1] by S; NaN where S leaves no doubt
            about the outcome's order, so that there is nothing to tell.
    """

    value: float
    condition: tuple[str, ...]
    by_condition: dict[tuple[str, ...], float]


@dataclass(frozen=True)
class PartialCorrelation:
    """A rank correlation with covariates removed.

    Attributes:
        value: In [−1, 1]; NaN where the covariates explain one of the two wholly.
        p: Two-sided, of Student's t; for independent rows only.
        degrees: Degrees of freedom, N − 2 − covariate columns.
    """

    value: float
    p: float
    degrees: int


@dataclass(frozen=True)
class Environment:
    """Two configurations that differ along one axis.

    Attributes:
        axis: The hyperparameter that differs.
        rows: A row of the first configuration, and one of the second.
        error: Share of the pairs of runs that the measure orders wrongly, its ties one half.
        pairs: Pairs of runs that were compared.
    """

    axis: str
    rows: tuple[int, int]
    error: float
    pairs: int


@dataclass(frozen=True)
class SignError:
    """The sign errors of a measure over all environments.

    Attributes:
        worst: Greatest error of an environment; NaN if there is none.
        mean: Mean error over the environments.
        environments: Those with pairs enough, in the order of the axes.
        left_out: Environments with fewer pairs than asked for after ties and noise were filtered.
    """

    worst: float
    mean: float
    environments: tuple[Environment, ...]
    left_out: int


def kendall_tau(x: ArrayLike, y: ArrayLike, ties: Ties = "b") -> float:
    """Return Kendall's rank correlation of x (N,) and y (N,).

    With S = Σ_{i<j} sign(x_i − x_j) sign(y_i − y_j):

        ties="sign":  τ = S / (N(N−1)/2)                     a tied pair counts as 0 (τ_a)
        ties="b":     τ = S / √(Σ sign(x_i − x_j)² · Σ sign(y_i − y_j)²)

    Returns:
        τ in [−1, 1]; NaN for fewer than two values, and for τ_b where x or y is constant.

    References:
        Kendall (1945), doi:10.1093/biomet/33.3.239; Jiang et al. (2019), arXiv:1912.02178 (the
        sign version).
    """
    x, y = finite_columns(x=x, y=y)
    if len(x) < 2:
        return math.nan
    first, second = pairs_within(np.zeros(len(x), np.intp))
    by_x, by_y = np.sign(x[first] - x[second]), np.sign(y[first] - y[second])
    agreement = float(by_x @ by_y)
    if ties == "sign":
        return agreement / len(first)
    untied_x, untied_y = np.count_nonzero(by_x), np.count_nonzero(by_y)
    if not untied_x or not untied_y:
        return math.nan
    # a root each, and no more than 1: what is the same order is 1 whatever the rounding
    tau = agreement / math.sqrt(untied_x) / math.sqrt(untied_y)
    return max(-1.0, min(1.0, tau))


def granulated_kendall(
    measure: ArrayLike,
    outcome: ArrayLike,
    axes: Axes,
    fixed: Sequence[ArrayLike] = (),
    ties: Ties = "sign",
) -> GranulatedKendall:
    """Return Ψ and ψ_i: does the measure follow the outcome along each hyperparameter alone?

        ψ_i = mean over the settings θ_{−i} of all other axes of τ({(μ(θ), g(θ)) : θ_i ∈ Θ_i})
        Ψ   = mean over i of ψ_i

    Groups of one run have no τ and are left out; so, under ties="b", are those in which the measure
    or the outcome is constant. Under ties="sign", the paper's, a tie counts as 0.

    Args:
        measure: μ (N,).
        outcome: g (N,), a test error or a generalization gap.
        axes: Setting of each run by hyperparameter, (N,) each.
        fixed: Columns (N,) that agree within a group and are no axis, such as seed and task.
        ties: What τ does with ties, see `kendall_tau`.

    Raises:
        ValueError: Two rows agree in all axes and in all fixed columns.

    References:
        Jiang et al. (2019), arXiv:1912.02178, "granulated Kendall's coefficient".
    """
    measure, outcome = finite_columns(measure=measure, outcome=outcome)
    if len(np.unique(group_labels([*axes.values(), *fixed], len(measure)))) < len(measure):
        raise ValueError(
            f"rows must differ in an axis ({', '.join(axes)}) or a fixed column; average over the "
            "seeds, or pass the seed in fixed="
        )
    by_axis = {
        axis: _mean_tau(measure, outcome, labels, ties)
        for axis, labels in _groups_along(axes, fixed, len(measure))
    }
    return GranulatedKendall(float(np.mean(list(by_axis.values()))), by_axis)


def conditional_information(
    measure: ArrayLike,
    outcome: ArrayLike,
    axes: Axes,
    fixed: Sequence[ArrayLike] = (),
    most: int = 2,
) -> ConditionalInformation:
    """Return the least information that a measure's order has on the outcome's, given settings.

    Over ordered pairs of runs (θ, θ'), with V_φ = sign(φ(θ) − φ(θ')) and U_S the settings of both
    runs along the axes in S:

        I(V_μ; V_g | U_S) = Σ_u p(u) Σ p(v_μ, v_g | u) log[p(v_μ, v_g | u)/(p(v_μ | u) p(v_g | u))]
        Î(S) = I(V_μ; V_g | U_S) / H(V_g | U_S),    value = min over |S| ≤ most of Î(S)

    A measure that follows the outcome only through a hyperparameter has Î = 0 once S holds it. The
    sign of the relation is lost: see Ψ for it. Pairs of equal outcome are left out; a measure's tie
    is a third value of V_μ. The plug-in estimate is too high where a value of U_S has few pairs.
    Cost: N² pairs for each S.

    Args:
        measure: μ (N,).
        outcome: g (N,).
        axes: Setting of each run by hyperparameter, (N,) each.
        fixed: Columns (N,) in which the two runs of a pair must agree, such as the task; they are
            known in every condition.
        most: Greatest size of S.

    References:
        Jiang et al. (2019), arXiv:1912.02178, "Conditional Independence Test". Their pairs have no
        tie; each value of U_S has the weight p(u) of its pairs.
    """
    measure, outcome = finite_columns(measure=measure, outcome=outcome)
    rows = len(measure)
    known = group_labels(fixed, rows)
    first, second = pairs_within(known)
    first, second = np.concatenate([first, second]), np.concatenate([second, first])
    ordered = outcome[first] != outcome[second]
    first, second = first[ordered], second[ordered]
    by_measure = np.sign(measure[first] - measure[second]).astype(np.intp) + 1
    by_outcome = (outcome[first] > outcome[second]).astype(np.intp)
    by_condition = {}
    for size in range(most + 1):
        for condition in combinations(axes, size):
            setting = group_labels([known, *(axes[axis] for axis in condition)], rows)
            # One code for the two settings of a pair; codes that no pair has count as nothing.
            both = setting[first] * (setting.max(initial=0) + 1) + setting[second]
            by_condition[condition] = _share_told(by_measure, by_outcome, both)
    defined = {c: value for c, value in by_condition.items() if not math.isnan(value)}
    least = min(defined, key=lambda c: defined[c], default=())
    return ConditionalInformation(defined.get(least, math.nan), least, by_condition)


def partial_rank_correlation(
    x: ArrayLike, y: ArrayLike, covariates: Mapping[str, ArrayLike]
) -> PartialCorrelation:
    """Return the correlation of the ranks of x and y after a regression on the covariates.

        ρ = corr(r_x − Z ẑ_x, r_y − Z ẑ_y),    ẑ = argmin ‖r − Z z‖²,    t = ρ √(d/(1 − ρ²))

    r are ranks, ties sharing theirs, and d = N − 1 − rank(Z) the degrees of freedom. Z holds 1, the
    ranks of each numeric covariate, and an indicator of each category but the first of the others.
    A numeric setting of a grid whose effect is not monotone is better passed as text.

    Args:
        x: (N,).
        y: (N,).
        covariates: Columns (N,) by name; none gives Spearman's correlation.

    References:
        Conover (1999), Practical Nonparametric Statistics, section 5.4; Kim (2015),
        doi:10.5351/CSAM.2015.22.6.665 (the t statistic).
    """
    x, y = finite_columns(x=x, y=y)
    columns = [np.ones((len(x), 1))]
    for name, covariate in covariates.items():
        columns.append(_covariate(name, np.asarray(covariate), len(x)))
    design = np.concatenate(columns, axis=1)
    ranks = np.stack([average_ranks(x), average_ranks(y)], axis=1)
    coefficients, _, rank, _ = np.linalg.lstsq(design, ranks, rcond=None)
    residuals = ranks - design @ coefficients
    degrees = len(x) - 1 - int(rank)
    left = (residuals**2).sum(axis=0)
    # Residuals of 1e-10 of the ranks are rounding: the covariates explain all.
    if degrees < 1 or (left <= 1e-20 * (ranks**2).sum(axis=0)).any():
        return PartialCorrelation(math.nan, math.nan, degrees)
    value = float(np.clip(residuals[:, 0] @ residuals[:, 1] / np.sqrt(left.prod()), -1, 1))
    t = abs(value) * math.sqrt(degrees / (1 - value**2)) if abs(value) < 1 else math.inf
    return PartialCorrelation(value, float(2 * special.stdtr(degrees, -t)), degrees)


def sign_error(
    measure: ArrayLike,
    outcome: ArrayLike,
    axes: Axes,
    fixed: Sequence[ArrayLike] = (),
    paired: Sequence[ArrayLike] = (),
    least_difference: float = 0.0,
    least_pairs: int = 1,
) -> SignError:
    """Return how often a measure orders two configurations wrongly, worst environment and mean.

    An environment is a pair of configurations that differ along one axis; its pairs (i, j) of runs
    have one run, a seed, of each. With Δ the differences of a pair:

        error = mean over {(i, j) : |Δg| ≥ least_difference, Δg ≠ 0} of ½ (1 − sign Δμ · sign Δg)

    Pairs of equal outcome are left out; a tie of the measure is half wrong. The worst of many
    environments is greater than ½ by chance where each has few pairs: ask for `least_pairs`.

    Args:
        measure: μ (N,), expected to rise with the outcome.
        outcome: g (N,).
        axes: Setting of each run by hyperparameter, (N,) each.
        fixed: Columns (N,) in which both configurations agree, such as the task: an environment is
            of one task.
        paired: Columns (N,) in which the two runs of a pair agree, such as the seed; none compares
            each seed of one configuration with each of the other.
        least_difference: Noise filter, in units of the outcome: smaller |Δg| is no order.
        least_pairs: Pairs that an environment must have left.

    References:
        Dziugaite et al. (2020), arXiv:2010.11924. Their code weighs pairs by a Hoeffding bound on
        |Δg| and asks for an effective sample size of 12; here the weight is 0 or 1.
    """
    measure, outcome = finite_columns(measure=measure, outcome=outcome)
    rows = len(measure)
    cell = group_labels([*axes.values(), *fixed], rows)
    environments: list[Environment] = []
    left_out = 0
    for axis, labels in _groups_along(axes, [*fixed, *paired], rows):
        first, second = pairs_within(labels)
        differs = cell[first] != cell[second]
        first, second = first[differs], second[differs]
        low, high = np.minimum(cell[first], cell[second]), np.maximum(cell[first], cell[second])
        environment = group_labels([low, high], len(first))
        found = _errors_of(measure, outcome, first, second, environment, least_difference)
        for rows_of, error, pairs in found:
            if pairs < least_pairs:
                left_out += 1
                continue
            environments.append(Environment(axis, rows_of, error, pairs))
    errors = [environment.error for environment in environments] or [math.nan]
    return SignError(max(errors), float(np.mean(errors)), tuple(environments), left_out)


def _groups_along(
    axes: Axes, fixed: Sequence[ArrayLike], rows: int
) -> Iterator[tuple[str, Labels]]:
    """For each axis, the groups of runs that agree in all other axes and in the fixed columns."""
    for axis in axes:
        others = [column for name, column in axes.items() if name != axis]
        yield axis, group_labels([*others, *fixed], rows)


def _mean_tau(measure: Array, outcome: Array, labels: Labels, ties: Ties) -> float:
    """Mean over the groups of Kendall's τ; NaN if no group has one."""
    first, second = pairs_within(labels)
    by_measure = np.sign(measure[first] - measure[second])
    by_outcome = np.sign(outcome[first] - outcome[second])
    group = labels[first]
    agreement = np.bincount(group, by_measure * by_outcome)
    if ties == "sign":
        scale = np.bincount(group).astype(np.float64)
    else:
        scale = np.sqrt(np.bincount(group, by_measure**2) * np.bincount(group, by_outcome**2))
    defined = scale > 0
    return float(np.mean(agreement[defined] / scale[defined])) if defined.any() else math.nan


def _share_told(by_measure: Labels, by_outcome: Labels, setting: Labels) -> float:
    """I(V_μ; V_g | U)/H(V_g | U), from V_μ in {0, 1, 2}, V_g in {0, 1} and U of each pair."""
    if not len(setting):
        return math.nan
    cells = int(setting.max()) + 1
    counts = np.bincount((setting * 3 + by_measure) * 2 + by_outcome, minlength=cells * 6)
    joint = counts.reshape(cells, 3, 2) / len(setting)
    both = _entropy(joint, axis=(1, 2))
    of_measure = _entropy(joint.sum(axis=2), axis=1)
    of_outcome = _entropy(joint.sum(axis=1), axis=1)
    of_setting = _entropy(joint.sum(axis=(1, 2)), axis=())
    # H(A | U) = H(A, U) − H(U), each a sum over the values of U.
    doubt = float((of_outcome - of_setting).sum())
    told = float((of_measure + of_outcome - both - of_setting).sum())
    return max(0.0, told) / doubt if doubt > 1e-12 else math.nan


def _entropy(p: Array, axis: tuple[int, ...] | int) -> Array:
    """−Σ p log p over the axes, 0 log 0 = 0."""
    return np.asarray(-special.xlogy(p, p).sum(axis=axis) if axis != () else -special.xlogy(p, p))


def _covariate(name: str, values: NDArray[Any], rows: int) -> Array:
    if values.shape != (rows,):
        raise ValueError(f"covariate {name} must have shape ({rows},), got {values.shape}")
    return indicators(values) if is_categorical(values) else average_ranks(values)[:, None]


def _errors_of(
    measure: Array,
    outcome: Array,
    first: Labels,
    second: Labels,
    environment: Labels,
    least_difference: float,
) -> Iterator[tuple[tuple[int, int], float, int]]:
    """For each environment: a row of either configuration, the error, the number of pairs."""
    difference = outcome[first] - outcome[second]
    kept = (difference != 0) & (np.abs(difference) >= least_difference)
    wrong = 0.5 * (1 - np.sign(measure[first] - measure[second]) * np.sign(difference))
    pairs = np.bincount(environment, kept)
    errors = np.bincount(environment, wrong * kept)
    _, an_example = np.unique(environment, return_index=True)
    for e, example in enumerate(an_example):
        rows = (int(first[example]), int(second[example]))
        yield rows, float(errors[e] / max(pairs[e], 1)), int(pairs[e])
