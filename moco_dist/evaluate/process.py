"""The life of one evaluating process: from valid options to its exit status."""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moco_dist import joint_work, packages
from moco_dist.arguments import writing
from moco_dist.config import Config
from moco_dist.data.pixel_statistics import shown_channels
from moco_dist.encoders.choices import Layer
from moco_dist.errors import UserError, printable
from moco_dist.evaluate import all_labels, features, few, full_training, knn, results, view
from moco_dist.evaluate import options as command_line
from moco_dist.evaluate.options import Options
from moco_dist.evaluate.results import Cell, Cells, Key, digest
from moco_dist.evaluate.subject import EvaluationMethod, Subject, open_subject
from moco_dist.ranks.collectives import World
from moco_dist.ranks.rank import Rank
from moco_dist.run import features_view
from moco_dist.run.paths import EVALUATION, EVALUATION_TABLE, RunPaths
from moco_dist.tracking import wandb_results

Shares = Callable[[Layer], tuple[features.Features, features.Features]]

LIBRARIES = "torch", "scipy", "scikit-learn"
"""Libraries whose versions all figures depend on."""

_MOST_SHOWN = 100
"""Wrong images in the picture of them, at most."""

_PATIENCE_SECONDS = 24 * 3600.0
"""Ranks wait for one another between draws, which may take long; a rank that dies takes the others along at once."""


def run(options: Options, config: Config, rank: Rank) -> int:
    """Evaluate on all ranks. Returns the exit status; raises whatever else goes wrong."""

    def work(world: World) -> None:
        evaluate(options, config, world)

    return joint_work.run("moco_dist.evaluate", work, config, rank, _PATIENCE_SECONDS)


def call(options: Options, config: Config, rank: Rank) -> list[dict[str, Any]]:
    """Evaluate for a caller that goes on in this process. Returns the rows of the table; raises whatever goes wrong."""
    return joint_work.call(functools.partial(evaluate, options, config), config, rank, _PATIENCE_SECONDS)


def evaluate(options: Options, config: Config, world: World) -> list[dict[str, Any]]:
    """Evaluate on ranks that have met. Returns the rows of the table, a row a method. Raises UserError."""
    if options.wandb:
        world.from_first(lambda: wandb_results.check(options.path))
    evaluation = Evaluation(options, open_subject(options.path, config, world, options.features))
    overrides = command_line.overrides_that_count(options.path, config)
    out = options.out or (options.path if options.path.is_dir() else options.path.parent)
    with writing(out):
        cache = world.from_first(lambda: Cells(RunPaths(out).evaluation))
    cells = [evaluation.cells_of(method, cache) for method in evaluation.methods]
    leave_view(evaluation, cells, options, RunPaths(out).features_view)
    table = [results.row(of_method, overrides) for of_method in cells]
    with writing(out):
        world.from_first(lambda: report(options.path, evaluation, cells, table, out))
    if not world.quiet:
        world.from_first(lambda: show(options.path, evaluation, table, out))
    if options.wandb:
        say = world.warn if world.quiet else print
        world.from_first(lambda: wandb_results.show(options.path, table, evaluation.subject.split, say))
    return table


def leave_view(evaluation: Evaluation, cells: Sequence[Sequence[Cell]], options: Options, file: Path) -> None:
    """Leave a view of the features beside the table, where kNN was tried; an equal one stays. All ranks call it.

    Args:
        evaluation: what was tried.
        cells: of each method, one a draw.
        options: of the command line.
        file: what is written.

    Raises:
        UserError: it cannot be written.
    """
    subject, world = evaluation.subject, evaluation.world
    of_knn = [of_method[0] for of_method in cells if of_method[0].key.method.startswith("kNN")]
    before = world.from_first(lambda: features_view.read(file))
    if not of_knn or (before and before.digest == of_knn[0].key.settings):
        return
    bank, share = evaluation.shares(options.features)
    queries = share.gathered(world)
    predicted = torch.tensor(of_knn[0].predicted)
    images = view.Images(subject.held_out, subject.train, subject.config.data.image_size, subject.split)
    classified, made_of = knn.Classified(queries, predicted), of_knn[0].key.settings
    with writing(file):
        view.leave(file, classified, bank, images, world, step=subject.step, projection="t-SNE", digest=made_of)


def report(
    path: Path,
    evaluation: Evaluation,
    cells: Sequence[Sequence[Cell]],
    rows: Sequence[dict[str, Any]],
    out: Path,
) -> None:
    """Write evaluation.json and draw the pictures; on rank 0 alone.

    Args:
        path: the run directory or the file of weights; curves are drawn where it has rows.
        evaluation: what was tried.
        cells: of each method, one a draw.
        rows: of the table, a row a method.
        out: where the results go.

    Raises:
        OSError: they cannot be written.
    """
    from moco_dist.evaluate import plots

    subject, paths = evaluation.subject, RunPaths(out)
    about = {"weights": subject.digest, "split": subject.split, "held_out": len(subject.held_out)}
    results.write(paths.evaluation_table, rows, {**about, "settings": evaluation.all_settings})
    plots.save(paths.evaluation / "accuracies.png", plots.accuracies(rows, subject.split))
    if RunPaths(path).metrics.is_file():
        plots.save(paths.evaluation / "curves.png", plots.curves(plots.Curve.read(path)))
    with_few = [number for number, row in enumerate(rows) if row["labels"]]
    of_interest = with_few or range(len(rows))  # who asks for few labels wants to see their errors
    best = max(of_interest, key=lambda number: float(rows[number][f"{subject.split}_accuracy_mean"]))
    truth, predicted = subject.truth.numpy(), np.array(cells[best][0].predicted)
    wrong = np.flatnonzero(truth != predicted)
    shown, images = wrong[:_MOST_SHOWN], np.zeros((0, 1, 1, 1), dtype=np.uint8)
    if len(shown):
        images = subject.held_out.centred(shown, subject.config.data.image_size)[0].cpu().numpy()
        images = images[:, : shown_channels(images.shape[1])]
    plots.save(paths.evaluation / "confusion.png", plots.confusion(truth, predicted, subject.class_names))
    figure = plots.wrong_images(images, truth[shown], predicted[shown], subject.class_names, len(wrong))
    plots.save(paths.evaluation / "wrong.png", figure)


