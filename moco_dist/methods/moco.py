"""Momentum Contrast (He et al. 2020, algorithm 1): two encoders and a queue."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco_dist.methods import losses, shuffle
from moco_dist.networks import batchnorm
from moco_dist.ranks.collectives import World
from moco_dist.summation import PairwiseSum


class MoCo(nn.Module):
    """The query encoder, the key encoder that follows it, and the queue of keys that all ranks hold alike.

    Args:
        encoder_q: images [n, ...] to [n, C]; its BatchNorms are `GroupBatchNorm2d`.
        dim: C.
        queue_size: K.
        momentum: m of the key encoder.
        temperature: tau.
        shuffle_mode: `all_gather`, `all_to_all` or `none`.
        world: the ranks.
        seed: of the queue's first, random keys.
    """

    queue: Tensor  # [K, C]

    def __init__(
        self,
        encoder_q: nn.Module,
        *,
        dim: int,
        queue_size: int,
        momentum: float,
        temperature: float,
        shuffle_mode: str,
        world: World,
        seed: int,
    ) -> None:
        super().__init__()
        self.momentum, self.temperature, self.shuffle_mode, self.world = momentum, temperature, shuffle_mode, world
        self.encoder_q = encoder_q
        self.encoder_k = copy.deepcopy(encoder_q).requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("queue", F.normalize(torch.randn(queue_size, dim, generator=generator)))
        self.cursor = 0

    def update_key_encoder_(self) -> None:
        """K <- m k + (1 - m) q, the parameters alone: the key encoder's BatchNorm statistics are its own."""
        losses.momentum_update_([*self.encoder_k.parameters()], [*self.encoder_q.parameters()], self.momentum)

    @torch.no_grad()
    def encode_keys(self, im_k: Tensor, order: shuffle.Permutation, parts: int = 1) -> tuple[Tensor, list[Tensor]]:
        """Keys of the global batch, in its order, from BatchNorm groups of the shuffled one.

        Args:
            im_k: [n, ...] this rank's images.
            order: [size * n] this step's shuffle.
            parts: in which to encode them, each of whole BatchNorm groups.

        Returns:
            [size * n, C], normalised; and the statistics of this rank's groups, added up.
        """
        images = shuffle.shuffled_slice(im_k, order, self.world, self.shuffle_mode)
        statistics, encoded = PairwiseSum(), []
        for part in images.chunk(parts):
            encoded.append(self.encoder_k(part).to(self.queue.dtype))
            statistics.add(batchnorm.take_group_sums_(self.encoder_k))
        k = F.normalize(torch.cat(encoded), dim=1)  # [n, C]
        return shuffle.gathered_keys(k, order, self.world, self.shuffle_mode), statistics.total()

    def own(self, keys: Tensor) -> Tensor:
        """This rank's rows of a global batch, [size * n, C] to [n, C]."""
        n = len(keys) // self.world.size
        return keys[self.world.rank * n : (self.world.rank + 1) * n]

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        """Each query against its key and the queue, [n, 1+K]; the positive is at index 0. q need not be normalised."""
        q = F.normalize(q.to(self.queue.dtype), dim=1)  # [n, C]
        return losses.contrast_logits(q, k, self.queue, self.temperature)

    def enqueue_(self, keys: Tensor) -> None:
        """Let the keys of the global batch take the oldest keys' place; after the logits of the step."""
        self.cursor = losses.enqueue_(self.queue, keys, self.cursor)
