"""The board: who is ahead, by how much, and how sure that is."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from optbench.boundary.counting import counted
from optbench.intervals import LEVEL, Interval
from optbench.leaderboard.entrants import Entrant, Field, selecting_value
from optbench.leaderboard.run_line import Run
from optbench.leaderboard.scores import Row, costs, row, scores
from optbench.leaderboard.tuned import Tuned, tuned
from optbench.protocol.suite import Suite
from optbench.statistics import (
    Array,
    Pair,
    average_ranks,
    best_of_median,
    censored_median,
    cliques,
    compare_each,
    friedman,
    holm,
    iqm,
    iqm_interval,
    kendall,
    performance_profile,
    rank_intervals,
)

FACTORS = np.geomspace(1, 4, 25)  # the grid of the performance profiles
HALVES_AT_MOST = 252  # C(10, 5)


@dataclass(frozen=True)
class Standing:
    """One entrant over all tasks.

    Attributes:
        name: Name of the optimizer.
        rank: Rank by the interquartile mean of the scores, 1 for the best; equals share the least.
        ranks: First and last rank it may have, for all entrants together with probability 0.95.
        score: Interquartile mean of its scores, with the interval.
        mean_rank: Rank of its mean score, averaged over the tasks.
        profile_area: Mean of its performance profile over the grid.
        hit_rate: Share of the runs that reached the suite's targets.
        diverged: Share of the runs that diverged.
        runs: How many final runs it has.
    """

    name: str
    rank: int
    ranks: tuple[int, int]
    score: Interval
    mean_rank: float
    profile_area: float
    hit_rate: float
    diverged: float
    runs: int


@dataclass(frozen=True)
class Robust:
    """The ranking under another choice than the board's.

    Attributes:
        choice: The choice, in words.
        first: Names of those who are first under it; several if they are equal.
        tau: Kendall's τ between this ranking and the board's: 1 if they are the same.
        order: All names, best first.
    """

    choice: str
    first: list[str]
    tau: float
    order: list[str]


@dataclass(frozen=True)
class Board:
    """Everything that is shown; a pair has the entrant first that is ranked before the other.

    Attributes:
        suite: The protocol.
        admitted: Who is ranked, who is not, and why.
        standings: Entrants in order, best first.
        rows: What was measured of each entrant on each task.
        pairs: Comparison of every two entrants, by their names.
        adjusted: p of every pair after Holm's correction.
        friedman_p: p of Friedman's test that all mean ranks are alike.
        critical_difference: How far two mean ranks must lie apart (Nemenyi).
        cliques: Groups of names that this difference does not tell apart.
        profiles: Performance profiles over `FACTORS`, by entrant.
        tuning: By task and entrant, the median best value of `select` among k points, for k = 1 …
            points.
        robust: The ranking under other choices.
        halves: Share of the half sets of seeds whose first is the board's first.
        tuned: The best tuning point of every entrant on every task that is tuned on.
        words: What the board shows, in sentences.
    """

    suite: Suite
    admitted: Field
    standings: list[Standing]
    rows: list[Row]
    pairs: dict[tuple[str, str], Pair]
    adjusted: dict[tuple[str, str], float]
    friedman_p: float
    critical_difference: float
    cliques: list[list[str]]
    profiles: dict[str, list[float]]
    tuning: dict[str, dict[str, list[Interval]]]
    robust: list[Robust]
    halves: float
    tuned: list[Tuned]
    words: list[str] = field(default_factory=list)


def make_board(suite: Suite, admitted: Field) -> Board:
    """Compute the board of everyone who is admitted."""
    entrants = admitted.entrants
    names = [entrant.name for entrant in entrants]
    every = np.zeros((0, len(suite.tasks), len(suite.final_seeds)))
    profile = np.zeros((0, len(FACTORS)))
    if entrants:
        every, profile = scores(suite, entrants), profiles(costs(suite, entrants))
    compared, p_values = _pairs(names, every)
    mean_rank, friedman_p, difference = _friedman(every)
    rows = [row(suite, entrant, task) for entrant in entrants for task in suite.tasks]
    ranks = _possible_ranks(names, _both_ways(compared, p_values))
    standings = _standings(names, every, rows, ranks, mean_rank, profile)
    place = {s.name: i for i, s in enumerate(standings)}
    curves = {task: _tuning_curves(suite, entrants, task) for task in suite.tuned}
    several = len(names) > 1
    groups = cliques(mean_rank, difference) if several else []
    return Board(
        suite=suite,
        admitted=admitted,
        standings=standings,
        rows=rows,
        pairs=_ordered(place, compared),
        adjusted={_in(place, pair): p_value for pair, p_value in p_values.items()},
        friedman_p=friedman_p,
        critical_difference=difference,
        cliques=[[names[e] for e in group] for group in groups],
        profiles=dict(zip(names, profile.tolist(), strict=True)),
        tuning=curves,
        robust=robustness(suite, entrants, every, curves) if several else [],
        halves=halves(every),
        tuned=[found for entrant in entrants for found in tuned(suite, entrant)],
    )


def _standings(
    names: Sequence[str],
    every: Array,
    rows: Sequence[Row],
    ranks: Sequence[tuple[int, int]],
    mean_rank: Array,
    profile: Array,
) -> list[Standing]:
    """Return the entrants in the order of the board."""
    central = iqm(every.reshape(len(names), -1)) if names else np.zeros(0)
    standings = []
    for e, name in enumerate(names):
        of_name = [r for r in rows if r.optimizer == name]
        standings.append(
            Standing(
                name=name,
                rank=1 + int((central > central[e]).sum()),
                ranks=ranks[e],
                score=iqm_interval(every[e]),
                mean_rank=float(mean_rank[e]),
                profile_area=float(profile[e].mean()),
                hit_rate=float(np.mean([r.hit_rate for r in of_name])),
                diverged=float(np.mean([r.diverged for r in of_name])),
                runs=every[e].size,
            )
        )
    return sorted(standings, key=lambda s: (s.rank, s.diverged, s.name))


def _pairs(
    names: Sequence[str], every: Array
) -> tuple[dict[tuple[str, str], Pair], dict[tuple[str, str], float]]:
    """Compare every two entrants: the pair, and its p after Holm's correction."""
    places = list(itertools.combinations(range(len(names)), 2))
    pairs = compare_each([every[a] for a, _ in places], [every[b] for _, b in places])
    compared = {(names[a], names[b]): pair for (a, b), pair in zip(places, pairs, strict=True)}
    adjusted: Array = holm([pair.p for pair in compared.values()]) if compared else np.zeros(0)
    return compared, {pair: float(p) for pair, p in zip(compared, adjusted, strict=True)}


