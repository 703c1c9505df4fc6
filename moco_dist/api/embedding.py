"""Compute features of a folder from Python, in this process or in all ranks of torchrun."""

from __future__ import annotations

import os
from typing import get_args

from moco_dist.config.from_python import Overrides, as_path, check_choice, values_of, whole_of
from moco_dist.embed.embedding import Embedding
from moco_dist.embed.options import BATCH, Options, check_out_of_features
from moco_dist.encoders.choices import Layer, Which
from moco_dist.ranks.rank import Rank


def embed_folder(
    run_or_weights: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    features: Layer = "backbone",
    normalise: bool = False,
    encoder: Which = "query",
    step: int | None = None,
    config: str | os.PathLike[str] | None = None,
    overrides: Overrides = (),
    batch: int = BATCH,
    verbose: bool = False,
) -> Embedding:
    """Compute the features of all images of a folder, as `python -m moco_dist.embed` does.

    The folder may have any tree: classes and splits do not matter. Images that cannot be decoded are left out, never
    replaced. Under torchrun every rank calls it, and the ranks share the work; on the CPU they change no bit of the
    features. This process is given back as it was.

    Args:
        run_or_weights: a run, its directory, or weights, as `load_encoder` takes them.
        folder: of images, or the shards that `python -m moco_dist.data pack` makes.
        out: a file that is written as the features come, so that no more than a few chunks are in memory: `.npy`, with
            the names beside it in `.files.json`, or `.parquet`, with the columns `file` and `features`.
        features: of the backbone, [n, D], as the evaluation uses them; or the output of the head, which runs have.
        normalise: whether each feature is divided by its length.
        encoder: the query encoder, which is trained, or the key encoder, which follows it.
        step: of a checkpoint of the run; unset, the final encoder, or the last checkpoint of a run that goes on.
        config: of weights from elsewhere, a config that tells their images.
        overrides: as those of `fit`, such as `{"data.workers": 8, "device.type": "cpu"}`.
        batch: images that are computed together; the last bits of features may depend on it.
        verbose: whether progress and remarks are printed, by rank 0; warnings always are, on stderr.

    Returns:
        The names and the features, the same on every rank that can open `out`.

    Raises:
        UserError: a mistake of the user's, in one line; on all ranks that have met.
        Exception: whatever else goes wrong, as it was raised.

    Example:
        >>> import os
        >>> import moco_dist
        >>> import numpy as np
        >>> from PIL import Image
        >>> os.makedirs("images/cats")
        >>> for name, gray in (("b", 200), ("a", 90)):
        ...     Image.new("L", (8, 8), gray).save(f"images/cats/{name}.png")
        >>> embedding = moco_dist.embed_folder("runs/digits", "images")
        >>> embedding.files
        ['cats/a.png', 'cats/b.png']
        >>> embedding.features.shape, embedding.features.dtype
        ((2, 64), dtype('float32'))
        >>> in_file = moco_dist.embed_folder("runs/digits", "images", out="features.npy")
        >>> np.array_equal(np.load("features.npy"), embedding.features)
        True
    """
    check_choice("--features", features, get_args(Layer))
    check_choice("--encoder", encoder, get_args(Which))
    options = Options(
        path=as_path("RUN_DIR|WEIGHTS", run_or_weights),
        folder=as_path("FOLDER", folder),
        config=None if config is None else as_path("CONFIG", config),
        overrides=values_of(overrides),
        step=whole_of("--step", step),
        encoder=encoder,
        features=features,
        normalise=normalise,
        batch=BATCH if (count := whole_of("--batch", batch)) is None else count,
    )
    file = None if out is None else as_path("--out", out)
    loaded = options.load_config()
    if file is not None:
        check_out_of_features(file, options.folder)
    from moco_dist.embed import process
    from moco_dist.ranks.process_state import preserved

    rank = Rank.from_environment(quiet=not verbose)
    with preserved("moco_dist.embed_folder"):
        return process.call(options, file, loaded, rank)
