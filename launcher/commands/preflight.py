"""Check a job before it is sent: shapes, site, data, disk, memory, time. Takes seconds, needs no torch."""

from __future__ import annotations

import argparse
import math
import netrc
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from launcher import dataset, options, slurm
from launcher.checks import estimate, finding, fit, site
from launcher.checks.estimate import GIB
from launcher.checks.finding import Finding
from launcher.checks.site import Site
from launcher.cluster import Profile
from launcher.dataset import Images
from launcher.record import Launch, Submission, refuse_others
from launcher.views import runs
from moco_dist import config as configs
from moco_dist import packages
from moco_dist.config import Config, Layout
from moco_dist.errors import UserError
from moco_dist.run import status
from moco_dist.run.lease import held_by

Executor = Literal["slurm", "local"]

_LINEAR_RULE = 0.03 / 256
"""Learning rate for each image of the batch, as in the papers (Goyal et al. 2017; He et al. 2020, section 4)."""
_FAR = 4.0
_TIGHT = 0.9
"""Of what there is."""
_OWN_DISKS = ("/tmp", "/var/tmp", "/dev/shm", "/run")
"""Folders that each node has for itself."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    options.job_options(parser)


def run(given: argparse.Namespace) -> int:
    """Run the command. Returns 2 where there is an error, else 0."""
    profile = options.profile_of(given)
    config = configs.load(*configs.parse_arguments(given.words))
    executor: Executor = "local" if given.local else "slurm"
    findings = check(config, profile, given.nodes, run_dir=config.run_dir, stage=given.stage, executor=executor)
    for one in findings:
        print(f"{one.level}: {one.text}")
    errors = sum(one.level == "error" for one in findings)
    print(f"{errors} error{'s' * (errors != 1)}: it would not be sent" if errors else "ok: it can be sent")
    return 2 if errors else 0


def check(
    config: Config,
    profile: Profile,
    nodes: int,
    *,
    run_dir: Path,
    stage: str | None = None,
    executor: Executor = "slurm",
) -> list[Finding]:
    """What is wrong, doubtful or worth knowing about a job, the errors first.

    Args:
        config: of the run.
        profile: of the cluster.
        nodes: that the job asks for.
        run_dir: its run directory.
        stage: archive of the data, where each node unpacks one.
        executor: what runs it.
    """
    run_dir = run_dir.absolute()
    with ThreadPoolExecutor() as pool:  # SLURM thinks while the disks are looked at
        told = pool.submit(site.read) if executor == "slurm" else None
        running = pool.submit(live, run_dir)
        images = dataset.count(config, staged=stage is not None)
        found = [
            *_shapes(config, profile, nodes),
            *_batch(config, images),
            *dataset.check(config, stage),
            *_run_directory(config, run_dir, images),
            *_going_on(config, profile, nodes, run_dir),
            *_resources(config, profile, nodes, images),
            *_tracking(config, profile),
            *_sender(),
            *running.result(),
        ]
        try:
            found += _site(told.result(), config, profile, nodes, run_dir, stage) if told else _local(nodes)
        except (slurm.Unavailable, slurm.Refused) as error:
            found.append(Finding("error", str(error)))
    return sorted(found, key=lambda one: ("error", "warning", "note").index(one.level))


def _site(
    found: Site, config: Config, profile: Profile, nodes: int, run_dir: Path, stage: str | None
) -> Iterator[Finding]:
    """The job against the cluster."""
    yield from fit.check(found, profile, nodes)
    names = {node.name for nodes in found.nodes.values() for node in nodes}
    if not all(name.startswith("127.") or name == socket.gethostname() for name in names):
        yield from _shared(config, profile, run_dir, stage)


def _local(nodes: int) -> Iterator[Finding]:
    if nodes > 1:
        yield finding.error("--nodes", nodes, "--local runs on this machine alone", "use --nodes 1")


def _shapes(config: Config, profile: Profile, nodes: int) -> Iterator[Finding]:
    """Batch and groups on the ranks, also on those of fewer nodes; the time to save in."""
    try:
        configs.layout(config, nodes * profile.gpus_per_node)
    except UserError as error:
        yield Finding("error", str(error))
    if profile.min_nodes is not None:
        yield from _fewer(config, profile, nodes, profile.min_nodes)
    seconds, minutes = profile.signal_seconds, profile.time_minutes
    if seconds >= 60 * minutes:
        rule = f"with time_minutes={minutes} the job would be told to save as it starts"
        fix = f"use --time-minutes {2 * math.ceil(seconds / 60)} or more"
        yield finding.error("signal_seconds", seconds, rule, fix)


def _fewer(config: Config, profile: Profile, nodes: int, least: int) -> Iterator[Finding]:
    """On how many nodes the job can go on when it loses some; the BatchNorm groups must stay as they are."""
    if least > nodes:
        fix = f"use --min-nodes {nodes} or less"
        yield finding.error("min_nodes", least, f"must be at most the {nodes} nodes of the job", fix)
        return
    if profile.tasks == "rank":
        rule = "with tasks=rank a job that loses a node ends, and is requeued"
        yield finding.warning("min_nodes", least, rule, "drop it, or use tasks=node")
        return
    plan = _layout(config, profile, nodes)
    if plan is None or least == nodes:
        return
    groups = config.optim.global_batch // plan.group_size
    if config.moco.bn_groups is None:
        rule = f"fewer nodes would change the groups, and with them the curve, which min_nodes={least} must not"
        yield finding.error("moco.bn_groups", None, rule, f"use moco.bn_groups={groups}")
    elif fits := [n for n in range(least, nodes) if _layout(config, profile, n)]:
        yield finding.note(f"when nodes die the job goes on with {' or '.join(map(str, fits))} of {nodes}")
    else:
        rule = f"no number of nodes from {least} to {nodes - 1} divides batch and groups"
        fix = "a lost node means a requeue, unless you choose another moco.bn_groups or --nodes"
        yield finding.warning("min_nodes", least, rule, fix)


def _layout(config: Config, profile: Profile, nodes: int) -> Layout | None:
    try:
        return configs.layout(config, nodes * profile.gpus_per_node)
    except UserError:
        return None


def _batch(config: Config, images: Images | None) -> Iterator[Finding]:
    """Batch, queue and learning rate against one another and the data."""
    batch, queue, lr = config.optim.global_batch, config.moco.queue_size, config.optim.lr
    if images and images.exact and batch > images.count:
        rule = f"the training set has {images.count} images, less than one batch"
        yield finding.error("optim.global_batch", batch, rule, f"use {images.count} or less")
    if images and images.exact and queue > images.count:
        rule = f"more than the {images.count} training images, so that it holds other views of a query's own"
        yield finding.warning("moco.queue_size", queue, rule, f"use {images.count} or less")
    if queue < batch:
        rule = f"less than the {batch} keys of one step"
        yield finding.warning("moco.queue_size", queue, rule, "use a multiple of optim.global_batch")
    usual = _LINEAR_RULE * batch
    if not usual / _FAR <= lr <= usual * _FAR:
        rule = f"far from the linear rule, 0.03 for a batch of 256, which gives {usual:.3g} for {batch}"
        yield finding.warning("optim.lr", lr, rule, f"use optim.lr={usual:.3g}, unless it was tuned")


def _run_directory(config: Config, run_dir: Path, images: Images | None) -> Iterator[Finding]:
    """Whether the run directory can be made and written, by this user alone, and has room."""
    if set(str(run_dir)) & set("%\\:") or not str(run_dir).isprintable():
        signs = r"SLURM and submitit read % in the names of logs, SLURM drops \, PYTHONPATH parts at :"
        rule = f"{signs}, and control characters do harm"
        yield finding.error("run.dir", repr(str(run_dir))[1:-1], rule, "choose another name")
    try:
        existing = next(folder for folder in (run_dir, *run_dir.parents) if folder.exists())
        if existing == run_dir:
            refuse_others(run_dir)
        writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
        if writable and not os.statvfs(existing).f_flag & os.ST_RDONLY:
            yield from _room(config, run_dir, existing, images)
        else:
            yield finding.error("run.dir", run_dir, f"{existing} cannot be written to", "choose another")
    except UserError as error:
        yield Finding("error", str(error))
    except OSError as error:
        yield finding.error("run.dir", run_dir, f"cannot be read: {error.strerror}", "choose another")


def _room(config: Config, run_dir: Path, existing: Path, images: Images | None) -> Iterator[Finding]:
    """Whether the checkpoints find room on the disk of an existing folder. Raises OSError."""
    free = shutil.disk_usage(existing).free
    held = sum(file.stat().st_size for file in (run_dir / "checkpoints").glob("step_*.pt"))
    one = estimate.checkpoint_bytes(config)
    need = one * (config.checkpoint.keep + 1 + _milestones(config, images)) - held  # one more while it is written
    rule = f"checkpoints of {one / GIB:.2g} GiB need {need / GIB:.2g} GiB more, its disk has {free / GIB:.2g}"
    if need > free:
        yield finding.error("run.dir", run_dir, rule, "make room, or lower checkpoint.keep")
    elif need > free / 2:
        yield finding.warning("run.dir", run_dir, rule, "make room")


def _milestones(config: Config, images: Images | None) -> int:
    """Checkpoints that stay for good."""
    optim, every = config.optim, config.checkpoint.milestone_epochs
    if every is None:
        return 0
    if optim.steps is None:
        return optim.epochs // every
    return optim.steps // max(1, images.count // optim.global_batch) // every if images else 0


def live(run_dir: Path) -> list[Finding]:
    """Whether somebody runs it already: a job by its record or by SLURM's queue, or a process by its lease."""
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


