"""Load an encoder as a module that computes features, from a run or from the weights of any program."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from moco_dist import config as configs
from moco_dist.config.from_python import Overrides, as_path, check_choice, values_of, whole_of
from moco_dist.config.schema import ModelSection
from moco_dist.data.pixel_statistics import general_statistics
from moco_dist.encoders import description, from_run
from moco_dist.encoders.choices import Which
from moco_dist.encoders.description import Description
from moco_dist.encoders.preprocessing import Preprocessing
from moco_dist.errors import UserError, reason
from moco_dist.networks import batchnorm, resnet, weight_files, weights
from moco_dist.networks.weight_files import WeightFile
from moco_dist.ranks.torch_modes import plain_modes
from moco_dist.run import directory, paths, status

_KEY = "WEIGHTS"
"""Messages call the weights so, as the commands do."""
_LARGE, _SMALL = 224, 32
"""Sides in pixels of the images that encoders of a large and of a small stem are customarily trained on."""
_OF_IMAGES = ("data.image_size", "data.mean", "data.std", "data.value_range")
"""Keys of the config that describe the images of weights from elsewhere."""


@dataclass(frozen=True)
class Origin:
    """The origin says which file and run an encoder comes from."""

    path: Path
    which: Which = "query"
    step: int | None = None
    """The number of steps that the run had done; None for weights from elsewhere."""
    config: configs.Config | None = None
    """The config of the run; None for weights from elsewhere without one."""
    notes: tuple[str, ...] = ()
    """A line for each kind of layers that were taken from weights, renamed, or left out."""


class PretrainedEncoder(nn.Module):
    """A pretrained encoder computes features of images, and has the preprocessing that these need.

    It begins in evaluation mode, with gradients, and its BatchNorms are torch's own, so that it can be fine-tuned as
    any other module.

    Attributes:
        network: the ResNet, in torchvision's names; its `fc` is MoCo's head.
        preprocess: turns an image (a path, a PIL image or an array of pixels) into float32 [C, S, S].
        model: the section of the config that describes the network.
        origin: where the weights come from.
        has_head: whether the head is that of the run; else its weights are random, and `project` refuses.
    """

    def __init__(
        self, network: resnet.Encoder, preprocess: Preprocessing, model: ModelSection, origin: Origin, *, has_head: bool
    ) -> None:
        super().__init__()
        self.network, self.preprocess, self.model = network, preprocess, model
        self.origin, self.has_head = origin, has_head

    @property
    def feature_dim(self) -> int:
        """Return the length D of a feature."""
        return self.network.feature_dim

    @functools.cached_property
    def digest(self) -> str:
        """Return the sha256 of the weights as they were when it was first asked for, without the head."""
        return weights.digest(self.network, head=False)

    def features(self, images: Tensor) -> Tensor:
        """Compute the features that the evaluation uses: the pooled output of the last stage, before the head.

        Args:
            images: [N, C, S, S], each from `preprocess`.

        Returns:
            [N, D], not normalised.
        """
        return self.network.features(images)

    def project(self, images: Tensor) -> Tensor:
        """Compute the vectors that the loss compares: the head's output, of length 1 (He et al. 2020, section 3.1).

        Args:
            images: [N, C, S, S], each from `preprocess`.

        Returns:
            [N, dim]

        Raises:
            ValueError: the weights have no head.
        """
        if not self.has_head:
            raise ValueError(f"{self.origin.path} has no head; load a checkpoint of its run, by head=True")
        return nn.functional.normalize(self.network(images), dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the features of images, as `features` does."""
        return self.features(images)

    def extra_repr(self) -> str:
        """Describe the encoder in the module's representation."""
        steps = "" if self.origin.step is None else f", step {self.origin.step}"
        return f"{self.model.arch}, {self.model.stem} stem, {self.feature_dim} features, of {self.origin.path}{steps}"


def load_encoder(
    path: str | os.PathLike[str],
    *,
    encoder: Which = "query",
    head: bool = False,
    step: int | None = None,
    config: str | os.PathLike[str] | None = None,
    overrides: Overrides = (),
    device: str | torch.device = "cpu",
) -> PretrainedEncoder:
    """Load an encoder with its preprocessing, from a run or from weights.

    Args:
        path: a run, its directory, or weights: an encoder.safetensors, a checkpoint of this or of another program, or a
            folder of Hugging Face's or timm's. The layout of the names is detected.
        encoder: the query encoder, which is trained, or the key encoder, which follows it; the latter is in runs alone.
        head: whether to load MoCo's head too, for `project`; it is in the checkpoints of runs alone.
        step: of the checkpoint of a run; None: the final encoder, or the last checkpoint of a run that goes on.
        config: of weights from elsewhere, a config that tells their images; without it, what the file tells counts.
        overrides: as those of `fit`; of weights without a config `data.image_size`, `mean`, `std` and `value_range`.
        device: where the module lies.

    Returns:
        The module, in evaluation mode.

    Raises:
        UserError: there is no such run or file, it is damaged, it does not fit what it is said to be, or there is no
            such device.

    Example:
        >>> import moco_dist
        >>> import numpy as np
        >>> import torch
        >>> encoder = moco_dist.load_encoder("runs/digits")
        >>> images = [np.full((8, 8), gray, np.uint8) for gray in (0, 90, 200)]  # or paths, or PIL images
        >>> with torch.no_grad():
        ...     features = encoder.features(torch.stack([encoder.preprocess(image) for image in images]))
        >>> features.shape
        torch.Size([3, 64])
    """
    path, values = as_path(_KEY, path), values_of(overrides)
    check_choice("encoder", encoder, get_args(Which))
    step, run_dir = whole_of("step", step), paths.run_dir_of(path)
    place = _usable(device)
    with plain_modes():  # else the weights would be of the caller's default dtype, or on no device
        if run_dir is not None:
            if config is not None:
                raise UserError.of("config", config, "a run directory has its config", "give overrides alone")
            loaded = _of_run(run_dir, encoder, head, step, values)
        else:
            for name, value, plain in (("encoder", encoder, "query"), ("head", head, False), ("step", step, None)):
                if value != plain:
                    raise UserError.of(name, value, "is in a run alone", "give a run directory, or drop it")
            loaded = _of_weights(path, None if config is None else as_path("config", config), values)
        batchnorm.make_plain_(loaded)
        return loaded.eval().to(place)


