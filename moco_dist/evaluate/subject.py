"""Open what is evaluated: an encoder out of a run directory or a file of weights, and labelled images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moco_dist import config as configs
from moco_dist.config import Config
from moco_dist.config.data_section import DataSection
from moco_dist.data import augment, sources, store
from moco_dist.data.decode import Unreadable
from moco_dist.encoders import description, from_run
from moco_dist.encoders.choices import Layer
from moco_dist.encoders.preprocessing import Preprocessing
from moco_dist.errors import UserError, printable, shown, some_names
from moco_dist.evaluate import features, labels
from moco_dist.networks import resnet, weight_files, weights
from moco_dist.ranks.collectives import World
from moco_dist.run import paths, status

_OF_IMAGES = ("image_size", "mean", "std", "value_range")
"""Keys of the section `data` that make other pixels of an image, and so other features."""


@dataclass(frozen=True)
class Outcome:
    """An outcome holds the predictions of one method on one draw of labels."""

    predicted: Tensor
    """[n] classes of the held-out images, on the CPU."""
    notes: dict[str, float] = field(default_factory=dict)
    """Figures that were chosen or measured on the way."""


@dataclass(frozen=True)
class EvaluationMethod:
    """A method is one row of the table: how it is run, and what its figures depend on."""

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
    recipe: Mapping[str, object] = field(default_factory=dict)
    """Settings of a training on all labels, as the results show them."""


@dataclass(frozen=True)
class Subject:
    """A subject is an encoder and the images that it is tried on."""

    config: Config
    world: World
    encoder: resnet.Encoder
    """The encoder in evaluation mode, on the device."""
    digest: str
    """sha256 of the backbone's weights."""
    head_digest: str
    """sha256 of the head's weights."""
    train: store.Source
    """Labelled images to learn from."""
    held_out: store.Source
    """Labelled images to be classified."""
    step: int = 0
    """The steps that the encoder has learnt; 0 for weights, which need not tell them."""
    _named: set[Unreadable] = field(default_factory=set)
    """Images that cannot be decoded and have been named."""

    @property
    def split(self) -> str:
        """Return what the held-out images are: test or validation."""
        return self.config.eval.knn_split

    @cached_property
    def train_labels(self) -> labels.Indices:
        assert self.train.labels is not None
        return self.train.labels

    @cached_property
    def truth(self) -> Tensor:
        """Return the classes of the held-out images, [n]."""
        assert self.held_out.labels is not None
        return torch.from_numpy(self.held_out.labels)

    @cached_property
    def classes(self) -> int:
        return 1 + int(max(self.train_labels.max(), self.truth.max()))

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        return self.train.classes or tuple(map(str, range(self.classes)))

    @cached_property
    def augmentation(self) -> augment.Augment:
        return augment.Augment(augment.Recipe.of(self.config.data), *self.train.pixel_statistics)

    @cached_property
    def labelled_augmentation(self) -> augment.Augment:
        """Return the augmentation of images that are learnt with their labels."""
        return augment.Augment(self.augmentation.recipe.gentler(), *self.train.pixel_statistics)

    @property
    def labelled_crops(self) -> DataSection:
        """Return the size and limits of the crops of images that are learnt with their labels."""
        return self.config.data.model_copy(update={"crop_scale": self.labelled_augmentation.recipe.crop_scale})

    def accuracy(self, predicted: Tensor) -> float:
        """Return the fraction of the held-out images that are classified rightly; predicted [n]."""
        return float((predicted.cpu() == self.truth).double().mean())

    def encode(self, layer: Layer) -> features.Encode:
        """Return the function from images to the output of a layer."""
        return self.encoder.features if layer == "backbone" else self.encoder

    def feature_dim(self, layer: Layer) -> int:
        """Return the width D of a layer's output."""
        return self.encoder.feature_dim if layer == "backbone" else self.config.model.dim

    def shares(self, layer: Layer) -> tuple[features.Features, features.Features]:
        """Compute this rank's features of the images to learn from and of the held-out ones. Raises UserError."""
        encode = self.encode(layer)
        return self.share_of(self.train, encode, self.world), self.share_of(self.held_out, encode, self.world)

    def share_of(self, source: store.Source, encode: features.Encode, world: World) -> features.Features:
        """Compute this rank's features of a source. Raises UserError, on all ranks, where some are not finite."""
        share = self._share(encode, source, world)
        bad = sum(world.gather_objects(int((~share.rows.isfinite().all(1)).sum())))
        if bad:
            rule = f"the features of {bad} of {len(source)} images are not finite"
            raise UserError.of("weights", self.digest[:12], rule, "look at the run's loss; take an earlier checkpoint")
        return share

    def classify(self, logits: features.Encode, world: World) -> Tensor:
        """Classify the held-out images. Returns [n] classes, on the CPU.

        Args:
            logits: of normalised images: [n, C, S, S] to [n, classes].
            world: the ranks that share the work.
        """
        share = self._share(logits, self.held_out, world)  # rows of length 1 each, which moves no maximum
        return features.in_order(share.rows.argmax(1), share.indices, world).cpu()

    def _share(self, encode: features.Encode, source: store.Source, world: World) -> features.Features:
        data = self.config.data
        share, unreadable = features.extract(encode, source, world, data, self.augmentation, torch.float32)
        self.name_unreadable(unreadable, source, world)
        return share

    def name_unreadable(self, on_rank: Sequence[Unreadable], source: store.Source, world: World) -> None:
        """Name replaced images of all ranks, each once; more than 1 % of a source's are a mistake, as in training.

        Raises:
            UserError: they are more than 1 %; on all ranks.
        """
        unreadable = sorted({image for images in world.gather_objects(on_rank) for image in images})
        sources.check_unreadable(len(unreadable), unreadable, source, self.config.data)
        if new := [image for image in unreadable if image not in self._named]:
            self._named.update(new)
            names = some_names(list(map(str, new)))
            self.world.warn(f"moco_dist.evaluate: cannot be decoded, replaced by others: {names}")


