"""Check the batch of a job: against its nodes, against the data, and against the memory and the time that it has."""

import math
from collections.abc import Iterator

from launcher import elastic
from launcher.checks import dataset, estimate, finding
from launcher.checks.finding import Finding
from launcher.cluster import Profile
from launcher.record import Submission
from moco_dist.config import Config, Layout

_LINEAR_RULE = 0.03 / 256
"""Learning rate for each image of the batch, as in the papers (Goyal et al. 2017; He et al. 2020, section 4)."""
_FAR = 4.0
_TIGHT = 0.9
"""Share of the memory that may be taken without a warning."""


def check_nodes(config: Config, submission: Submission, layout: Layout | None) -> Iterator[Finding]:
    """Check whether the job can go on with fewer nodes, where it is to, and whether it has time to save."""
    profile = submission.profile
    if submission.least_nodes:
        fitting = elastic.sizes(config, submission)
        yield finding.note(f"each start takes what is idle: {' or '.join(map(str, fitting))} nodes")
    if profile.min_nodes is not None:
        yield from _check_fewer(config, submission, layout, profile.min_nodes)
    seconds, minutes = profile.signal_seconds, profile.time_minutes
    if seconds >= 60 * minutes:
        rule = f"with time_minutes={minutes} the job would be told to save as it starts"
        fix = f"use --signal-seconds {30 * minutes} or less"
        yield finding.error("signal_seconds", seconds, rule, fix)


def check_data(config: Config, images: dataset.Images | None) -> Iterator[Finding]:
    """Check batch, queue and learning rate against one another and the data."""
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


def check_resources(
    config: Config,
    profile: Profile,
    layout: Layout | None,
    images: dataset.Images | None,
    cost: estimate.EncoderCost | None,
) -> Iterator[Finding]:
    """Check memory, and say how long it will take. These are estimates, so never an error."""
    have = profile.gpu_memory_gib
    if layout is None or cost is None or config.device.type == "cpu":
        return
    need = estimate.memory_bytes(config, layout, cost) / estimate.GIB
    if have and need > _TIGHT * have:
        rule = f"takes about {need:.0f} GiB of memory a GPU, which has {have:g}"
        fix = _smaller(config, layout, cost, have)
        yield finding.warning("optim.global_batch", config.optim.global_batch, rule, fix)
    else:
        yield finding.note(f"about {need:.1f} GiB of memory a GPU" + (f", which has {have:g}" if have else ""))
    if images and profile.gpu_tflops:
        yield finding.note(_time(config, profile, layout, cost, images, profile.gpu_tflops))


def _check_fewer(config: Config, submission: Submission, layout: Layout | None, least: int) -> Iterator[Finding]:
    """Check on how many nodes the job can go on when it loses some; the BatchNorm groups must stay as they are."""
    nodes, profile = submission.nodes, submission.profile
    if least > nodes:
        fix = f"use --min-nodes {nodes} or less"
        yield finding.error("min_nodes", least, f"must be at most the {nodes} nodes of the job", fix)
        return
    if profile.tasks == "rank":
        rule = "with tasks=rank a job that loses a node ends, and is requeued"
        yield finding.warning("min_nodes", least, rule, "drop it, or use tasks=node")
        return
    if layout is None or least == nodes:
        return
    groups = config.optim.global_batch // layout.group_size
    if config.moco.bn_groups is None:
        rule = f"fewer nodes would change the groups, and with them the curve, which min_nodes={least} must not"
        yield finding.error("moco.bn_groups", None, rule, f"use moco.bn_groups={groups}")
    elif fits := [fewer for fewer in range(least, nodes) if elastic.laid(config, fewer * profile.gpus_per_node)]:
        yield finding.note(f"when nodes die the job goes on with {' or '.join(map(str, fits))} of {nodes}")
    else:
        rule = f"no number of nodes from {least} to {nodes - 1} divides batch and groups"
        fix = "a lost node means a requeue, unless you choose another moco.bn_groups or --nodes"
        yield finding.warning("min_nodes", least, rule, fix)


def _smaller(config: Config, layout: Layout, cost: estimate.EncoderCost, gib: float) -> str:
    """Return the fix of a batch that takes more memory than there is."""
    for accumulate in range(config.optim.accumulate + 1, layout.batch_per_rank // 2 + 1):
        smaller = config.model_copy(update={"optim": config.optim.model_copy(update={"accumulate": accumulate})})
        in_parts = elastic.laid(smaller, layout.ranks)
        if in_parts and estimate.memory_bytes(smaller, in_parts, cost) <= _TIGHT * gib * estimate.GIB:
            return f"use optim.accumulate={accumulate}"
    return "use more GPUs, a smaller batch, or device.precision=bf16"


def _time(
    config: Config,
    profile: Profile,
    layout: Layout,
    cost: estimate.EncoderCost,
    images: dataset.Images,
    tflops: float,
) -> str:
    """Say how long an epoch and the run will take."""
    epoch = estimate.epoch_seconds(config, cost, images.count, layout.ranks, tflops)
    steps, batch = config.optim.steps, config.optim.global_batch
    total = epoch * (steps * batch / images.count if steps else config.optim.epochs)
    starts = math.ceil(total / (60 * profile.time_minutes - profile.signal_seconds))
    limits = f", in {starts} starts of {_duration(60 * profile.time_minutes)}" if starts > 1 else ""
    return f"about {_duration(epoch)} an epoch and {_duration(total)} in all{limits}, if the data come fast enough"


def _duration(seconds: float) -> str:
    """Write a time for a person: 2.5 hours."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.2g} seconds"
