"""Write features to a file as they come: a NumPy matrix beside its names, or a Parquet table."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from moco_dist import files
from moco_dist.embed.options import PARQUET, names_beside
from moco_dist.embed.stream import Rows

METADATA = b"moco_dist.features"
"""Name of the description in the metadata of a Parquet file."""
_HEAD_BYTES = 128
"""Bytes ahead of the numbers of a .npy file of version 1.0, a multiple of 64."""
_ROWS_OF_A_GROUP = 4096
"""Rows of Parquet that are kept in memory before they are written together."""


class Writer(Protocol):
    """A writer takes rows in the order of the folder. Every method raises OSError where a file cannot be written."""

    def open(self, put_in_place: ExitStack) -> None:
        """Begin to write aside; when the stack is closed, the files take the place of old ones, or vanish."""

    def add(self, rows: Rows) -> None:
        """Write some rows."""

    def finish(self) -> None:
        """Write the parts of the file that depend on the last row."""


def writer_of(out: Path, names: NDArray[np.bytes_], dim: int, about: Mapping[str, Any]) -> Writer:
    """Return the writer of a file by its suffix.

    Args:
        out: what is written.
        names: of all images of the folder.
        dim: D, the length of a feature.
        about: what describes the features.
    """
    return (_Parquet if out.suffix == PARQUET else _Matrix)(out, names, dim, about)


class _Matrix:
    """Write float32 [n, D] as .npy, and beside it the names of its rows as JSON, which can hold any name."""

    def __init__(self, out: Path, names: NDArray[np.bytes_], dim: int, about: Mapping[str, Any]) -> None:
        self._out, self._names, self._dim, self._about = out, names, dim, about
        self._places, self._checksum = list[NDArray[np.int64]](), 0

    def open(self, put_in_place: ExitStack) -> None:
        self._matrix: BinaryIO = put_in_place.enter_context(files.replacing(self._out))
        self._list: BinaryIO = put_in_place.enter_context(files.replacing(names_beside(self._out)))
        self._matrix.write(bytes(_HEAD_BYTES))  # the number of rows is known at the end

    def add(self, rows: Rows) -> None:
        content = rows.features.astype("<f4", copy=False).tobytes()
        self._checksum = zlib.crc32(content, self._checksum)
        self._matrix.write(content)
        self._places.append(rows.places)

    def finish(self) -> None:
        places = np.concatenate(self._places)
        self._matrix.seek(0)
        self._matrix.write(_npy_head(len(places), self._dim))
        about = {**self._about, "shape": [len(places), self._dim], "crc32": self._checksum}
        self._list.write(json.dumps(about).removesuffix("}").encode() + b', "files": [')
        for number, name in enumerate(self._names[places]):
            self._list.write((b",\n" if number else b"\n") + json.dumps(os.fsdecode(name)).encode())
        self._list.write(b"\n]}\n")


def _npy_head(rows: int, columns: int) -> bytes:
    """Return the head of a .npy file of float32 [rows, columns]."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}"
    length = _HEAD_BYTES - 10
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", length) + text.ljust(length - 1).encode() + b"\n"


class _Parquet:
    """Write a table of the columns `file` and `features`, with the description in its metadata."""

    def __init__(self, out: Path, names: NDArray[np.bytes_], dim: int, about: Mapping[str, Any]) -> None:
        import pyarrow
        from pyarrow import parquet

        self._arrow, self._parquet = pyarrow, parquet
        self._out, self._names, self._dim = out, names, dim
        fields = [("file", pyarrow.string()), ("features", pyarrow.list_(pyarrow.float32(), dim))]
        self._schema = pyarrow.schema(fields, metadata={METADATA: json.dumps(about)})
        self._waiting = list[Rows]()

    def open(self, put_in_place: ExitStack) -> None:
        file = put_in_place.enter_context(files.replacing(self._out))
        compression = {"file": "zstd", "features.list.element": "none"}  # floats do not become smaller
        self._table = self._parquet.ParquetWriter(
            file, self._schema, compression=compression, use_dictionary=False, write_page_checksum=True
        )
        put_in_place.callback(self._table.close)

    def add(self, rows: Rows) -> None:
        self._waiting.append(rows)
        if sum(len(waiting.places) for waiting in self._waiting) >= _ROWS_OF_A_GROUP:
            self._write(whole_groups=True)

    def finish(self) -> None:
        self._write(whole_groups=False)
        self._table.close()

    def _write(self, *, whole_groups: bool) -> None:
        """Write the rows that wait, in groups that are the same however many ranks there are."""
        places, features = (np.concatenate(part) for part in zip(*self._waiting, strict=True))
        last = len(places) // _ROWS_OF_A_GROUP * _ROWS_OF_A_GROUP if whole_groups else len(places)
        texts = [text_of(name) for name in self._names[places[:last]]]
        values = self._arrow.FixedSizeListArray.from_arrays(self._arrow.array(features[:last].reshape(-1)), self._dim)
        table = self._arrow.table([self._arrow.array(texts, self._arrow.string()), values], schema=self._schema)
        self._table.write_table(table, row_group_size=_ROWS_OF_A_GROUP)
        self._waiting = [Rows(places[last:], features[last:])]


def text_of(name: bytes) -> str:
    """Write a name as text of Parquet: bytes that are no UTF-8 become escapes."""
    return os.fsdecode(name).encode(errors="backslashreplace").decode()
