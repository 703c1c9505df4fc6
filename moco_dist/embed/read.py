"""Read files of features back, a part at a time, with the description of the encoder and the folder."""

from __future__ import annotations

import json
import os
import tokenize
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moco_dist import files
from moco_dist.embed.description import FORMAT
from moco_dist.embed.options import MATRIX, PARQUET, check_parquet, names_beside
from moco_dist.embed.stream import Rows
from moco_dist.embed.write import METADATA, text_of
from moco_dist.errors import UserError

_ROWS = 4096
"""The number of rows that are read together."""
_MOST_BYTES = 1 << 32
"""A longer list of names is refused as damaged."""
_OF_DAMAGE = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, tokenize.TokenError)
"""Errors that the readers of JSON, NumPy and Parquet raise for a damaged file."""


@dataclass(frozen=True)
class Stored:
    """This object reads features from a file that `embed` has written."""

    path: Path
    about: dict[str, Any]
    """The description of the features, as `description.describe` has written it."""
    files: list[str]
    """[n] names of the rows; of Parquet, as `text_of` writes them."""
    dim: int
    """The length D of a feature."""

    def parts(self) -> Iterator[NDArray[np.float32]]:
        """Yield the features in order, some rows [m, D] at a time. Raises UserError where they are damaged."""
        try:
            yield from (_parquet_parts if self.path.suffix == PARQUET else self._matrix_parts)(self.path)
        except (OSError, ValueError) as error:
            raise _damaged(self.path, str(error)) from None

    def rows(self, names: NDArray[np.bytes_]) -> Iterator[Rows]:
        """Yield the features with their places among the names of the folder that they were computed of.

        Raises:
            UserError: the file is damaged.
        """
        places = self._places(names)
        first = 0
        for part in self.parts():
            yield Rows(places[first : first + len(part)], part)
            first += len(part)

    def _places(self, names: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Return the places of the rows among names, [n], of which unreadable ones are missing in the rows."""
        as_written = text_of if self.path.suffix == PARQUET else os.fsdecode
        remaining = enumerate(names)
        places = [next((p for p, name in remaining if as_written(name) == file), -1) for file in self.files]
        if -1 in places:
            raise _damaged(self.path, "its names are not those of the folder")
        return np.array(places, dtype=np.int64)

    def _matrix_parts(self, path: Path) -> Iterator[NDArray[np.float32]]:
        matrix, checksum = np.load(path, mmap_mode="r", allow_pickle=False), 0
        for first in range(0, len(matrix), _ROWS):
            part = np.array(matrix[first : first + _ROWS])
            checksum = zlib.crc32(part.tobytes(), checksum)
            yield part
        if checksum != self.about.get("crc32"):
            raise ValueError(f"its numbers are not those that {names_beside(path).name} belongs to")


def open_stored(path: Path) -> Stored:
    """Open a file of features. Raises UserError where it is none, or is damaged."""
    if path.suffix not in (MATRIX, PARQUET):
        rule = f"must be a file of {MATRIX} or {PARQUET}"
        raise UserError.of("--features-file", path, rule, "give what python -m moco_dist.embed has written")
    if not path.exists():
        fix = f"compute them: python -m moco_dist.embed RUN_DIR FOLDER --out {path}"
        raise UserError.of("--features-file", path, "no such file", fix)
    check_parquet(path, "--features-file")
    try:
        about, names, shape = (_open_parquet if path.suffix == PARQUET else _open_matrix)(path)
        fits = about["format"] == FORMAT and len(names) == shape[0] > 0
    except _OF_DAMAGE as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        if isinstance(error, OSError) and error.strerror and error.filename:
            reason = f"{Path(error.filename).name}: {error.strerror}"
        raise _damaged(path, reason) from None
    if not fits:
        raise _damaged(path, f"it has {shape[0]} rows and {len(names)} names, in format {about['format']}")
    return Stored(path, about, names, shape[1])


def read_features(path: Path) -> NDArray[np.float32]:
    """Read the features of a file, float32 [n, D]; of `.npy`, as a memory map. Raises UserError."""
    if path.suffix == MATRIX:
        mapped: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
        return mapped
    stored = open_stored(path)
    return np.concatenate([np.empty((0, stored.dim), np.float32), *stored.parts()])


def _open_matrix(path: Path) -> tuple[dict[str, Any], list[str], tuple[int, int]]:
    beside = names_beside(path)
    about = json.loads(files.read_text(beside, most_bytes=_MOST_BYTES))
    matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    if matrix.ndim != 2 or matrix.dtype != np.dtype("<f4") or list(matrix.shape) != about["shape"]:
        raise ValueError(f"it is no matrix of float32 {about['shape']}, as {beside.name} says")
    names = [str(name) for name in about.pop("files")]
    return about, names, (len(matrix), matrix.shape[1])


def _open_parquet(path: Path) -> tuple[dict[str, Any], list[str], tuple[int, int]]:
    from pyarrow import parquet

    with parquet.ParquetFile(path, page_checksum_verification=True) as file:
        about = json.loads((file.schema_arrow.metadata or {})[METADATA])
        dim = file.schema_arrow.field("features").type.list_size
        names = [name for batch in file.iter_batches(columns=["file"]) for name in batch.column(0).to_pylist()]
        return about, names, (file.metadata.num_rows, dim)


def _parquet_parts(path: Path) -> Iterator[NDArray[np.float32]]:
    from pyarrow import parquet

    with parquet.ParquetFile(path, page_checksum_verification=True) as file:
        for batch in file.iter_batches(_ROWS, columns=["features"]):
            column = batch.column(0)
            yield column.flatten().to_numpy().reshape(len(column), -1)


def _damaged(path: Path, reason: str) -> UserError:
    fix = f"compute them again: python -m moco_dist.embed RUN_DIR FOLDER --out {path}"
    return UserError.of("--features-file", path, f"cannot be used: {' '.join(reason.split())[:200]}", fix)
