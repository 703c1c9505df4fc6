"""Describe an encoder beside its weights, so that a file of them alone can be loaded: its network and its images."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moco_dist import config as configs
from moco_dist.config import Config
from moco_dist.config.schema import ModelSection
from moco_dist.encoders.preprocessing import Preprocessing
from moco_dist.errors import UserError, shown
from moco_dist.files import parse_object
from moco_dist.networks.weight_files import WeightFile

_METADATA = "moco_dist"
"""Name of the description in the metadata of a safetensors file."""
_MOST_WIDE = 1 << 16
"""Channels and outputs that a file may describe: those of a damaged one would take all memory."""
_RESIZING = {"interpolation": "bilinear", "crop_mode": "center"}
"""Entries of timm's config.json that say how images are resized, and what is done here."""


@dataclass(frozen=True)
class Description:
    """A description says how the network of some weights is built, and which images it takes."""

    model: ModelSection
    preprocessing: Preprocessing
    run: Mapping[str, Any] = field(default_factory=dict)
    """The name of the run and the steps done; empty for weights from elsewhere."""

    @classmethod
    def of(cls, config: Config, step: int) -> Description:
        """Describe the encoder of a run after a number of steps."""
        return cls(config.model, Preprocessing.of(config), {"name": config.run.name, "step": step})

    def fields(self) -> dict[str, Any]:
        """Return the description as JSON holds it."""
        model, preprocessing = self.model.model_dump(mode="json"), self.preprocessing.fields()
        return {"model": model, "preprocessing": preprocessing, "run": dict(self.run)}

    def metadata(self) -> dict[str, str]:
        """Return the description as the metadata of a safetensors file."""
        return {_METADATA: json.dumps(self.fields())}


def read(file: WeightFile) -> Description | None:
    """Read the description beside weights of ours; None where there is none, or it is damaged."""
    if (described := _of_checkpoint(file)) is not None:
        return described
    content = parse_object(file.metadata.get(_METADATA, ""))
    try:
        model = ModelSection.model_validate(content["model"])
        preprocessing = Preprocessing.read(content["preprocessing"])
    except (KeyError, TypeError, ValueError):
        return None
    run = content.get("run")
    if preprocessing is None or not _is_sound(model):
        return None
    return Description(model, preprocessing, run if isinstance(run, dict) else {})


def _is_sound(model: ModelSection) -> bool:
    """Return whether a network that a file describes is of a size that one can build."""
    return max(model.width, model.dim) <= _MOST_WIDE


def _of_checkpoint(file: WeightFile) -> Description | None:
    """Describe the encoder in a checkpoint of ours by the config in it; None for any other file."""
    content, step = file.tree.get("config"), file.tree.get("step")
    if not isinstance(content, dict) or not isinstance(step, int) or "encoder_q" not in file.tree:
        return None
    try:
        described = Description.of(configs.parse(content), step)
    except UserError:
        return None
    return described if _is_sound(described.model) else None


def of_folder(file: WeightFile, channels: int) -> Preprocessing | None:
    """Read the preprocessing of a folder of timm's, out of its config.json; None where that does not tell it."""
    pretrained = file.config.get("pretrained_cfg")
    if not isinstance(pretrained, dict):
        return None
    try:
        in_channels, height, width = pretrained["input_size"]
        fields = {"image_size": height, "mean": pretrained["mean"], "std": pretrained["std"]}
        if in_channels != channels or height != width:
            return None
        return Preprocessing.read({**fields, "resize": math.floor(height / pretrained.get("crop_pct", 0.875))})
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None


def other_resizing(file: WeightFile) -> str:
    """Say how a folder of timm's wants its images resized, where that is otherwise than here; else ""."""
    pretrained = file.config.get("pretrained_cfg")
    wanted = pretrained if isinstance(pretrained, dict) else {}
    others = [f"{name}={shown(wanted[name])}" for name, ours in _RESIZING.items() if wanted.get(name, ours) != ours]
    return ", ".join(others)
