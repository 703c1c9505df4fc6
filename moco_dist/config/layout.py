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
    if batch % ranks:
        raise UserError.of(
            "optim.global_batch",
            batch,
            f"must be divisible by the {ranks} ranks",
            f"use optim.global_batch={round_up(batch, ranks)}",
        )
    groups = config.moco.bn_groups or ranks * accumulate
    if groups % ranks:
        raise UserError.of(
            "moco.bn_groups",
            groups,
            f"must be divisible by the {ranks} ranks",
            f"use moco.bn_groups={round_up(groups, ranks)}, or a number of ranks that divides {groups}",
        )
    if batch % groups:  # only where the groups were not given: Config has checked them otherwise
        raise UserError.of(
            "optim.global_batch",
            batch,
            f"must be divisible by ranks x optim.accumulate = {groups}",
            f"use optim.global_batch={round_up(batch, groups)}",
        )
    if batch // groups < 2:
        raise UserError.of(
            "optim.global_batch",
            batch,
            f"leaves one image for each of {groups} BatchNorm groups, which need 2",
            f"use optim.global_batch={2 * groups}",
        )
    groups_per_rank = groups // ranks
    parts = max(n for n in range(1, accumulate + 1) if groups_per_rank % n == 0)
    return Layout(ranks, batch // ranks, batch // groups, parts)
