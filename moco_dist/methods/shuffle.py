"""Shuffle the global batch across ranks for the keys: Shuffle-BN (He et al. 2020, section 3.3).

Keys are encoded in the order of a random permutation of the global batch, so that the BatchNorm groups of a query
and of its positive key differ and their statistics give nothing away. The permutation is a function of (seed, step):
every rank knows it, and nothing is broadcast.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moco_dist import randomness
from moco_dist.ranks.collectives import World

Permutation = NDArray[np.int64]


def permutation(seed: int, step: int, direction: int, length: int) -> Permutation:
    """Draw the shuffle of one step: position i of the shuffled global batch holds sample `permutation[i]`.

    Args:
        seed: of the run.
        step: counted from 0.
        direction: 0 for the keys of view 2, 1 for those of view 1 (symmetric loss).
        length: images of the global batch.

    Returns:
        [length]
    """
    return randomness.permutation(seed, randomness.Stream.SHUFFLE, step, direction, length)


def own_places(seed: int, rank: int, ranks: int, step: int, length: int) -> Permutation:
    """Return where in the global batch the images stand whose keys of view 2 a rank encodes, [length / ranks]."""
    share = length // ranks
    return permutation(seed, step, 0, length)[rank * share :][:share]


def start_shuffle(images: Tensor, order: Permutation, world: World, mode: str) -> Callable[[], Tensor]:
    """Start to bring this rank its slice of the shuffled global batch, and return what waits for it.

    Args:
        images: [n, ...] this rank's slice of the global batch.
        order: [size * n] the permutation.
        world: the ranks.
        mode: `all_gather` brings the whole global batch to every rank; `all_to_all` only the slice, n images a rank
            whatever the number of ranks; `none` leaves the images where they are.

    Returns:
        A function that returns [n, ...], equal bit for bit in both modes that shuffle.
    """
    n = len(images)
    mine = slice(world.rank * n, (world.rank + 1) * n)
    if mode == "none":
        return lambda: images
    if mode == "all_gather":
        everything = world.start_all_gather(images)
        return lambda: everything.wait()[_index(order[mine], images)]
    # Samples travel in the order of their places, so a receiver finds those of one sender sorted by place.
    places = np.argsort(order)[mine]  # [n] where this rank's samples go
    senders = order[mine] // n  # [n] where this rank's slice comes from
    from_senders = world.start_all_to_all(
        images[_index(np.argsort(places), images)],
        sent=np.bincount(places // n, minlength=world.size).tolist(),
        received=np.bincount(senders, minlength=world.size).tolist(),
    )
    return lambda: from_senders.wait()[_index(np.argsort(np.argsort(senders, kind="stable")), images)]


def gathered_keys(keys: Sequence[Tensor], orders: Sequence[Permutation], world: World, mode: str) -> list[Tensor]:
    """Gather all ranks' keys in the order of the global batch: once, for the un-shuffle and the queue.

    Args:
        keys: [n, C] of this rank's slice of the shuffled batch, for each direction of the loss.
        orders: [size * n] the permutation of each direction.
        world: the ranks.
        mode: as for `start_shuffle`.

    Returns:
        [size * n, C] for each direction.
    """
    gathered = world.all_gather(torch.cat(list(keys))).view(world.size, len(keys), *keys[0].shape)
    of_directions = [of_direction.flatten(0, 1) for of_direction in gathered.unbind(1)]
    if mode == "none":
        return of_directions
    pairs = zip(of_directions, orders, strict=True)
    return [of_direction[_index(np.argsort(order), of_direction)] for of_direction, order in pairs]


def _index(indices: NDArray[np.int64], like: Tensor) -> Tensor:
    return torch.from_numpy(indices).to(like.device, non_blocking=True)