def _going_on(config: Config, profile: Profile, nodes: int, run_dir: Path) -> Iterator[Finding]:
    """Whether a run that was begun may go on under this config."""
    try:
        launch = Launch(run_dir)
        plan, step, last = _layout(config, profile, nodes), launch.checkpoint_step(), launch.submission()
    except (UserError, OSError):
        return  # the directory is another's, which was said
    if not step:
        return
    if config.run.resume == "never":
        yield finding.error("run.resume", "never", f"{run_dir} holds a run", "use another run.name")
    elif plan and (run_dir / "config.yaml").is_file():
        yield from _same_curve(config, plan, run_dir, last)
        end = ", and was done; it goes on only if it is longer now" if status.read(run_dir)[0] == "done" else ""
        yield finding.note(f"the run in {run_dir} goes on from step {step}{end}")


def _same_curve(config: Config, plan: Layout, run_dir: Path, last: Submission | None) -> Iterator[Finding]:
    try:
        begun = configs.load(run_dir / "config.yaml")
        before = last.ranks if last else plan.ranks
        groups = begun.moco.bn_groups or before * begun.optim.accumulate
        configs.check_resumable(begun.model_dump(mode="json"), begun.optim.global_batch // groups, config, plan)
    except UserError as error:
        yield Finding("error", str(error))


def _resources(config: Config, profile: Profile, nodes: int, images: Images | None) -> Iterator[Finding]:
    """Memory of a GPU, time of an epoch and of the run. Estimates, so never an error."""
    plan, have = _layout(config, profile, nodes), profile.gpu_memory_gib
    if plan is None or config.device.type == "cpu":
        return
    need = estimate.memory_bytes(config, plan) / GIB
    if have and need > _TIGHT * have:
        rule = f"takes about {need:.0f} GiB of memory a GPU, which has {have:g}"
        yield finding.warning("optim.global_batch", config.optim.global_batch, rule, _smaller(config, plan, have))
    else:
        yield finding.note(f"about {need:.1f} GiB of memory a GPU" + (f", which has {have:g}" if have else ""))
    if images and profile.gpu_tflops:
        yield finding.note(_time(config, profile, plan, images, profile.gpu_tflops))


def _smaller(config: Config, plan: Layout, gib: float) -> str:
    """The fix of a batch that takes more memory than there is."""
    for accumulate in range(config.optim.accumulate + 1, plan.batch_per_rank // 2 + 1):
        smaller = config.model_copy(update={"optim": config.optim.model_copy(update={"accumulate": accumulate})})
        try:
            parts = configs.layout(smaller, plan.ranks)
        except UserError:
            continue
        if estimate.memory_bytes(smaller, parts) <= _TIGHT * gib * GIB:
            return f"use optim.accumulate={accumulate}"
    return "use more GPUs, a smaller batch, or device.precision=bf16"


def _time(config: Config, profile: Profile, plan: Layout, images: Images, tflops: float) -> str:
    epoch = estimate.epoch_seconds(config, images.count, plan.ranks, tflops)
    steps, batch = config.optim.steps, config.optim.global_batch
    total = epoch * (steps * batch / images.count if steps else config.optim.epochs)
    starts = math.ceil(total / (60 * profile.time_minutes - profile.signal_seconds))
    limits = f", in {starts} starts of {_duration(60 * profile.time_minutes)}" if starts > 1 else ""
    return f"about {_duration(epoch)} an epoch and {_duration(total)} in all{limits}, if the data come fast enough"


def _duration(seconds: float) -> str:
    """A time to be read."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.2g} seconds"


def _shared(config: Config, profile: Profile, run_dir: Path, stage: str | None) -> Iterator[Finding]:
    """Whether the nodes see what the job needs."""
    reads = config.data.root if config.data.source in ("mnist", "cifar10", "imagefolder") else None
    for key, place in (
        ("Python", None if profile.container else sys.prefix),
        ("run.dir", run_dir),
        ("--stage", stage),
        ("data.root", None if stage else reads),
        ("run.init_from", config.run.init_from),
    ):
        path = Path(place).resolve() if place else None
        own = [disk for disk in (*_OWN_DISKS, profile.local_disk) if path and path.is_relative_to(disk)]
        if path and own:
            rule = f"lies in {own[0]}, which each node has for itself"
            yield finding.warning(key, path, rule, "put it on a disk that the nodes share")


def _sender() -> Iterator[Finding]:
    """Whether this machine can send the job: only a warning, since slurm/train.sbatch is sent without submitit."""
    if not packages.installed("submitit"):
        text = "submitit is not installed here, and submit and sweep need it; install it (pip install submitit)"
        yield Finding("warning", text)


def _tracking(config: Config, profile: Profile) -> Iterator[Finding]:
    """Whether the job will have wandb, and W&B will know who we are."""
    mode = config.track.wandb
    if mode != "disabled" and profile.container is None and not packages.installed("wandb"):
        rule = "wandb is not installed here, and the job runs this Python"
        fix = "install it (pip install wandb), or use track.wandb=disabled"
        yield finding.error("track.wandb", mode, rule, fix)
        return
    if mode != "online" or any(os.environ.get(f"WANDB_{v}") for v in ("API_KEY", "IDENTITY_TOKEN_FILE")):
        return
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    files = [os.environ.get("NETRC"), Path.home() / ".netrc", Path.home() / "_netrc"]
    if not any(_in_netrc(Path(file), host) for file in files if file):
        rule = f"there is no key for {host}, so the run will be offline"
        yield finding.warning("track.wandb", "online", rule, "run wandb login, or export WANDB_API_KEY")


def _in_netrc(file: Path, host: str) -> bool:
    try:
        return netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return False
