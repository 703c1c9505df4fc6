"""MoCo as its authors distribute it (facebookresearch/moco, v1 and v2), as a baseline for the counts.

The same collectives in the same order, in code of our own: the images of all ranks come to every rank, rank 0 sends its
permutation, keys are gathered once to restore their order and again for the queue, and DDP around the whole model sends
rank 0's buffers, the queue among them, ahead of each forward pass.
"""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from moco_dist.config import Config
from moco_dist.networks.batchnorm import GroupBatchNorm2d
from moco_dist.networks.resnet import build_encoder


class AuthorsMoCo(nn.Module):
    """The model of the authors: two encoders, a queue that is a buffer, and all collectives within `forward`.

    Args:
        config: of the run.
        encoder_q: images [n, ...] to [n, C], with torch's BatchNorms.
    """

    queue: Tensor  # [C, K]
    queue_ptr: Tensor  # [1]

    def __init__(self, config: Config, encoder_q: nn.Module) -> None:
        super().__init__()
        self.momentum, self.temperature = config.moco.momentum, config.moco.temperature
        self.encoder_q = encoder_q
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(config.model.dim, config.moco.queue_size), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def forward(self, im_q: Tensor, im_k: Tensor) -> Tensor:
        """Return the logits [n, 1+K] of this rank's images, and put the keys of all ranks into the queue."""
        q = F.normalize(self.encoder_q(im_q))  # [n, C]
        with torch.no_grad():
            for p_q, p_k in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
                p_k.mul_(self.momentum).add_(p_q, alpha=1 - self.momentum)
            images, order = self.shuffled(im_k)
            k = self.restored(F.normalize(self.encoder_k(images)), order)  # [n, C]
        positives = (q * k).sum(dim=1, keepdim=True)
        logits = torch.cat([positives, q @ self.queue.clone()], dim=1) / self.temperature
        self.enqueue_(k)
        return logits

    def shuffled(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return this rank's slice of the shuffled global batch [n, ...], and the permutation [R n]."""
        gathered = gather(images)
        order = torch.randperm(len(gathered), device=gathered.device)
        dist.broadcast(order, src=0)
        return gathered[order.view(dist.get_world_size(), -1)[dist.get_rank()]], order

    def restored(self, keys: Tensor, order: Tensor) -> Tensor:
        """Return the keys [n, C] of this rank's own images."""
        places = torch.argsort(order).view(dist.get_world_size(), -1)[dist.get_rank()]
        return gather(keys)[places]

    @torch.no_grad()
    def enqueue_(self, keys: Tensor) -> None:
        """Let the keys of all ranks take the oldest keys' place; the queue is a multiple of the global batch."""
        keys = gather(keys)
        begin = int(self.queue_ptr)
        self.queue[:, begin : begin + len(keys)] = keys.T
        self.queue_ptr[0] = (begin + len(keys)) % self.queue.shape[1]


def gather(tensor: Tensor) -> Tensor:
    """Concatenate every rank's [n, ...]: [R n, ...]."""
    of_ranks = [torch.ones_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(of_ranks, tensor)
    return torch.cat(of_ranks)


def plain_encoder(config: Config) -> nn.Module:
    """Build our encoder of any width with torch's BatchNorms, without the buffer that ours have beside."""
    encoder = build_encoder(config.model, config.data.channel_count, config.run.seed)
    _with_plain_batchnorm_(encoder)
    return encoder


def _with_plain_batchnorm_(module: nn.Module) -> None:
    """Replace our BatchNorms, which have a buffer more, by torch's."""
    for name, child in module.named_children():
        if isinstance(child, GroupBatchNorm2d):
            setattr(module, name, nn.BatchNorm2d(child.num_features))
        else:
            _with_plain_batchnorm_(child)
