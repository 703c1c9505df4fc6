"""The collectives of one training step, as functions of shapes, and the bytes that each of them moves.

The schemes are this project's, by `moco.shuffle` (with the overlapped engine), and that of the MoCo authors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import nn

from moco_dist.config import Config
from moco_dist.networks.resnet import build_encoder

Collective = Literal["all_gather", "all_to_all", "all_reduce", "broadcast"]
SCHEMES = ("all_gather", "all_to_all", "none", "authors")
PURPOSES = ("images", "permutation", "keys", "gradients", "statistics", "buffers")
"""The purposes of messages; `statistics` are BatchNorm's and the step's figures, `buffers` those that DDP sends."""

_NUMBER, _INDEX = 4, 8
"""Bytes of a float32 and of an int64."""
_MIB = 1 << 20
_BUCKET_LIMITS = (_MIB, 25 * _MIB)
"""Bytes at which DDP closes its first bucket of gradients, and each later one."""
_FIGURES = 3 + 3
"""Loss and two accuracies, and the three sums of the training loop."""


class Message(NamedTuple):
    """One collective of a step, as one rank sees it."""

    purpose: str
    collective: Collective
    size: int
    """Bytes of its result on this rank."""
    kept: float = 0
    """Bytes of the result that were on this rank before, for all_gather and all_to_all."""


class Traffic(NamedTuple):
    """The bytes and collectives of one rank in one step for one purpose."""

    received: float
    """Bytes from other ranks."""
    sent: float
    """Bytes to other ranks."""
    calls: int
    """Number of collectives."""

    def plus(self, message: Message, rank: int, ranks: int) -> Traffic:
        """Add a message."""
        received, sent = moved(message, rank, ranks)
        return Traffic(self.received + received, self.sent + sent, self.calls + 1)


NOTHING = Traffic(0, 0, 0)


def moved(message: Message, rank: int, ranks: int) -> tuple[float, float]:
    """Return the bytes that a rank receives and sends for a message.

    all_gather, all_to_all: the result without the part that the rank had before, which for an all_gather is
    (R-1)/R of the result; as many bytes are sent. all_reduce: 2(R-1)/R of the result, as a ring does. broadcast from
    rank 0: the result, in a chain of ranks of which the first receives nothing and the last sends nothing.
    """
    match message.collective:
        case "all_reduce":
            ring = 2 * message.size * (ranks - 1) / ranks
            return ring, ring
        case "broadcast":
            return message.size * (rank > 0), message.size * (rank < ranks - 1)
        case _:
            return message.size - message.kept, message.size - message.kept


def add_up(messages: Sequence[Message], rank: int, ranks: int) -> dict[str, Traffic]:
    """Return the traffic of a rank by purpose."""
    traffic = dict.fromkeys(PURPOSES, NOTHING)
    for message in messages:
        traffic[message.purpose] = traffic[message.purpose].plus(message, rank, ranks)
    return traffic


@dataclass(frozen=True)
class Shapes:
    """The shapes that decide about the size of messages."""

    image: int
    """Numbers of one view of an image."""
    dim: int
    queue_size: int
    parameters: tuple[int, ...]
    """Numbers in each trained parameter, in the encoder's order."""
    channels: tuple[int, ...]
    """Channels of each BatchNorm of an encoder."""

    @classmethod
    def of(cls, config: Config) -> Shapes:
        """Read the shapes from a config."""
        data = config.data
        encoder = build_encoder(config.model, data.channel_count, config.run.seed)
        return cls(
            image=data.channel_count * data.image_size**2,
            dim=config.model.dim,
            queue_size=config.moco.queue_size,
            parameters=tuple(p.numel() for p in encoder.parameters()),
            channels=tuple(m.num_features for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)),
        )

    def buckets(self) -> list[int]:
        """Return the bytes of DDP's buckets, which it fills from the last parameter to the first."""
        sizes = [0]
        for numbers in reversed(self.parameters):
            if sizes[-1] >= _BUCKET_LIMITS[min(len(sizes), 2) - 1]:
                sizes.append(0)
            sizes[-1] += numbers * _NUMBER
        return sizes


