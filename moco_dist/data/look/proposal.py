"""Propose a config that fits a folder of images: every key with its reason, and where the number comes from.

The numbers are those of the papers and of the authors' code, scaled to the number and size of the images. They are
where to begin, not what is best.
"""

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from moco_dist import config as configs
from moco_dist.config import Config
from moco_dist.data.look.survey import Survey
from moco_dist.errors import UserError

_SIDES = (8, 16, 24, 28, 32, 48, 64, 96, 128, 160, 192, 224)
"""Sides of the crop in pixels to choose from; 224 is that of the papers."""
_SMALL_SIDE = 64
"""Up to this side, the small stem keeps the detail that the ImageNet stem would reduce to two pixels."""
_LARGE = 100_000
"""ImageNet's settings are proposed from this number of images on; below it, those of the authors' CIFAR-10 demo."""
_DEMO_STEPS = 20_000
"""Steps of the authors' CIFAR-10 demo: 200 epochs of 97."""


@dataclass(frozen=True)
class Setting:
    """A setting is one key of the proposed config."""

    key: str
    """`section.key`."""
    value: Any
    reason: str
    """Why this value, and its source."""


def propose(survey: Survey, gpus: int) -> list[Setting]:
    """Propose a config for training on the images of a folder.

    Args:
        survey: what the folder holds.
        gpus: number of ranks that will train.

    Raises:
        UserError: there are too few images for so many ranks.
    """
    settings = [*_data(survey), *_encoder(survey), *_contrast(survey, gpus), *_evaluation(survey)]
    config = parse(settings)
    configs.layout(config, gpus)
    return settings


def parse(settings: list[Setting]) -> Config:
    """Validate a proposed config. Raises UserError."""
    return configs.parse(tree(settings))


def tree(settings: list[Setting]) -> dict[str, dict[str, Any]]:
    """Return the settings as sections of keys."""
    sections: dict[str, dict[str, Any]] = {}
    for setting in settings:
        section, _, name = setting.key.partition(".")
        sections.setdefault(section, {})[name] = setting.value
    return sections


def as_yaml(settings: list[Setting], heading: str) -> str:
    """Write the settings as a config file in which a comment above each key gives its reason."""
    schema = configs.SHIPPED_CONFIGS.resolve() / "schema.json"
    lines = [f"# yaml-language-server: $schema={schema}", *textwrap.wrap(heading, 116, initial_indent="# ")]
    for section, keys in tree(settings).items():
        lines.append(f"{section}:")
        for name, value in keys.items():
            reason = next(s.reason for s in settings if s.key == f"{section}.{name}")
            lines += textwrap.wrap(reason, 112, initial_indent="  # ", subsequent_indent="  # ")
            lines.append(f"  {name}: {in_yaml(value)}")
    return "\n".join(lines) + "\n"


