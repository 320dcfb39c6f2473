"""Rows of a table in groups: one label a group, and the pairs of rows within each."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.intp]
Table = Mapping[str, NDArray[Any]]
"""Columns of equal length N by name, one row a run."""


def average_ranks(values: ArrayLike) -> Array:
    """Return ranks along the last axis, 1 for the least; equal values share their mean rank.

    Ranks of a row with NaN are NaN. They are those of scipy.stats, whose import takes longer than
    many a board.
    """
    values = np.asarray(values, dtype=np.float64)
    n = values.shape[-1]
    if not n:
        return np.zeros(values.shape)
    order = np.argsort(values, axis=-1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=-1)
    differs = ordered[..., 1:] != ordered[..., :-1]
    ends = np.ones((*values.shape[:-1], 1), dtype=bool)
    places = np.arange(n)
    first = np.where(np.concatenate([ends, differs], axis=-1), places, 0)
    last = np.where(np.concatenate([differs, ends], axis=-1), places, n - 1)
    first = np.maximum.accumulate(first, axis=-1)
    last = np.minimum.accumulate(last[..., ::-1], axis=-1)[..., ::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, 1 + (first + last) / 2, axis=-1)
    ranks[np.isnan(values).any(axis=-1)] = np.nan
    return ranks


def group_labels(columns: Sequence[ArrayLike], rows: int) -> Labels:
    """Number the groups of rows that agree in every column.

    Args:
        columns: Columns (N,) of any type; none puts all rows into one group.
        rows: N.

    Returns:
        Labels (N,), from 0 to the number of groups − 1, without a gap.

    Raises:
        ValueError: A column has another length.
    """
    labels = np.zeros(rows, dtype=np.intp)
    for column in columns:
        values = np.asarray(column)
        if values.shape != (rows,):
            raise ValueError(f"a column must have shape ({rows},), got {values.shape}")
        codes = np.unique(values, return_inverse=True)[1]
        # Renumbered at once, so that no product of group counts can overflow.
        labels = np.unique(labels * (codes.max(initial=0) + 1) + codes, return_inverse=True)[1]
    return labels


def pairs_within(labels: Labels) -> tuple[Labels, Labels]:
    """Return all unordered pairs of rows of the same group, each pair once.

    Args:
        labels: Group of each row (N,).

    Returns:
        Indices of the first and of the second rows, (pairs,) each.
    """
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    first, second = [np.zeros(0, np.intp)], [np.zeros(0, np.intp)]
    # Groups of one size form a matrix: no loop over the groups.
    for size in np.unique(sizes[sizes > 1]):
        members = order[starts[sizes == size][:, None] + np.arange(size)]
        left, right = np.triu_indices(int(size), 1)
        first.append(members[:, left].ravel())
        second.append(members[:, right].ravel())
    return np.concatenate(first), np.concatenate(second)


def finite_columns(**columns: ArrayLike) -> list[Array]:
    """Return the columns as float64 (N,), all of one length and finite.

    Raises:
        ValueError: The lengths differ, or a value is NaN or infinite: a diverged run has no order
            and no slope, so the caller drops its row, and reports it.
    """
    found = {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}
    shapes = {name: values.shape for name, values in found.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"columns must be vectors of one length, got {shapes}")
    for name, values in found.items():
        missing = int((~np.isfinite(values)).sum())
        if missing:
            raise ValueError(
                f"{name} must be finite, got {missing} of {len(values)} values that are not; "
                "drop the rows of diverged runs and report them apart"
            )
    return list(found.values())


def is_categorical(values: NDArray[Any]) -> bool:
    """Whether a column holds categories: text, Booleans, objects; numbers are quantities."""
    return values.dtype.kind not in "iuf"


def indicators(values: NDArray[Any]) -> Array:
    """Return a column of 0 and 1 for each category but the first, (N, categories − 1)."""
    categories = np.unique(values)
    return np.asarray(values[:, None] == categories[None, 1:], dtype=np.float64)
