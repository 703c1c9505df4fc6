"""Compute the features of all images of a folder, from Python, in this process or in all ranks of torchrun."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moco_dist import config as configs
from moco_dist.data.decode import Unreadable
from moco_dist.embed.options import BATCH, Layer, Options, Which, check_out_of_features


@dataclass(frozen=True)
class Embedding:
    """An embedding is the features of a folder's images, in the order in which a walk of the folder meets these.

    Attributes:
        files: [n] names of the images, as paths below the folder; `os.fsencode` gives the bytes of one.
        unreadable: the images that cannot be decoded and are left out, each with `name` and `reason`.
        path: the file that holds the features; None where they are in memory.
    """

    files: list[str]
    unreadable: list[Unreadable]
    path: Path | None = None
    _in_memory: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def features(self) -> NDArray[np.float32]:
        """The features, float32 [n, D], row by row those of `files`.

        Of a file `.npy`, a memory map that cannot be written to; a Parquet file is read when they are first asked for.
        """
        if self._in_memory is not None:
            return self._in_memory
        from moco_dist.embed.stored import read_features

        assert self.path is not None
        return read_features(self.path)


def embed_folder(
    run_or_weights: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    features: Layer = "backbone",
    normalise: bool = False,
    which: Which = "query",
    step: int | None = None,
    config: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    batch: int = BATCH,
    verbose: bool = False,
) -> Embedding:
    """Compute the features of all images of a folder, as `python -m moco_dist.embed` does.

    The folder may have any tree: classes and splits do not matter. Images that cannot be decoded are left out, never
    replaced. Under torchrun every rank calls it, and the ranks share the work; on the CPU they change no bit of the
    features. This process is given back as it was.

    Args:
        run_or_weights: a run directory; or weights, as `load_encoder` takes them.
        folder: of images, or the shards that `python -m moco_dist.data pack` makes.
        out: a file that is written as the features come, so that no more than a few chunks are in memory: `.npy`, with
            the names beside it in `.files.json`, or `.parquet`, with the columns `file` and `features`.
        features: of the backbone, [n, D], as the evaluation uses them; or the output of the head, which runs have.
        normalise: whether each feature is divided by its length.
        which: the query encoder, which is trained, or the key encoder, which follows it.
        step: of a checkpoint of the run; unset, the final encoder, or the last checkpoint of a run that goes on.
        config: of weights from elsewhere, a config that tells their images.
        overrides: `section.key=value`, such as `data.workers=8` or `device.type=cpu`.
        batch: images that are computed together; the last bits of features may depend on it.
        verbose: whether progress and remarks are printed, by rank 0; warnings always are, on stderr.

    Returns:
        The names and the features, the same on every rank.

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
    options = Options(
        path=_path_of("RUN|WEIGHTS", run_or_weights),
        folder=_path_of("FOLDER", folder),
        config=None if config is None else _path_of("CONFIG", config),
        overrides=tuple(overrides),
        step=step,
        which=which,
        features=features,
        normalise=normalise,
        batch=batch,
    )
    file = None if out is None else _path_of("--out", out)
    loaded = options.load_config()
    if file is not None:
        check_out_of_features(file, options.folder)
    from moco_dist.embed import process
    from moco_dist.ranks.borrowed import borrowed
    from moco_dist.ranks.rank import Rank

    rank = Rank.from_environment(quiet=not verbose)
    with borrowed("moco_dist.embed_folder"):
        return process.call(options, file, loaded, rank)


def _path_of(name: str, path: str | os.PathLike[str]) -> Path:
    """Return a path; in a text, `~` and `$NAME` are expanded as on the command line. Raises UserError."""
    return Path(configs.expanded(name, path) if isinstance(path, str) else path)
