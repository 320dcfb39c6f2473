"""Runs of no suite, compared: those of one problem and budget side by side, paired by seed.

Nothing was tuned here, and nobody has said which rates are fair: a comparison says which *runs* did
better, and not which optimizer is better. The title says so.
"""

import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from optbench import metrics
from optbench.boundary.counting import agreeing, counted
from optbench.errors import UserError, nearest
from optbench.intervals import LEVEL, Interval
from optbench.leaderboard.entrants import unlike
from optbench.leaderboard.run_folders import flat
from optbench.leaderboard.run_line import Run
from optbench.record.folder import FINISHED
from optbench.statistics import Pair, censored_median, compare_each, holm, rank_intervals

MOST_IN_A_TITLE = 4  # settings that a title names
PARTS = ("task", "model", "schedule")
BUDGET = ("steps", "epochs", "batch_size")
ALL = ("", "")  # what is chosen where a setting is of no part


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
class Compared:
    """Two lines on the seeds that both have, the one that is ahead by the median first.

    Attributes:
        pair: Their comparison; the difference is of −metric, so that more is better.
        p: Its p after Holm's correction over the pairs of the group.
        seeds: The seeds; two or more.
        diverged: Whether every one of these runs diverged, so that neither is ahead.
    """

    pair: Pair
    p: float
    seeds: Sequence[int]
    diverged: bool = False

    @property
    def is_sure(self) -> bool:
        """Whether the two are told apart."""
        return self.p < 1 - LEVEL


Spellings = dict[str, dict[str, str]]
"""How each value of a setting is spelled, by the setting and the value's `repr`."""
Pairs = Mapping[tuple[str, str], Compared]


@dataclass(frozen=True)
class Group:
    """Runs of one problem and budget.

    Attributes:
        title: What it is, in short; no two groups share one.
        conditions: Every setting of the problem, by path.
        metric: What is compared at the last step; less is better.
        lines: What is compared, best first.
        pairs: Every two of them that share two seeds or more; nothing is known of the others.
        said: What limits the comparison, in sentences.
    """

    title: str
    conditions: Mapping[str, object]
    metric: str
    lines: Sequence[Line]
    pairs: Pairs
    said: Sequence[str]


@dataclass(frozen=True)
class Comparison:
    """All groups, the largest first, and why other runs are in none.

    Attributes:
        groups: The groups.
        left_out: Why a run cannot be compared, by its name.
        passed_over: (name, why) of folders that could not be read.
    """

    groups: Sequence[Group]
    left_out: Mapping[str, str]
    passed_over: Sequence[tuple[str, str]] = ()

    @property
    def not_compared(self) -> list[tuple[str, str]]:
        """All that is in no group, with why."""
        return [*self.left_out.items(), *self.passed_over]

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
    if metric is not None:
        _check_metric(metric, runs)
    left_out: dict[str, str] = {}
    problems: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (run.copied, run.name)):
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
    groups.sort(key=lambda g: (-sum(len(line.runs) for line in g.lines), g.title))
    return Comparison(groups, left_out)


def _check_metric(metric: str, runs: Sequence[Run]) -> None:
    finished = [run for run in runs if run.status in FINISHED]
    known = sorted({key for run in finished for key in run.last})
    if finished and metric not in known:
        raise UserError(
            f"no run measured metric={metric} at its last step. Measured: {', '.join(known[:12])}."
            f"{nearest(metric, known)}"
        )


