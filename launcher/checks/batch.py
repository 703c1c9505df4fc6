"""Check batch, BatchNorm groups, queue and learning rate against the nodes of a job and against the data."""

from __future__ import annotations

import math
from collections.abc import Iterator

from launcher.checks import finding
from launcher.checks.dataset import Images
from launcher.checks.finding import Finding
from launcher.cluster import Profile
from moco_dist import config as configs
from moco_dist.config import Config, Layout
from moco_dist.errors import UserError

_LINEAR_RULE = 0.03 / 256
"""Learning rate for each image of the batch, as in the papers (Goyal et al. 2017; He et al. 2020, section 4)."""
_FAR = 4.0


def check_nodes(config: Config, profile: Profile, nodes: int, layout: Layout | None) -> Iterator[Finding]:
    """Check whether the job can go on with fewer nodes, where it is to, and whether it has time to save."""
    if profile.min_nodes is not None:
        yield from _check_fewer(config, profile, nodes, layout, profile.min_nodes)
    seconds, minutes = profile.signal_seconds, profile.time_minutes
    if seconds >= 60 * minutes:
        rule = f"with time_minutes={minutes} the job would be told to save as it starts"
        fix = f"use --time-minutes {2 * math.ceil(seconds / 60)} or more"
        yield finding.error("signal_seconds", seconds, rule, fix)


def check_data(config: Config, images: Images | None) -> Iterator[Finding]:
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


def _check_fewer(config: Config, profile: Profile, nodes: int, layout: Layout | None, least: int) -> Iterator[Finding]:
    """Check on how many nodes the job can go on when it loses some; the BatchNorm groups must stay as they are."""
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
    elif fits := [fewer for fewer in range(least, nodes) if _divides(config, profile, fewer)]:
        yield finding.note(f"when nodes die the job goes on with {' or '.join(map(str, fits))} of {nodes}")
    else:
        rule = f"no number of nodes from {least} to {nodes - 1} divides batch and groups"
        fix = "a lost node means a requeue, unless you choose another moco.bn_groups or --nodes"
        yield finding.warning("min_nodes", least, rule, fix)


def _divides(config: Config, profile: Profile, nodes: int) -> bool:
    """Return whether batch and groups can be laid on the ranks of so many nodes."""
    try:
        configs.layout(config, nodes * profile.gpus_per_node)
    except UserError:
        return False
    return True
