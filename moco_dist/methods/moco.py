"""Learn by Momentum Contrast, v1, v2 or symmetric (He et al. 2020, algorithm 1; Chen et al. 2020)."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco_dist.config import Config
from moco_dist.methods import losses, shuffle
from moco_dist.methods.method import Keys, Method, Terms, Views
from moco_dist.networks import batchnorm
from moco_dist.ranks.collectives import World
from moco_dist.summation import PairwiseSum


class MoCo(Method):
    """MoCo has a query encoder, a key encoder that follows it, and a queue of keys that all ranks hold alike.

    Args:
        config: of the run, whose section `moco` has the names of the paper.
        world: the ranks.
        encoder_q: images [n, ...] to [n, C], its weights already right; its BatchNorms are `GroupBatchNorm2d`.
    """

    queue: Tensor  # [K, C]

    def __init__(self, config: Config, world: World, encoder_q: nn.Module) -> None:
        super().__init__()
        self.moco, self.world, self.seed, self.encoder_q = config.moco, world, config.run.seed, encoder_q
        self.encoder_k = copy.deepcopy(encoder_q).requires_grad_(False)
        generator = torch.Generator().manual_seed(self.seed)
        keys = torch.randn(self.moco.queue_size, config.model.dim, generator=generator)
        self.register_buffer("queue", F.normalize(keys))
        self.cursor = 0

    @property
    def trained(self) -> nn.Module:  # type: ignore[override]  # it has one name in the paper and one for the engine
        """Return the query encoder."""
        return self.encoder_q

    def queries(self, views: Views) -> list[Tensor]:
        """Return view 1; for the symmetric loss also view 2, which is a query too, with view 1 for its key."""
        return list(views) if self.moco.symmetric else [views[0]]

    def before_step_(self) -> None:
        """Set `k <- m k + (1 - m) q`, the parameters alone: the key encoder keeps BatchNorm statistics of its own."""
        losses.momentum_update_([*self.encoder_k.parameters()], [*self.encoder_q.parameters()], self.moco.momentum)

    def keys(self, views: Views, step: int, parts: int) -> list[Keys]:
        """Encode the view that is not the query, each direction in a shuffle of its own."""
        length = self.world.size * len(views[0])
        return [
            self.encode_keys(im_k, self.order(step, direction, length), parts)
            for direction, im_k in enumerate(views[::-1][: 1 + self.moco.symmetric])
        ]

    def order(self, step: int, direction: int, length: int) -> shuffle.Permutation:
        """Draw the shuffle [length] of the global batch for the keys of one direction of a step."""
        return shuffle.permutation(self.seed, step, direction, length)

    @torch.no_grad()
    def encode_keys(self, im_k: Tensor, order: shuffle.Permutation, parts: int = 1) -> Keys:
        """Compute the keys of the global batch, in its order, from BatchNorm groups of the shuffled one.

        Args:
            im_k: [n, ...] this rank's images.
            order: [size * n] this step's shuffle.
            parts: in which to encode them, each of whole BatchNorm groups.

        Returns:
            Keys [size * n, C], normalised.
        """
        images = shuffle.shuffled_slice(im_k, order, self.world, self.moco.shuffle)
        statistics, encoded = PairwiseSum(), []
        for part in images.chunk(parts):
            encoded.append(self.encoder_k(part).to(self.queue.dtype))
            statistics.add(batchnorm.take_group_sums_(self.encoder_k))
        k = F.normalize(torch.cat(encoded), dim=1)  # [n, C]
        return Keys(shuffle.gathered_keys(k, order, self.world, self.moco.shuffle), statistics.total())

    def loss(self, outputs: Tensor, keys: Keys, rows: slice) -> Terms:
        """Compute InfoNCE of each query against its key and the queue: a (1+K)-way task, the positive at index 0."""
        q = F.normalize(outputs.to(self.queue.dtype), dim=1)  # [r, C]
        logits = losses.contrast_logits(q, keys.keys[rows], self.queue, self.moco.temperature)  # [r, 1+K]
        with torch.no_grad():
            top1, top5 = losses.top_k_accuracy(logits)
        return Terms({"loss": losses.info_nce(logits)}, {"top1": top1, "top5": top5})

    def after_step_(self, keys: Sequence[Keys], groups: int) -> None:
        """Let the keys of the global batch, of view 1 and then of view 2, take the oldest keys' place in the queue."""
        newest = torch.cat([of_direction.keys for of_direction in keys][::-1])
        self.cursor = losses.enqueue_(self.queue, newest, self.cursor)
        for of_direction in keys:
            batchnorm.fold_statistics_(self.encoder_k, of_direction.statistics, groups)

    def state(self) -> dict[str, Any]:
        """Return the state of both encoders, the queue and its cursor."""
        encoders = {"encoder_q": self.encoder_q.state_dict(), "encoder_k": self.encoder_k.state_dict()}
        return {**encoders, "queue": self.queue, "cursor": self.cursor}

    def restore_(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.encoder_q.load_state_dict(state["encoder_q"])
        self.encoder_k.load_state_dict(state["encoder_k"])
        self.queue.copy_(state["queue"])
        self.cursor = state["cursor"]
