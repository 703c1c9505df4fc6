"""Learn by Momentum Contrast, v1, v2 or symmetric (He et al. 2020, algorithm 1; Chen et al. 2020)."""

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco_dist.config import Config
from moco_dist.data.views import Views
from moco_dist.methods import losses, shuffle
from moco_dist.methods.method import Keys, Method, Terms
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
        if self.moco.shuffle != "none" and not self.moco.symmetric:  # which augments both views for its own queries
            self.own_places = functools.partial(shuffle.own_places, self.seed, world.rank, world.size)

    @property
    def trained(self) -> nn.Module:  # type: ignore[override]  # it has one name in the paper and one for the engine
        """Return the query encoder."""
        return self.encoder_q

    def queries(self, views: Views) -> list[Tensor]:
        """Return view 1; for the symmetric loss also view 2, which is a query too, with view 1 for its key."""
        return [views.images(direction) for direction in range(1 + self.moco.symmetric)]

    def before_step_(self) -> None:
        """Set `k <- m k + (1 - m) q`, the parameters alone: the key encoder keeps BatchNorm statistics of its own."""
        losses.momentum_update_([*self.encoder_k.parameters()], [*self.encoder_q.parameters()], self.moco.momentum)

    def keys(self, views: Views, step: int, parts: int) -> Callable[[], list[Keys]]:
        """Shuffle the view that is not the query, each direction in an order of its own; encode it when it is there."""
        directions = range(1 + self.moco.symmetric)
        orders = [self.order(step, direction, self.world.size * len(views)) for direction in directions]
        leaving = [views.crops[1]] if views.travel_as_crops else [views.images(1 - d) for d in directions]
        pairs = zip(leaving, orders, strict=True)
        arriving = [shuffle.start_shuffle(im_k, order, self.world, self.moco.shuffle) for im_k, order in pairs]

        @torch.no_grad()
        def encode() -> list[Keys]:
            own_keys, statistics = [], []
            for arrived in arriving:
                im_k = views.received(arrived()) if views.travel_as_crops else arrived()
                k, of_groups = self.encode_keys(im_k, parts)
                own_keys.append(k)
                statistics.append(of_groups)
            keys = shuffle.gathered_keys(own_keys, orders, self.world, self.moco.shuffle)
            return [Keys(k, of_groups) for k, of_groups in zip(keys, statistics, strict=True)]

        return encode

    def order(self, step: int, direction: int, length: int) -> shuffle.Permutation:
        """Draw the shuffle [length] of the global batch for the keys of one direction of a step."""
        return shuffle.permutation(self.seed, step, direction, length)

    def encode_keys(self, im_k: Tensor, parts: int = 1) -> tuple[Tensor, list[Tensor]]:
        """Encode this rank's slice of the shuffled batch.

        Args:
            im_k: [n, ...] images.
            parts: in which to encode them, each of whole BatchNorm groups.

        Returns:
            Keys [n, C], normalised; BatchNorm's statistics, added up over the parts.
        """
        statistics, encoded = PairwiseSum(), []
        for part in im_k.chunk(parts):
            encoded.append(self.encoder_k(part).to(self.queue.dtype))
            statistics.add(batchnorm.take_group_sums_(self.encoder_k))
        return F.normalize(torch.cat(encoded), dim=1), statistics.total()

    def loss(self, outputs: Tensor, keys: Keys, rows: slice) -> Terms:
        """Compute InfoNCE of each query against its key and the queue: a (1+K)-way task, the positive at index 0."""
        q = F.normalize(outputs.to(self.queue.dtype), dim=1)  # [r, C]
        logits = losses.contrast_logits(q, keys.keys[rows], self.queue, self.moco.temperature)  # [r, 1+K]
        with torch.no_grad():
            top1, top5 = losses.top_k_accuracy(logits)
        details = functools.partial(losses.contrast_details, logits.detach(), self.moco.temperature)
        return Terms({"loss": losses.info_nce(logits)}, {"top1": top1, "top5": top5}, details, q.detach())

    def after_step_(self, keys: Sequence[Keys], groups: int) -> None:
        """Let the keys of the global batch, of view 1 and then of view 2, take the oldest keys' place in the queue."""
        newest = torch.cat([of_direction.keys for of_direction in keys][::-1])
        self.cursor = losses.enqueue_(self.queue, newest, self.cursor)
        for of_direction in keys:
            batchnorm.fold_statistics_(self.encoder_k, of_direction.statistics, groups)

    def figures_on_host(self, step: int, images: int) -> dict[str, float]:
        """Return the loss of an encoder that sees nothing, m, and how full and how old the queue of the step is."""
        size, directions = self.moco.queue_size, 1 + self.moco.symmetric
        keys_a_step = directions * images
        return {
            "loss_at_chance": directions * math.log(1 + size),
            "momentum": self.moco.momentum,
            "queue_filled": min(1.0, step * keys_a_step / size),
            "queue_age_steps": min(step, -(-size // keys_a_step)),
        }

    def figures_of_state(self) -> dict[str, Tensor]:
        """Compute how far the key encoder is behind the query encoder."""
        encoders = [[p.detach() for p in encoder.parameters()] for encoder in (self.encoder_q, self.encoder_k)]
        return {"encoder_distance": losses.distance(*encoders)}

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