def _group(
    title: str, runs: Sequence[Run], metric: str | None, left_out: dict[str, str]
) -> Group | None:
    runs = _of_one_start(runs, left_out)
    chosen = metric or _usual_metric(runs)
    measured = metric is None or any(metric in run.last for run in runs)
    lacking = [
        run for run in runs if chosen not in run.last and (run.status == "done" or not measured)
    ]
    for run in lacking:
        left_out[run.name] = f"without {chosen} at the last step"
    lines = _by_name([run for run in runs if run not in lacking], left_out)
    if not lines:
        return None
    names = list(lines)
    values = {
        name: {seed: _value(run, chosen) for seed, run in lines[name].items()} for name in names
    }
    medians = {name: censored_median(values[name].values()) for name in names}
    names.sort(key=lambda name: (medians[name], name))
    pairs = _compared(values, names)
    ranks = _ranks(names, pairs)
    found = [
        Line(
            name=name,
            rank=1 + sum(medians[other] < medians[name] for other in names),
            ranks=ranks[name],
            value=Interval(medians[name], min(values[name].values()), max(values[name].values())),
            diverged=sum(run.status == "diverged" for run in lines[name].values()),
            runs=lines[name],
        )
        for name in names
    ]
    return Group(
        title=title,
        conditions=runs[0].conditions,
        metric=chosen,
        lines=found,
        pairs=pairs,
        said=_said(found, pairs),
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
    lines: dict[str, dict[int, Run]] = defaultdict(dict)
    for run in runs:
        line = lines[_identity(run)]
        if run.seed in line:
            left_out[run.name] = f"the same as {line[run.seed].name}, but for its probes"
        else:
            line[run.seed] = run
    names = _names([next(iter(line.values())) for line in lines.values()])
    named = dict(zip(names, lines.values(), strict=True))
    return {name: dict(sorted(named[name].items())) for name in sorted(named)}


def _identity(run: Run) -> str:
    """What a run is of: its optimizer, with all settings in full and the user's code."""
    return json.dumps([run.given_name or run.optimizer, run.settings, run.code], sort_keys=True)


def _names(runs: Sequence[Run]) -> list[str]:
    """Each run's optimizer, with what runs of this optimizer differ in; no two are alike."""
    of_optimizer: dict[str, list[dict[str, object]]] = defaultdict(list)
    own = [flat(run.settings) | _code(run) for run in runs]
    optimizers = [run.given_name or run.optimizer for run in runs]
    for optimizer, settings in zip(optimizers, own, strict=True):
        of_optimizer[optimizer].append(settings)
    spellings = {optimizer: _spellings(settings) for optimizer, settings in of_optimizer.items()}
    names = [
        _name(optimizer, settings, spellings[optimizer])
        for optimizer, settings in zip(optimizers, own, strict=True)
    ]
    return _numbered(names)


def _code(run: Run) -> dict[str, str]:
    """The code of a run's optimizer, as settings."""
    if len(run.code) == 1:
        return {"code": next(iter(run.code.values()))}
    return {f"code of {target}": code for target, code in run.code.items()}


def _name(optimizer: str, settings: Mapping[str, object], spellings: Spellings) -> str:
    words = [f"{k}={spellings[k][repr(value)]}" for k, value in settings.items() if k in spellings]
    return " ".join([optimizer, *words])


def _spellings(settings: Sequence[Mapping[str, object]]) -> Spellings:
    """How each value is spelled, by its `repr`, of the settings that differ."""
    spellings = {}
    for key in dict.fromkeys(key for own in settings for key in own):
        values = {repr(own[key]): own[key] for own in settings if key in own}
        if len(values) > 1 or any(key not in own for own in settings):
            spellings[key] = _spelled(values)
    return spellings


def _spelled(values: Mapping[str, object]) -> dict[str, str]:
    """Spell values, given by their `repr`, in short where no other is then spelled alike."""
    short = {
        text: f"{value:.6g}" if isinstance(value, float) else str(value)
        for text, value in values.items()
    }
    frequent = Counter(short.values())
    return {text: text if frequent[word] > 1 else word for text, word in short.items()}


def _numbered(names: Sequence[str]) -> list[str]:
    """Number the names that are alike."""
    frequent, seen = Counter(names), Counter[str]()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(f"{name} ({seen[name]})" if frequent[name] > 1 else name)
    return numbered


def _titles(problems: Mapping[str, Sequence[Run]]) -> dict[str, str]:
    """A title for each problem: the usual settings, and those in which the problems differ."""
    conditions = {problem: runs[0].conditions for problem, runs in problems.items()}
    spellings = _spellings_by_choice(list(conditions.values()))
    several = len({str(own.get("schedule")) for own in conditions.values()}) > 1
    titles = {}
    for problem, own in conditions.items():
        words = [str(own[key]) for key in ("task", "model") if key in own]
        words += [f"{key} {own[key]}" for key in BUDGET if key in own]
        words += [f"schedule {own.get('schedule')}"] if several else []
        titles[problem] = ", ".join([*words, *_differences(own, spellings)]) or "runs"
    frequent = Counter(titles.values())
    return {
        problem: f"{title}, problem {problem[:6]}" if frequent[title] > 1 else title
        for problem, title in titles.items()
    }


def _spellings_by_choice(
    conditions: Sequence[Mapping[str, object]],
) -> dict[tuple[str, str], Spellings]:
    """The `_spellings` of all problems, and of those with one task, model or schedule.

    A part of another name has other settings: only its name says what differs.
    """
    alike: dict[tuple[str, str], list[Mapping[str, object]]] = defaultdict(list)
    for own in conditions:
        for part in PARTS:
            alike[part, str(own.get(part))].append(own)
    return {choice: _spellings(group) for choice, group in alike.items()} | {
        ALL: _spellings(conditions)
    }


def _differences(
    own: Mapping[str, object], spellings: Mapping[tuple[str, str], Spellings]
) -> list[str]:
    """The first settings in which a problem differs from others, in words.

    What is null is off, and says nothing.
    """
    words = []
    for key, value in sorted(own.items()):
        part = key.partition(".")[0]
        differing = spellings[(part, str(own.get(part))) if part in PARTS else ALL]
        noise = key in (*PARTS, *BUDGET) or key.endswith(("_partial_", "_target_"))
        if value is not None and not noise and key in differing:
            words.append(f"{key} {differing[key][repr(value)]}")
    return words[:MOST_IN_A_TITLE]


def _compared(values: Mapping[str, Mapping[int, float]], order: Sequence[str]) -> Pairs:
    """Compare every two that share two seeds or more, on the seeds that both have."""
    shared = {
        (first, second): sorted(values[first].keys() & values[second].keys())
        for first, second in itertools.combinations(order, 2)
    }
    pairs: dict[tuple[str, str], Pair] = {}
    for count in sorted({len(seeds) for seeds in shared.values()} - {0, 1}):
        alike = [names for names, seeds in shared.items() if len(seeds) == count]
        firsts, seconds = (
            [[[-values[names[which]][seed] for seed in shared[names]]] for names in alike]
            for which in (0, 1)
        )
        pairs |= dict(zip(alike, compare_each(firsts, seconds), strict=True))
    adjusted = holm([pair.p for pair in pairs.values()])
    return {
        names: Compared(
            pair=pair,
            p=float(p),
            seeds=shared[names],
            diverged=all(
                math.isinf(values[name][seed]) for name in names for seed in shared[names]
            ),
        )
        for (names, pair), p in zip(pairs.items(), adjusted, strict=True)
    }


def _ranks(names: Sequence[str], pairs: Pairs) -> dict[str, tuple[int, int]]:
    """First and last rank that each may have."""
    place = {name: i for i, name in enumerate(names)}
    better = np.zeros((len(names), len(names)), dtype=bool)
    for (first, second), compared in pairs.items():
        if compared.is_sure:
            a, b = place[first], place[second]
            better[(a, b) if compared.pair.effect > 0 else (b, a)] = True
    return dict(zip(names, rank_intervals(better), strict=True))


def _said(lines: Sequence[Line], pairs: Pairs) -> list[str]:
    """What limits the comparison."""
    if len(lines) == 1:
        return [f"{lines[0].name} is alone here: there is nothing to compare it with."]
    said = _of_other_seeds(lines)
    if not pairs:
        return [*said, "With fewer than two common seeds nothing can be told apart from chance."]
    if unknown := math.comb(len(lines), 2) - len(pairs):
        said.append(
            f"Nothing is known of {counted(unknown, 'pair')} with fewer than two common seeds."
        )
    return [*said, _told_apart(pairs)]


def _of_other_seeds(lines: Sequence[Line]) -> list[str]:
    """Which lines have which seeds, where they do not all have the same."""
    having: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for line in lines:
        having[tuple(line.runs)].append(line.name)
    if len(having) == 1:
        return []
    seeds = "; ".join(
        f"{seeds_text(seeds)} ({', '.join(names)})" for seeds, names in having.items()
    )
    return [
        f"Not all have the same seeds: {seeds}. So the medians, and the ranks by them, are of "
        "different seeds; a pair is of the seeds that both have."
    ]


def _told_apart(pairs: Pairs) -> str:
    """How many pairs are told apart, or why none can be."""
    count = counted(len(pairs), "pair")
    common = {len(compared.seeds) for compared in pairs.values()}
    least = holm([2.0 ** (1 - len(compared.seeds)) for compared in pairs.values()])
    if min(least) >= 1 - LEVEL:
        at_most = "at most " if len(common) > 1 else ""
        return (
            f"With {at_most}{max(common)} seeds the least possible p is "
            f"{2.0 ** (1 - max(common)):.2g}: too few to tell anything apart among {count}."
        )
    sure = sum(compared.is_sure for compared in pairs.values())
    return (
        f"Of {count}, {sure} {agreeing(sure, 'is', 'are')} told apart "
        f"(Wilcoxon, Holm, all claims together wrong at most {1 - LEVEL:.0%} of the time)."
    )


def seeds_text(seeds: Iterable[int]) -> str:
    """Seeds for a reader."""
    return ", ".join(map(str, seeds))
