"""Write a package: a folder with the encoder for people who do not have this project, and a card that describes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moco_dist import __version__, files
from moco_dist import config as configs
from moco_dist.config import Config
from moco_dist.config.schema import TrackSection
from moco_dist.encoders.description import Description
from moco_dist.encoders.load import PretrainedEncoder
from moco_dist.encoders.preprocessing import Preprocessing
from moco_dist.export import card, facts, manifest, state_dicts, usage
from moco_dist.export.options import Options
from moco_dist.networks import weights

CARD, TRAINING, PREPROCESSING = "README.md", "training.yaml", "preprocessing.json"


def write(options: Options, encoder: PretrainedEncoder, description: Description, step: int) -> str:
    """Write the package aside, and give it its name when it is whole.

    Returns:
        What the package says.

    Raises:
        OSError: it cannot be written.
    """
    out = options.out
    options.make_place()
    with files.folder_aside(out) as aside:
        new, old = aside / "new", aside / "old"
        new.mkdir()
        _fill(new, options, encoder, description, step)
        try:
            if out.exists():
                out.rename(old)
            new.rename(out)
        finally:
            if old.exists() and not out.exists():  # also where Ctrl-C came between the two
                old.rename(out)
    loads = "torchvision and timm" if usage.fits_timm(encoder.model, encoder.preprocess.channels) else "torchvision"
    return f"its {CARD} has the lines that load it in {loads}, and moco_dist.load_encoder takes the folder"


def _fill(folder: Path, options: Options, encoder: PretrainedEncoder, description: Description, step: int) -> None:
    """Write the files of a package. Raises OSError."""
    model, preprocessing = encoder.model, encoder.preprocess
    (folder / "model.safetensors").write_bytes(weights.as_safetensors(encoder.network, description.metadata()))
    (folder / usage.WEIGHTS).write_bytes(state_dicts.as_torchvision(encoder.network))
    _write_json(folder / PREPROCESSING, {**preprocessing.fields(), "channels": preprocessing.channels})
    if usage.fits_timm(model, preprocessing.channels):
        _write_json(folder / "config.json", _of_timm(encoder))
    files.write_text(folder / TRAINING, configs.dump(shareable(options.config)))
    content = card.write(facts.gather(options, step, encoder.digest), encoder, options.encoder)
    files.write_text(folder / CARD, content)
    manifest.write(folder, __version__)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    files.write_text(file, json.dumps(content, indent=1) + "\n")


def _of_timm(encoder: PretrainedEncoder) -> dict[str, Any]:
    """Return the config.json by which timm loads a folder."""
    pretrained = {
        "input_size": [3, *[encoder.preprocess.image_size] * 2],
        "interpolation": "bilinear",
        "crop_pct": crop_part(encoder.preprocess),
        "crop_mode": "center",
        "mean": list(encoder.preprocess.mean),
        "std": list(encoder.preprocess.std),
        "num_classes": 0,
        "first_conv": "conv1",
        "classifier": "fc",
    }
    names = {"architecture": encoder.model.arch, "num_classes": 0, "num_features": encoder.feature_dim}
    return {**names, "pretrained_cfg": pretrained}


def crop_part(preprocessing: Preprocessing) -> float:
    """Return the part of an image's shorter side that is cut out of it, so that timm resizes it to the same pixels.

    timm rounds the quotient of the square and this part down.
    """
    size, resize = preprocessing.image_size, preprocessing.resize
    return 1.0 if size == resize else size / (resize + 0.5)


def shareable(config: Config) -> Config:
    """Return the config of a run without private settings: folders, and all that says where its figures are shown."""
    run = config.run.model_copy(update={"dir": None, "init_from": _last_name(config.run.init_from)})
    data = config.data.model_copy(update={"root": _last_name(config.data.root)})
    kept = config.track.model_dump(include={"log_every", "compare_ranks_every"})
    return config.model_copy(update={"run": run, "data": data, "track": TrackSection(**kept)})


def _last_name(path: str | None) -> str | None:
    """Return the last name of a path alone."""
    return (Path(path).name or None) if path else path