def in_yaml(value: object) -> str:
    """Write a value in YAML, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _data(survey: Survey) -> Iterator[Setting]:
    yield Setting("data.source", "imagefolder", "a tree of image files")
    yield Setting("data.root", configs.literal(survey.root.absolute()), "the folder that was looked at")
    channels = survey.channels
    colours = {1: "they are gray", 3: "they have colours"}.get(channels, f"they have {channels} channels")
    yield Setting("data.channels", channels, f"{colours}, as far as {len(survey.measured)} of them were read")
    if survey.value_range:
        low, high = survey.extremes or survey.value_range
        reason = f"the values lie in {low:g} to {high:g}; unset, 0 to 65535 were black to white, and 0 to 1 of floats"
        yield Setting("data.value_range", list(survey.value_range), reason)
    else:
        mean, std = survey.pixel_statistics
        reason = f"measured on {len(survey.fitting)} images; unset, ImageNet's serve for gray and for colour"
        yield Setting("data.mean", [round(number, 4) for number in mean], reason)
        yield Setting("data.std", [max(0.004, round(number, 4)) for number in std], "measured with the mean")
    side = _side(survey)
    typical = f"half of the images have a shorter side of {survey.typical_side} pixels or less"
    source = "the papers crop to 224 (MoCo v1, section 4.1)" if side == 224 else "a crop cannot be larger than that"
    yield Setting("data.image_size", side, f"{typical}; {source}")
    if survey.sides[len(survey.sides) // 10] < side:
        reason = "a tenth of the images or more are smaller than the crop; like small crops, they are scaled up"
        yield Setting("data.enlarge", True, reason)
    if channels == 1 and side <= 32:
        reason = "small gray images are often signs, which colours do not tell apart and a mirror changes"
        yield Setting("data.augmentation", "crop_blur", reason)
        reason = "of a small sign, a fifth of the area would be a stroke; as in configs/digits.yaml"
        yield Setting("data.crop_scale", [0.6, 1.0], reason)
        yield Setting("data.blur_sigma", [0.1, 0.5], "in pixels, of which there are few; as in configs/digits.yaml")
    else:
        yield Setting("data.augmentation", "v2", "MoCo v2, section 3: colours, blur, flip")
        yield Setting("data.crop_scale", [0.2, 1.0], "MoCo v2, section 3")
        if side <= 32:
            reason = "a blur erases images of so few pixels; the authors' CIFAR-10 demo has none"
            yield Setting("data.blur_probability", 0.0, reason)
    reason = "chosen at each start, by the cores of a rank and the time of a batch; no figure depends on it"
    yield Setting("data.workers", "auto", reason)


def _encoder(survey: Survey) -> Iterator[Setting]:
    side, large = _side(survey), survey.trained_images >= _LARGE
    small = side <= _SMALL_SIDE
    if small:
        reason = "3x3 without a pool: images of so few pixels lose too much in the ImageNet stem (CIFAR-10 demo)"
        yield Setting("model.stem", "small", reason)
    else:
        yield Setting("model.stem", "imagenet", "7x7 and a pool, for large images (He et al. 2016)")
    if large and not small:
        yield Setting("model.arch", "resnet50", "MoCo v1, section 4.1")
    else:
        reason = "ResNet-18 of the CIFAR-10 demo; few or small images do not fill a larger encoder"
        yield Setting("model.arch", "resnet18", reason)


def _contrast(survey: Survey, gpus: int) -> Iterator[Setting]:
    images, large = survey.trained_images, survey.trained_images >= _LARGE
    groups, batch = _batch(images, gpus)
    steps = images // batch
    queue = _queue(images, batch)
    reason = (
        f"a multiple of the batch, {queue / images:.0%} of the images (MoCo v1, section 4.1: 5 % of ImageNet); a queue "
    )
    reason += "larger than the data would hold other views of a query's own image as negatives"
    yield Setting("moco.queue_size", queue, reason)
    if large:
        yield Setting("moco.momentum", 0.999, "MoCo v1, section 4.1, for long queues and much data")
        yield Setting("moco.temperature", 0.2, "MoCo v2, section 3")
    else:
        yield Setting("moco.momentum", 0.99, "the CIFAR-10 demo: a short run needs a key encoder that follows sooner")
        yield Setting("moco.temperature", 0.1, "the CIFAR-10 demo, for tens of thousands of images or fewer")
        reason = "each view is query and key once: twice the time of a step, 2.7 points of kNN in the CIFAR-10 demo"
        yield Setting("moco.symmetric", True, reason)
    reason = f"a multiple of {_ranks(gpus)}, about 8 as in MoCo v1, section 3.3; groups of {batch // groups} images"
    if groups < min(8, batch):
        reason = f"so few images give {_ranks(gpus)} no more groups of {batch // groups}"
        reason += "; shuffle-BN (MoCo v1, section 3.3) wants 2 or more" * (groups == 1)
    yield Setting("moco.bn_groups", groups, reason)
    reason = "256 in MoCo v1, in groups of 32 images; less where the images are few, more where there are many GPUs"
    yield Setting("optim.global_batch", batch, reason)
    lr = float(f"{0.03 * batch / 256:.2g}")
    yield Setting("optim.lr", lr, "0.03 for a batch of 256 (MoCo v1, section 4.1), in proportion (Goyal et al. 2017)")
    if large:
        yield Setting(
            "optim.epochs", 200, "the papers' 200; 800 gave 3.6 points of linear probe more in MoCo v2, table 2"
        )
    else:
        epochs = min(2000, max(200, 10 * round(_DEMO_STEPS / steps / 10)))
        reason = f"{epochs * steps} steps of {steps} an epoch; the CIFAR-10 demo has {_DEMO_STEPS}, in 200 epochs"
        yield Setting("optim.epochs", epochs, reason)
    reason = "MoCo v1, section 4.1" if large else "the CIFAR-10 demo, more than ImageNet's 1e-4 where images are few"
    yield Setting("optim.weight_decay", 1e-4 if large else 5e-4, reason)


def _evaluation(survey: Survey) -> Iterator[Setting]:
    if not survey.labelled:
        return
    if len(survey.classes) == 1:
        yield Setting("eval.knn_every", 0, "all images are of one class, so that kNN has nothing to tell apart")
        return
    if survey.cut_off:
        reason = "no held-out images have the same classes, so a tenth of the labelled ones is cut off to watch kNN by"
        yield Setting("eval.knn_split", "validation", reason)
    neighbours = max(1, min(200, min(survey.classes.values()) // 2))
    reason = "200 in Wu et al. 2018 and the CIFAR-10 demo; at most half of the smallest class"
    yield Setting("eval.knn_k", neighbours, reason)


def _ranks(number: int) -> str:
    return f"{number} rank{'s' * (number > 1)}"


def _side(survey: Survey) -> int:
    """Choose the side of the crop in pixels."""
    return max((side for side in _SIDES if side <= survey.typical_side), default=max(4, survey.typical_side))


def _batch(images: int, gpus: int) -> tuple[int, int]:
    """Choose BatchNorm groups and global batch, which divide by the ranks. Raises UserError."""
    wanted = max(images // 8, min(64, images // 2))  # eight steps an epoch, but no tiny batch
    groups = gpus * max(1, round(8 / gpus))
    while groups > gpus and wanted // groups < 8:
        groups = gpus * (groups // gpus // 2)
    group = max(2, 1 << min(32, max(1, wanted // groups)).bit_length() - 1)  # images, a power of two
    if groups * group > images:
        rule = f"BatchNorm needs 2 images a rank, and there are {images} to train on"
        raise UserError.of("--gpus", gpus, rule, f"use {images // 2} or fewer" if images > 1 else "add images")
    return groups, groups * group


def _queue(images: int, batch: int) -> int:
    """Choose the length of the queue, a multiple of the batch."""
    wanted = min(65536, max(images // 10, min(images // 2, 4096)))
    power = 1 << max(0, wanted.bit_length() - 1)
    return power if power >= batch and power % batch == 0 else max(1, wanted // batch) * batch
