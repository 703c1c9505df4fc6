"""Compute the learning rate of each step."""

import math

from moco_dist.config.schema import OptimSection


def total_steps(optim: OptimSection, steps_per_epoch: int) -> int:
    """Return the length of the run in steps; `optim.steps`, where given, beats `optim.epochs`."""
    return optim.steps or optim.epochs * steps_per_epoch


def learning_rate(optim: OptimSection, step: int, steps_per_epoch: int) -> float:
    """Compute the learning rate of a step.

    Linear from 0 over the warm-up, then cosine `lr/2 (1 + cos(pi t))` with t from 0 to 1 over the rest of the run
    (MoCo v2, section 3; per step instead of per epoch), or `lr decay^n` after n milestones (MoCo v1, section 4), or
    constant.

    Args:
        optim: the section of the config.
        step: counted from 0.
        steps_per_epoch: to turn epochs into steps.
    """
    warmup = optim.warmup_epochs * steps_per_epoch
    if step < warmup:
        return optim.lr * (step + 1) / (warmup + 1)
    match optim.schedule:
        case "cosine":
            total = total_steps(optim, steps_per_epoch)
            return optim.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        case "step":
            passed = sum(step >= epoch * steps_per_epoch for epoch in optim.milestones)
            return optim.lr * optim.decay**passed
        case "constant":
            return optim.lr
