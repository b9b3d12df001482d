"""Fewer points of a metrics history, with its extremes kept: a plot of them has the same peaks."""

from typing import Any

Columns = dict[str, list[Any]]


def downsample(columns: Columns, max_points: int) -> Columns:
    """At most `max_points` rows of `columns` (equally long lists; `epoch` and `step` are axes).

    The first and last row stay, and of each stretch between them the rows with every metric's smallest and largest
    value; a point is never made up. Values may be None.
    """
    length = len(next(iter(columns.values()), []))
    if length <= max_points:
        return columns
    kept = sorted(_chosen(columns, length, max_points))
    return {name: [values[row] for row in kept] for name, values in columns.items()}


def _chosen(columns: Columns, length: int, max_points: int) -> set[int]:
    chosen = set([0, length - 1][:max_points])
    metrics = [values for name, values in columns.items() if name not in ("epoch", "step")]
    room = max_points - len(chosen)
    stretches = max(1, room // (2 * max(1, len(metrics))))
    for number in range(stretches):
        first, last = number * length // stretches, (number + 1) * length // stretches
        for row in _extremes(metrics, first, last):
            # With room for less than every metric's two extremes, the metrics reported first win.
            if len(chosen) < max_points:
                chosen.add(row)
    return chosen


def _extremes(metrics: list[list[Any]], first: int, last: int) -> list[int]:
    found = []
    for values in metrics:
        rows = [row for row in range(first, last) if values[row] is not None]
        if rows:
            found += [min(rows, key=values.__getitem__), max(rows, key=values.__getitem__)]
    return found