def messages(
    scheme: str, shapes: Shapes, global_batch: int, ranks: int, symmetric: bool = False, own: Sequence[float] = ()
) -> list[Message]:
    """List the collectives of one step.

    Args:
        scheme: one of SCHEMES.
        shapes: of images and networks.
        global_batch: images of a step, over all ranks.
        ranks: R. A world of one makes no collectives, but the authors' code makes them then too.
        symmetric: whether both views are queries; the authors' code has no such loss.
        own: of an all_to_all of images, how many of the rank's images stay on it, for each direction of the loss;
            not given, the mean over all permutations, 1/R of its images.
    """
    if scheme == "authors":
        return _of_the_authors(shapes, global_batch, ranks)
    if ranks == 1:
        return []
    share, directions, result = global_batch // ranks, 1 + symmetric, []
    image = image_bytes(scheme, shapes, symmetric)
    for direction in range(directions):
        if scheme == "all_gather":
            result.append(_gathered("images", global_batch * image, ranks))
        elif scheme == "all_to_all":
            kept = own[direction] if own else share / ranks
            result.append(Message("images", "all_to_all", share * image, kept * image))
    result.append(_gathered("keys", directions * global_batch * shapes.dim * _NUMBER, ranks))
    result += [Message("gradients", "all_reduce", size) for size in shapes.buckets()]
    numbers = _FIGURES + directions * 2 * 2 * sum(shapes.channels)  # two encoders; means and variances
    padded = -(-numbers // ranks) * ranks * _NUMBER
    mean = [Message("statistics", "all_to_all", padded, padded // ranks), _gathered("statistics", padded, ranks)]
    return result + mean


def _of_the_authors(shapes: Shapes, global_batch: int, ranks: int) -> list[Message]:
    """List the collectives of the authors' `builder.py`, in DDP as their `main_moco.py` uses it."""
    keys = _gathered("keys", global_batch * shapes.dim * _NUMBER, ranks)
    statistics = 2 * 2 * sum(shapes.channels) * _NUMBER  # running means and variances of two encoders
    counters = (1 + 2 * len(shapes.channels)) * _INDEX  # the queue's pointer, and BatchNorm's numbers of batches
    return [
        Message("buffers", "broadcast", shapes.dim * shapes.queue_size * _NUMBER + statistics),
        Message("buffers", "broadcast", counters),
        _gathered("images", global_batch * image_bytes("authors", shapes), ranks),
        Message("permutation", "broadcast", global_batch * _INDEX),
        keys,  # to restore their order
        keys,  # for the queue
        *(Message("gradients", "all_reduce", size) for size in shapes.buckets()),
    ]


def _gathered(purpose: str, size: int, ranks: int) -> Message:
    return Message(purpose, "all_gather", size, size // ranks)


def image_bytes(scheme: str, shapes: Shapes, symmetric: bool = False) -> int:
    """Return the bytes of an image that travels: a uint8 crop, or float32 where it is augmented before."""
    return shapes.image * (_NUMBER if symmetric or scheme == "authors" else 1)


def shuffle_peak(scheme: str, shapes: Shapes, global_batch: int, ranks: int, symmetric: bool = False) -> int:
    """Return the most bytes that a shuffle of the images of one direction needs at once, beside its input.

    gloo's all_gather of our own scheme needs a second copy of all images, which NCCL's does not.
    """
    image = image_bytes(scheme, shapes, symmetric)
    all_images, share = global_batch * image, global_batch // ranks * image
    match scheme:
        case "authors":
            return 2 * all_images  # a list of every rank's images, and their concatenation
        case "all_gather":
            return (all_images if ranks > 1 else 0) + share  # all images, and this rank's slice of them
        case "all_to_all":
            return 2 * share  # the images in the order of their senders, and in that of their places
        case _:
            return 0
