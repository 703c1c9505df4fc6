"""An embedding is the features of a folder's images, in memory or in a file. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moco_dist.data.decode import Unreadable


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
        """Return the features, float32 [n, D], a row for each name in `files`.

        Those of a `.npy` file are a read-only memory map; a Parquet file is read at the first access.
        """
        if self._in_memory is not None:
            return self._in_memory
        from moco_dist.embed.read import read_features

        assert self.path is not None
        return read_features(self.path)
