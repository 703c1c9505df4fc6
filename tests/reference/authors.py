"""Build and save a MoCo as the authors' code does, written from the paper with torch.nn alone."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet


class AuthorsMoCo(nn.Module):
    """This model has two encoders, the queue [C, K] with a key a column, and the cursor, in the authors' names.

    One process, so that one BatchNorm group is all there is, and the shuffle changes nothing.
    """

    queue: Tensor
    queue_ptr: Tensor

    def __init__(self, encoder: nn.Module, dim: int, queue_size: int, momentum: float, temperature: float) -> None:
        super().__init__()
        self.momentum, self.temperature = momentum, temperature
        self.encoder_q, self.encoder_k = encoder, copy.deepcopy(encoder).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(dim, queue_size), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def loss(self, im_q: Tensor, im_k: Tensor) -> Tensor:
        q = F.normalize(self.encoder_q(im_q), dim=1)
        with torch.no_grad():
            for of_k, of_q in zip(self.encoder_k.parameters(), self.encoder_q.parameters(), strict=True):
                of_k.data = of_k.data * self.momentum + of_q.data * (1 - self.momentum)
            k = F.normalize(self.encoder_k(im_k), dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.clone()], dim=1) / self.temperature
        start = int(self.queue_ptr)
        self.queue[:, start : start + len(k)] = k.T
        self.queue_ptr[0] = (start + len(k)) % self.queue.shape[1]
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


def sgd(model: AuthorsMoCo, lr: float = 0.1, weight_decay: float = 1e-3) -> torch.optim.SGD:
    """Return SGD as the authors make it, over the parameters of both encoders."""
    return torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=weight_decay)


def step(model: AuthorsMoCo, optimizer: torch.optim.SGD, im_q: Tensor, im_k: Tensor) -> float:
    loss = model.loss(im_q, im_k)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def saved(
    model: AuthorsMoCo, optimizer: torch.optim.SGD | None, epoch: int = 1, arch: str | None = None
) -> dict[str, Any]:
    """Return the checkpoint that main_moco.py saves of a model within DistributedDataParallel."""
    state = OrderedDict((f"module.{name}", tensor) for name, tensor in model.state_dict().items())
    content: dict[str, Any] = {"epoch": epoch, "arch": arch, "state_dict": state}
    if optimizer is not None:
        content["optimizer"] = optimizer.state_dict()
    return copy.deepcopy(content)


def with_mlp(encoder: Any) -> Any:
    """Give an encoder MoCo v2's head, made of v1's."""
    encoder.fc = nn.Sequential(nn.Linear(encoder.fc.in_features, encoder.fc.in_features), nn.ReLU(), encoder.fc)
    return encoder


class Narrow(ResNet):
    """This is torchvision's own ResNet with an eighth of the channels in each stage, for speed, and a head of v1's."""

    def __init__(self, block: type[BasicBlock | Bottleneck], depths: list[int], dim: int) -> None:
        super().__init__(block, depths)
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(64 * block.expansion, dim)

    def _make_layer(self, block: Any, planes: int, *arguments: Any, **options: Any) -> nn.Sequential:
        self.inplanes = 8 if planes == 64 else self.inplanes
        return super()._make_layer(block, planes // 8, *arguments, **options)


class Numbered(nn.Module):
    """This is the encoder of the CIFAR-10 demo: the children of a ResNet with a small first convolution and no pool."""

    def __init__(self, resnet: Any) -> None:
        super().__init__()
        resnet.conv1 = nn.Conv2d(3, resnet.conv1.out_channels, 3, 1, 1, bias=False)
        children = [child for name, child in resnet.named_children() if name != "maxpool"]
        self.net = nn.Sequential(*children[:-1], nn.Flatten(1), children[-1])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


def trained(build: Callable[[], nn.Module], dim: int, batch: int = 16) -> tuple[AuthorsMoCo, torch.optim.SGD]:
    """Return a model and its optimizer after two steps on random images, so that no number is as it began."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AuthorsMoCo(build(), dim, 64, 0.99, 0.2)
        optimizer = sgd(model)
        for _ in range(2):
            one = torch.randn(batch, 3, 32, 32)
            step(model, optimizer, one, one + 0.3 * torch.randn(one.shape))
    return model, optimizer
