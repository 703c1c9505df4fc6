"""Refuse relatives of torchvision's ResNets that have the same layers and compute something else."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from moco_dist.errors import UserError, shown
from moco_dist.networks.layouts import Recognised, short
from moco_dist.networks.resnet import DEPTHS
from moco_dist.networks.weight_files import WeightFile

_AS_TORCHVISION = {
    "downsample_in_bottleneck": (False,),
    "downsample_in_first_stage": (False,),
    "hidden_act": ("relu",),
    "global_pool": ("avg", "fast", "fastavg", ""),
}
"""Entries of a config.json of transformers or timm, and their values where it computes what torchvision's does."""
_OF_NO_LAYER = frozenset({"in_chans", "num_classes", "global_pool", "zero_init_last"})
"""Arguments of timm's models that change shapes, the head or the beginning of training alone."""
_SAME_LAYERS = re.compile(r"resnet(blur|aa)\d+(\.\w+)?")
"""Models of timm that have the names and shapes of others, and a filter before each stride."""
_CAFFE = re.compile(r"""\bstyle\b['"]?\s*[=:]\s*['"]caffe['"]""")
"""The stride in the first convolution of a block, in the config that mmengine and mmcv save as text."""


def check(file: WeightFile, key: str, path: Path) -> None:
    """Refuse weights if a config.json, the name of a model or OpenMMLab's config beside them names another network.

    Raises:
        UserError: names what is different.
    """
    config = file.config
    architecture = str(config.get("architecture", "")).partition(".")[0]  # of timm; behind the dot, what it learned
    texts = [value for value in file.values.values() if isinstance(value, str)]
    same = next((text for text in texts if _SAME_LAYERS.fullmatch(text)), None)
    if same or (architecture and architecture not in DEPTHS):
        rule = f"is a {short(same or architecture)}, which has layers of a ResNet and computes something else"
        raise UserError.of(key, path, rule, f"give one of {', '.join(DEPTHS)}")
    fix = "give a ResNet that computes what torchvision's does"
    for name, values in _AS_TORCHVISION.items():
        if config.get(name, values[0]) not in values:
            rule = f"its config.json has {name}={shown(config[name])}, where torchvision's ResNets have {values[0]}"
            raise UserError.of(key, path, rule, fix)
    arguments = config.get("model_args")
    for name, value in arguments.items() if isinstance(arguments, dict) else ():
        if name not in _OF_NO_LAYER and not name.startswith("drop"):
            rule = f"its config.json has {short(name)}={shown(value)}, which torchvision's ResNets have not"
            raise UserError.of(key, path, rule, fix)
    if any(_CAFFE.search(text) for text in texts):
        rule = "its config has style='caffe': strides are in the first convolution of a block, not in the second"
        raise UserError.of(key, path, rule, fix)


def check_stem(file: WeightFile, recognised: Recognised, key: str, path: Path) -> None:
    """Refuse an encoder with a large stem and no pool behind it. Raises UserError."""
    if not recognised.layout.has_pool and _kernel(file, recognised) == 7:
        rule = "its layers are numbered as where no pool follows the 7x7 stem, which is followed by one in ours"
        raise UserError.of(key, path, rule, "give a ResNet that computes what torchvision's does")


def remarks(file: WeightFile, recognised: Recognised) -> list[str]:
    """Warn about properties of a network that its file does not record, and say how features would differ."""
    of_lightning = "pytorch-lightning_version" in file.tree and recognised.prefix == "state_dict.backbone."
    if of_lightning and _kernel(file, recognised) == 3:
        return ["if solo-learn made it: its 3x3 stem pads by 2 pixels, ours by 1, so features differ somewhat"]
    return []


def _kernel(file: WeightFile, recognised: Recognised) -> int:
    """Return the side of the stem's kernel; 0 where it has none."""
    stem = file.values.get(recognised.theirs.get("conv1.weight", ""))
    return stem.shape[-1] if isinstance(stem, Tensor) and stem.ndim == 4 else 0
