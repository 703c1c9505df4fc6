"""A toy method: contrast with the other images of the batch, no queue and no second encoder (SimCLR, one direction).

`python -m tests.methods.in_batch [CONFIG.yaml] [section.key=value ...]` trains it as the trainer trains MoCo.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco_dist import train
from moco_dist.config import Config
from moco_dist.data.views import Views
from moco_dist.methods.method import Keys, Method, Terms
from moco_dist.networks import batchnorm
from moco_dist.ranks.collectives import World


class InBatch(Method):
    """Each image's first view is to find the second one among those of the global batch, which get no gradient."""

    def __init__(self, encoder: nn.Module, temperature: float, world: World) -> None:
        super().__init__()
        self.trained, self.temperature, self.world = encoder, temperature, world
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
        encoder.register_parameter("frozen", self.frozen)  # the engine must not mind one that has no gradient

    def queries(self, views: Views) -> list[Tensor]:
        return [views.images(0)]

    def keys(self, views: Views, step: int, parts: int) -> Callable[[], list[Keys]]:
        @torch.no_grad()
        def encode() -> list[Keys]:
            outputs = torch.cat([self.trained(part) for part in views.images(1).chunk(parts)])  # [n, C]
            batchnorm.take_group_sums_(self.trained)  # running statistics are those of the first view
            return [Keys(self.world.all_gather(F.normalize(outputs.float(), dim=1)), [])]

        return encode

    def loss(self, outputs: Tensor, keys: Keys, rows: slice) -> Terms:
        q = F.normalize(outputs.float(), dim=1)  # [r, C]
        logits = q @ keys.keys.T / self.temperature  # [r, size * n]
        places = torch.arange(rows.start, rows.stop, device=q.device)
        attraction = -logits[torch.arange(len(q), device=q.device), places].mean()
        top1 = (logits.argmax(dim=1) == places).float().mean()
        return Terms({"attraction": attraction, "repulsion": logits.logsumexp(dim=1).mean()}, {"top1": top1})

    def state(self) -> dict[str, Any]:
        return {"encoder_q": self.trained.state_dict()}

    def restore_(self, state: dict[str, Any]) -> None:
        self.trained.load_state_dict(state["encoder_q"])


def build(config: Config, world: World, encoder: nn.Module) -> InBatch:
    return InBatch(encoder, config.moco.temperature, world)


if __name__ == "__main__":
    sys.exit(train.run(sys.argv[1:], make_method=build))
