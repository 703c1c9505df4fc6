"""Choose the sinks of a run by its config, and check their packages before anything slow begins."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moco_dist import packages
from moco_dist.config import Config, overruled
from moco_dist.errors import UserError
from moco_dist.run.paths import RunPaths
from moco_dist.run.rows import Row
from moco_dist.tracking.guard import Guard
from moco_dist.tracking.tensorboard import TensorBoard
from moco_dist.tracking.trackio import Trackio
from moco_dist.tracking.wandb_run import WandbRun


@dataclass(frozen=True)
class Tellers:
    """The tellers are what sinks call to tell the trainer and its user something."""

    say: Callable[[str], None]
    """Takes a line for people."""
    warn: Callable[[str], None]
    """Takes a line about a failure."""
    stop: Callable[[], None]
    """Is called, from any thread, when someone presses W&B's stop button."""


def check(config: Config, rank: int) -> None:
    """Import what the sinks of this rank need, so that a missing package is named before anything slow begins.

    Trackio is not imported: that is for its own process. Rank 0 tells on stderr which of W&B's variables do not count.

    Raises:
        UserError: a sink is wanted whose package is missing or broken.
    """
    if rank:
        return
    track = config.track
    if track.wandb != "disabled":
        packages.need("track.wandb", track.wandb, "wandb", otherwise="use track.wandb=disabled")
    if track.tensorboard:
        packages.need("track.tensorboard", True, "tensorboard", otherwise="use track.tensorboard=false")
    if track.trackio and not packages.installed("trackio"):
        fix = packages.fix("trackio", "use track.trackio=false")
        raise UserError.of("track.trackio", True, "trackio is not installed here", fix)
    for line in overruled(track):
        print(f"moco_dist.train: {line}", file=sys.stderr, flush=True)


def open_all(
    config: Config, paths: RunPaths, rows: Sequence[Row], start_step: int, tellers: Tellers
) -> Sequence[Guard]:
    """Start the sinks that the config wants, each behind a guard.

    Args:
        config: of the run.
        paths: of the run directory.
        rows: of metrics.jsonl, up to `start_step`.
        start_step: steps done.
        tellers: what the sinks call.
    """
    guards, say = [], tellers.say
    if config.track.wandb != "disabled":
        sink = WandbRun(paths.folder, config, rows, say, tellers.warn, tellers.stop, start_step=start_step)
        guards.append(Guard(sink, tellers.warn))
    if config.track.tensorboard:
        guards.append(Guard(TensorBoard(paths.tensorboard, rows, start_step, say), tellers.warn))
    if config.track.trackio:
        guards.append(Guard(Trackio(paths.trackio, config, rows, start_step, say), tellers.warn))
    for guard in guards:  # before data workers are forked, which is safest with threads that are at rest
        guard.wait_for_start()
    return guards