def _usable(device: str | torch.device) -> torch.device:
    """Return the device of a name, if it works on this machine. Raises UserError."""
    try:
        return torch.empty(0, device=torch.device(device)).device
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:  # each device refuses in its own way
        cause = reason(error).split(". ")[0]
        raise UserError.of("device", device, f"cannot be used here: {cause}", 'use device="cpu"') from None


def _of_run(run_dir: Path, which: Which, head: bool, step: int | None, values: Mapping[str, Any]) -> PretrainedEncoder:
    config = directory.load_config(paths.RunPaths(run_dir).config, values=values)
    chosen = from_run.choose_step(run_dir, with_head=head, which=which, step=step)
    network = resnet.build_encoder(config.model, config.data.channel_count, config.run.seed)
    from_run.load_(network, run_dir, chosen, which)
    steps = status.read(run_dir).step if chosen is None else chosen
    origin = Origin(run_dir, which, steps, config)
    return PretrainedEncoder(network, Preprocessing.of(config), config.model, origin, has_head=chosen is not None)


def _of_weights(path: Path, config: Path | None, values: Mapping[str, Any]) -> PretrainedEncoder:
    file, full = weight_files.read(path, _KEY), None
    if config is not None:
        full = configs.load(config, values=values)
        described = Description(full.model, Preprocessing.of(full))
    else:
        described = _overridden(_describe(file, path, values), values, path)
    with torch.device("meta"):  # what does not fit may be of any size, and is refused before it takes memory
        weights.fitting_layers(resnet.Encoder(described.model, described.preprocessing.channels), file, path, _KEY)
    network = resnet.build_encoder(described.model, described.preprocessing.channels, seed=0)
    notes = weights.take_backbone_(network, file, path, key=_KEY)
    step = described.run.get("step")
    which: Which = "key" if described.run.get("encoder") == "key" else "query"
    origin = Origin(path, which, step if isinstance(step, int) else None, full, tuple(notes))
    return PretrainedEncoder(network, described.preprocessing, described.model, origin, has_head=False)


def _describe(file: WeightFile, path: Path, values: Mapping[str, Any]) -> Description:
    """Describe weights by the description beside them, or else by their shapes and what is customary.

    Args:
        file: the weights.
        path: of the file.
        values: overrides of the caller's, by key; what nothing tells of the images is assumed, with a warning.

    Raises:
        UserError: they are not those of a ResNet of ours.
    """
    if described := description.read(file):
        return described
    layers = weights.layers_of(file, weights.recognise(file, path, _KEY), {}, _KEY, path)
    settings = weights.settings_of(layers)
    if not settings:
        rule = "has layers that no model.arch, stem and width of ours has"
        raise UserError.of(_KEY, path, rule, "give one of torchvision's ResNets")
    model = ModelSection(arch=settings["model.arch"], stem=settings["model.stem"], width=settings["model.width"])
    channels = settings["data.channels"]
    preprocessing = description.of_folder(file, channels)
    if preprocessing is not None and (resizing := description.other_resizing(file)):
        what = f"are resized with {resizing}; here bilinearly, and the centre is cut out, so features differ somewhat"
        warnings.warn(f"{path} is for images that {what}", stacklevel=4)
    if preprocessing is None:
        preprocessing = Preprocessing.general(_LARGE if model.stem == "imagenet" else _SMALL, channels)
        assumed = [] if "data.image_size" in values else [f"{preprocessing.image_size} pixels"]
        statistics = "ImageNet's statistics" if channels in (1, 3) else f"means of {preprocessing.mean[0]:g}"
        assumed += [] if "data.mean" in values else [statistics]
        if assumed:
            what = f"{' and '.join(assumed)} are assumed"
            warnings.warn(f"{path} does not describe its images: {what}; give config or overrides", stacklevel=4)
    return Description(model, preprocessing)


def _overridden(described: Description, values: Mapping[str, Any], path: Path) -> Description:
    """Replace settings of the images that the weights take. Raises UserError for an override of anything else."""
    before = described.preprocessing
    if strange := [key for key in values if key not in _OF_IMAGES]:
        rule = "weights without a config have none but these keys: " + ", ".join(_OF_IMAGES)
        raise UserError.of("overrides", strange[0], rule, f"give config, which describes {path.name}")
    fixed = {"data.source": "synthetic", "data.channels": before.channels, "data.image_size": before.image_size}
    of_pixels = {"data.mean": before.mean, "data.std": before.std, "data.value_range": before.value_range}
    data = configs.load(None, values={**fixed, **of_pixels, **values}).data
    mean, std = (data.mean, data.std) if data.mean and data.std else general_statistics(before.channels)
    changed = replace(before.at(data.image_size), mean=mean, std=std, value_range=data.value_range)
    return replace(described, preprocessing=changed)
