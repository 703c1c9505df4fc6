"""Check the run directory: whether it can be written, has room, is free, and whether a run that it holds may go on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from launcher.checks import estimate, finding, site
from launcher.checks.dataset import Images
from launcher.checks.estimate import GIB, EncoderCost
from launcher.checks.finding import Finding
from launcher.record import Launch, Submission, refuse_others
from launcher.views import runs
from moco_dist import config as configs
from moco_dist.config import Config, Layout
from moco_dist.errors import UserError
from moco_dist.run.checkpoints import CheckpointIndex
from moco_dist.run.lease import held_by


def check(config: Config, images: Images | None, cost: EncoderCost | None) -> Iterator[Finding]:
    """Check whether the run directory can be made and written, by this user alone, and has room."""
    run_dir = config.run_dir.absolute()
    if set(str(run_dir)) & set("%\\:") or not str(run_dir).isprintable():
        signs = r"SLURM and submitit read % in the names of logs, SLURM drops \, PYTHONPATH parts at :"
        rule = f"{signs}, and control characters do harm"
        yield finding.error("run.dir", repr(str(run_dir))[1:-1], rule, "choose another name")
    try:
        existing = next(folder for folder in (run_dir, *run_dir.parents) if folder.exists())
        if existing == run_dir:
            refuse_others(run_dir)
        writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
        if not writable or os.statvfs(existing).f_flag & os.ST_RDONLY:
            yield finding.error("run.dir", run_dir, f"{existing} cannot be written to", "choose another")
        elif cost:
            yield from _check_room(config, existing, images, estimate.checkpoint_bytes(config, cost))
    except UserError as error:
        yield Finding("error", str(error))
    except OSError as error:
        yield finding.error("run.dir", run_dir, f"cannot be read: {error.strerror}", "choose another")


def check_free(run_dir: Path) -> list[Finding]:
    """Return an error where somebody runs it already; empty where nobody does."""
    launch, key = Launch(run_dir), "run.dir"
    try:
        if launch.job_file.is_file():
            [now] = runs.look([launch], timeout_seconds=site.SECONDS)
            if now.live and now.submission:
                name = f"process {now.submission.job}" if now.local else f"job {now.submission.job}"
                fix = f"wait for it, or python -m launcher cancel {now.name}"
                return [finding.error(key, run_dir, f"its {name} is {now.state}, a second one cannot join", fix)]
        if job := runs.queued_for(run_dir, timeout_seconds=site.SECONDS):
            fix = f"wait for it, or scancel {job.id}"
            return [finding.error(key, run_dir, f"job {job.id} in the queue is for it, a second one cannot join", fix)]
        writer = held_by(run_dir)
    except OSError:  # told by the check of the directory
        return []
    return [finding.error(key, run_dir, f"{writer} is writing to it", "wait for it, or stop it")] if writer else []


def check_resumed(config: Config, layout: Layout | None) -> Iterator[Finding]:
    """Check whether a run that was begun may go on under this config."""
    launch = Launch(config.run_dir.absolute())
    try:
        step, last = launch.checkpoint_step(), launch.submission()
    except (UserError, OSError):
        return  # the directory is another's, which was said
    if not step:
        return
    if config.run.resume == "never":
        yield finding.error("run.resume", "never", f"{launch.run_dir} holds a run", "use another run.name")
    elif layout and launch.paths.config.is_file():
        yield from _check_curve(config, layout, launch, last)
        end = ", and was done; it goes on only if it is longer now" if launch.status().state == "done" else ""
        yield finding.note(f"the run in {launch.run_dir} goes on from step {step}{end}")


def _check_room(config: Config, existing: Path, images: Images | None, checkpoint_bytes: int) -> Iterator[Finding]:
    """Check whether the checkpoints find room on the disk of an existing folder. Raises OSError."""
    run_dir, free = config.run_dir.absolute(), shutil.disk_usage(existing).free
    held = CheckpointIndex(Launch(run_dir).paths.checkpoints).size()
    count = config.checkpoint.keep + 1 + _milestones(config, images)  # one more while it is written
    need, size = checkpoint_bytes * count - held, checkpoint_bytes / GIB
    rule = f"checkpoints of {size:.2g} GiB need {need / GIB:.2g} GiB more, its disk has {free / GIB:.2g}"
    if need > free:
        yield finding.error("run.dir", run_dir, rule, "make room, or lower checkpoint.keep")
    elif need > free / 2:
        yield finding.warning("run.dir", run_dir, rule, "make room")


def _milestones(config: Config, images: Images | None) -> int:
    """Count the checkpoints that stay for good."""
    optim, every = config.optim, config.checkpoint.milestone_epochs
    if every is None:
        return 0
    if optim.steps is None:
        return optim.epochs // every
    return optim.steps // max(1, images.count // optim.global_batch) // every if images else 0


def _check_curve(config: Config, layout: Layout, launch: Launch, last: Submission | None) -> Iterator[Finding]:
    """Check that the config does not change the curve of the run that goes on."""
    try:
        begun = configs.load(launch.paths.config)
        before = last.ranks if last else layout.ranks
        groups = begun.moco.bn_groups or before * begun.optim.accumulate
        configs.check_resumable(begun.model_dump(mode="json"), begun.optim.global_batch // groups, config, layout)
    except UserError as error:
        yield Finding("error", str(error))
