"""The evaluation's pictures are PNG files whose bytes follow from what they show.

Figures are drawn without pyplot, which has global state and wants a display: any thread of a headless machine may
draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from moco_dist import files
from moco_dist.evaluate.labels import Indices
from moco_dist.evaluate.style import plain_style, short
from moco_dist.run import status
from moco_dist.run.paths import RunPaths
from moco_dist.run.rows import read_rows

Row = Mapping[str, Any]
"""A row of a run, or a method's accuracies."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The colours of Okabe and Ito, which the colour-blind tell apart; without their yellow, which is lost on white."""

_GREY = "0.85"
_DASHES = ("-", "--", ":", "-.")
_DPI = 160
_MOST_COUNTED = 20
"""Number of classes up to which a confusion matrix has room for its counts."""

_EVALUATIONS = {"knn_top1": "kNN", "linear_top1": "linear probe"}
"""Keys of evaluation rows, and what they are called."""


@plain_style
def confusion(truth: Indices, predicted: Indices, classes: Sequence[str]) -> Figure:
    """Draw which classes are taken for which, in shares of the true class; up to 20 classes also the counts.

    Args:
        truth: [n] classes, n > 0.
        predicted: [n]
        classes: their names.
    """
    assert len(truth) == len(predicted) > 0, f"{len(truth)} true classes, {len(predicted)} predicted ones"
    shape = (len(classes), len(classes))
    cells = np.ravel_multi_index((truth, predicted), shape)
    counts = np.bincount(cells, minlength=math.prod(shape)).reshape(shape)  # [true, predicted]
    wrong = len(truth) - int(counts.trace())

    side = min(max(6.5, 0.4 * min(len(classes), _MOST_COUNTED), len(classes) / 100), 20)  # a dot a class and more
    figure = Figure(figsize=(side + 0.7, side), layout="constrained")
    axes = figure.subplots()
    bar = figure.colorbar(_heat(axes, counts), shrink=0.8, ticks=MaxNLocator(5))
    bar.set_label("errors, % of the true class (grey: right, white: none)")
    marked = range(0, len(classes), math.ceil(len(classes) / _MOST_COUNTED))
    names = [short(classes[which], 20) for which in marked]
    upright = max(map(len, names)) > 3
    axes.set_xticks(marked, names, rotation=90 if upright else 0, parse_math=False)
    axes.set_yticks(marked, names, parse_math=False)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(f"accuracy {100 * (1 - wrong / len(truth)):.2f} %: {wrong} of {len(truth)} wrong")
    return figure


@plain_style
def wrong_images(
    images: NDArray[np.uint8],
    truth: Indices,
    predicted: Indices,
    classes: Sequence[str],
    total: int | None = None,
) -> Figure:
    """Draw the wrongly classified images, each under its true and its predicted class.

    Args:
        images: [m, C, H, W], C 1 or 3: the wrongly classified alone; m = 0 gives a picture that says so.
        truth: [m] classes.
        predicted: [m], each another than the true one.
        classes: their names.
        total: wrongly classified images, those that are not shown included; None: these.
    """
    assert len(images) == len(truth) == len(predicted), (len(images), len(truth), len(predicted))
    assert images.dtype == np.uint8 and images.ndim == 4 and images.shape[1] in (1, 3), (images.dtype, images.shape)
    assert (np.asarray(truth) != np.asarray(predicted)).all(), "an image that is classified rightly"
    if not len(images):
        figure = Figure(figsize=(5, 2))
        figure.text(0.5, 0.5, "no image is classified wrongly", ha="center", va="center", fontsize="large")
        return figure

    pairs = [(short(classes[t], 14), short(classes[p], 14)) for t, p in zip(truth, predicted, strict=True)]
    arrow = "\n→" if max(len(true + guess) for true, guess in pairs) > 8 else "→"
    columns = min(10, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    width, pitch, head = max(6, 1.1 * columns), 1.35 if "\n" in arrow else 1.2, 0.5  # inches
    figure = Figure(figsize=(width, head + rows * pitch))
    figure.suptitle(f"{len(pairs)} of {total or len(images)} wrongly classified images, true→predicted class")
    # One pair of axes, in inches: to lay out a pair for each image would take longer than the evaluation.
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(head + rows * pitch, 0))
    axes.axis("off")
    tall, wide = 0.9 * np.array(images.shape[2:]) / max(images.shape[2:])
    for number, (image, pair) in enumerate(zip(images, pairs, strict=True)):
        row, column = divmod(number, columns)
        middle, bottom = (column + 0.5) * width / columns, head + (row + 1) * pitch - 0.1
        extent = (middle - wide / 2, middle + wide / 2, bottom, bottom - tall)
        axes.imshow(image.transpose(1, 2, 0), "gray", aspect="auto", vmin=0, vmax=255, extent=extent)  # [H, W, C]
        text = arrow.join(pair)
        axes.text(middle, bottom - tall - 0.03, text, ha="center", va="bottom", fontsize=9, parse_math=False)
    return figure


