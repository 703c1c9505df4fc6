"""Encoders: torchvision's ResNets with MoCo's heads, with a stem for large or for small images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet

from moco_dist.config.schema import ModelSection
from moco_dist.networks.batchnorm import GroupBatchNorm2d

_DEPTHS: dict[str, tuple[type[resnet.BasicBlock | resnet.Bottleneck], list[int]]] = {
    "resnet18": (resnet.BasicBlock, [2, 2, 2, 2]),
    "resnet34": (resnet.BasicBlock, [3, 4, 6, 3]),
    "resnet50": (resnet.Bottleneck, [3, 4, 6, 3]),
    "resnet101": (resnet.Bottleneck, [3, 4, 23, 3]),
    "resnet152": (resnet.Bottleneck, [3, 8, 36, 3]),
}

_GRID = 4
"""Cells of `what_and_where` along a side."""


class Encoder(resnet.ResNet):  # type: ignore[misc]  # torchvision has no types
    """A ResNet of torchvision's layers and parameter names, whose `fc` is MoCo's projection head.

    `forward` gives the [N, dim] output of the head, not normalised; `features` the [N, D] input of the head, which is
    what an evaluation uses.
    """

    def __init__(self, model: ModelSection, channels: int) -> None:
        self._width = model.width
        block, depths = _DEPTHS[model.arch]
        super().__init__(block, depths, num_classes=model.dim, norm_layer=GroupBatchNorm2d)
        if model.stem == "small":
            self.conv1 = nn.Conv2d(channels, model.width, kernel_size=3, stride=1, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(channels, model.width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = GroupBatchNorm2d(model.width)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.feature_dim: int = 8 * model.width * block.expansion
        self.what_and_where_dim: int = self.feature_dim + _GRID**2 * 2 * model.width * block.expansion
        head: list[nn.Module] = [nn.Linear(self.feature_dim, model.dim)]
        if model.mlp:  # MoCo v2, section 2: a hidden layer of the backbone's width
            head = [nn.Linear(self.feature_dim, self.feature_dim), nn.ReLU(), *head]
        self.fc = nn.Sequential(*head) if model.mlp else head[0]

    def _make_layer(  # torchvision's widths are fixed at 64, 128, 256, 512
        self,
        block: type[resnet.BasicBlock | resnet.Bottleneck],
        planes: int,
        blocks: int,
        stride: int = 1,
        dilate: bool = False,
    ) -> nn.Sequential:
        if planes == 64:
            self.inplanes = self._width
        layer: nn.Sequential = super()._make_layer(block, planes * self._width // 64, blocks, stride, dilate)
        return layer

    def features(self, x: Tensor) -> Tensor:
        """Pooled output of the last stage, [N, feature_dim]."""
        return self._pooled(self._second_stage(x))

    def what_and_where(self, x: Tensor) -> Tensor:
        """The features, and beside them the second stage's map on a grid, each of length 1; [N, what_and_where_dim]."""
        second = self._second_stage(x)
        places = F.adaptive_avg_pool2d(second, _GRID).flatten(1)
        return torch.cat([F.normalize(rows, dim=1) for rows in (self._pooled(second), places)], dim=1)

    def _second_stage(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer2(self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x))))))
        return out

    def _pooled(self, second: Tensor) -> Tensor:
        pooled: Tensor = self.avgpool(self.layer4(self.layer3(second)))
        return pooled.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, S, S] to [N, dim]."""
        out: Tensor = self.fc(self.features(x))
        return out


def build_encoder(model: ModelSection, channels: int, seed: int) -> Encoder:
    """An encoder whose weights are a function of the seed, built on the CPU; the global RNG is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder(model, channels)


class SmallNet(nn.Module):
    """A small convolutional network without pretraining: what one would train on digits otherwise.

    Two convolutions, each with ReLU and a pool of 2, and a hidden layer; `features` is its output, [N, feature_dim].

    Args:
        channels: of the images.
        size: side of the images in pixels, at least 4.
    """

    feature_dim = 128

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        side = size // 4  # of the last map
        self.layers = nn.Sequential(
            *(nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(64 * side * side, self.feature_dim), nn.ReLU()),
        )

    def features(self, x: Tensor) -> Tensor:
        """[N, channels, size, size] to [N, feature_dim]."""
        out: Tensor = self.layers(x)
        return out
