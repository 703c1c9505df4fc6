"""Compute how a global batch lies on the ranks."""

from dataclasses import dataclass

from moco_dist.config.schema import Config, round_up
from moco_dist.errors import UserError


@dataclass(frozen=True)
class Layout:
    """A layout says how a global batch lies on the ranks; the curve depends on `group_size` alone."""

    ranks: int
    batch_per_rank: int
    group_size: int
    """Images of one BatchNorm group."""
    parts: int
    """Parts that a rank's batch is computed in, each a whole number of groups."""


def layout(config: Config, ranks: int) -> Layout:
    """Lay the global batch on so many ranks.

    Where the groups are fixed, a part of an accumulated batch holds whole groups, so that accumulation never
    changes the result; a rank with too few groups for `optim.accumulate` parts computes in fewer.

    Raises:
        UserError: batch or groups do not divide by the ranks.
    """
    batch, accumulate = config.optim.global_batch, config.optim.accumulate
    groups = config.moco.bn_groups or ranks * accumulate
    if groups % ranks:
        raise UserError.of(
            "moco.bn_groups",
            groups,
            f"must be divisible by the {ranks} ranks",
            f"use moco.bn_groups={round_up(groups, ranks)}, or a number of ranks that divides {groups}",
        )
    # Of groups that are given, the batch is a multiple of two or more: Config has checked it.
    fix = f"use optim.global_batch={round_up(max(batch, 2 * groups), groups)}"
    if batch % ranks:
        raise UserError.of("optim.global_batch", batch, f"must be divisible by the {ranks} ranks", fix)
    if batch % groups:
        rule = f"must be divisible by ranks x optim.accumulate = {groups}"
        raise UserError.of("optim.global_batch", batch, rule, fix)
    if batch // groups < 2:
        rule = f"leaves one image for each of {groups} BatchNorm groups, which need 2"
        raise UserError.of("optim.global_batch", batch, rule, fix)
    groups_per_rank = groups // ranks
    parts = max(n for n in range(1, min(accumulate, groups_per_rank) + 1) if groups_per_rank % n == 0)
    return Layout(ranks, batch // ranks, batch // groups, parts)
