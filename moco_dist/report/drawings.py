"""Draw the map of the features, the confusion matrix and the course of a run as figures of SVG.

Each is a list of shapes with plain numbers; the templates write them, and escape what is text.
"""

import itertools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moco_dist.errors import some_names
from moco_dist.report.record import RunRecord
from moco_dist.run.features_view import FeaturesView

MOST_CLASSES_SHOWN = 24
"""Number of classes up to which a confusion matrix is drawn whole, and a map has a legend."""
_MOST_PAIRS = 15
COLOURS = 10
"""Number of colours in `colours.css`, for classes and for runs."""


@dataclass(frozen=True)
class Dots:
    """The dots are the images of a class on the map, as a path of strokes without length."""

    name: str
    colour: int
    right: str
    """The path of the images that kNN classifies rightly."""
    wrong: str
    count: int


def dots(view: FeaturesView, size: int = 1000) -> list[Dots]:
    """Draw the map, a class at a time, on a square of so many units."""
    paths: dict[tuple[int, int], list[str]] = defaultdict(list)
    for (x, y), label, right in zip(view.points, view.labels, view.right, strict=True):
        paths[label, right].append(f"M{size * x:.0f} {size * (1 - y):.0f}h0")
    return [
        Dots(
            view.classes[label],
            label % COLOURS,
            "".join(paths.get((label, 1), ())),
            "".join(paths.get((label, 0), ())),
            len(paths.get((label, 1), ())) + len(paths.get((label, 0), ())),
        )
        for label in sorted({label for label, _ in paths})
    ]


@dataclass(frozen=True)
class Cell:
    """A cell counts images of the confusion matrix."""

    true: int
    predicted: int
    count: int
    share: float
    """The share of the images of the true class."""
    shade: int
    """The shade, from 0 to 9 by the root of the share, so that rare errors show; 0 on the diagonal."""


@dataclass(frozen=True)
class Confusion:
    """The confusions are the whole matrix; where there are many classes, only what matters in it."""

    cells: list[list[Cell]]
    """All cells, at [true][predicted]; empty where there are too many classes to be drawn."""
    pairs: list[Cell]
    """The most frequent errors, the worst first."""
    worst: list[tuple[int, float, int]]
    """Class, accuracy and images of the classes with the lowest accuracies, the worst first."""


def confusion(view: FeaturesView) -> Confusion:
    """Draw the confusion matrix."""
    images: dict[int, int] = defaultdict(int)
    counts: dict[tuple[int, int], int] = defaultdict(int)
    for true, predicted, count in view.confusions:
        images[true] += count
        counts[true, predicted] += count
    errors = [count / images[true] for (true, predicted), count in counts.items() if true != predicted and count]
    largest = max(errors, default=1.0)

    def cell(true: int, predicted: int) -> Cell:
        count = counts.get((true, predicted), 0)
        share = count / max(1, images.get(true, 0))
        shade = 0 if true == predicted or not count else max(1, round(9 * (share / largest) ** 0.5))
        return Cell(true, predicted, count, share, shade)

    classes = range(len(view.classes))
    drawn = len(view.classes) <= MOST_CLASSES_SHOWN
    errors_of_pairs = (cell(*pair) for pair in counts if pair[0] != pair[1])
    pairs = sorted(errors_of_pairs, key=lambda c: (-c.count, c.true, c.predicted))
    accuracies = [(true, cell(true, true).share, images[true]) for true in classes if images.get(true)]
    return Confusion(
        [[cell(true, predicted) for predicted in classes] for true in classes] if drawn else [],
        pairs[:_MOST_PAIRS],
        sorted(accuracies, key=lambda row: row[1])[:_MOST_PAIRS],
    )


@dataclass(frozen=True)
class Span:
    """A span is a part of the course of a run, in percent of its length."""

    label: str
    left: float
    width: float
    kind: str
    """One of `finding`, `note` and `start`."""
    first_step: int
    last_step: int


def length(run: RunRecord) -> int:
    """Return the steps of a run, or those that are done where its length is not known."""
    return max(run.status.total_steps or 0, run.step, 1)


def course(run: RunRecord) -> list[list[Span]]:
    """Draw what happened over the steps of a run, one line for each finding and note, and one for its starts."""
    steps_in_all = length(run)

    def span(label: str, kind: str, first: int, last: int) -> Span:
        left = 100 * min(first, steps_in_all) / steps_in_all
        return Span(label, left, max(100 * min(last, steps_in_all) / steps_in_all - left, 0.6), kind, first, last)

    lines: dict[tuple[str, str], list[Span]] = defaultdict(list)
    steps = [*(start["step"] for start in run.starts), run.step]
    for start, (first, last) in zip(run.starts, itertools.pairwise(steps), strict=True):
        lines["start", ""].append(span(where(start), "start", first, max(first, last)))
    for finding in [*run.diagnosis.findings, *run.diagnosis.notes] if run.diagnosis else ():
        name = finding.name.replace("_", " ")
        lines[finding.kind, name].append(span(name, finding.kind, finding.first_step, finding.last_step))
    return list(lines.values())


def where(start: Mapping[str, Any]) -> str:
    """Say what a start ran on, in words."""
    hosts, ranks = [str(host) for host in start.get("hosts", ())], start.get("ranks")
    if not ranks:
        return "a start"
    nodes = f"{len(hosts)} nodes ({some_names(hosts, 2)})" if len(hosts) > 1 else some_names(hosts, 1)
    return f"{ranks} rank{'s' if ranks != 1 else ''} on {nodes}"
