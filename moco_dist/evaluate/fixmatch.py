"""Semi-supervised learning by consistency: FixMatch, with a teacher that is the student's moving average.

Sohn et al. 2020 ("FixMatch", section 2.2): what is told with confidence of an image as it is must be told of it
augmented, too. The teacher that tells it is that of Cai et al. 2021 ("Exponential moving average normalization for
self-supervised and semi-supervised learning", section 3.3), who begin with MoCo's encoder as well: the average of the
students of all steps, with their BatchNorm statistics.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from moco_dist import batchnorm, contrast, watchdog
from moco_dist.config import DataSection
from moco_dist.data.augment import Augment
from moco_dist.data.sources import Source
from moco_dist.evaluate.classifier import Classifier, Exercise, Exercises, Lesson, loader
from moco_dist.randomness import Stream


@dataclass(frozen=True)
class Recipe:
    """How to learn: SGD with Nesterov momentum; the learning rate falls to a fifth along a cosine (section 2.3)."""

    steps: int
    lr: float = 0.03
    weight_decay: float = 5e-4
    labelled: int = 64
    """Labelled images of a step."""
    unlabelled: int = 256
    """Other images of a step."""
    threshold: float = 0.95
    """Least probability of a guess that is learnt."""
    teacher_momentum: float = 0.99
    """Of the teacher's update `teacher <- m teacher + (1 - m) student`; less in the first steps."""
    warmup_steps: int = 50

    def learning_rate(self, step: int) -> float:
        """At a step, counted from 0."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        return self.lr * warmup * math.cos(7 * math.pi * step / (16 * self.steps))


class Batch(NamedTuple):
    """What one step learns from."""

    labelled: Exercise
    unlabelled: Exercise
    plain: Tensor
    """uint8 [n, C, S, S] the unlabelled images as they are."""


class _Batches(Dataset[Batch]):
    def __init__(self, labelled: Exercises, unlabelled: Exercises) -> None:
        self.labelled, self.unlabelled = labelled, unlabelled

    def __getitem__(self, step: int) -> Batch:
        unlabelled = self.unlabelled[step]
        plain, _ = self.unlabelled.source.centred(unlabelled.indices, self.unlabelled.data.image_size)
        return Batch(self.labelled[step], unlabelled, plain)


def learn(
    student: Classifier,
    source: Source,
    lesson: Lesson,
    recipe: Recipe,
    *,
    data: DataSection,
    augmentation: Augment,
    device: torch.device,
    seed: int,
    number: int,
) -> Classifier:
    """Train a classifier on a few labelled images and all others of a source, on this rank alone.

    Args:
        student: on the device; trained in place.
        source: of the images; those without a label count as well as those with one.
        lesson: the labelled ones.
        recipe: how.
        data: size and limits of the crop, and processes that decode.
        augmentation: of the training images.
        device: to compute on.
        seed: of the run.
        number: of the draw of labels.

    Returns:
        The teacher as of the last step, in evaluation mode.
    """
    everything = Lesson(*(np.arange(len(source)),) * 2, np.ones(len(source), dtype=np.float32))  # labels do not count
    streams = (Stream.UNLABELLED_ORDER, Stream.UNLABELLED_VIEW)
    batches = _Batches(
        Exercises(source, lesson, recipe.labelled, data, seed, number),
        Exercises(source, everything, recipe.unlabelled, data, seed, number, streams),
    )
    teacher = copy.deepcopy(student).eval()
    optimizer = torch.optim.SGD(
        student.parameters(), lr=recipe.lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    )
    student.train()
    batchnorm.set_group_size(student, batches.labelled.batch + batches.unlabelled.batch)
    for step, (known, unknown, plain) in enumerate(loader(batches, recipe.steps, data.workers, device)):
        with torch.no_grad():
            told = F.softmax(teacher(augmentation.plain(plain.to(device, non_blocking=True))), dim=1)  # [U, classes]
            confidence, guess = told.max(1)
        crops, draws = (torch.cat(pair) for pair in zip(known[:2], unknown[:2], strict=True))
        logits = student(augmentation(crops.to(device, non_blocking=True), draws))  # [L+U, classes]
        of_known, of_unknown = logits.split([len(known.crops), len(plain)])
        right = F.cross_entropy(of_known, known.labels.to(device, non_blocking=True))
        consistent = F.cross_entropy(of_unknown, guess, reduction="none") * (confidence >= recipe.threshold)
        optimizer.zero_grad(set_to_none=True)
        (right + consistent.mean()).backward()
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(step)
        optimizer.step()
        batchnorm.fold_statistics_(student, batchnorm.take_group_sums_(student), 1)
        _follow_(teacher, student, min(recipe.teacher_momentum, (step + 1) / (step + 10)))
        watchdog.beat()
    return teacher


def _follow_(teacher: Classifier, student: Classifier, momentum: float) -> None:
    """Move the teacher's weights and BatchNorm statistics towards the student's."""
    mine, theirs = ([t for t in c.state_dict().values() if t.is_floating_point()] for c in (teacher, student))
    contrast.momentum_update_(mine, theirs, momentum)
