"""Train networks on labels: fine-tuned from MoCo's encoder, or from scratch as the baseline."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from moco_dist import randomness
from moco_dist.config.data_section import DataSection
from moco_dist.data import augment, loader, store, stream
from moco_dist.evaluate.labels import Indices
from moco_dist.evaluate.linear import Probe
from moco_dist.networks import batchnorm, resnet, small
from moco_dist.ranks import watchdog


class Classifier(nn.Module):
    """A classifier is a network's features and a linear layer on them.

    Args:
        net: with `features` [N, C, S, S] to [N, D] and `feature_dim`.
        classes: outputs.
        probe: what the linear layer begins as, on normalised features; None: zero, on the features as they are.
    """

    def __init__(self, net: resnet.Encoder | small.SmallNet, classes: int, probe: Probe | None = None) -> None:
        super().__init__()
        self.net, self.linear, self.normalised = net, nn.Linear(net.feature_dim, classes), probe is not None
        weight, bias = probe or (torch.zeros(()), torch.zeros(()))
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.linear.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits [N, classes] of images [N, C, S, S]."""
        features = self.net.features(x)
        logits: Tensor = self.linear(F.normalize(features, dim=1) if self.normalised else features)
        return logits


@dataclass(frozen=True)
class Lesson:
    """A lesson is the images and labels that a classifier is trained on."""

    indices: Indices
    """[m] images of a source."""
    labels: Indices
    """[m] their classes, whether given or guessed."""
    weights: NDArray[np.float32]
    """[m] weights of their losses."""
    number: int = 0
    """Tells lessons with one seed apart; each has an order and crops of its own."""


@dataclass(frozen=True)
class Schedule:
    """A schedule holds the settings of SGD with Nesterov momentum: a short warm-up, then a cosine to zero."""

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
        """Return the factor of the learning rates at a step, counted from 0."""
        warmup = max(1.0, self.warmup_share * self.steps)
        return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def learn_(
    classifier: Classifier,
    source: store.Source,
    lesson: Lesson,
    schedule: Schedule,
    data: DataSection,
    augmentation: augment.Augment,
    seed: int,
) -> None:
    """Train a classifier in place, on this rank alone; it is left in evaluation mode.

    Args:
        classifier: on the device to compute on.
        source: of the images.
        lesson: which of them, and their classes.
        schedule: of the learning rates and the number of steps.
        data: size and limits of the crop, and processes that decode.
        augmentation: of the training images.
        seed: of the run.
    """
    keys = stream.StreamKeys(seed, randomness.Stream.LESSON_ORDER, randomness.Stream.LESSON_VIEW, lesson=lesson.number)
    device, batch_size = classifier.linear.weight.device, min(schedule.batch, len(lesson.indices))
    batches = stream.BatchStream(source, data, keys, batch_size, among=lesson.indices)
    loaded = loader.make_loader(batches, range(schedule.steps), data.workers, device)
    groups = [
        {"params": classifier.net.parameters(), "base": schedule.lr_net},
        {"params": classifier.linear.parameters(), "base": schedule.lr},
    ]
    optimizer = torch.optim.SGD(groups, schedule.lr, momentum=0.9, weight_decay=schedule.weight_decay, nesterov=True)
    classifier.train()
    batchnorm.set_group_size(classifier, batch_size)
    for step, batch in enumerate(loaded):
        samples = batch.samples.numpy()
        labels = torch.from_numpy(lesson.labels[samples]).to(device, non_blocking=True)
        weights = torch.from_numpy(lesson.weights[samples]).to(device, non_blocking=True)
        logits = classifier(augmentation(batch.views_on(device, source)[0], batch.draws[0]))
        loss = (F.cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum().clamp(min=1e-6)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * schedule.factor(step)
        optimizer.step()
        batchnorm.fold_statistics_(classifier, batchnorm.take_group_sums_(classifier), 1)
        watchdog.beat()
    classifier.eval()
