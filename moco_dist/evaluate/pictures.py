"""An evaluation leaves pictures: its accuracies, the run's curves, and what the best method gets wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moco_dist.data.store import shown_channels
from moco_dist.evaluate import plots
from moco_dist.evaluate.cells import Cell
from moco_dist.evaluate.subject import Subject
from moco_dist.run.paths import RunPaths

_MOST_SHOWN = 100
"""Wrong images in the picture of them, at most."""


def draw(
    subject: Subject, rows: Sequence[dict[str, Any]], cells: Sequence[Sequence[Cell]], path: Path, folder: Path
) -> None:
    """Draw the pictures of an evaluation.

    Args:
        subject: what was evaluated.
        rows: of the table, one a method.
        cells: of each row, one a draw.
        path: the run directory or the file of weights; curves are drawn where it has rows.
        folder: where the pictures go.

    Raises:
        OSError: they cannot be written.
    """
    plots.save(folder / "accuracies.png", plots.accuracies(rows, subject.split))
    if RunPaths(path).metrics.is_file():
        plots.save(folder / "curves.png", plots.curves(plots.Curve.read(path)))
    few = [number for number, row in enumerate(rows) if row["labels"]]
    of_interest = few or range(len(rows))  # who asks for few labels wants to see their errors
    best = max(of_interest, key=lambda number: float(rows[number][f"{subject.split}_accuracy_mean"]))
    truth, predicted = subject.truth.numpy(), np.array(cells[best][0].predicted)
    wrong = np.flatnonzero(truth != predicted)
    shown, images = wrong[:_MOST_SHOWN], np.zeros((0, 1, 1, 1), dtype=np.uint8)
    if len(shown):
        images = subject.held_out.centred(shown, subject.config.data.image_size)[0].numpy()
        images = images[:, : shown_channels(images.shape[1])]
    plots.save(folder / "confusion.png", plots.confusion(truth, predicted, subject.class_names))
    figure = plots.wrong_images(images, truth[shown], predicted[shown], subject.class_names, len(wrong))
    plots.save(folder / "wrong.png", figure)
