"""What a run needs, by the shapes of its layers: parameters, arithmetic, memory, checkpoints, time. Without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from moco_dist.config import Config, Layout
from moco_dist.config.schema import DataSection

GIB = 2**30

# Blocks of each stage, and whether they are bottlenecks (He et al. 2016, table 1).
_BLOCKS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}
_BYTES = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2}
_BESIDE = 1.3
"""Memory over the tensors that are counted: workspaces of cuDNN, gradients of activations, fragments."""
_CONTEXT_BYTES = GIB // 2
"""Of CUDA and NCCL themselves."""
_OF_PEAK = 0.4
"""What a ResNet reaches of a GPU's peak: 8 V100 took 53 hours for MoCo's 200 epochs (its README), 35 % of theirs."""


@dataclass(frozen=True)
class Convolution:
    """A convolution with its BatchNorm."""

    channels_in: int
    channels_out: int
    kernel: int
    side: int
    """Of the output."""
    shortcut: bool = False
    """Whether it is beside a block: its BatchNorm's output is added to the block's own, and not kept."""

    @property
    def weights(self) -> int:
        return self.channels_in * self.channels_out * self.kernel**2

    @property
    def kept(self) -> int:
        """Numbers for the backward pass: the output, which the BatchNorm needs, and what comes of it."""
        return self.channels_out * self.side**2 * (1 if self.shortcut else 2)


@dataclass(frozen=True)
class Encoder:
    """One encoder, with its head."""

    parameters: int
    macs: int
    """Multiply-adds of one image's forward pass."""
    kept: int
    """Numbers that one image's forward pass keeps for the backward pass."""
    pooled: int
    """Outputs of the pool; it keeps an index of 8 bytes for each."""

    def kept_bytes(self, element: int) -> int:
        """What one image's forward pass keeps, with so many bytes a number."""
        return element * self.kept + 8 * self.pooled


def channels(data: DataSection) -> int:
    """Channels of an image."""
    return 1 if data.source in ("digits", "mnist") else data.channels or 3


def encoder(config: Config) -> Encoder:
    """What one encoder holds and does."""
    model, bottleneck = config.model, _BLOCKS[config.model.arch][1]
    layers = _stem(config) + _stages(config)
    pooled = model.width * layers[1].side ** 2 if model.stem == "imagenet" else 0
    features = 8 * model.width * (4 if bottleneck else 1)
    head = [(features, features)] * model.mlp + [(features, model.dim)]
    linear = sum(inside * outside for inside, outside in head)
    return Encoder(
        parameters=sum(layer.weights + 2 * layer.channels_out for layer in layers)
        + linear
        + sum(outside for _, outside in head),
        macs=sum(layer.weights * layer.side**2 for layer in layers) + linear,
        kept=sum(layer.kept for layer in layers) + pooled + channels(config.data) * config.data.image_size**2,
        pooled=pooled,
    )


def checkpoint_bytes(config: Config) -> int:
    """Of one checkpoint: two encoders, SGD's momentum, the queue."""
    return _master_bytes(config) * (3 * encoder(config).parameters + config.moco.queue_size * config.model.dim)


def memory_bytes(config: Config, plan: Layout) -> float:
    """Of a rank's GPU, at the peak of a step."""
    one, element, master = encoder(config), _BYTES[config.device.precision], _master_bytes(config)
    images = plan.group_size if config.device.deterministic else plan.batch_per_rank // plan.parts
    # Both encoders, gradients, DDP's copy of them, momentum; the queue.
    states = master * (5 * one.parameters + config.moco.queue_size * config.model.dim)
    activations = images * one.kept_bytes(element)
    # Products, logits, scaled logits, their softmax and gradient.
    logits = 5 * master * images * (1 + config.moco.queue_size)
    # Two views of this step and of the next, which is prepared meanwhile in float32; the shuffle's copies.
    shuffled = config.optim.global_batch if config.moco.shuffle == "all_gather" else plan.batch_per_rank
    views = (4 * element + 2 * 4) * plan.batch_per_rank + element * shuffled
    pixels = channels(config.data) * config.data.image_size**2
    return _BESIDE * (states + activations + logits + views * pixels) + _CONTEXT_BYTES


def epoch_seconds(config: Config, images: int, ranks: int, tflops: float) -> float:
    """Of an epoch, by the arithmetic alone: data that come too slowly are not counted.

    Args:
        config: of the run.
        images: of an epoch.
        ranks: GPUs.
        tflops: peak of one, in the run's precision.
    """
    directions = 2 if config.moco.symmetric else 1
    # A query's forward and backward pass are three forward passes, a key's is one; two operations each.
    operations = 2 * 4 * directions * encoder(config).macs * images
    return operations / (ranks * tflops * 1e12 * _OF_PEAK)


def _stem(config: Config) -> list[Convolution]:
    width, side, inside = config.model.width, config.data.image_size, channels(config.data)
    if config.model.stem == "small":
        return [Convolution(inside, width, 3, side)]
    return [Convolution(inside, width, 7, math.ceil(side / 2))]


def _stages(config: Config) -> list[Convolution]:
    """Every convolution of the four stages, as torchvision builds them."""
    blocks, bottleneck = _BLOCKS[config.model.arch]
    side, inside = config.data.image_size, config.model.width
    if config.model.stem == "imagenet":
        side = math.ceil(math.ceil(side / 2) / 2)  # the first convolution and the pool
    found = []
    for stage, count in enumerate(blocks):
        planes = config.model.width * 2**stage
        outside = planes * (4 if bottleneck else 1)
        for block in range(count):
            stride = 2 if stage and not block else 1
            before, side = side, math.ceil(side / stride)
            if bottleneck:
                found.append(Convolution(inside, planes, 1, before))
                found.append(Convolution(planes, planes, 3, side))
                found.append(Convolution(planes, outside, 1, side))
            else:
                found.append(Convolution(inside, planes, 3, side))
                found.append(Convolution(planes, planes, 3, side))
            if stride > 1 or inside != outside:
                found.append(Convolution(inside, outside, 1, side, shortcut=True))
            inside = outside
    return found


def _master_bytes(config: Config) -> int:
    """Of a number that outlives a step."""
    return 8 if config.device.precision == "fp64" else 4
