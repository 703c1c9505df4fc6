"""Train a classifier on all labels by a named recipe; the ranks share each batch.

The global batch is cut into BatchNorm groups of one size, whatever the number of ranks, and gradients are added up in
one order. So 1, 2 and 4 ranks compute the same bits on the CPU, where one group is computed at a time; on a GPU, all
groups of a rank are computed at once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from moco_dist import randomness
from moco_dist.config import Config, speed
from moco_dist.config.section import Interval
from moco_dist.data import augment, loader, store, stream
from moco_dist.data.decode import Unreadable
from moco_dist.engine.engine import DTYPES
from moco_dist.errors import UserError
from moco_dist.evaluate.classifier import Classifier
from moco_dist.networks import batchnorm
from moco_dist.ranks import collectives, devices, watchdog
from moco_dist.summation import PairwiseSum

_LR_BATCH = 256
"""The batch size that a recipe's learning rate is for."""

_GROUP = 32
"""Images of a BatchNorm group, where there are so many: those of one GPU in torchvision's reference training."""


@dataclass(frozen=True)
class TrainingRecipe:
    """A recipe says how a classifier is trained on all labels: by SGD on random crops and flips."""

    name: str
    source: str
    """The publication or program that the settings come from."""
    epochs: int
    """Passes over the images, each without its last incomplete batch."""
    lr: float
    """First learning rate of a batch of 256; of another one, in proportion (Goyal et al. 2017, section 2.1)."""
    schedule: Literal["cosine", "thirds"]
    """cosine: from `lr` to zero, step by step; thirds: a tenth of it after each third of the epochs."""
    nesterov: bool
    weight_decay: float
    momentum: float = 0.9
    batch: int = 256
    """Images of one step over all ranks."""
    group: int = _GROUP
    """Images of one BatchNorm group."""
    crop_scale: Interval = (0.08, 1.0)
    """Area of the random crop as a fraction of the image's, least and most; torchvision's default, as the ratio."""
    crop_ratio: Interval = (3 / 4, 4 / 3)
    """Width over height of the random crop, least and most."""
    flip: float = 0.5
    """Probability of the horizontal flip."""

    def fitted(self, samples: int, ranks: int, flip: float, epochs: int | None = None) -> "TrainingRecipe":
        """Fit the recipe to images and ranks.

        The batch has 8 groups; more where the ranks do not divide them, and fewer where there are fewer images.

        Args:
            samples: images to learn from, at least 2.
            ranks: their number.
            flip: probability of the flip in the run; where it is 0, the recipe has no flip either.
            epochs: what the user asks for; None: the recipe's.

        Raises:
            UserError: there are fewer images than a group for each rank.
        """
        group = min(self.group, samples)
        most, groups = samples // group, -(-self.batch // self.group // ranks) * ranks
        if groups > most:
            groups = 1 << (most.bit_length() - 1)
            groups = groups if groups % ranks == 0 else most // ranks * ranks
        if not groups:
            rule = f"{samples} images are less than a BatchNorm group of {group} for each of {ranks} ranks"
            raise UserError.of("--labels", "all", rule, f"use at most --nproc_per_node={most}")
        kept_flip = self.flip if flip else 0.0
        return replace(self, batch=groups * group, group=group, flip=kept_flip, epochs=epochs or self.epochs)

    def epoch_steps(self, samples: int) -> int:
        """Count the steps of an epoch."""
        return stream.steps_per_epoch(samples, self.batch)

    def learning_rate(self, step: int, epoch_steps: int) -> float:
        """Compute the learning rate of a step, counted from 0."""
        part, first = step / (self.epochs * epoch_steps), self.lr * self.batch / _LR_BATCH
        if self.schedule == "cosine":
            return first * 0.5 * (1 + math.cos(math.pi * part))
        return first * 0.1 ** (3 * (step // epoch_steps) // self.epochs)

    def settings(self) -> dict[str, Any]:
        """Return all settings by name, as the results of an evaluation show them."""
        return asdict(self)


FINE_TUNING = TrainingRecipe(
    name="SimCLR",
    source="Chen et al. 2020, A simple framework for contrastive learning, appendix B.5; the cosine is their code's",
    epochs=30,
    lr=0.05,
    schedule="cosine",
    nesterov=True,
    weight_decay=0.0,
)
FROM_SCRATCH = TrainingRecipe(
    name="torchvision",
    source="the reference training of torchvision's ResNets (references/classification)",
    epochs=90,
    lr=0.1,
    schedule="thirds",
    nesterov=False,
    weight_decay=1e-4,
)

EpochDone = Callable[[int, float, Sequence[Unreadable]], None]
"""This function is called on every rank after each epoch.

It gets the number of epochs done, the mean loss of the last batch before its step, which is the same on all ranks, and
the images that were replaced on this rank.
"""


def train_(
    classifier: Classifier,
    source: store.Source,
    recipe: TrainingRecipe,
    world: collectives.World,
    config: Config,
    augmentation: augment.Augment,
    epoch_done: EpochDone = lambda epochs, loss, unreadable: None,
) -> None:
    """Train a classifier in place, by the mean cross-entropy of a source's random crops; all ranks share each batch.

    Args:
        classifier: on the device, with the same weights on all ranks; it is left in evaluation mode.
        source: labelled images.
        recipe: fitted to the source and the ranks.
        world: the ranks.
        config: of the run, for its seed, the side of the crops, the processes that decode, and the precision.
        augmentation: of the run, for its normalisation.
        epoch_done: see EpochDone.
    """
    assert source.labels is not None
    epoch_steps, on_cpu = recipe.epoch_steps(len(source)), not devices.runs_ahead(world.device)
    if speed.chosen(config, on_cpu=on_cpu).channels_last:
        classifier.to(memory_format=torch.channels_last)
    classifier.train()
    batchnorm.set_group_size(classifier, recipe.group)
    descent, view = _Descent(classifier, recipe, world, config), augmentation.flipping(recipe.flip)
    steps, unreadable = range(recipe.epochs * epoch_steps), set[Unreadable]()
    batches = loader.make_loader(_batches(source, recipe, world, config), steps, config.data.workers, world.device)
    for step, batch in enumerate(batches):
        labels = _labels(source.labels, batch).to(world.device, non_blocking=True)
        images = view(batch.views_on(world.device, source)[0], batch.draws[0])  # [n, C, S, S]
        loss = descent.step_(images, labels, recipe.learning_rate(step, epoch_steps))
        unreadable.update(batch.unreadable)
        watchdog.beat()
        if (step + 1) % epoch_steps == 0:
            epoch_done((step + 1) // epoch_steps, float(loss), sorted(unreadable))
    classifier.eval()


def _labels(labels: NDArray[np.int64], batch: stream.Batch) -> Tensor:
    return torch.from_numpy(labels[batch.samples.numpy()])


def _batches(
    source: store.Source, recipe: TrainingRecipe, world: collectives.World, config: Config
) -> stream.BatchStream:
    """Make the stream of the batches; the same for all recipes of a batch, so that two trainings see the same crops."""
    data = config.data.model_copy(update={"crop_scale": recipe.crop_scale, "crop_ratio": recipe.crop_ratio})
    keys = stream.StreamKeys(config.run.seed, randomness.Stream.FULL_ORDER, randomness.Stream.FULL_VIEW)
    return stream.BatchStream(source, data, keys, recipe.batch, rank=world.rank, ranks=world.size)


class _Descent:
    """A descent takes the steps of a training, and keeps the optimizer and the scaler."""

    def __init__(
        self, classifier: Classifier, recipe: TrainingRecipe, world: collectives.World, config: Config
    ) -> None:
        self.classifier, self.world = classifier, world
        self.groups = recipe.batch // recipe.group // world.size
        """The number of BatchNorm groups of this rank."""
        self.parts = self.groups  # the exact way: one at a time
        if not config.device.is_exact(on_cpu=not devices.runs_ahead(world.device)):
            self.parts = max(n for n in range(1, config.optim.accumulate + 1) if self.groups % n == 0)
        self.dtype = DTYPES[config.device.precision]
        self.optimizer = torch.optim.SGD(
            classifier.parameters(),
            recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
        )
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self.dtype == torch.float16)

    def step_(self, images: Tensor, labels: Tensor, lr: float) -> Tensor:
        """Take one step.

        Args:
            images: [n, C, S, S] of this rank.
            labels: [n]
            lr: learning rate.

        Returns:
            The mean loss over the global batch before the step, a scalar on the device.
        """
        total, learning = PairwiseSum(), list[torch.nn.Parameter]()
        for of_part in zip(images.chunk(self.parts), labels.chunk(self.parts), strict=True):
            self.optimizer.zero_grad(set_to_none=True)  # of the last part, or of the last step
            loss = self._loss(*of_part)
            self.scaler.scale(loss).backward()
            learning = [p for p in self.classifier.parameters() if p.grad is not None]  # all but MoCo's head
            gradients = [p.grad for p in learning if p.grad is not None]
            total.add([loss.detach(), *gradients, *batchnorm.take_group_sums_(self.classifier)])
        self.world.mean_(means := total.total())
        for parameter, gradient in zip(learning, means[1:], strict=False):
            parameter.grad = gradient
        for settings in self.optimizer.param_groups:
            settings["lr"] = lr
        with devices.may_wait(self.world.device):  # a scaler reads whether its fp16 gradients overflowed
            self.scaler.step(self.optimizer)
        self.scaler.update()
        batchnorm.fold_statistics_(self.classifier, means[1 + len(learning) :], self.groups)
        return means[0]

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Compute the share that a part contributes to the mean loss of this rank's images."""
        with devices.autocast(self.world.device, self.dtype):
            logits = self.classifier(images)  # [n / parts, classes]
        return F.cross_entropy(logits.float(), labels) / self.parts
