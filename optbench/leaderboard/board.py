"""The board: who is ahead, by how much, and how sure that is."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from optbench.leaderboard.entrants import Entrant, Field, selecting_value
from optbench.leaderboard.run_line import Run
from optbench.leaderboard.scores import Row, costs, row, scores
from optbench.protocol.suite import Suite
from optbench.statistics import (
    LEVEL,
    Array,
    Interval,
    Pair,
    average_ranks,
    best_of_median,
    censored_median,
    cliques,
    compare,
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
        rank: By the interquartile mean of the scores, 1 for the best, equals share the least.
        ranks: Those it may have, for all entrants together with probability 0.95.
        score: Interquartile mean with its interval.
        mean_rank: Over the tasks, of its mean scores.
        profile_area: Mean of its performance profile over the grid.
        hit_rate: Share of the runs that reached the suite's targets.
        diverged: Share of the runs.
    """

    name: str
    rank: int
    ranks: tuple[int, int]
    score: Interval
    mean_rank: float
    profile_area: float
    hit_rate: float
    diverged: float


@dataclass(frozen=True)
class Robust:
    """The ranking under another choice: who is first, and how much of the order remains (Kendall's τ)."""

    choice: str
    first: list[str]
    tau: float
    order: list[str]


@dataclass(frozen=True)
class Board:
    """Everything that is shown. Pairs are by the names of the two, the first one ranked before the second.

    Attributes:
        profiles: Performance profiles over `FACTORS`, by entrant.
        tuning: By task and entrant, the median best value of `select` among k points, for k = 1 …
            points.
        halves: Share of the half sets of seeds whose first is the board's first.
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
    words: list[str] = field(default_factory=list)


def make_board(suite: Suite, admitted: Field) -> Board:
    """Compute the board of everyone who is admitted."""
    entrants = admitted.entrants
    every = (
        scores(suite, entrants)
        if entrants
        else np.zeros((0, len(suite.tasks), len(suite.final_seeds)))
    )
    names = [entrant.name for entrant in entrants]
    compared, p_values = _pairs(names, every)
    by_pair = _both_ways(names, compared, p_values)
    means, p, difference = _friedman(every)
    profile = profiles(costs(suite, entrants)) if entrants else np.zeros((0, len(FACTORS)))
    rows = [row(suite, entrant, task) for entrant in entrants for task in suite.tasks]
    better = np.array([[by_pair.get((a, b), (0.0, 1.0)) for b in names] for a in names]).reshape(
        len(names), len(names), 2
    )
    sure = rank_intervals((better[..., 0] > 0) & (better[..., 1] < 1 - LEVEL)) if names else []
    central = iqm(every.reshape(len(names), -1)) if names else np.zeros(0)
    ranks = [1 + int((central > own).sum()) for own in central]
    standings = [
        Standing(
            name,
            ranks[e],
            sure[e],
            iqm_interval(every[e]),
            float(means[e]),
            float(profile[e].mean()),
            float(np.mean([r.hit_rate for r in rows if r.optimizer == name])),
            float(np.mean([r.diverged for r in rows if r.optimizer == name])),
        )
        for e, name in enumerate(names)
    ]
    standings.sort(key=lambda s: (s.rank, s.diverged, s.name))
    order = [s.name for s in standings]
    ordered = {pair: (compared[pair], p_values[pair]) for pair in compared}
    return Board(
        suite,
        admitted,
        standings,
        rows,
        {
            _in(order, pair): _turned(c, _in(order, pair) != pair)
            for pair, (c, _) in ordered.items()
        },
        {_in(order, pair): p_value for pair, (_, p_value) in ordered.items()},
        p,
        difference,
        [[names[e] for e in clique] for clique in cliques(means, difference)]
        if len(names) > 1
        else [],
        {name: profile[e].tolist() for e, name in enumerate(names)},
        {task: {e.name: tuning_curve(suite, e, task) for e in entrants} for task in suite.tuned},
        robustness(suite, entrants, every) if len(entrants) > 1 else [],
        halves(every),
    )


def _pairs(
    names: Sequence[str], every: Array
) -> tuple[dict[tuple[str, str], Pair], dict[tuple[str, str], float]]:
    compared = {
        (names[a], names[b]): compare(every[a], every[b])
        for a, b in itertools.combinations(range(len(names)), 2)
    }
    adjusted: Array = holm([pair.p for pair in compared.values()]) if compared else np.zeros(0)
    return compared, {pair: float(p) for pair, p in zip(compared, adjusted, strict=True)}


def _both_ways(
    names: Sequence[str],
    compared: Mapping[tuple[str, str], Pair],
    p: Mapping[tuple[str, str], float],
) -> dict[tuple[str, str], tuple[float, float]]:
    """Return (effect, adjusted p) of every ordered pair."""
    found = {pair: (c.effect, p[pair]) for pair, c in compared.items()}
    return found | {(b, a): (-effect, own) for (a, b), (effect, own) in found.items()}


def _in(order: Sequence[str], pair: tuple[str, str]) -> tuple[str, str]:
    first, second = sorted(pair, key=order.index)
    return first, second


def _turned(pair: Pair, turn: bool) -> Pair:
    if not turn:
        return pair
    d = pair.difference
    return Pair(Interval(-d.value, -d.high, -d.low), -pair.effect, 1 - pair.wins, pair.p)


def _friedman(every: Array) -> tuple[Array, float, float]:
    if len(every) < 2:
        return np.ones(len(every)), 1.0, math.inf
    return friedman(-every.mean(axis=2).T)


def profiles(spent: Array) -> Array:
    """Performance profiles of costs (E, T, S) over the grid, a problem being a task with a seed."""
    return performance_profile(spent.reshape(len(spent), -1), FACTORS)


def tuning_curve(suite: Suite, entrant: Entrant, task: str) -> list[Interval]:
    """Return the median best value of `select` among k points, for k from 1 to all, with exact intervals."""
    values = [selecting_value(suite, entrant.tuning[task, point]) for point in range(suite.points)]
    return [best_of_median(values, k) for k in range(1, suite.points + 1)]


def robustness(suite: Suite, entrants: Sequence[Entrant], every: Array) -> list[Robust]:
    """Return the ranking under other choices than the board's."""
    names = [entrant.name for entrant in entrants]
    board = -iqm(every.reshape(len(names), -1))
    choices: dict[str, Array] = {
        "mean rank over the tasks instead of the score": mean_ranks(-every.mean(axis=2))
    }
    for level, word in enumerate(_level_words(suite)):
        medians = np.apply_along_axis(censored_median, 2, costs(suite, entrants, level))
        choices[f"gradients to the {word} target"] = mean_ranks(medians)
    for t, task in enumerate(suite.tasks):
        if len(suite.tasks) > 2:
            choices[f"without the task {task}"] = -iqm(
                np.delete(every, t, axis=1).reshape(len(names), -1)
            )
    tuned = np.array(
        [
            [[i.value for i in tuning_curve(suite, e, task)] for task in suite.tuned]
            for e in entrants
        ]
    )
    for k in range(1, suite.points + 1):
        choices[f"best of {k} tuning point{'s' * (k > 1)} by validation"] = mean_ranks(
            tuned[:, :, k - 1]
        )
    found = [_robust(choice, names, board, other) for choice, other in choices.items()]
    for e, name in enumerate(names if len(names) > 2 else []):
        # Scores do not depend on who else is in; mean ranks do.
        rest = [i for i in range(len(names)) if i != e]
        with_all = mean_ranks(-every.mean(axis=2))[rest]
        without = mean_ranks(-every[rest].mean(axis=2))
        found.append(
            _robust(f"mean rank without {name}", [names[i] for i in rest], with_all, without)
        )
    return found


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
    return Robust(choice, first, kendall(_finite(board), _finite(other)), order)


def _finite(values: Array) -> list[float]:
    """Ranks order as values do, and are finite."""
    return [float(rank) for rank in average_ranks(values)]


def halves(every: Array) -> float:
    """Return the share of half sets of seeds under which the same entrant is first as under all; NaN for none."""
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
