"""Estimate whether the memory of a GPU is enough, and how long an epoch and the run will take."""

from __future__ import annotations

import math
from collections.abc import Iterator

from launcher.checks import estimate, finding
from launcher.checks.dataset import Images
from launcher.checks.estimate import GIB, EncoderCost
from launcher.checks.finding import Finding
from launcher.cluster import Profile
from moco_dist import config as configs
from moco_dist.config import Config, Layout
from moco_dist.errors import UserError

_TIGHT = 0.9
"""Share of the memory that may be taken without a warning."""


def check(
    config: Config, profile: Profile, layout: Layout | None, images: Images | None, cost: EncoderCost | None
) -> Iterator[Finding]:
    """Check memory, and say how long it will take. These are estimates, so never an error."""
    have = profile.gpu_memory_gib
    if layout is None or cost is None or config.device.type == "cpu":
        return
    need = estimate.memory_bytes(config, layout, cost) / GIB
    if have and need > _TIGHT * have:
        rule = f"takes about {need:.0f} GiB of memory a GPU, which has {have:g}"
        yield finding.warning(
            "optim.global_batch", config.optim.global_batch, rule, _smaller(config, layout, cost, have)
        )
    else:
        yield finding.note(f"about {need:.1f} GiB of memory a GPU" + (f", which has {have:g}" if have else ""))
    if images and profile.gpu_tflops:
        yield finding.note(_time(config, profile, layout, cost, images, profile.gpu_tflops))


def _smaller(config: Config, layout: Layout, cost: EncoderCost, gib: float) -> str:
    """Return the fix of a batch that takes more memory than there is."""
    for accumulate in range(config.optim.accumulate + 1, layout.batch_per_rank // 2 + 1):
        smaller = config.model_copy(update={"optim": config.optim.model_copy(update={"accumulate": accumulate})})
        try:
            in_parts = configs.layout(smaller, layout.ranks)
        except UserError:
            continue
        if estimate.memory_bytes(smaller, in_parts, cost) <= _TIGHT * gib * GIB:
            return f"use optim.accumulate={accumulate}"
    return "use more GPUs, a smaller batch, or device.precision=bf16"


def _time(config: Config, profile: Profile, layout: Layout, cost: EncoderCost, images: Images, tflops: float) -> str:
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