def show(path: Path, evaluation: Evaluation, rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Print the table, and where the results are. Raises OSError where nobody reads on."""
    subject = evaluation.subject
    results.show(rows, subject.split, f"{printable(str(path))}: {len(subject.held_out)} {subject.split} images")
    print(f"results: {printable(str(out))} ({EVALUATION_TABLE}, {EVALUATION}/)", flush=True)


class Evaluation:
    """The methods that the options ask for, tried on one subject by all ranks together. Raises UserError."""

    def __init__(self, options: Options, subject: Subject) -> None:
        self.subject, self.world = subject, subject.world
        if len(set(self.world.gather_objects(self.all_settings))) > 1:  # they would not agree on what is missing
            rule = "the ranks would give other figures: their weights, images, config or packages differ"
            raise UserError.of("RUN_DIR|WEIGHTS", options.path, rule, "give every node the same files and packages")
        self.shares = functools.cache(subject.shares)
        """Computes this rank's features of the images to learn from and of the held-out ones, once for each layer."""
        self.methods = list(_methods(options, subject, self.shares))

    def cells_of(self, method: EvaluationMethod, cache: Cells) -> list[Cell]:
        """Compute the cells that are missing. Returns all of the method, one a draw, the same on all ranks."""
        by_draw = {number: cache.get(self.key(method, number)) for number in range(method.draws)}
        missing = [number for number, cell in by_draw.items() if cell is None]
        if missing:
            method.before()
        at_once = 1 if method.labels is None else self.world.size
        for first in range(0, len(missing), at_once):
            computed = self._compute(method, missing[first : first + at_once])
            by_draw |= {cell.key.draw: cell for cell in computed}
            with writing(cache.path):
                self.world.from_first(functools.partial(cache.add, computed))
        return [cell for cell in by_draw.values() if cell]

    def _compute(self, method: EvaluationMethod, numbers: Sequence[int]) -> list[Cell]:
        def cell(number: int) -> Cell:
            began = time.perf_counter()
            outcome = method.run(number)
            seconds = time.perf_counter() - began
            accuracy = self.subject.accuracy(outcome.predicted)
            predicted = outcome.predicted.tolist()
            return Cell(self.key(method, number), accuracy, seconds, outcome.notes, predicted, dict(method.recipe))

        return [cell(n) for n in numbers] if method.labels is None else self.world.share_out(numbers, cell)

    def key(self, method: EvaluationMethod, number: int) -> Key:
        """Return the key of a draw's cell."""
        settings = digest(self.settings, *method.settings)
        return Key(method.name, method.labels, number, self.subject.split, settings)

    @functools.cached_property
    def settings(self) -> str:
        """Digest of what all figures depend on: weights, images, config, versions, and how features are computed."""
        s, config = self.subject, self.subject.config
        sections = config.model_dump(mode="json", include={"data": True, "model": True})
        for free in ("root", "workers", "download"):
            del sections["data"][free]
        images = [source.digest() + source.sample_digest() for source in (s.train, s.held_out)]
        text, revision = json.dumps(sections, sort_keys=True), features.REVISION
        libraries = packages.versions(*LIBRARIES)
        return digest(s.digest, *images, config.run.seed, text, revision, *libraries)

    @property
    def all_settings(self) -> str:
        """Digest of what the figures of any method depend on: the rows of a file are made alike."""
        section = self.subject.config.eval
        revisions = all_labels.REVISIONS, few.REVISIONS, full_training.REVISIONS
        return digest(self.settings, section.knn_k, section.knn_temperature, *revisions)


def _methods(options: Options, subject: Subject, shares: Shares) -> Iterator[EvaluationMethod]:
    """Yield the methods that the options ask for, the cheap ones first. Raises UserError."""
    count = _label_count(options, subject)
    on_all = all_labels.AllLabels(subject, options.features, functools.partial(shares, options.features))
    yield from on_all.methods(options, default=not (options.knn or options.linear or options.labels or count))
    if options.labels == "all":
        yield from full_training.FullTraining(subject).methods(options)
    if count is not None:
        on_few = few.FewLabels(subject, functools.partial(shares, "backbone"), count, options.draws or 1)
        yield from on_few.methods(options)


def _label_count(options: Options, subject: Subject) -> int | None:
    fraction = options.label_fraction
    if fraction is None:
        return None if options.labels == "all" else options.labels
    images, classes = len(subject.train), subject.classes
    count = round(fraction * images)
    if count < classes:
        rule = f"is {count} of {images} images, and there are {classes} classes"
        unit = 10.0 ** (math.floor(math.log10(classes / images)) - 1)  # two digits, rounded up
        enough = math.ceil(classes / images / unit) * unit
        raise UserError.of("--label-fraction", fraction, rule, f"use {enough:.2g} or more")
    least = int(np.bincount(subject.train_labels, minlength=classes).min())
    if least and count < images and count > classes * least:  # of a class without an image, the draw tells
        rule = f"is {count} of {images} images, equally many of {classes} classes, of which one has {least}"
        raise UserError.of("--label-fraction", fraction, rule, f"use --labels {classes * least} or less instead")
    return count
