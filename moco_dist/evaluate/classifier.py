"""Networks that are trained on labels: fine-tuned from MoCo's encoder, or from scratch as the baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from moco_dist import randomness
from moco_dist.config.schema import DataSection
from moco_dist.data.augment import CROP_DRAWS, DRAWS, Augment
from moco_dist.data.batches import in_worker
from moco_dist.data.sources import Source
from moco_dist.evaluate.labels import Indices
from moco_dist.evaluate.linear import Probe
from moco_dist.networks import batchnorm
from moco_dist.networks.resnet import Encoder, SmallNet
from moco_dist.ranks import devices, watchdog


class Classifier(nn.Module):
    """A network's features and a linear layer on them.

    Args:
        net: with `features` [N, C, S, S] to [N, D] and `feature_dim`.
        classes: outputs.
        probe: what the linear layer begins as, on normalised features; None: zero, on the features as they are.
    """

    def __init__(self, net: Encoder | SmallNet, classes: int, probe: Probe | None = None) -> None:
        super().__init__()
        self.net, self.linear, self.normalised = net, nn.Linear(net.feature_dim, classes), probe is not None
        begin = (
            {"weight": probe.weight, "bias": probe.bias} if probe else {n: torch.zeros(()) for n in ("weight", "bias")}
        )
        with torch.no_grad():
            for name, parameter in self.linear.named_parameters():
                parameter.copy_(begin[name].expand_as(parameter))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, S, S] to [N, classes]."""
        found = self.net.features(x)
        out: Tensor = self.linear(F.normalize(found, dim=1) if self.normalised else found)
        return out


@dataclass(frozen=True)
class Lesson:
    """What to learn."""

    indices: Indices
    """[m] images of a source."""
    labels: Indices
    """[m] their classes, whether given or guessed."""
    weights: NDArray[np.float32]
    """[m] of their losses."""


@dataclass(frozen=True)
class Schedule:
    """How to learn: SGD with Nesterov momentum, cosine to zero after a short warm-up."""

    steps: int
    batch: int
    lr: float
    """Learning rate of the linear layer."""
    lr_net: float
    """Learning rate of the network below it."""
    weight_decay: float = 5e-4
    warmup_share: float = 0.05
    """Part of the steps with a rising learning rate."""

    def factor(self, step: int) -> float:
        """Of the learning rates at a step, counted from 0."""
        warmup = max(1.0, self.warmup_share * self.steps)
        return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class _Lessons(Dataset[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """Batches by step: order, crops and draws follow from the seed and the draw of labels alone."""

    def __init__(self, source: Source, lesson: Lesson, batch: int, data: DataSection, seed: int, number: int) -> None:
        self.source, self.lesson, self.data, self.seed, self.number = source, lesson, data, seed, number
        self.batch = min(batch, len(lesson.indices))
        self._order: tuple[int, Indices] = (-1, np.empty(0, dtype=np.int64))

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        lesson, chosen = self.lesson, self._chosen(step)
        places = step * self.batch + np.arange(self.batch)
        draws = torch.from_numpy(
            randomness.uniform(self.seed, randomness.Stream.LESSON_VIEW, self.number, places, DRAWS)
        )
        crops, _ = self.source.crops(lesson.indices[chosen], draws[:, :CROP_DRAWS], self.data)
        labels, weights = (torch.from_numpy(a[chosen]) for a in (lesson.labels, lesson.weights))
        return crops, draws[:, CROP_DRAWS:], labels, weights

    def _chosen(self, step: int) -> Indices:
        count = len(self.lesson.indices)
        epoch, within = divmod(step, count // self.batch)
        if self._order[0] != epoch:
            order = randomness.permutation(self.seed, randomness.Stream.LESSON_ORDER, self.number, epoch, count)
            self._order = epoch, order
        return self._order[1][within * self.batch : (within + 1) * self.batch]


def learn_(
    classifier: Classifier,
    source: Source,
    lesson: Lesson,
    schedule: Schedule,
    *,
    data: DataSection,
    augmentation: Augment,
    device: torch.device,
    seed: int,
    number: int,
) -> None:
    """Train a classifier in place, on this rank alone; it is left in evaluation mode.

    Args:
        classifier: on the device.
        source: of the images.
        lesson: which of them, and their classes.
        schedule: how.
        data: size and limits of the crop, and processes that decode.
        augmentation: of the training images.
        device: to compute on.
        seed: of the run.
        number: of the draw of labels.
    """
    lessons = _Lessons(source, lesson, schedule.batch, data, seed, number)
    loader = DataLoader(
        lessons,
        batch_size=None,
        sampler=range(schedule.steps),
        num_workers=data.workers,
        worker_init_fn=in_worker,
        pin_memory=devices.runs_ahead(device),
    )
    optimizer = torch.optim.SGD(
        [
            {"params": classifier.net.parameters(), "base": schedule.lr_net},
            {"params": classifier.linear.parameters(), "base": schedule.lr},
        ],
        lr=schedule.lr,
        momentum=0.9,
        nesterov=True,
        weight_decay=schedule.weight_decay,
    )
    classifier.train()
    batchnorm.set_group_size(classifier, lessons.batch)
    for step, (crops, draws, labels, weights) in enumerate(loader):
        labels, weights = labels.to(device, non_blocking=True), weights.to(device, non_blocking=True)
        logits = classifier(augmentation(crops.to(device, non_blocking=True), draws))
        loss = (F.cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum().clamp(min=1e-6)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * schedule.factor(step)
        optimizer.step()
        batchnorm.fold_statistics_(classifier, batchnorm.take_group_sums_(classifier), 1)
        watchdog.beat()
    classifier.eval()
