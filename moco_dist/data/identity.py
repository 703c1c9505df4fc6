"""A run belongs to its data: what tells a training set from others, compared between ranks and between starts."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from moco_dist.config import Config
from moco_dist.data.store import Source
from moco_dist.errors import UserError, some_names
from moco_dist.ranks.collectives import World


class Identity(NamedTuple):
    """The identity of a source tells it from others, wherever its folder lies."""

    images: int
    classes: int
    digest: str
    """The digest that `Source.digest` gives."""

    @classmethod
    def of(cls, source: Source | None) -> Identity:
        """Compute the identity of a source; of none, that of no images."""
        if source is None:
            return cls(0, 0, "")
        numbered = 0 if source.labels is None else len(np.unique(source.labels))
        return cls(len(source), len(source.classes) or numbered, source.digest())

    def __str__(self) -> str:
        numbers = f"{self.images} images of {self.classes} classes, sha256 {self.digest[:12]}"
        return numbers if self.images else "no images"


def check_begun(
    begun: Mapping[str, Any] | None, begun_epoch_steps: int | None, now: Identity, epoch_steps: int, config: Config
) -> None:
    """Refuse to go on with a run on other training images than it was begun with.

    Args:
        begun: the identity that its checkpoint keeps, as a dict; None: the checkpoint is an earlier revision's.
        begun_epoch_steps: steps of an epoch until now, where that is known; they stand in for an identity.
        now: identity of the training set.
        epoch_steps: steps of an epoch from now on.
        config: of the run.

    Raises:
        UserError: names both.
    """
    if begun is not None:
        before = Identity(**begun)
        values = None if before == now else f"has {now}, and the run in {config.run_dir} was begun with {before}"
    elif begun_epoch_steps not in (None, epoch_steps):
        values = f"gives {epoch_steps} steps an epoch, and the run in {config.run_dir} had {begun_epoch_steps}"
    else:
        values = None
    if values:
        rule = f"{values}: other images would change its curve"
        raise UserError.of(*_key(config), rule, "put them back, or begin another with run.name=NAME")


def check_ranks(mine: Mapping[str, Identity], config: Config, world: World) -> None:
    """Refuse to train or evaluate where the ranks see different images; a collective of all ranks.

    Args:
        mine: identities of what this rank sees, by the names of the sources.
        config: of the run.
        world: the ranks.

    Raises:
        UserError: on all ranks; names ranks, hosts and numbers of images.
    """
    on_ranks = world.gather_objects((socket.gethostname(), dict(mine)))
    for name in mine:
        ranks_of: dict[Identity, list[int]] = {}
        for rank, (_, identities) in enumerate(on_ranks):
            ranks_of.setdefault(identities[name], []).append(rank)
        if len(ranks_of) > 1:
            hosts = [host for host, _ in on_ranks]
            seen = "; ".join(f"{images} on {_place(ranks, hosts)}" for images, ranks in ranks_of.items())
            rule = f"the ranks see different {name} images: {seen}"
            raise UserError.of(*_key(config), rule, "give every node the same files")


def _place(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """Write a few of some ranks and of their hosts."""
    names = list(dict.fromkeys(hosts[rank] for rank in ranks))
    return f"rank{'s' * (len(ranks) > 1)} {some_names(list(map(str, ranks)), 4)} ({some_names(names, 4)})"


def _key(config: Config) -> tuple[str, str]:
    """Return the key that names the data, and its value."""
    return ("data.root", config.data.root) if config.data.root else ("data.source", config.data.source)
