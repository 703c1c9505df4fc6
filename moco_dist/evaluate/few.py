"""These methods learn from the labels of a few images: one draw of labels at a time, on one rank."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from moco_dist.errors import UserError
from moco_dist.evaluate import features, linear, propagation
from moco_dist.evaluate import labels as few
from moco_dist.evaluate.classifier import Classifier, Lesson, Schedule, learn_
from moco_dist.evaluate.linear import Probe
from moco_dist.evaluate.options import Options
from moco_dist.evaluate.subject import EvaluationMethod, Outcome, Subject
from moco_dist.networks import resnet, small
from moco_dist.ranks import collectives, devices

REVISIONS = {"linear": 1, "fine-tuned": 1, "semi-supervised": 1, "supervised": 1, "supervised small net": 1}
"""A method's revision is part of the key of its cells: raise it whenever the method's figures change, be it by a change
here or in what the method calls (labels.py, linear.py, classifier.py, propagation.py)."""

FOLDS = 5
"""Parts of the labelled images in the cross-validation among them."""

DECAY_OF_ONE = 1e-3
"""Regularisation of the probe where a class has one label, which leaves nothing to hold out."""

FINE_TUNING = Schedule(steps=400, batch=100, lr=0.03, lr_net=0.01)
FROM_SCRATCH = Schedule(steps=1000, batch=100, lr=0.05, lr_net=0.05)
SEMI_SUPERVISED = Schedule(steps=600, batch=256, lr=0.05, lr_net=0.05)
ROUNDS = 4
"""Rounds of spreading labels and learning them, in the semi-supervised method."""


@dataclass(frozen=True)
class FewLabels:
    """Each of these methods learns from few labels, and is a function of the draw alone."""

    subject: Subject
    shares: Callable[[], tuple[features.Features, features.Features]]
    """Computes this rank's features of the images to learn from and of the held-out ones."""
    count: int
    """Labels of a draw."""
    draws: int

    def methods(self, options: Options) -> Iterator[EvaluationMethod]:
        """Yield the methods that the options ask for, the cheap ones first. Raises UserError."""
        self.draw(0)  # a mistake is told before long work
        if self.draws > 1 and self.count == len(self.subject.train):
            rule = "there is nothing to draw where all images are labelled"
            raise UserError.of("--draws", self.draws, rule, "drop it, or use fewer labels")
        yield self._method("linear", self.linear, lambda: (self.labelled, self.held_out))
        if options.finetune:
            yield self._method("fine-tuned", self.fine_tuned, lambda: self.labelled, FINE_TUNING)
        if options.semi:
            settings = SEMI_SUPERVISED, ROUNDS, propagation.SETTINGS
            yield self._method("semi-supervised", self.semi_supervised, lambda: (self.labelled, self.graphs), *settings)
        if options.supervised:
            yield self._method("supervised", self.supervised, lambda: None, FROM_SCRATCH)
            yield self._method("supervised small net", self.supervised_small, lambda: None, FROM_SCRATCH)

    def _method(
        self, name: str, run: Callable[[int], Outcome], before: Callable[[], object], *settings: object
    ) -> EvaluationMethod:
        shared = FOLDS, DECAY_OF_ONE, linear.DECAYS, self.subject.labelled_augmentation.recipe
        shown = f"supervised {self.subject.config.model.arch}" if name == "supervised" else name
        return EvaluationMethod(shown, run, before, [REVISIONS[name], *settings, *shared], self.count, self.draws)

    def draw(self, number: int) -> few.Indices:
        """Choose the labelled images of a draw, counted from 0. Raises UserError."""
        s = self.subject
        return few.draw(s.train_labels, s.classes, self.count, s.config.run.seed, number, s.class_names)

    def linear(self, number: int) -> Outcome:
        """Fit a linear probe to the labelled images' features, its regularisation chosen by cross-validation."""
        probe, decay, accuracy = self._probe(self.draw(number))
        return Outcome(probe.predict(self.held_out.rows).cpu(), {"decay": decay, "cross_validation": accuracy})

    def fine_tuned(self, number: int) -> Outcome:
        """Fine-tune the probe and the encoder below it on the labelled images, augmented."""
        labelled = self.draw(number)
        net, probe = copy.deepcopy(self.subject.encoder), self._probe(labelled)[0]
        return self._learnt(self._classifier(net, probe), labelled, FINE_TUNING, number)

    def semi_supervised(self, number: int) -> Outcome:
        """Fine-tune on all images, with the labels of the few spread along the graph of MoCo's features.

        Iscen et al. 2019, "Label propagation for deep semi-supervised learning": the loss of an image weighs as much
        as its guess is certain, and the network that has learnt the guesses makes the graph of the next ones. Their
        first network and graph come from the few labels; here MoCo has learnt them without.
        """
        labelled = self.draw(number)
        labels, classes = self.subject.train_labels[labelled], self.subject.classes
        chosen = propagation.choose(self.graphs, labelled, labels, classes, self._folds(labelled))
        net, edges = copy.deepcopy(self.subject.encoder), self.graphs[chosen.neighbours]
        classifier = self._classifier(net, self._probe(labelled)[0])
        for turn in range(ROUNDS):
            guess = propagation.spread(edges, labelled, labels, classes)
            guessed = guess.classes(chosen.balanced)
            lesson = Lesson(np.arange(len(guessed)), guessed, guess.certainty, ROUNDS * number + turn)
            self._learn_(classifier, lesson, SEMI_SUPERVISED)
            if turn < ROUNDS - 1:
                edges = propagation.graph(*self._nearest(net, chosen.neighbours, self._alone))
        notes = {name: float(value) for name, value in chosen._asdict().items()}
        return Outcome(self.subject.classify(classifier, self._alone), notes)

    def supervised(self, number: int) -> Outcome:
        """Train the same encoder from scratch on the labelled images, augmented."""
        config = self.subject.config
        net = resnet.build_encoder(config.model, self.subject.train.channels, config.run.seed + number)
        return self._learnt(self._classifier(net), self.draw(number), FROM_SCRATCH, number)

    def supervised_small(self, number: int) -> Outcome:
        """Train a small convolutional net from scratch on the labelled images, augmented."""
        subject = self.subject
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(subject.config.run.seed + number)
            net = small.SmallNet(subject.train.channels, subject.config.data.image_size)
        return self._learnt(self._classifier(net), self.draw(number), FROM_SCRATCH, number)

    @cached_property
    def labelled(self) -> features.Features:
        """Compute the features of the images that any draw labels, the same on all ranks; a collective of all ranks."""
        train, _ = self.shares()
        drawn = np.unique(np.concatenate([self.draw(number) for number in range(self.draws)]))
        mine = torch.isin(train.indices, torch.from_numpy(drawn))
        share = features.Features(train.rows[mine.to(train.rows.device)], train.labels[mine], train.indices[mine])
        return share.gathered(self.subject.world)

    @cached_property
    def held_out(self) -> features.Features:
        """Compute the features of the held-out images, the same on all ranks; a collective of all ranks."""
        return self.shares()[1].gathered(self.subject.world)

    @cached_property
    def graphs(self) -> dict[int, propagation.Graph]:
        """Make graphs of all training images, by an image's number of neighbours; a collective. Raises UserError."""
        images, world = len(self.subject.train), self.subject.world
        bytes_needed = 2 * 4 * images * self.subject.encoder.what_and_where_dim
        if not all(world.gather_objects(bytes_needed < devices.memory(world.device))):
            rule = f"the graph of {images} images needs {bytes_needed / 2**30:.1f} GiB a rank"
            raise UserError.of("--labels", self.count, rule, "add --no-semi, or take a larger machine")
        numbers = {min(k, images - 1) for k in propagation.NEIGHBOURS}
        where, cosines = self._nearest(self.subject.encoder, max(numbers), world)
        return {k: propagation.graph(where[:, :k], cosines[:, :k]) for k in numbers}

    def _nearest(self, encoder: resnet.Encoder, k: int, world: collectives.World) -> tuple[Tensor, Tensor]:
        rows = self.subject.share_of(self.subject.train, encoder.what_and_where, world).gathered(world).rows
        return propagation.nearest(rows, k, world)

    @property
    def _alone(self) -> collectives.World:
        return collectives.World(0, 1, 0, self.subject.world.device)

    def _probe(self, labelled: few.Indices) -> tuple[Probe, float, float]:
        places = np.searchsorted(self.labelled.indices.numpy(), labelled)
        rows, labels = self.labelled.rows[places], self.labelled.labels[places]
        classes = self.subject.classes
        decay, accuracy = DECAY_OF_ONE, float("nan")
        if folds := self._folds(labelled):
            decay, accuracy = linear.choose_decay(rows, labels, classes, folds, self._alone)
        return linear.fit(rows, labels, classes, decay), decay, accuracy

    def _folds(self, labelled: few.Indices) -> list[few.Fold]:
        """Cut the labelled images into folds of a cross-validation; none where a class has one label."""
        parts = min(FOLDS, len(labelled) // self.subject.classes)
        return few.folds(self.subject.train_labels[labelled], parts, self.subject.config.run.seed) if parts > 1 else []

    def _classifier(self, net: resnet.Encoder | small.SmallNet, probe: Probe | None = None) -> Classifier:
        return Classifier(net, self.subject.classes, probe).to(self.subject.world.device)

    def _learnt(self, classifier: Classifier, labelled: few.Indices, schedule: Schedule, number: int) -> Outcome:
        weights = np.ones(len(labelled), dtype=np.float32)
        self._learn_(classifier, Lesson(labelled, self.subject.train_labels[labelled], weights, number), schedule)
        return Outcome(self.subject.classify(classifier, self._alone))

    def _learn_(self, classifier: Classifier, lesson: Lesson, schedule: Schedule) -> None:
        s = self.subject
        learn_(classifier, s.train, lesson, schedule, s.labelled_crops, s.labelled_augmentation, s.config.run.seed)
