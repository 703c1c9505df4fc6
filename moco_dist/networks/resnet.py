"""Build ResNets with MoCo's heads, with a stem for large or for small images.

The layers, their names and the weights of a seed are those of torchvision's ResNets. They are written here since
importing torchvision takes longer than importing torch.
"""

import threading

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco_dist.config.schema import ModelSection
from moco_dist.networks.batchnorm import GroupBatchNorm2d
from moco_dist.networks.convolution import Convolution

_GRID = 4
"""Cells of `what_and_where` along a side."""


class BasicBlock(nn.Module):
    """The basic block is two 3x3 convolutions beside an identity (He et al. 2015, figure 5 left).

    The paper is "Deep residual learning for image recognition".
    """

    expansion = 1
    compiled_method = "forward"

    def __init__(self, channels: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = Convolution(channels, planes, 3, stride)
        self.bn1 = GroupBatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = Convolution(planes, planes, 3)
        self.bn2 = GroupBatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, channels, H, W] to [N, planes, H / stride, W / stride]."""
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        relu: Tensor = self.relu(out)
        return relu


class Bottleneck(nn.Module):
    """The bottleneck is 1x1, 3x3 and 1x1 convolutions beside an identity (figure 5 right); the 3x3 one strides."""

    expansion = 4
    compiled_method = "forward"

    def __init__(self, channels: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = Convolution(channels, planes, 1)
        self.bn1 = GroupBatchNorm2d(planes)
        self.conv2 = Convolution(planes, planes, 3, stride)
        self.bn2 = GroupBatchNorm2d(planes)
        self.conv3 = Convolution(planes, planes * self.expansion, 1)
        self.bn3 = GroupBatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, channels, H, W] to [N, 4 planes, H / stride, W / stride]."""
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        relu: Tensor = self.relu(out)
        return relu


DEPTHS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
    "resnet152": (Bottleneck, [3, 8, 36, 3]),
}
"""The block of each architecture, and how many of it each stage has."""


class Encoder(nn.Module):
    """An encoder is a ResNet of torchvision's layers and parameter names, whose `fc` is MoCo's projection head.

    `forward` gives the [N, dim] output of the head, not normalised; `features` the [N, D] input of the head, which is
    what an evaluation uses.
    """

    compiled_method = "_stem"

    def __init__(self, model: ModelSection, channels: int) -> None:
        super().__init__()
        block, depths = DEPTHS[model.arch]
        # Random numbers are drawn in torchvision's order, also those of the layers that are replaced below.
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = GroupBatchNorm2d(model.width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self._channels = model.width
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            self._stage(block, model.width * 2**number, depth, stride=1 if number == 0 else 2)
            for number, depth in enumerate(depths)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc: nn.Module = nn.Linear(512 * block.expansion, model.dim)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        self._replace_stem(model, channels)
        self.feature_dim: int = 8 * model.width * block.expansion
        self.what_and_where_dim: int = self.feature_dim + _GRID**2 * 2 * model.width * block.expansion
        self._replace_head(model)

    def _stage(self, block: type[BasicBlock | Bottleneck], planes: int, depth: int, stride: int) -> nn.Sequential:
        """Make a stage of residual blocks, of which the first may change the size and the number of channels."""
        blocks: list[nn.Module] = []
        for number in range(depth):
            downsample, step = None, stride if number == 0 else 1
            if step != 1 or self._channels != planes * block.expansion:
                width = planes * block.expansion
                downsample = nn.Sequential(Convolution(self._channels, width, 1, step), GroupBatchNorm2d(width))
            blocks.append(block(self._channels, planes, step, downsample))
            self._channels = planes * block.expansion
        return nn.Sequential(*blocks)

    def _replace_stem(self, model: ModelSection, channels: int) -> None:
        if model.stem == "small":
            self.conv1 = nn.Conv2d(channels, model.width, kernel_size=3, stride=1, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(channels, model.width, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")

    def _replace_head(self, model: ModelSection) -> None:
        head: list[nn.Module] = [nn.Linear(self.feature_dim, model.dim)]
        if model.mlp:  # MoCo v2, section 2: a hidden layer of the backbone's width
            head = [nn.Linear(self.feature_dim, self.feature_dim), nn.ReLU(), *head]
        self.fc = nn.Sequential(*head) if model.mlp else head[0]

    def features(self, x: Tensor) -> Tensor:
        """Compute the pooled output of the last stage, [N, feature_dim]."""
        return self._pooled(self._second_stage(x))

    def what_and_where(self, x: Tensor) -> Tensor:
        """Compute the features and the second stage's map on a grid, each of length 1: [N, what_and_where_dim]."""
        second = self._second_stage(x)
        places = F.adaptive_avg_pool2d(second, _GRID).flatten(1)
        return torch.cat([F.normalize(rows, dim=1) for rows in (self._pooled(second), places)], dim=1)

    def _stem(self, x: Tensor) -> Tensor:
        out: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return out

    def _second_stage(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer2(self.layer1(self._stem(x)))
        return out

    def _pooled(self, second: Tensor) -> Tensor:
        pooled: Tensor = self.avgpool(self.layer4(self.layer3(second)))
        return pooled.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, channels, S, S] to [N, dim]."""
        out: Tensor = self.fc(self.features(x))
        return out


_global_rng = threading.Lock()


def build_encoder(model: ModelSection, channels: int, seed: int) -> Encoder:
    """Build an encoder on the CPU, its weights a function of the seed; the global RNG is left as it was.

    One thread at a time does so, since each would take the seed of another for the state that it is to restore.
    """
    with _global_rng, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder(model, channels)
