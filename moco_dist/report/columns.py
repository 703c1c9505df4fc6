"""Gather the figures of a run by name while its rows go by, and keep what is drawn of them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moco_dist.health.course import LARGEST
from moco_dist.report.thin import Numbers, smoothed, thinned
from moco_dist.run import figures
from moco_dist.run.rows import Row

_NO_FIGURES = {"step", "epoch"}
_DIGITS = 6
"""Significant digits of what is drawn."""


@dataclass(frozen=True)
class Curve:
    """A curve is a figure over the steps, thinned, with its extremes over all rows."""

    steps: Sequence[int]
    values: Sequence[float]
    smooth_steps: Sequence[int]
    smooth_values: Sequence[float]
    """The mean over a hundredth of the rows; empty where there are few."""
    rows: int
    """Rows that have the figure."""
    last: float
    median: float
    low: tuple[int, float]
    """Step and value of the lowest."""
    high: tuple[int, float]


class Columns:
    """The columns are the figures of a run's rows. Rows are kept by the names in them, which is quick."""

    def __init__(self) -> None:
        self._by_names: dict[tuple[str, ...], list[tuple[Any, ...]]] = defaultdict(list)
        self.rows = 0

    def passing(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield the rows as they come, and keep their figures."""
        by_names = self._by_names
        for row in rows:
            by_names[tuple(row)].append(tuple(row.values()))
            self.rows += 1
            yield row

    def curves(self, most_points: int) -> dict[str, Curve]:
        """Return the curves of all figures by their names, in the order in which the names appeared.

        Args:
            most_points: of a curve.
        """
        parts: dict[str, list[tuple[Numbers, Numbers]]] = defaultdict(list)
        for names, rows in self._by_names.items():
            if "finding" in names:
                continue
            table = _table(rows)  # [rows, names]
            for name, column in zip(names, table.T, strict=True):
                if name not in _NO_FIGURES:
                    finite = np.abs(column) < LARGEST  # false for NaN
                    parts[name].append((table[finite, names.index("step")], column[finite]))
        joined = {name: [np.concatenate(both) for both in zip(*pairs, strict=True)] for name, pairs in parts.items()}
        return {name: _curve(both[0], both[1], most_points) for name, both in joined.items() if len(both[0])}


def _table(rows: Sequence[tuple[Any, ...]]) -> Numbers:
    """Return the values of rows with equal names as numbers, [rows, names]; NaN for what is none."""
    try:
        if not any(str in map(type, row) for row in rows):  # numpy would read a text as a number
            return np.array(rows, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):  # something else stands among the numbers
        pass
    return np.array([[_number(value) for value in row] for row in rows])


def _number(value: Any) -> float:
    return float(value) if isinstance(value, float | int) and abs(value) < LARGEST else np.nan


def _curve(steps: Numbers, values: Numbers, most_points: int) -> Curve:
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    shown = thinned(values, most_points)
    centres, means = smoothed(values)
    low, high = int(values.argmin()), int(values.argmax())
    return Curve(
        steps=steps[shown].astype(int).tolist(),
        values=_rounded(values[shown]),
        smooth_steps=steps[centres].astype(int).tolist(),
        smooth_values=_rounded(means),
        rows=len(values),
        last=float(values[-1]),
        median=float(np.median(values)),
        low=(int(steps[low]), float(values[low])),
        high=(int(steps[high]), float(values[high])),
    )


def _rounded(values: Numbers) -> list[float]:
    """Round to a few significant digits, which makes a page half as large."""
    return [float(f"{value:.{_DIGITS}g}") for value in values.tolist()]


def is_share(curve: Curve, name: str) -> bool:
    """Tell whether a figure is a share of one, to be shown in percent."""
    figure = figures.of(name)
    return figure is not None and figure.unit == "share" and curve.low[1] >= -1e-9 and curve.high[1] <= 1 + 1e-9
