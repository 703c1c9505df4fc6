"""The table of methods: which of them the options ask for, how each is run, and what its figures depend on."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from moco_dist.errors import UserError
from moco_dist.evaluate import all_labels, few
from moco_dist.evaluate import labels as few_labels
from moco_dist.evaluate.all_labels import AllLabels
from moco_dist.evaluate.few import FewLabels
from moco_dist.evaluate.options import Options
from moco_dist.evaluate.outcome import Outcome
from moco_dist.evaluate.subject import Subject


@dataclass(frozen=True)
class EvaluationMethod:
    """One row of the table."""

    name: str
    labels: int | None
    draws: int
    run: Callable[[int], Outcome]
    """Computes a draw, by its number."""
    before: Callable[[], object]
    """Computes with all ranks what all draws share, ahead of the first draw."""
    together: bool
    """Whether the ranks work on one draw together, or each on its own."""
    settings: Sequence[object]
    """The method's revision and whatever else its figures depend on, beside the encoder and the images."""


def revisions() -> list[int]:
    """Return the revisions of all methods, whether or not they are asked for."""
    of_all = [all_labels.KNN_REVISION, all_labels.LINEAR_REVISION, all_labels.LINEAR_BY_SGD_REVISION]
    of_few = [few.LINEAR_REVISION, few.FINE_TUNED_REVISION, few.SEMI_SUPERVISED_REVISION]
    return [*of_all, *of_few, few.SUPERVISED_REVISION, few.SUPERVISED_SMALL_REVISION]


def table_of(options: Options, subject: Subject) -> list[EvaluationMethod]:
    """List the methods that the options ask for, the cheap ones first. Raises UserError."""
    shares, count = functools.cache(subject.shares), _label_count(options, subject)
    all_learner = AllLabels(subject, options.features, functools.partial(shares, options.features))
    default = not (options.knn or options.linear or count)
    methods = []
    if options.knn or default:
        methods.append(_knn(all_learner))
    if options.linear or default:
        methods.append(_linear(all_learner, options.solver))
    if count is not None:
        few_learner = FewLabels(subject, functools.partial(shares, "backbone"), count, options.draws or 1)
        methods += _of_few_labels(few_learner, options)
    return methods


def _label_count(options: Options, subject: Subject) -> int | None:
    fraction = options.label_fraction
    if fraction is None:
        return options.labels
    images, classes = len(subject.train), subject.classes
    count = round(fraction * images)
    if count < classes:
        rule = f"is {count} of {images} images, and there are {classes} classes"
        unit = 10.0 ** (math.floor(math.log10(classes / images)) - 1)  # two digits, rounded up
        enough = math.ceil(classes / images / unit) * unit
        raise UserError.of("--label-fraction", fraction, rule, f"use {enough:.2g} or more")
    return count


def _layer(learner: AllLabels) -> tuple[str, list[object]]:
    """Return the end of the name of a method on this layer, and what its figures depend on."""
    layer = learner.layer
    return ("", [layer]) if layer == "backbone" else (f" ({layer})", [layer, learner.subject.head_digest])


def _knn(learner: AllLabels) -> EvaluationMethod:
    section, (suffix, settings) = learner.subject.config.eval, _layer(learner)
    settings = [all_labels.KNN_REVISION, *settings, section.knn_k, section.knn_temperature]
    return EvaluationMethod(f"kNN{suffix}", None, 1, learner.knn, learner.shares, together=True, settings=settings)


def _linear(learner: AllLabels, solver: str) -> EvaluationMethod:
    suffix, settings = _layer(learner)
    if solver == "lbfgs" or (solver == "auto" and learner.features_fit()):
        settings = [all_labels.LINEAR_REVISION, *settings, all_labels.VALIDATION_FRACTION]
        name, run, before = f"linear{suffix}", learner.linear, learner.shares
        return EvaluationMethod(name, None, 1, run, before, together=True, settings=settings)
    recipe = learner.sgd_recipe()
    settings = [all_labels.LINEAR_BY_SGD_REVISION, *settings, recipe]
    by_sgd = functools.partial(learner.linear_by_sgd, recipe)
    name = f"linear by SGD{suffix}"
    return EvaluationMethod(name, None, 1, by_sgd, lambda: None, together=True, settings=settings)


def _of_few_labels(learner: FewLabels, options: Options) -> Iterator[EvaluationMethod]:
    s = learner.subject
    few_labels.draw(s.train_labels, s.classes, learner.count, 0, 0)  # a mistake is told before long work

    def method(
        name: str, run: Callable[[int], Outcome], before: Callable[[], object], *settings: object
    ) -> EvaluationMethod:
        settings = (*settings, s.labelled_augmentation.recipe)
        return EvaluationMethod(name, learner.count, learner.draws, run, before, together=False, settings=settings)

    yield method("linear", learner.linear, lambda: (learner.labelled, learner.held_out), few.LINEAR_REVISION)
    if options.finetune:
        settings: tuple[object, ...] = few.FINE_TUNED_REVISION, few.FINE_TUNING
        yield method("fine-tuned", learner.fine_tuned, lambda: learner.labelled, *settings)
    if options.semi:
        settings = few.SEMI_SUPERVISED_REVISION, few.SEMI_SUPERVISED, few.ROUNDS
        run = learner.semi_supervised
        yield method("semi-supervised", run, lambda: (learner.labelled, learner.graphs), *settings)
    if options.supervised:
        settings, name = (few.SUPERVISED_REVISION, few.FROM_SCRATCH), f"supervised {s.config.model.arch}"
        yield method(name, learner.supervised, lambda: None, *settings)
        settings, name = (few.SUPERVISED_SMALL_REVISION, few.FROM_SCRATCH), "supervised small net"
        yield method(name, learner.supervised_small, lambda: None, *settings)
