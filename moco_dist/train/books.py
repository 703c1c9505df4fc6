"""The rows of a run: what is read of each step, written once, and what follows from it."""

import math
import time

from moco_dist.config import Config
from moco_dist.data import sources
from moco_dist.data.decode import Unreadable
from moco_dist.engine.checkpoint import Checkpoints
from moco_dist.engine.fingerprint import PIECES, are_apart
from moco_dist.ranks.collectives import World
from moco_dist.run.rows import training_row
from moco_dist.tracking import Tracker
from moco_dist.train.ends import Diverged
from moco_dist.train.meters import Meters
from moco_dist.train.readout import Reading

STOP, SAVE, UNREADABLE, WAITED = "stop", "save", "unreadable", "waited"
"""Names of the sums over the ranks that a step carries beside its figures: two wishes, a count, and seconds that were
waited for a batch."""


class Books:
    """The books get a row for each step, and count the images that were replaced in an epoch."""

    def __init__(
        self,
        config: Config,
        world: World,
        data: sources.Data,
        tracker: Tracker,
        checkpoints: Checkpoints,
        meters: Meters,
        epoch_steps: int,
    ) -> None:
        self._config, self._world, self._data = config, world, data
        self._tracker, self._checkpoints = tracker, checkpoints
        self._meters, self._epoch_steps = meters, epoch_steps
        self.unreadable = {"epoch": 0, "images": 0}
        self.recorded_at = time.monotonic()
        self._seconds_of_row = self._waited_of_row = 0.0
        self.stalled_seconds = 0.0
        """The time that training has stood still for checkpoints since the last row."""

    def record(self, reading: Reading) -> tuple[bool, bool]:
        """Write the row of a step.

        Returns:
            Whether a rank was asked to stop, and whether one wants to save; the same on all ranks.

        Raises:
            Diverged: the loss is no number any more.
            UserError: too many images cannot be decoded.
        """
        step, figures = reading.step, reading.figures.numbers()
        loss, epoch = figures.pop("loss"), (step - 1) // self._epoch_steps
        stop, save, replaced, waited = (figures.pop(name) for name in (STOP, SAVE, UNREADABLE, WAITED))
        if not math.isfinite(loss):
            self._checkpoints.wait()
            last = self._world.from_first(self._checkpoints.index.last)
            raise Diverged(
                step,
                f"the loss is {loss} at step {step}; last checkpoint: {f'step {last}' if last else 'none'}; "
                "lower optim.lr or lengthen optim.warmup_epochs, with another run.name",
            )
        now = time.monotonic()
        seconds, self.recorded_at = now - self.recorded_at, now
        speed = round(self._config.optim.global_batch / seconds, 2)
        figures["data_wait"] = self._share_waited(step, seconds, waited / self._world.size)
        if "queue_age_steps" in figures:
            figures["queue_age_epochs"] = round(figures["queue_age_steps"] / self._epoch_steps, 4)
        if self._tracker.writes(step):
            figures |= self._details(reading)
        counts = {"checkpoint_failures": self._checkpoints.failures} if self._checkpoints.failures else {}
        if images := round(replaced):  # a sum over ranks that has been their mean: 3 of 41 ranks are 2.9999998
            counts = {"unreadable": images, **counts}
            self._count_unreadable(epoch, images, reading.unreadable)
        self._tracker.log_step(training_row(step, epoch, loss, figures.pop("lr"), speed, figures, **counts))
        return stop > 0, save > 0

    def _details(self, reading: Reading) -> dict[str, float]:
        """Work out what takes a while, for the rank that writes the row."""
        details, of_ranks = reading.figures.spreads(), reading.figures.by_rank()
        if any(name in of_ranks for name in PIECES):
            details["ranks_apart"] = float(are_apart(of_ranks[name] for name in PIECES))
        details["checkpoint_stall"] = round(self.stalled_seconds, 4)
        self.stalled_seconds = 0.0
        return details | self._meters.figures(of_ranks)

    def _share_waited(self, step: int, seconds: float, waited: float) -> float:
        """Return the share of the time since the last row that was written in which a rank waited for its batches.

        Args:
            step: counted from 1.
            seconds: of the step.
            waited: of these, by a rank on average.
        """
        self._seconds_of_row += seconds
        self._waited_of_row += waited
        share = round(min(1.0, self._waited_of_row / self._seconds_of_row), 4)
        if self._tracker.writes(step):
            self._seconds_of_row = self._waited_of_row = 0.0
        return share

    def _count_unreadable(self, epoch: int, images: int, unreadable: list[Unreadable]) -> None:
        """Name replaced images; more than 1 % of an epoch's are a mistake in the data. Raises UserError."""
        before = self.unreadable["images"] if self.unreadable["epoch"] == epoch else 0
        self.unreadable = {"epoch": epoch, "images": before + images}
        everyone = sorted({image for images in self._world.gather_objects(unreadable) for image in images})
        self._tracker.unreadable([str(image) for image in everyone])
        sources.check_unreadable(before + images, everyone, self._data.train, self._config.data)