def open_subject(path: Path, config: Config, world: World, layer: Layer) -> Subject:
    """Read the weights and open the images.

    Args:
        path: run directory, or file of weights. A run that has gone on since it was done is as its last checkpoint.
        config: of the run.
        world: joined, with its device.
        layer: whose features will be asked for; the head is in checkpoints alone.

    Raises:
        UserError: the weights, the images and the config do not fit together.
    """
    own = paths.RunPaths(path).config
    begun = {"data": {}, **configs.read_tree(own)} if own.is_file() else None  # weights do not tell their decoder
    config = configs.with_decoder(config, begun)
    data = sources.on_all_ranks(config, world, sources.open_splits)
    for remark in data.remarks:
        world.tell(f"moco_dist.evaluate: {remark}")
    if data.bank is None or data.queries is None:
        rule, fix = "no labels", "give a folder with train/ and val/ of class folders"
        if data.bank is not None:
            rule, fix = "no held-out images with labels", f"{fix}, or --split validation"
        raise UserError.of("data.root", config.data.root, rule, fix)
    if data.bank.labels is not None and len(np.unique(data.bank.labels)) < 2:
        rule = "all images are of one class, and there is nothing to tell apart"
        raise UserError.of("data.root", config.data.root, rule, "give a folder with two class folders or more")
    encoder = resnet.build_encoder(config.model, data.train.channels, config.run.seed)
    learnt = 0
    if begun is not None:
        step = world.from_first(lambda: from_run.choose_step(path, with_head=layer == "head"))
        world.agreed(lambda: from_run.load_(encoder, path, step))
        learnt = world.from_first(lambda: status.read(path).step) if step is None else step
    elif layer == "head":
        raise UserError.of("--features", layer, "weights have no head", "give a run directory with a checkpoint")
    else:
        lines, differing = world.agreed(lambda: _load_weights_(encoder, path, config, data.train))
        for line in lines:
            world.tell(f"moco_dist.evaluate: {line}")
        if differing:
            world.warn(f"moco_dist.evaluate: {printable(str(path))} {differing}")
    digests = weights.digest(encoder, head=False), weights.digest(encoder, head=True)
    return Subject(config, world, encoder.to(world.device).eval(), *digests, data.bank, data.queries, learnt)


def _load_weights_(encoder: resnet.Encoder, path: Path, config: Config, train: store.Source) -> tuple[list[str], str]:
    """Load weights in place.

    Returns:
        A line each of what was taken, renamed and left out, and in what the images differ from those that the weights
        were trained on; "" where they do not, or nothing tells.

    Raises:
        UserError: no such file, not weights of one ResNet, or layers that do not fit.
    """
    file = weight_files.read(path, "WEIGHTS")
    lines, described = weights.take_backbone_(encoder, file, path, key="WEIGHTS"), description.read(file)
    if described is None:
        return lines, ""
    mean, std = map(tuple, train.pixel_statistics)
    now = replace(Preprocessing.of(config), mean=mean, std=std)
    pairs = [(name, getattr(described.preprocessing, name), getattr(now, name)) for name in _OF_IMAGES]
    differing = [(f"data.{name}={shown(was)}", f"data.{name}={shown(has)}") for name, was, has in pairs if was != has]
    theirs, ours = (" ".join(texts) for texts in zip(*differing, strict=True)) if differing else ("", "")
    return lines, f"was trained with {theirs}, and is judged with {ours}" if differing else ""