@plain_style
def accuracies(rows: Sequence[Row], split: str) -> Figure:
    """Draw a bar for each method: the mean of its draws, their sample standard deviation, and each draw as a dot.

    Args:
        rows: from top to bottom, at least one: `method`, `labels` (None: all) and `accuracies`, fractions, one a draw.
        split: what they were measured on.
    """
    assert rows and all(row["accuracies"] for row in rows), "a method without an accuracy"
    draws = [100 * np.asarray(row["accuracies"], dtype=np.float64) for row in rows]
    means = [of_row.mean() for of_row in draws]
    spreads = [of_row.std(ddof=1) if len(of_row) > 1 else 0.0 for of_row in draws]
    ticks, end = _scale(np.concatenate([*draws, np.subtract(means, spreads), np.add(means, spreads)]))
    start = ticks[0]

    figure = Figure(figsize=(8, 1.2 + 0.55 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    axes.barh(places, np.subtract(means, start), left=start, height=0.7, color=COLOURS[5])
    for place, of_row, mean, spread in zip(places, draws, means, spreads, strict=True):
        heights = place + np.linspace(-0.3, 0.3, len(of_row) + 2)[1:-1]  # apart, where draws are equally good
        axes.plot(of_row, heights, "o", color=COLOURS[1], markeredgecolor="white", markersize=6, clip_on=False)
        text = f"{mean:.2f} %"
        if len(of_row) > 1:
            axes.errorbar(mean, place, xerr=spread, color=COLOURS[6], capsize=6, zorder=3, clip_on=False)
            text = f"{mean:.2f} ± {spread:.2f} %"
        axes.text(1.03, place, text, va="center", transform=axes.get_yaxis_transform())
    names = [f"{short(row['method'], 40)}, {'all' if row['labels'] is None else row['labels']} labels" for row in rows]
    axes.set_yticks(places, names, parse_math=False)
    axes.invert_yaxis()
    axes.set_xticks([tick for tick in ticks if tick <= end])
    axes.set_xlim(start, end)
    starts = f", axis starts at {start:g} %" if start else ""
    axes.set_xlabel(f"top-1 accuracy on {split} (%){starts}", parse_math=False)
    axes.grid(axis="x", color=_GREY)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


@plain_style
def save(path: Path, figure: Figure) -> None:
    """Write a figure as PNG so that a reader finds the old picture or the new one. Raises OSError."""
    with files.replacing(path) as file:
        # Without matplotlib's version in it, the same picture is the same bytes.
        figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})


def _heat(axes: Axes, counts: NDArray[np.intp]) -> AxesImage:
    """Draw the matrix. Errors alone have colours, by the root of their share: beside the diagonal's none would show."""
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    percent[counts == 0] = -1  # under the norm: the palest error differs from none
    np.fill_diagonal(percent, np.nan)
    norm = PowerNorm(0.5, 0, float(np.nanmax(percent, initial=0)) or 1)
    oranges = ListedColormap(colormaps["Oranges"](np.linspace(0.25, 1, 256)))
    colours = oranges.with_extremes(bad=_GREY, under="white")
    image = axes.imshow(percent, colours, norm, interpolation="nearest")  # any other pales a lone error
    for (true, predicted), count in np.ndenumerate(counts) if len(counts) <= _MOST_COUNTED else ():
        if count or true == predicted:
            colour = "white" if norm(percent[true, predicted]) > 0.5 else "black"  # NaN is not
            size = 10 if len(counts) <= 10 else 8
            axes.text(predicted, true, str(count), ha="center", va="center", color=colour, fontsize=size)
    return image


def _scale(percent: NDArray[np.float64]) -> tuple[list[float], float]:
    """Return the ticks, the first of which starts the axis, and its end; 0 starts it unless bars would look alike."""
    low, high = float(percent.min()), float(percent.max())
    margin = (high - low) / 3 or 1.0
    start = 0 if low < high / 2 else max(low - margin, 0)
    end = min(high + margin / 8, 100)
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(start, end)
    return [float(tick) for tick in ticks], end


class Curve(NamedTuple):
    """A curve is the rows of a run, and the steps of an epoch where its status tells them."""

    rows: Sequence[Row]
    epoch_steps: int | None

    @classmethod
    def read(cls, run_dir: Path) -> Curve:
        """Read the curve of a run directory. Raises OSError."""
        return cls(list(read_rows(RunPaths(run_dir).metrics)), status.read(run_dir).epoch_steps)


@plain_style
def curves(curve: Curve) -> Figure:
    """Draw a run's loss, and below it the accuracies of its evaluations.

    Args:
        curve: of the run; its rows with a `loss` are of training.
    """
    rows, per_epoch = curve
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


@plain_style
def overlay(runs: Mapping[str, Curve]) -> Figure:
    """Draw the smoothed losses of several runs, and below them their kNN accuracies.

    Args:
        runs: their curves by their names, at least one run.
    """
    assert runs, "no run"
    # Epochs of one run and steps of another have no axis in common.
    by_epoch = all(curve.epoch_steps for curve in runs.values())
    figure, above, below = _panels("epoch" if by_epoch else "step")
    below.set_ylabel("kNN top-1 accuracy (%)")
    lines = []
    for number, (rows, epoch_steps) in enumerate(runs.values()):
        cycle, which = divmod(number, len(COLOURS))
        style: dict[str, Any] = {"color": COLOURS[which], "linestyle": _DASHES[cycle % len(_DASHES)]}
        per_epoch = epoch_steps if by_epoch and epoch_steps else 1
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
        axes.grid(color=_GREY)
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
