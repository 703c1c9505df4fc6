"""Read files of torch.save, also those of other programs, without running or importing anything that they name."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import threading
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import torch

from moco_dist.files import open_bytes, read_bytes
from moco_dist.run.checkpoints import MARK, verify

BEGINNINGS = (b"PK", b"\x80\x02")
"""A file of torch.save begins with one of these: an archive, or a pickle as before torch 1.6."""
_MOST_OPERATIONS = 3_000_000
"""The number of operations of a pickle that are followed. The checkpoint of a large run has some ten thousand."""
_MOST_BYTES = 4 << 30
"""A file as before torch 1.6 may not be larger, since it is held in memory as a whole."""
_CHUNK = 1 << 24

_HARMLESS = frozenset(
    {"addict", "argparse", "collections", "datetime", "easydict", "fvcore", "lightning", "mmcv", "mmengine", "numpy"}
    | {"omegaconf", "pathlib", "pytorch_lightning", "torchmetrics", "typing", "yacs"}
)
"""Packages whose objects stand beside the weights of known programs: options, logs, numbers of numpy.

They are not imported. An inert object or an empty dict or list stands in for each, so that nothing of them runs.
"""
_PLAIN = frozenset(
    {"bool", "bytes", "dict", "float", "frozenset", "getattr", "int", "list", "object", "slice", "str", "tuple"}
)
"""Python's own functions and classes that such objects name; `getattr` too is replaced by an inert object."""

_stand_ins_of_torch = threading.Lock()
"""torch has one list of stand-ins in a process, which a thread must not change while another one's file is read."""


class NotWeights(Exception):
    """A file holds something else than weights."""


class Inert:
    """Stand in for an object that checkpoints of other programs hold beside the weights; it does nothing."""

    def __new__(cls, *_: object) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def load(path: Path) -> Any:
    """Load a file of torch.save, with stand-ins for harmless objects.

    Raises:
        NotWeights: it was written by something else, bits have changed, or it would need too much time or memory.
        pickle.UnpicklingError: it names something that is not harmless; `named_code` tells what.
        OSError: it cannot be read; a damaged file also raises errors of any other kind.
    """
    with open_bytes(path) as file:
        is_archive = file.read(2) == BEGINNINGS[0]
        file.seek(max(0, file.seek(0, io.SEEK_END) - len(MARK) - 64))
        is_ours = file.read().startswith(MARK)
        content: IO[bytes] = file
        if is_ours:
            content = io.BytesIO(verify(path))
        elif not is_archive:  # in memory, since torch takes such a file for a tar if it can
            if file.seek(0, io.SEEK_END) > _MOST_BYTES:
                raise NotWeights(f"a file as before torch 1.6 of more than {_MOST_BYTES >> 30} GiB; save it anew")
            content = io.BytesIO(read_bytes(path))
        content.seek(0)
        pickled, count = (_archived_pickle(content), 1) if is_archive else (content, 4)
        stand_ins: list[Any] = [(_stand_in(name), name) for name in sorted(_harmless(pickled, count))]
        content.seek(0)
        with _stand_ins_of_torch, torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of tensors that no encoder has
            return torch.load(content, map_location="cpu", weights_only=True)


def named_code(error: Exception) -> str:
    """Return the function or class that a pickle names, of the error that refuses it; "" for any other error."""
    match = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    return match[1][:100] if match else ""


def _archived_pickle(content: IO[bytes]) -> IO[bytes]:
    """Return the pickle in an archive of torch.save, whose bits are verified: torch itself does not compare them.

    Raises:
        NotWeights: the archive is another one, or takes more memory than its file has bytes.
        zipfile.BadZipFile: it is damaged.
    """
    size = content.seek(0, io.SEEK_END)
    with zipfile.ZipFile(content) as archive:
        members = archive.infolist()
        names = {member.filename.partition("/")[2]: member for member in members}
        if len({member.filename.lower() for member in members}) < len(members):
            raise NotWeights("two records of its zip have one name")  # of which torch reads one, and Python the other
        if "constants.pkl" in names:
            raise NotWeights("it is a program of TorchScript")
        if "data.pkl" not in names:
            raise NotWeights("it is a zip, but not one of torch.save")
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or sum(member.file_size for member in members) > size:
            raise NotWeights("its zip is compressed, which torch.save's is not")
        for member in members:
            if not member.CRC:  # torch was told to leave the checksums out
                member.CRC = None  # type: ignore[assignment]
            with archive.open(member) as file:
                while file.read(_CHUNK):  # raises where bits have changed
                    pass
        return io.BytesIO(archive.read(names["data.pkl"]))


def _harmless(content: IO[bytes], count: int) -> set[str]:
    """Return the harmless functions and classes that some pickles in a row name, without loading anything.

    Raises:
        NotWeights: they have too many operations, or some that `torch.load` does not bound.
    """
    names, operations = set[str](), 0
    for _ in range(count):
        for operation, argument, _ in pickletools.genops(content):
            operations += 1
            if operations > _MOST_OPERATIONS:
                raise NotWeights(f"its pickle has more than {_MOST_OPERATIONS} operations")
            if operation.name == "STACK_GLOBAL":
                raise NotWeights("its pickle is of protocol 4 or above; save it with the default of torch.save")
            if operation.name == "GLOBAL":
                module, _, name = str(argument).partition(" ")
                if name == "bytearray":  # of any length, out of a single number
                    raise NotWeights("it holds a bytearray")
                if module == "__builtin__":  # Python 2's names, which protocol 2 has
                    module, name = "builtins", {"long": "int", "unicode": "str"}.get(name, name)
                if module.partition(".")[0] in _HARMLESS or (module == "builtins" and name in _PLAIN):
                    names.add(f"{module}.{name}")
    return names


def _stand_in(name: str) -> Any:
    """Return the stand-in for a class of a pickle: torch fills dicts and lists of its own kinds alone."""
    if name.endswith("defaultdict"):
        return _empty_dict
    if name.endswith("deque"):
        return _empty_list
    return OrderedDict if name.endswith(("Dict", "CfgNode")) else Inert


def _empty_dict(*_: object) -> OrderedDict[Any, Any]:
    return OrderedDict()


def _empty_list(*_: object) -> list[Any]:
    return []
