"""The bare step: MoCo's algorithm 1 on torchvision's networks, without data, augmentation, DDP and shuffle.

On R ranks, R processes take it side by side, each with its share of the batch, and nothing is communicated: that is
what the machine could do if all else were free.
"""

from __future__ import annotations

import copy
import os
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines import program
from moco_dist.config import Config
from moco_dist.engine.engine import DTYPES
from moco_dist.ranks import devices


class BareStep:
    """A bare step holds its two encoders, its queue and two views that are always the same.

    Args:
        config: networks, queue and optimizer. With `device.channels_last=true`, networks and images are NHWC; with
            `device.compile=true`, each encoder is compiled as a whole.
        device: that computes.
        batch: images of a step.
    """

    def __init__(self, config: Config, device: torch.device, batch: int) -> None:
        torch.manual_seed(config.run.seed)
        layout = torch.channels_last if config.device.channels_last is True else torch.contiguous_format
        self.config, self.device, self.dtype = config, device, DTYPES[config.device.precision]
        self.encoder_q = program.encoder(config).to(device, memory_format=layout)
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        self.queue = F.normalize(torch.randn(config.model.dim, config.moco.queue_size, device=device), dim=0)  # [C, K]
        self.optimizer, self.begin = program.sgd(self.encoder_q, config), 0
        shape = batch, config.data.channel_count, config.data.image_size, config.data.image_size
        self.views = [torch.randn(shape, device=device).to(self.dtype, memory_format=layout) for _ in range(2)]
        if config.device.compile is True:
            self.encoder_q.compile(dynamic=False)
            self.encoder_k.compile(dynamic=False)

    def __call__(self) -> Tensor:
        """Take a step, and return its loss."""
        moco, (im_q, im_k) = self.config.moco, self.views
        with torch.no_grad():
            key, query = [*self.encoder_k.parameters()], [*self.encoder_q.parameters()]
            torch._foreach_mul_(key, moco.momentum)
            torch._foreach_add_(key, query, alpha=1 - moco.momentum)
        with devices.autocast(self.device, self.dtype):
            q = F.normalize(self.encoder_q(im_q).float())  # [n, C]
            with torch.no_grad():
                k = F.normalize(self.encoder_k(im_k).float())  # [n, C]
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue], dim=1) / moco.temperature  # [n, 1+K]
        loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=self.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.queue[:, self.begin : self.begin + len(k)] = k.T
        self.begin = (self.begin + len(k)) % moco.queue_size
        return loss.detach()


def start(config: Config, rank: int, ranks: int) -> BareStep:
    """Make the step of one of some ranks, which do not meet."""
    device = devices.pick(config, int(os.environ.get("LOCAL_RANK", 0)))
    return BareStep(config, device, config.optim.global_batch // ranks)


def main(arguments: list[str]) -> int:
    """Take the steps. Returns the exit status."""
    return program.run(arguments, "benchmarks.baselines.bare", __doc__, start)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
