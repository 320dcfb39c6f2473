"""The rule that selects a point for every task, from what tuning found."""

from collections.abc import Mapping, Sequence

from optbench.statistics import average_ranks


def select(values: Mapping[str, Sequence[float]], held_out: str) -> dict[str, int]:
    """Return the selected point of every task, the first of equals.

    On a tuned task it is the one of the least value; on the held-out one the one with the best mean
    rank over the tuned tasks, so that nothing of the held-out task is used. A divergence is
    infinite: the worst rank.
    """
    chosen = {
        task: min(range(len(column)), key=column.__getitem__) for task, column in values.items()
    }
    ranks = average_ranks([list(column) for column in values.values()]).mean(axis=0)
    return chosen | {held_out: int(ranks.argmin())}