def _both_ways(
    compared: Mapping[tuple[str, str], Pair], p: Mapping[tuple[str, str], float]
) -> dict[tuple[str, str], tuple[float, float]]:
    """Return (effect, adjusted p) of every ordered pair."""
    effects = {pair: (c.effect, p[pair]) for pair, c in compared.items()}
    return effects | {(b, a): (-effect, p_value) for (a, b), (effect, p_value) in effects.items()}


def _possible_ranks(
    names: Sequence[str], by_pair: Mapping[tuple[str, str], tuple[float, float]]
) -> list[tuple[int, int]]:
    """Return the first and last rank that each entrant may have.

    a is better than b if its effect is positive and sure.
    """
    if not names:
        return []
    better = np.zeros((len(names), len(names)), dtype=bool)
    for (a, first), (b, second) in itertools.permutations(enumerate(names), 2):
        effect, p_value = by_pair[first, second]
        better[a, b] = effect > 0 and p_value < 1 - LEVEL
    return rank_intervals(better)


def _in(place: Mapping[str, int], pair: tuple[str, str]) -> tuple[str, str]:
    """Return a pair with the entrant first that is ranked before the other."""
    return pair if place[pair[0]] < place[pair[1]] else pair[::-1]


def _ordered(
    place: Mapping[str, int], compared: Mapping[tuple[str, str], Pair]
) -> dict[tuple[str, str], Pair]:
    """Return the comparisons with the entrant first that is ranked before the other."""
    ordered = {}
    for names, pair in compared.items():
        turned = _in(place, names)
        ordered[turned] = pair if turned == names else _turned(pair)
    return ordered


def _turned(pair: Pair) -> Pair:
    """Return the comparison of b with a, from that of a with b."""
    d = pair.difference
    return Pair(
        difference=Interval(value=-d.value, low=-d.high, high=-d.low),
        effect=-pair.effect,
        wins=1 - pair.wins,
        p=pair.p,
    )


def _tuning_curves(
    suite: Suite, entrants: Sequence[Entrant], task: str
) -> dict[str, list[Interval]]:
    return {entrant.name: tuning_curve(suite, entrant, task) for entrant in entrants}


def _friedman(every: Array) -> tuple[Array, float, float]:
    if len(every) < 2:
        return np.ones(len(every)), 1.0, math.inf
    return friedman(-every.mean(axis=2).T)


def profiles(spent: Array) -> Array:
    """Performance profiles of costs (E, T, S) over the grid, a problem being a task with a seed."""
    return performance_profile(spent.reshape(len(spent), -1), FACTORS)


