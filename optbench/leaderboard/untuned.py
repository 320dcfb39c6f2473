"""Runs of no suite, compared: those of one problem and budget side by side, paired by seed.

Nothing was tuned here, and nobody has said which rates are fair: a comparison says which *runs* did
better, and not which optimizer is better. The title says so.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from optbench import metrics
from optbench.boundary.counting import agreeing, counted
from optbench.errors import UserError
from optbench.intervals import LEVEL, Interval
from optbench.leaderboard.entrants import unlike
from optbench.leaderboard.run_folders import flat
from optbench.leaderboard.run_line import Run
from optbench.record.folder import FINISHED
from optbench.statistics import Array, Pair, censored_median, compare_each, holm, rank_intervals

MOST_IN_A_TITLE = 4  # settings that a title names
ALWAYS = ("task", "model", "steps", "batch_size")


@dataclass(frozen=True)
class Line:
    """One optimizer with one set of settings, on one problem.

    Attributes:
        name: Its optimizer, with the settings in which it differs from others of that optimizer.
        rank: Rank by the median of the metric, 1 for the least; equals share it.
        ranks: First and last rank it may have, for all together with probability 0.95.
        value: Median of the metric over the seeds, with least and greatest; infinite where a run
            diverged.
        diverged: How many of its runs diverged.
        runs: Its runs by seed.
    """

    name: str
    rank: int
    ranks: tuple[int, int]
    value: Interval
    diverged: int
    runs: Mapping[int, Run]


@dataclass(frozen=True)
class Group:
    """Runs of one problem and budget.

    Attributes:
        title: What it is, in short; no two groups share one.
        conditions: Every setting of the problem, by path.
        metric: What is compared at the last step; less is better.
        lines: What is compared, best first.
        seeds: The seeds that all of them have: what pairs are made of.
        pairs: Comparison of every two of them on these seeds, the better first, and p after Holm's
            correction; the difference is of −metric, so that more is better.
        said: What limits the comparison, in sentences.
    """

    title: str
    conditions: Mapping[str, object]
    metric: str
    lines: Sequence[Line]
    seeds: Sequence[int]
    pairs: Mapping[tuple[str, str], tuple[Pair, float]]
    said: Sequence[str]


@dataclass(frozen=True)
class Comparison:
    """All groups, the largest first, and why other runs are in none."""

    groups: Sequence[Group]
    left_out: Mapping[str, str]

    @property
    def runs(self) -> int:
        """How many runs are compared."""
        return sum(len(line.runs) for group in self.groups for line in group.lines)

    @property
    def title(self) -> str:
        """What it is, and what it is not."""
        return f"Comparison of {counted(self.runs, 'run')}: nothing was tuned"


def compare_runs(runs: Sequence[Run], metric: str | None = None) -> Comparison:
    """Group runs by problem and budget, and compare those of each group.

    Args:
        runs: Runs with their `conditions`, as `read_folders` returns any runs.
        metric: What is compared, less is better; None for the test loss, or the training loss where
            not every run has one.
    """
    left_out: dict[str, str] = {}
    problems: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.name):
        if run.status not in FINISHED:
            left_out[run.name] = f"not finished ({run.status})"
        else:
            problems[run.problem].append(run)
    titles = _titles(problems)
    groups = [
        group
        for problem, own in problems.items()
        if (group := _group(titles[problem], own, metric, left_out)) is not None
    ]
    if not groups and metric is not None and runs:
        known = sorted({key for run in runs for key in run.last})
        raise UserError(f"no run measured metric={metric}. Measured: {', '.join(known[:12])}")
    groups.sort(key=lambda g: (-sum(len(line.runs) for line in g.lines), g.title))
    return Comparison(groups, left_out)


def _group(
    title: str, runs: Sequence[Run], metric: str | None, left_out: dict[str, str]
) -> Group | None:
    runs = _of_one_start(runs, left_out)
    chosen = metric or _usual_metric(runs)
    lacking = [run for run in runs if run.status == "done" and chosen not in run.last]
    for run in lacking:
        left_out[run.name] = f"without {chosen}"
    lines = _by_name([run for run in runs if run not in lacking], left_out)
    if not lines:
        return None
    seeds = sorted(set.intersection(*[set(of_seed) for of_seed in lines.values()]))
    names = list(lines)
    values = {name: [_value(run, chosen) for run in lines[name].values()] for name in names}
    medians = {name: censored_median(values[name]) for name in names}
    scores = np.array([[[-_value(lines[name][seed], chosen) for seed in seeds]] for name in names])
    pairs, ranks = _compared(names, scores.reshape(len(names), 1, len(seeds)))
    found = [
        Line(
            name=name,
            rank=1 + sum(medians[other] < medians[name] for other in names),
            ranks=ranks[name],
            value=Interval(medians[name], min(values[name]), max(values[name])),
            diverged=sum(run.status == "diverged" for run in lines[name].values()),
            runs=lines[name],
        )
        for name in names
    ]
    found.sort(key=lambda line: (line.rank, line.name))
    order = [line.name for line in found]
    return Group(
        title=title,
        conditions=runs[0].conditions,
        metric=chosen,
        lines=found,
        seeds=seeds,
        pairs=_ordered(order, pairs),
        said=_said(found, seeds, pairs),
    )


def _of_one_start(runs: Sequence[Run], left_out: dict[str, str]) -> list[Run]:
    """Keep the runs that start alike, seed by seed: else a seed pairs nothing.

    Data may depend on the seed. Where a seed has as many runs on other data, those stay that are
    on the data of most runs.
    """
    votes: dict[int, dict[tuple[str, ...], list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        start = (run.data_hash, run.init_hash, f"{run.initial_loss:.3g}")
        votes[run.seed][start].append(run)
    on_data = Counter(run.data_hash for run in runs)
    usual = {
        seed: max(starts.values(), key=lambda own: (len(own), on_data[own[0].data_hash]))[0]
        for seed, starts in votes.items()
    }
    kept = []
    for run in runs:
        if difference := unlike(run, usual[run.seed]):
            left_out[run.name] = f"another {difference} than the other runs of seed {run.seed} have"
        else:
            kept.append(run)
    return kept


def _usual_metric(runs: Iterable[Run]) -> str:
    finished = [run for run in runs if run.status == "done"]
    everyone = all(metrics.TEST_LOSS in run.last for run in finished)
    return metrics.TEST_LOSS if finished and everyone else metrics.TRAIN_LOSS


def _value(run: Run, metric: str) -> float:
    return math.inf if run.status == "diverged" else run.last[metric]


def _by_name(runs: Sequence[Run], left_out: dict[str, str]) -> dict[str, dict[int, Run]]:
    """Runs by what they are of, and seed; a second run of one place is left out."""
    names = _names(runs)
    lines: dict[str, dict[int, Run]] = defaultdict(dict)
    for run, name in zip(runs, names, strict=True):
        if run.seed in lines[name]:
            left_out[run.name] = f"the same as {lines[name][run.seed].name}, but for its probes"
        else:
            lines[name][run.seed] = run
    return {name: dict(sorted(lines[name].items())) for name in sorted(lines)}


def _names(runs: Sequence[Run]) -> list[str]:
    """Each run's optimizer, with the settings in which runs of this optimizer differ."""
    settings = [flat(run.settings) for run in runs]
    different: dict[str, set[str]] = defaultdict(set)
    of_optimizer: dict[str, list[dict[str, object]]] = defaultdict(list)
    for run, own in zip(runs, settings, strict=True):
        of_optimizer[run.optimizer].append(own)
    for optimizer, all_of_it in of_optimizer.items():
        different[optimizer] = _differing(all_of_it)
    return [
        " ".join(
            [
                run.optimizer,
                *[f"{k}={_spelled(own.get(k))}" for k in own if k in different[run.optimizer]],
            ]
        )
        for run, own in zip(runs, settings, strict=True)
    ]


