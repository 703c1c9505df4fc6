"""Describe the encoder and the folder that features come from, so that those of another one are refused."""

from __future__ import annotations

import hashlib
from typing import Any

from moco_dist.data.store import FileSource
from moco_dist.embed.options import Options
from moco_dist.encoders.load import PretrainedEncoder
from moco_dist.networks import weights

FORMAT = 1
"""Number of the format of the files; another number is refused."""


def describe(options: Options, encoder: PretrainedEncoder, images: FileSource) -> dict[str, Any]:
    """Describe features, as their file keeps it in JSON.

    Args:
        options: how they are computed.
        encoder: what computes them.
        images: of the folder, those that cannot be read included.
    """
    config = encoder.origin.config
    return {
        "format": FORMAT,
        "weights": encoder.digest,
        "head": weights.digest(encoder.network, head=True) if options.features == "head" else None,
        "encoder": encoder.origin.which,
        "run": None if config is None or options.run_dir is None else config.run.name,
        "step": encoder.origin.step,
        "features": options.features,
        "normalised": options.normalise,
        "preprocessing": encoder.preprocess.fields(),
        **of_folder(images),
    }


def of_folder(images: FileSource) -> dict[str, Any]:
    """Describe the images of a folder: how many, the sha256 of their names, and that of the contents of a few."""
    names = hashlib.sha256(b"\0".join(images.names.tolist())).hexdigest()
    return {"images": len(images), "names": names, "contents": images.sample_digest()}
