"""An evaluation of one subject by the methods of the table: what the cache lacks is computed, draw by draw."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from moco_dist.errors import UserError
from moco_dist.evaluate import cells, features, methods
from moco_dist.evaluate.cells import Cell, Cells, Key
from moco_dist.evaluate.methods import EvaluationMethod
from moco_dist.evaluate.options import Options
from moco_dist.evaluate.subject import Subject


class Evaluation:
    """The methods that the options ask for, tried on one subject by all ranks together. Raises UserError."""

    def __init__(self, options: Options, subject: Subject) -> None:
        self.subject, self.world = subject, subject.world
        self.methods = methods.table_of(options, subject)

    def run(self, cache: Cells) -> list[list[Cell]]:
        """Compute the cells that are missing. Returns those of each method, one a draw, the same on all ranks."""
        return [self._run_method(method, cache) for method in self.methods]

    def _run_method(self, method: EvaluationMethod, cache: Cells) -> list[Cell]:
        by_draw = {number: cache.get(self.key(method, number)) for number in range(method.draws)}
        missing = [number for number, cell in by_draw.items() if cell is None]
        if missing:
            method.before()
        at_once = 1 if method.together else self.world.size
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
            return Cell(self.key(method, number), accuracy, seconds, outcome.notes, outcome.predicted.tolist())

        return [cell(n) for n in numbers] if method.together else self.world.share_out(numbers, cell)

    def key(self, method: EvaluationMethod, number: int) -> Key:
        """Return the key of a draw's cell."""
        settings = cells.digest(self.settings, *method.settings)
        return Key(method.name, method.labels, number, self.subject.split, settings)

    @cached_property
    def settings(self) -> str:
        """Digest of what all figures depend on: weights, images, config, versions, and how features are computed."""
        s, config = self.subject, self.subject.config
        sections = config.model_dump(mode="json", include={"data": True, "model": True})
        for free in ("root", "workers", "download"):
            del sections["data"][free]
        images = [source.digest() for source in (s.train, s.held_out)]
        text, revision = json.dumps(sections, sort_keys=True), features.REVISION
        return cells.digest(s.digest, *images, config.run.seed, text, revision, *cells.versions())

    @property
    def all_settings(self) -> str:
        """Digest of what the figures of any method depend on: the rows of a file are made alike."""
        section = self.subject.config.eval
        return cells.digest(self.settings, section.knn_k, section.knn_temperature, *methods.revisions())


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of writing within the block into the user's mistake. Raises UserError."""
    try:
        yield
    except OSError as error:
        raise UserError.of("--out", path, f"cannot be written: {error.strerror}", "give another --out DIR") from None