def _differing(settings: Sequence[Mapping[str, object]]) -> set[str]:
    """Keys that do not have the same value everywhere."""
    keys = {key for own in settings for key in own}
    return {key for key in keys if len({repr(own.get(key)) for own in settings}) > 1}


def _spelled(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _titles(problems: Mapping[str, Sequence[Run]]) -> dict[str, str]:
    """A title for each problem: the usual settings, and those in which the problems differ."""
    conditions = {problem: runs[0].conditions for problem, runs in problems.items()}
    differing = sorted(
        key
        for key in _differing(list(conditions.values()))
        if key not in ALWAYS and not key.endswith("_target_") and key != "schedule"
    )
    titles: dict[str, str] = {}
    for problem, own in conditions.items():
        words = [str(own[key]) for key in ("task", "model") if key in own]
        words += [f"{key} {own[key]}" for key in ("steps", "epochs", "batch_size") if key in own]
        if len({str(c.get("schedule")) for c in conditions.values()}) > 1:
            words.append(f"schedule {own.get('schedule')}")
        words += [f"{key} {_spelled(own.get(key))}" for key in differing[:MOST_IN_A_TITLE]]
        titles[problem] = ", ".join(words) or "runs"
    seen: dict[str, int] = defaultdict(int)
    for problem, title in titles.items():
        if list(titles.values()).count(title) > 1:
            seen[title] += 1
            titles = titles | {problem: f"{title}, problem {problem[:6]}"}
    return titles


def _compared(
    names: Sequence[str], scores: Array
) -> tuple[dict[tuple[str, str], tuple[Pair, float]], dict[str, tuple[int, int]]]:
    """Compare every two on the common seeds, of which it takes two or more."""
    E, S = len(names), scores.shape[2]
    if S < 2 or E < 2:
        return {}, dict.fromkeys(names, (1, E))
    places = list(itertools.combinations(range(E), 2))
    found = compare_each([scores[a] for a, _ in places], [scores[b] for _, b in places])
    adjusted = holm([pair.p for pair in found])
    better = np.zeros((E, E), dtype=bool)
    for (a, b), pair, p in zip(places, found, adjusted, strict=True):
        if p < 1 - LEVEL:
            better[(a, b) if pair.effect > 0 else (b, a)] = True
    pairs = {
        (names[a], names[b]): (pair, float(p))
        for (a, b), pair, p in zip(places, found, adjusted, strict=True)
    }
    return pairs, dict(zip(names, rank_intervals(better), strict=True))


def _ordered(
    order: Sequence[str], pairs: Mapping[tuple[str, str], tuple[Pair, float]]
) -> dict[tuple[str, str], tuple[Pair, float]]:
    """Turn each pair so that the better by the median stands first."""
    turned = {}
    for (first, second), (pair, p) in pairs.items():
        if order.index(first) < order.index(second):
            turned[first, second] = pair, p
            continue
        d = pair.difference
        other = Pair(Interval(-d.value, -d.high, -d.low), -pair.effect, 1 - pair.wins, pair.p)
        turned[second, first] = other, p
    return turned


def _said(
    lines: Sequence[Line], seeds: Sequence[int], pairs: Mapping[tuple[str, str], tuple[Pair, float]]
) -> list[str]:
    """What limits the comparison."""
    if len(lines) == 1:
        return [f"{lines[0].name} is alone here: there is nothing to compare it with."]
    said = []
    every = {seed for line in lines for seed in line.runs}
    if lost := sorted(every - set(seeds)):
        said.append(
            f"Pairs are made of the seeds that all have ({_numbers(seeds) or 'none'}); not of "
            f"{_numbers(lost)}, which some lack."
        )
    if len(seeds) < 2:
        return [*said, "With fewer than two common seeds nothing can be told apart from chance."]
    least, count = 2.0 ** (1 - len(seeds)), counted(len(pairs), "pair")
    if least * len(pairs) >= 1 - LEVEL:
        said.append(
            f"With {len(seeds)} seeds the least possible p is {least:.2g}: too few to tell "
            f"anything apart among {count}."
        )
    else:
        sure = sum(p < 1 - LEVEL for _, p in pairs.values())
        said.append(
            f"Of {count}, {sure} {agreeing(sure, 'is', 'are')} told apart "
            f"(Wilcoxon, Holm, all claims together wrong at most {1 - LEVEL:.0%} of the time)."
        )
    return said


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
