"""MoCo v2 of lightly's parts, as its documentation puts them together, on DDP. It runs where lightly is installed."""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.baselines import program
from benchmarks.baselines.authors import batches, join
from moco_dist.config import Config


class Query(nn.Module):
    """This encoder is a backbone with lightly's head on it."""

    def __init__(self, config: Config, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = program.encoder(config), head
        self.backbone.fc = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, ...] to [n, C]."""
        out: Tensor = self.head(self.backbone(x).flatten(1))
        return out


def start(config: Config, rank: int, ranks: int) -> program.Step:
    """Make the step of this rank."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import batch_shuffle, batch_unshuffle, update_momentum
    from lightly.transforms import MoCoV2Transform

    device = join(config)
    torch.manual_seed(config.run.seed)
    features = program.encoder(config).get_submodule("layer4")[-1].bn2.num_features
    head = MoCoProjectionHead(features, features, config.model.dim)
    query = Query(config, head).to(device)
    key = copy.deepcopy(query).requires_grad_(False)
    parallel = nn.parallel.DistributedDataParallel(query)
    data, moco = config.data, config.moco
    transform: Any = MoCoV2Transform(input_size=data.image_size, min_scale=data.crop_scale[0])
    criterion = NTXentLoss(temperature=moco.temperature, memory_bank_size=(moco.queue_size, config.model.dim))
    criterion.to(device)
    optimizer, images = program.sgd(query, config), batches(config, transform, ranks)
    distributed = ranks > 1

    def step() -> Tensor:
        im_q, im_k = (view.to(device, non_blocking=True) for view in next(images))
        update_momentum(query, key, moco.momentum)
        q = parallel(im_q)
        with torch.no_grad():
            shuffled, order = batch_shuffle(im_k, distributed=distributed)
            k = batch_unshuffle(key(shuffled), order, distributed=distributed)
        loss: Tensor = criterion(q, k)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def main(arguments: list[str]) -> int:
    """Take the steps. Returns the exit status."""
    try:
        return program.run(arguments, "benchmarks.baselines.with_lightly", __doc__, start)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
