"""Train networks on the labels of all images: fine-tune the encoder, and train baselines from scratch beside it."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from moco_dist.data.decode import Unreadable
from moco_dist.errors import UserError
from moco_dist.evaluate import training
from moco_dist.evaluate.classifier import Classifier
from moco_dist.evaluate.options import Options
from moco_dist.evaluate.subject import EvaluationMethod, Outcome, Subject
from moco_dist.evaluate.training import TrainingRecipe
from moco_dist.networks import resnet, small

REVISIONS = {"fine-tuned": 1, "supervised": 1, "supervised small net": 1}
"""A method's revision is part of the key of its cells: raise it whenever the method's figures change, be it by a change
here or in what the method calls (training.py, classifier.py)."""

_MOST_LINES = 10
"""A training prints no more lines of progress than these."""


@dataclass(frozen=True)
class FullTraining:
    """These methods train a network on all labels; the ranks share each training."""

    subject: Subject

    def methods(self, options: Options) -> Iterator[EvaluationMethod]:
        """Yield the methods that the options ask for; fine-tuning has training from scratch beside it.

        Raises:
            UserError: there are too few images for the ranks.
        """
        if options.finetune:
            yield self._method("fine-tuned", self._fine_tuned, training.FINE_TUNING, options)
        yield self._method("supervised", self._supervised, training.FROM_SCRATCH, options)
        if options.supervised:
            yield self._method("supervised small net", self._small, training.FROM_SCRATCH, options)

    def _method(
        self, name: str, begin: Callable[[], Classifier], recipe: TrainingRecipe, options: Options
    ) -> EvaluationMethod:
        s, whole = self.subject, recipe
        recipe = recipe.fitted(len(s.train), s.world.size, s.augmentation.recipe.flip, options.epochs)
        network = f"supervised {s.config.model.arch}" if name == "supervised" else name
        length = f", {recipe.epochs} epoch{'s' * (recipe.epochs > 1)}" if recipe.epochs != whole.epochs else ""
        shown = f"{network} ({recipe.name}{length})"

        def run(draw: int) -> Outcome:
            return self._learn(shown, begin(), recipe)

        settings = [REVISIONS[name], recipe, s.config.device.precision]
        return EvaluationMethod(shown, run, lambda: None, settings, recipe=recipe.settings())

    def _fine_tuned(self) -> Classifier:
        """Return a classifier of the encoder's weights, which fine-tuning begins with."""
        return Classifier(copy.deepcopy(self.subject.encoder), self.subject.classes)

    def _supervised(self) -> Classifier:
        """Return a classifier of the same architecture, with random weights by the seed."""
        config = self.subject.config
        return Classifier(
            resnet.build_encoder(config.model, self.subject.train.channels, config.run.seed), self.subject.classes
        )

    def _small(self) -> Classifier:
        """Return a classifier of the small convolutional net, with random weights by the seed."""
        subject = self.subject
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(subject.config.run.seed)
            net = small.SmallNet(subject.train.channels, subject.config.data.image_size)
        return Classifier(net, subject.classes)

    def _learn(self, name: str, classifier: Classifier, recipe: TrainingRecipe) -> Outcome:
        """Train a classifier, and classify the held-out images with it. Raises UserError."""
        s = self.subject
        stride = -(-recipe.epochs // _MOST_LINES)

        def check(epoch: int, finite: bool) -> None:
            if not finite:
                rule = f"{name} has diverged by epoch {epoch} of {recipe.epochs}"
                raise UserError.of("--labels", "all", rule, "try device.precision=fp32, and look at the images")

        def epoch_done(epoch: int, loss: float, unreadable: Sequence[Unreadable]) -> None:
            check(epoch, math.isfinite(loss))
            s.name_unreadable(unreadable, s.train, s.world)
            if epoch % stride == 0 or epoch == recipe.epochs:
                s.world.tell(f"moco_dist.evaluate: {name}, epoch {epoch} of {recipe.epochs}, loss {loss:.4f}")

        training.train_(classifier.to(s.world.device), s.train, recipe, s.world, s.config, s.augmentation, epoch_done)
        check(recipe.epochs, all(bool(weights.isfinite().all()) for weights in classifier.parameters()))
        return Outcome(s.classify(classifier, s.world))
