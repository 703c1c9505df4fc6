"""Warn at the start of a run of what is allowed but seldom meant."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from moco_dist.config import Config, Layout
from moco_dist.data import sources
from moco_dist.ranks import devices


def advice(config: Config, plan: Layout, data: sources.Data, device: torch.device) -> Iterator[str]:
    """Yield a line for each setting that is allowed but seldom meant."""
    queue, images = config.moco.queue_size, len(data.train)
    if queue > images:
        yield (
            f"moco.queue_size = {queue}: more than the {images} training images, so that the queue holds other views "
            f"of a query's own image as negatives; a queue of at most {images} does not"
        )
    if plan.parts < config.optim.accumulate:
        yield (
            f"optim.accumulate = {config.optim.accumulate}: a rank has too few BatchNorm groups for so many parts, it "
            f"computes in {plan.parts}; raise moco.bn_groups to save memory"
        )
    if config.device.type == "auto" and device.type == "cpu" and (available := devices.count()):
        yield (
            f"device.type = auto: more ranks than the {available} CUDA devices here, so the CPU "
            "is used; start as many ranks as there are devices"
        )
    yield from data.remarks
    if config.eval.knn_every and data.train.labels is None:
        yield "data.root: no class folders, so no kNN"
    elif config.eval.knn_every and data.queries is None:
        yield "data.root: no val/ with classes, so no kNN; eval.knn_split=validation evaluates on a part of the images"