def tuning_curve(suite: Suite, entrant: Entrant, task: str) -> list[Interval]:
    """Return the median best `select` among k points, for k = 1 … all, with exact intervals."""
    values = [selecting_value(suite, entrant.tuning[task, point]) for point in range(suite.points)]
    return [best_of_median(values, k) for k in range(1, suite.points + 1)]


def robustness(
    suite: Suite,
    entrants: Sequence[Entrant],
    every: Array,
    curves: Mapping[str, Mapping[str, Sequence[Interval]]],
) -> list[Robust]:
    """Return the ranking under other choices than the board's."""
    names = [entrant.name for entrant in entrants]
    board = -iqm(every.reshape(len(names), -1))
    choices = {"mean rank over the tasks instead of the score": mean_ranks(-every.mean(axis=2))}
    choices |= _other_targets(suite, entrants)
    choices |= _fewer_tasks(suite, every)
    choices |= _smaller_budgets(suite, entrants, curves)
    under = [_robust(choice, names, board, other) for choice, other in choices.items()]
    return [*under, *_fewer_entrants(names, every)]


def _other_targets(suite: Suite, entrants: Sequence[Entrant]) -> dict[str, Array]:
    ranks = {}
    for level, word in enumerate(_level_words(suite)):
        medians = np.apply_along_axis(censored_median, 2, costs(suite, entrants, level))
        ranks[f"gradients to the {word} target"] = mean_ranks(medians)
    return ranks


def _fewer_tasks(suite: Suite, every: Array) -> dict[str, Array]:
    if len(suite.tasks) < 3:
        return {}
    return {
        f"without the task {task}": -iqm(np.delete(every, t, axis=1).reshape(len(every), -1))
        for t, task in enumerate(suite.tasks)
    }


def _smaller_budgets(
    suite: Suite,
    entrants: Sequence[Entrant],
    curves: Mapping[str, Mapping[str, Sequence[Interval]]],
) -> dict[str, Array]:
    best = np.array(
        [[[i.value for i in curves[task][e.name]] for task in suite.tuned] for e in entrants]
    )
    return {
        f"best of {counted(k, 'tuning point')} by validation": mean_ranks(best[:, :, k - 1])
        for k in range(1, suite.points + 1)
    }


def _fewer_entrants(names: Sequence[str], every: Array) -> list[Robust]:
    """Leave each entrant out. Scores do not depend on who else is in; mean ranks do."""
    under = []
    of_tasks = -every.mean(axis=2)
    of_all = mean_ranks(of_tasks)
    for e, name in enumerate(names if len(names) > 2 else []):
        rest = [i for i in range(len(names)) if i != e]
        without = mean_ranks(of_tasks[rest])
        others = [names[i] for i in rest]
        under.append(_robust(f"mean rank without {name}", others, of_all[rest], without))
    return under


def mean_ranks(values: Array) -> Array:
    """Return each entrant's rank, least value first, averaged over the tasks, for values (E, T)."""
    return np.asarray(average_ranks(values.T).mean(axis=0))


def _level_words(suite: Suite) -> list[str]:
    """One word for each target, from easy to hard."""
    count = max(len(task.targets) for task in suite.tasks.values())
    return {1: ["only"], 2: ["easy", "hard"], 3: ["easy", "middle", "hard"]}.get(
        count, [f"{i + 1}." for i in range(count)]
    )


def _robust(choice: str, names: Sequence[str], board: Array, other: Array) -> Robust:
    order = [names[i] for i in np.argsort(other, kind="stable")]
    first = [name for name, value in zip(names, other, strict=True) if value == other.min()]
    tau = kendall(_finite(board), _finite(other))
    return Robust(choice=choice, first=first, tau=tau, order=order)


def _finite(values: Array) -> list[float]:
    """Ranks order as values do, and are finite."""
    return [float(rank) for rank in average_ranks(values)]


def halves(every: Array) -> float:
    """Return the share of half sets of seeds that have the same first entrant as all seeds.

    NaN for fewer than two entrants.
    """
    E, _, S = every.shape
    if E < 2:
        return math.nan
    first = int(iqm(every.reshape(E, -1)).argmax())
    chosen = list(itertools.islice(itertools.combinations(range(S), S // 2), HALVES_AT_MOST))
    firsts = [int(iqm(every[:, :, list(half)].reshape(E, -1)).argmax()) for half in chosen]
    return float(np.mean([other == first for other in firsts]))


def runs_of(board: Board) -> list[Run]:
    """Return the final runs of everyone ranked, best first."""
    entrants = {entrant.name: entrant for entrant in board.admitted.entrants}
    return [
        run
        for s in board.standings
        for task in board.suite.tasks
        for run in entrants[s.name].finals[task]
    ]
