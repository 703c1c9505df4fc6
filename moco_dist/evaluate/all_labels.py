"""Two methods learn from the labels of all training images: kNN and the linear probe. Ranks share each of them."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from moco_dist.encoders.choices import Layer
from moco_dist.errors import UserError
from moco_dist.evaluate import features, knn, labels, linear, sgd_probe
from moco_dist.evaluate.options import Options
from moco_dist.evaluate.subject import EvaluationMethod, Outcome, Subject
from moco_dist.ranks import devices

REVISIONS = {"kNN": 1, "linear": 1, "linear by SGD": 2}
"""A method's revision is part of the key of its cells: raise it whenever the method's figures change, be it by a change
here or in what the method calls (knn.py, linear.py, labels.py, sgd_probe.py)."""

VALIDATION_FRACTION = 0.1
"""Part of the labelled images that chooses the regularisation of the probe on all of them."""


@dataclass(frozen=True)
class AllLabels:
    """These methods learn from the features of a layer and all labels."""

    subject: Subject
    layer: Layer
    shares: Callable[[], tuple[features.Features, features.Features]]
    """Computes this rank's features of the images to learn from and of the held-out ones."""

    def methods(self, options: Options, *, default: bool) -> Iterator[EvaluationMethod]:
        """Yield kNN and the linear probe where the options ask for them, or by default. Raises UserError."""
        section = self.subject.config.eval
        if options.knn or default:
            yield self._method("kNN", self.knn, self.shares, section.knn_k, section.knn_temperature)
        if not (options.linear or default):
            return
        if options.solver == "lbfgs" or (options.solver == "auto" and self.features_fit()):
            yield self._method("linear", self.linear, self.shares, VALIDATION_FRACTION, linear.DECAYS)
        else:
            recipe = self.sgd_recipe()
            run = functools.partial(self.linear_by_sgd, recipe)
            yield self._method("linear by SGD", run, lambda: None, recipe)

    def _method(
        self, name: str, run: Callable[[int], Outcome], before: Callable[[], object], *settings: object
    ) -> EvaluationMethod:
        suffix, of_layer = f" ({self.layer})", [self.layer, self.subject.head_digest]
        if self.layer == "backbone":
            suffix, of_layer = "", [self.layer]
        return EvaluationMethod(name + suffix, run, before, [REVISIONS[name], *of_layer, *settings])

    def knn(self, draw: int) -> Outcome:
        """Classify by the votes of the nearest training images."""
        bank, held_out = self.shares()
        settings, world = self.subject.config.eval, self.subject.world
        queries = held_out.gathered(world).rows
        predicted = knn.predict(queries, bank, k=settings.knn_k, temperature=settings.knn_temperature, world=world)
        return Outcome(predicted.cpu())

    def linear(self, draw: int) -> Outcome:
        """Fit a linear probe to the features, its regularisation chosen on a part of them."""
        classes, world = self.subject.classes, self.subject.world
        train, held_out = (share.gathered(world) for share in self.shares())
        fold = labels.held_out(train.labels.numpy(), VALIDATION_FRACTION, self.subject.config.run.seed)
        decay, accuracy = linear.choose_decay(train.rows, train.labels, classes, [fold], world)

        def on_cpu() -> linear.Probe:  # what a rank sends to the others would keep the number of its GPU
            return linear.Probe(*(t.cpu() for t in linear.fit(train.rows, train.labels, classes, decay)))

        probe = linear.Probe(*(t.to(world.device) for t in world.from_first(on_cpu)))
        return Outcome(probe.predict(held_out.rows).cpu(), {"decay": decay, "validation": accuracy})

    def features_fit(self) -> bool:
        """Return whether every rank can hold the features of all images, and as much again while they are sorted."""
        bytes_needed = 2 * 4 * len(self.subject.train) * self.subject.feature_dim(self.layer)
        world = self.subject.world
        return all(world.gather_objects(bytes_needed < devices.memory(world.device)))

    def sgd_recipe(self) -> sgd_probe.ProbeRecipe:
        """Return the paper's recipe, its batch rounded up to equal shares of the ranks. Raises UserError."""
        s = self.subject
        batch = -(-sgd_probe.ProbeRecipe().batch // s.world.size) * s.world.size
        if len(s.train) < batch:
            rule = f"the training set has {len(s.train)} images, less than one batch of {batch}"
            raise UserError.of("--solver", "sgd", rule, "use --solver lbfgs")
        return sgd_probe.ProbeRecipe(batch=batch, flip=s.augmentation.recipe.flip)  # no flip where MoCo had none

    def linear_by_sgd(self, recipe: sgd_probe.ProbeRecipe, draw: int) -> Outcome:
        """Train a linear probe by SGD on random crops; no features are stored."""
        s = self.subject
        encode, epoch_steps = s.encode(self.layer), recipe.steps(len(s.train)) // recipe.epochs

        def progress(step: int, lr: float, loss: torch.Tensor) -> None:
            if step % (10 * epoch_steps) == 0:
                state = f"epoch {step // epoch_steps} of {recipe.epochs}, loss {float(loss):.4f}"
                s.world.tell(f"moco_dist.evaluate: linear probe by SGD, {state}")

        probe = sgd_probe.fit(
            encode, s.train, s.classes, s.feature_dim(self.layer), s.world, s.config, s.augmentation, recipe, progress
        )
        return Outcome(s.classify(lambda images: probe.logits(encode(images)), s.world))
