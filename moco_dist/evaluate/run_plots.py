"""Pictures of training runs: the loss and the accuracies of one run, or of several in one picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from moco_dist.evaluate.plots import COLOURS, GREY, Row, save, short

_DASHES = ("-", "--", ":", "-.")

_EVALUATIONS = {"knn_top1": "kNN", "linear_top1": "linear probe"}
"""Keys of evaluation rows, and what they are called."""


def curves(path: Path, rows: Sequence[Row]) -> None:
    """Draw a run's loss, and below it the accuracies of its evaluations.

    Args:
        path: of the PNG.
        rows: of metrics.jsonl; those with a `loss` are of training.

    Raises:
        OSError: it cannot be written.
    """
    save(_draw_curves(rows), path)


def overlay(path: Path, runs: Mapping[str, Sequence[Row]]) -> None:
    """Draw the smoothed losses of several runs, and below them their kNN accuracies.

    Args:
        path: of the PNG.
        runs: rows of metrics.jsonl by the runs' names, at least one run.

    Raises:
        OSError: it cannot be written.
    """
    save(_draw_overlay(runs), path)


def _draw_curves(rows: Sequence[Row]) -> Figure:
    per_epoch = _steps_per_epoch(rows)
    figure, above, below = _panels("epoch" if per_epoch else "step")
    x, loss = _series(rows, "loss", per_epoch or 1)
    smooth, window = _smoothed(loss)
    if window > 1:
        above.plot(x, loss, color=COLOURS[0], alpha=0.3, linewidth=0.8, label="as logged")
        above.plot(x, smooth, color=COLOURS[0], label=f"mean of {window} rows")
        above.legend()
    else:
        above.plot(x, loss, ".-", color=COLOURS[0])
    for colour, (key, name) in zip(COLOURS, _EVALUATIONS.items(), strict=False):
        x, accuracy = _series(rows, key, per_epoch or 1)
        if len(x):
            label = f"{name}, {100 * accuracy[-1]:.2f} % at the end"
            below.plot(x, 100 * accuracy, "o-", color=colour, ms=3, label=label)
    if below.lines:
        below.legend(loc="lower right")
    _say_if_empty(above, below)
    return figure


def _draw_overlay(runs: Mapping[str, Sequence[Row]]) -> Figure:
    assert runs, "no run"
    of_runs = [_steps_per_epoch(rows) for rows in runs.values()]
    by_epoch = all(of_runs)  # epochs of one run and steps of another have no axis in common
    figure, above, below = _panels("epoch" if by_epoch else "step")
    below.set_ylabel("kNN top-1 accuracy (%)")
    lines = []
    for number, (rows, of_run) in enumerate(zip(runs.values(), of_runs, strict=True)):
        cycle, which = divmod(number, len(COLOURS))
        style: dict[str, Any] = {"color": COLOURS[which], "linestyle": _DASHES[cycle % len(_DASHES)]}
        per_epoch = of_run if by_epoch and of_run else 1
        x, loss = _series(rows, "loss", per_epoch)
        lines += above.plot(x, _smoothed(loss)[0], **style)
        x, accuracy = _series(rows, "knn_top1", per_epoch)
        below.plot(x, 100 * accuracy, marker="o", ms=3, **style)
    columns = 1 if len(runs) < 4 else 2
    figure.set_figheight(figure.get_figheight() + 0.22 * len(runs) / columns)
    legend = figure.legend(lines, ["run"] * len(lines), loc="outside lower center", ncols=columns)
    for text, name in zip(legend.get_texts(), runs, strict=True):  # here, where "_" and "$" have no meaning
        text.set(text=short(name, 45), parse_math=False)
    _say_if_empty(above, below)
    return figure


def _panels(x_label: str) -> tuple[Figure, Axes, Axes]:
    """Make a figure with axes for losses and, below, for accuracies."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    above.set_ylabel("loss")
    below.set(ylabel="top-1 accuracy (%)", xlabel=x_label)
    for axes in (above, below):
        axes.grid(color=GREY)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, above, below


def _say_if_empty(above: Axes, below: Axes) -> None:
    for axes, text in ((above, "no step is logged"), (below, "no evaluation is logged")):
        if not any(np.size(line.get_xdata()) for line in axes.lines):
            axes.text(0.5, 0.5, text, ha="center", va="center", fontsize="large", transform=axes.transAxes)
            axes.set_yticks([])
            axes.grid(visible=False)


def _series(rows: Sequence[Row], key: str, per_epoch: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return steps over `per_epoch`, and a figure of training (`loss`) or of evaluations (any other): [n] each."""
    points = [(row["step"] / per_epoch, row[key]) for row in rows if key in row and ("loss" in row) == (key == "loss")]
    x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return x, y


def _smoothed(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Return the mean around each value, and of how many values it is: a hundredth of all."""
    from scipy.ndimage import uniform_filter1d

    window = max(1, len(values) // 100)
    return uniform_filter1d(values, window), window


def _steps_per_epoch(rows: Sequence[Row]) -> int | None:
    """Return the most steps an epoch can have by the rows' `step` and `epoch`; None where these do not tell.

    That is exact once there is a row of an epoch's first step, or of the evaluation at its end, and else as near as
    the rows allow.
    """
    done = list(_steps_done(rows))
    most = min((step // epoch for step, epoch in done if epoch > 0), default=None)
    agree = most is not None and all(step < (epoch + 1) * most for step, epoch in done)
    return most if agree else None


def _steps_done(rows: Sequence[Row]) -> Iterator[tuple[int, int]]:
    """Yield (s, e) with s // E = e for E steps an epoch: s steps before a training row's, or up to an evaluation."""
    for row in rows:
        if "epoch" in row:
            yield row["step"] - ("loss" in row), row["epoch"]
