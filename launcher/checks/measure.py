"""Count what an encoder holds and does, on torch's meta device, where tensors have shapes and no content.

python -m launcher.checks.measure MODEL CHANNELS IMAGE_SIZE

prints launcher.checks.estimate.EncoderCost as JSON. MODEL is the config's section as JSON. It is a process of its own,
so that a command of the launcher neither needs torch nor waits for its import.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING

from launcher.checks.estimate import EncoderCost
from moco_dist.config.schema import ModelSection

if TYPE_CHECKING:
    from torch import Tensor

_IMAGES = 2


def measure(model: ModelSection, channels: int, image_size: int) -> EncoderCost:
    """Run an encoder on images without content, and count."""
    import torch
    from torch.autograd.graph import saved_tensors_hooks
    from torch.utils.flop_counter import FlopCounterMode

    from moco_dist.networks.resnet import build_encoder

    with torch.device("meta"):
        encoder = build_encoder(model, channels, seed=0)
        images = torch.empty(_IMAGES, channels, image_size, image_size)
    own = {tensor.untyped_storage()._cdata for tensor in (*encoder.parameters(), *encoder.buffers())}
    saved: dict[int, Tensor] = {}  # one a storage; held, so that no storage's address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own and tensor.dim() > 1:  # neither weights nor BatchNorm's statistics: no image adds to them
            saved[storage] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(pack, lambda tensor: tensor):
        encoder(images)
    sizes = [(t.is_floating_point(), t.untyped_storage().nbytes(), t.element_size()) for t in saved.values()]
    return EncoderCost(
        parameters=sum(parameter.numel() for parameter in encoder.parameters()),
        operations=counter.get_total_flops() // _IMAGES,
        saved_numbers=sum(size // element for floating, size, element in sizes if floating) // _IMAGES,
        saved_index_bytes=sum(size for floating, size, _ in sizes if not floating) // _IMAGES,
    )


if __name__ == "__main__":
    section, number_of_channels, side = sys.argv[1:]
    cost = measure(ModelSection.model_validate_json(section), int(number_of_channels), int(side))
    print(json.dumps(dataclasses.asdict(cost)))
