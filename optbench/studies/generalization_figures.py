"""Figures of the studies of generalization, readable in print and with any colour vision."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from optbench.record.axes import plain_log
from optbench.studies.figures import LOOKS, draw_heat, new_figure, save
from optbench.studies.frame import Table, subset
from optbench.studies.generalization_runs import ERROR


def draw_scatter(rows: Table, measures: Sequence[str], place: Path) -> str:
    """Draw the mean over seeds of error against each measure: a row a task, a column a measure."""
    names = list(np.unique(rows["task"]))
    optimizers = list(np.unique(rows["optimizer"]))
    figure = new_figure(4.2 * len(measures), 2.7 * len(names) + 0.6)
    axes = figure.subplots(len(names), len(measures), squeeze=False)
    for i, task in enumerate(names):
        of_task = subset(rows, rows["task"] == task)
        for j, measure in enumerate(measures):
            axis = axes[i][j]
            for (color, marker), optimizer in zip(LOOKS, optimizers, strict=False):
                points = _means(subset(of_task, of_task["optimizer"] == optimizer), measure)
                axis.plot(
                    *np.array(points).reshape(-1, 2).T,
                    marker,
                    color=color,
                    label=optimizer,
                    markersize=5,
                    alpha=0.85,
                )
            plain_log(axis)
            axis.set_xlabel(measure.replace("_", " "))
            axis.set_ylabel("test error, %" if j == 0 else "")
            axis.set_title(str(task), fontsize=10, loc="left")
            axis.grid(alpha=0.25)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return save(figure, place)


def _means(rows: Table, measure: str) -> list[tuple[float, float]]:
    """(measure, error) of each configuration, geometric and arithmetic mean over seeds."""
    labels = np.char.add(rows["lr"].astype(str), rows["batch"].astype(str))
    found = []
    for label in np.unique(labels):
        x, y = rows[measure][labels == label], rows[ERROR][labels == label]
        known = np.isfinite(x) & (x > 0)
        if known.any():
            found.append((float(np.exp(np.log(x[known]).mean())), float(y[known].mean())))
    return found


def draw_correlations(values: Mapping[str, Mapping[str, float]], title: str, place: Path) -> str:
    """Draw a heat map: a row a measure, the strongest first, a column a task."""
    names = sorted(values, key=lambda name: -float(np.nanmean(list(values[name].values()))))
    return draw_heat({name: values[name] for name in names}, title, place, limit=1.0)


def draw_slopes(
    slopes: Mapping[str, Mapping[str, Sequence[tuple[str, float, float]]]], unit: str, place: Path
) -> str:
    """Draw each instrument's slope with its 95 % interval: a column a mediator, a row a task.

    Args:
        slopes: {mediator: {task: [(instrument, slope, standard error), …]}}.
        unit: What a slope is in.
        place: File, without its ending.
    """
    tasks = list(dict.fromkeys(task for by_task in slopes.values() for task in by_task))
    counts = [max(len(by_task.get(task, ())) for by_task in slopes.values()) for task in tasks]
    figure = new_figure(4.6 * len(slopes), 0.26 * sum(counts) + 0.75 * len(tasks) + 0.3)
    axes = figure.subplots(
        len(tasks), len(slopes), squeeze=False, height_ratios=[n + 1 for n in counts]
    )
    for j, (mediator, by_task) in enumerate(slopes.items()):
        for i, task in enumerate(tasks):
            axis, each = axes[i][j], by_task.get(task, ())
            for row, (_, slope, error) in enumerate(each):
                axis.errorbar(slope, row, xerr=1.96 * error, fmt="o", color="#0072B2", capsize=3)
            axis.axvline(0, color="#888888", linewidth=0.8)
            axis.set_yticks(range(len(each)), [name for name, _, _ in each], fontsize=8)
            axis.set_ylim(len(each) - 0.4, -0.6)
            axis.set_title(f"{task}: {mediator.replace('_', ' ')}", fontsize=10, loc="left")
            axis.grid(alpha=0.25, axis="x")
        axes[-1][j].set_xlabel(unit, fontsize=9)
    return save(figure, place)
