"""Tell how a run goes: `metrics.jsonl`, other sinks, and lines for people. Rank 0 speaks, others are silent."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from moco_dist import health
from moco_dist.config import Config
from moco_dist.errors import UserError, masked, reason, some_names
from moco_dist.files import replacing
from moco_dist.run.paths import RunPaths
from moco_dist.run.rows import MetricsFile, Row, is_evaluation, is_finding, is_training, read_rows, row_is_due
from moco_dist.tracking import guard, progress, sinks
from moco_dist.tracking.sinks import check

__all__ = ["Tracker", "check"]


class Tracker:
    """A tracker takes the figures of the training loop. This is rank 0's, which tells them; the others are silent."""

    @staticmethod
    def open(
        config: Config,
        run_dir: Path,
        rank: int,
        start_step: int,
        total_steps: int,
        facts: health.Facts | None = None,
        *,
        quiet: bool = False,
    ) -> Tracker:
        """Open the tracker of a rank.

        Args:
            config: of the run.
            run_dir: run directory; it exists.
            rank: of this process.
            start_step: steps done; rows of later ones, from a start that was killed, are dropped.
            total_steps: steps of the whole run.
            facts: what is known of the run beside its rows, by which they are judged; unset, the config alone.
            quiet: whether people are told nothing but warnings.

        Raises:
            UserError: metrics.jsonl cannot be opened or read.
        """
        if rank:
            return Silent()
        shown = progress.Progress(total_steps, start_step, config.run.name, quiet=quiet)
        return Tracker(config, RunPaths(run_dir), start_step, shown, facts or health.Facts(config))

    def __init__(
        self, config: Config, paths: RunPaths, start_step: int, shown: progress.Progress, facts: health.Facts
    ) -> None:
        self._paths, self._total_steps, self._log_every = paths, shown.total, config.track.log_every
        self._warned: set[str] = set()
        try:
            self._metrics = MetricsFile(paths.metrics)
            self._metrics.rewind(start_step)
            rows = list(read_rows(paths.metrics))
        except OSError as error:
            fix = "mend it, or choose another run.name"
            raise UserError.of("run.dir", paths.metrics, f"{error.strerror or error}", fix) from None
        self._last: dict[str, Row] = {"train": {}, "eval": {}}
        for row in rows:
            if not is_finding(row):
                self._last["train" if is_training(row) else "eval"] = row
        self._evaluated = {row["step"] for row in rows if is_evaluation(row)}
        self._progress = shown
        self.stop_requested = False  # by the stop button at W&B; it stops nothing by itself
        tellers = sinks.Tellers(self.say, self.warn, self._request_stop)
        self._sinks = sinks.open_all(config, paths, rows, start_step, tellers)
        self._monitor: health.Monitor | None = None
        with self._health_may_fail():
            monitor = health.Monitor(facts)
            for row in rows:
                monitor.push(row)
            self._monitor = monitor

    def log_step(self, row: Row) -> None:
        """Take a training row, which has `step`, `loss` and `lr` at least.

        It goes to metrics.jsonl and the other sinks every `track.log_every` steps and at the last one. A figure other
        than the loss that is NaN or infinite is left out of them.

        Raises:
            ValueError: the loss is NaN or infinite.
        """
        step = int(row["step"])
        if self.writes(step):
            self._log("train", row)
        self._progress.update(step, loss=float(row["loss"]), lr=float(row["lr"]))

    def writes(self, step: int) -> bool:
        """Return whether this rank writes the row of a training step; figures that are costly can be left out else."""
        return row_is_due(step, self._log_every, self._total_steps)

    def log_evaluation(self, row: Row) -> None:
        """Take an evaluation row, which has `step`, `knn_top1` and `linear_top1`."""
        if is_evaluation(self._log("eval", row)):
            self._evaluated.add(int(row["step"]))

    def evaluated(self, step: int) -> bool:
        """Return whether metrics.jsonl has the evaluation at this step. Rank 0's answer counts; on others False."""
        return step in self._evaluated

    def pairs(self, images: NDArray[np.uint8]) -> None:
        """Keep a picture of augmented pairs, [H, W, C], as `augmented_pairs.png` in the run directory, and in sinks."""
        picture = self._paths.pairs_picture
        try:
            with replacing(picture) as file:
                Image.fromarray(images.squeeze(-1) if images.shape[-1] == 1 else images).save(file, format="png")
        except OSError as error:
            self.warn(f"{picture}: {error.strerror or error}; training goes on without the picture")
        for sink in self._sinks:
            sink.image("augmented_pairs", images, "the two views of the first images, as the encoders see them")

    def encoder(self, file: Path, data: Mapping[str, Any]) -> None:
        """Tell sinks where the final encoder lies, and of its training images their number and digest."""
        for sink in self._sinks:
            sink.encoder(file, data)

    def unreadable(self, images: Sequence[str]) -> None:
        """Name images that cannot be decoded, each once, in a warning."""
        new = [image for image in images if image not in self._warned]
        self._warned.update(new)
        if new:
            self.warn(f"cannot be decoded, replaced by other images: {some_names(new)}")

    def summary(self) -> dict[str, float | int | str]:
        """Return the final figures: those of the last training row and of the last evaluation, by their names.

        A name that both have, such as `step`, is told as the later row has it.
        """
        rows = sorted(self._last.values(), key=lambda row: row.get("step", 0))  # of one step: training, evaluation
        return {name: value for row in rows for name, value in row.items()}

    def say(self, line: str) -> None:
        """Print a line for people on stdout."""
        self._progress.write(masked(line))

    def warn(self, line: str) -> None:
        """Print a warning for people on stderr."""
        self._progress.write(masked(f"warning: {line}"), sys.stderr)

    def sync(self) -> bool:
        """Wait until metrics.jsonl is on the disk; False where that failed. Any thread may call it."""
        return self._metrics.sync()

    def finish(self, exit_code: int, preempted: bool = False) -> None:
        """Close everything, within about 30 seconds.

        Args:
            exit_code: of the run.
            preempted: whether it was told to stop, and will go on.
        """
        self._progress.close()
        self._metrics.close()
        guard.finish_all(self._sinks, exit_code, preempted)

    def _request_stop(self) -> None:
        self.stop_requested = True

    def _log(self, kind: str, row: Row) -> Row:
        """Write a row, and return it as written: without what JSON cannot hold, except a loss, which is an error."""
        bad = [k for k, v in row.items() if k != "loss" and isinstance(v, float) and not math.isfinite(v)]
        for key in bad:
            if key not in self._warned:
                self._warned.add(key)
                self.warn(f"{key} is {row[key]} at step {row['step']}; left out, and further ones in silence")
        finite = {key: value for key, value in row.items() if key not in bad}
        self._write(finite)
        self._last[kind] = finite
        with self._health_may_fail():
            self._judge(finite)
        return finite

    def _write(self, row: Row) -> None:
        self._metrics.append(row)
        for sink in self._sinks:
            sink.log(row)

    def _judge(self, row: Row) -> None:
        """Judge the run by one more row. What begins or ends is told once: to people, in rows, and by alerts."""
        if self._monitor is None:
            return
        self._monitor.push(row)
        for event in self._monitor.events():
            self._write(event)
            title, text = health.told(event)
            if event["state"] == "begins":
                self.warn(f"{title}: {text}")
                for sink in self._sinks:
                    sink.alert(title, text)
            else:
                self.say(f"{title}")

    @contextmanager
    def _health_may_fail(self) -> Iterator[None]:
        """Let no fault of the judgement, which is beside training, stop it; findings are told no more."""
        try:
            yield
        except Exception as error:  # anything: a fault of ours, or a row of another version
            self._monitor = None
            self.warn(f"the run is not judged any more ({reason(error)}); training goes on")


def _nothing(*_: Any, **__: Any) -> None:
    """Take whatever there is to tell, and tell nothing."""


class Silent(Tracker):
    """A silent tracker tells nothing; it is that of the ranks other than 0, and what it answers, nobody reads."""

    def __init__(self) -> None:
        self.stop_requested = False

    log_step = log_evaluation = pairs = encoder = unreadable = say = warn = finish = _nothing

    def writes(self, step: int) -> bool:
        return False

    def evaluated(self, step: int) -> bool:
        return False

    def sync(self) -> bool:
        return True
