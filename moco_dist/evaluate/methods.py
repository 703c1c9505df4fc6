"""The table of methods: which of them the options ask for, how each is run, and what its figures depend on."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from moco_dist.errors import UserError
from moco_dist.evaluate import all_labels, few, linear, propagation
from moco_dist.evaluate import labels as few_labels
from moco_dist.evaluate.all_labels import AllLabels
from moco_dist.evaluate.few import FewLabels
from moco_dist.evaluate.options import Options
from moco_dist.evaluate.subject import Outcome, Subject


@dataclass(frozen=True)
class EvaluationMethod:
    """One row of the table."""

    name: str
    run: Callable[[int], Outcome]
    """Computes a draw, by its number. All ranks share a draw of a method on all labels; else each has its own draws."""
    before: Callable[[], object]
    """Computes with all ranks what all draws share, ahead of the first draw."""
    settings: Sequence[object]
    """The method's revision and whatever else its figures depend on, beside the encoder and the images."""
    labels: int | None = None
    """Labels of a draw; None: all."""
    draws: int = 1


def table_of(options: Options, subject: Subject) -> list[EvaluationMethod]:
    """List the methods that the options ask for, the cheap ones first. Raises UserError."""
    shares, count = functools.cache(subject.shares), _label_count(options, subject)
    on_all = AllLabels(subject, options.features, functools.partial(shares, options.features))
    default = not (options.knn or options.linear or count)
    methods = [_knn(on_all)] if options.knn or default else []
    methods += [_linear(on_all, options.solver)] if options.linear or default else []
    if count is not None:
        on_few = FewLabels(subject, functools.partial(shares, "backbone"), count, options.draws or 1)
        methods += _few_labels(on_few, options)
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


def _knn(on_all: AllLabels) -> EvaluationMethod:
    section, (suffix, settings) = on_all.subject.config.eval, on_all.layer_settings()
    settings = [all_labels.REVISIONS["kNN"], *settings, section.knn_k, section.knn_temperature]
    return EvaluationMethod(f"kNN{suffix}", on_all.knn, on_all.shares, settings)


def _linear(on_all: AllLabels, solver: str) -> EvaluationMethod:
    suffix, settings = on_all.layer_settings()
    if solver == "lbfgs" or (solver == "auto" and on_all.features_fit()):
        settings = [all_labels.REVISIONS["linear"], *settings, all_labels.VALIDATION_FRACTION, linear.DECAYS]
        return EvaluationMethod(f"linear{suffix}", on_all.linear, on_all.shares, settings)
    recipe = on_all.sgd_recipe()
    run, settings = (
        functools.partial(on_all.linear_by_sgd, recipe),
        [all_labels.REVISIONS["linear by SGD"], *settings, recipe],
    )
    return EvaluationMethod(f"linear by SGD{suffix}", run, lambda: None, settings)


def _few_labels(f: FewLabels, o: Options) -> Iterator[EvaluationMethod]:
    s = f.subject
    few_labels.draw(s.train_labels, s.classes, f.count, 0, 0, s.class_names)  # a mistake is told before long work
    rows: list[tuple[bool, str, Callable[[int], Outcome], Callable[[], object], list[object]]] = [
        (True, "linear", f.linear, lambda: (f.labelled, f.held_out), []),
        (o.finetune, "fine-tuned", f.fine_tuned, lambda: f.labelled, [few.FINE_TUNING]),
        (
            o.semi,
            "semi-supervised",
            f.semi_supervised,
            lambda: (f.labelled, f.graphs),
            [few.SEMI_SUPERVISED, few.ROUNDS, propagation.SETTINGS],
        ),
        (o.supervised, "supervised", f.supervised, lambda: None, [few.FROM_SCRATCH]),
        (o.supervised, "supervised small net", f.supervised_small, lambda: None, [few.FROM_SCRATCH]),
    ]
    for chosen, name, run, before, settings in rows:
        if chosen:
            settings = [
                few.REVISIONS[name],
                *settings,
                few.FOLDS,
                few.DECAY_OF_ONE,
                linear.DECAYS,
                s.labelled_augmentation.recipe,
            ]
            shown = f"supervised {s.config.model.arch}" if name == "supervised" else name
            yield EvaluationMethod(shown, run, before, settings, f.count, f.draws)
