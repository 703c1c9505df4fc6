"""Read files of weights, also those of other programs, without running any code that they hold."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from moco_dist.errors import UserError, printable
from moco_dist.files import read_object, read_text
from moco_dist.run.checkpoints import MARK, verify
from moco_dist.run.paths import ENCODER

_OF_TORCH = (b"PK", b"\x80\x02")
"""What a file of torch.save begins with: an archive, or a pickle as before torch 1.6."""
_IN_FOLDER = ("model.safetensors", ENCODER, "pytorch_model.bin")
"""Names of the weights in a folder, as Hugging Face and timm write it, and a run directory of ours."""
_INDEX = "model.safetensors.index.json"
"""The file that says in which files of a folder the tensors of a large model lie."""


class _NoWeights(Exception):
    """A file holds something else than weights."""


class Inert:
    """Stand in for an object that checkpoints of other programs hold beside the weights; it does nothing."""

    def __new__(cls, *_: object) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


_HARMLESS = frozenset(
    {"_codecs", "argparse", "collections", "datetime", "lightning", "mmcv", "mmengine", "numpy", "omegaconf", "pathlib"}
    | {"pytorch_lightning", "torchmetrics", "typing"}
)
"""Packages whose objects stand beside the weights of known programs: options, logs, numbers of numpy.

They are not imported. An inert object or a plain dict stands in for each, so that nothing of them runs.
"""
_PLAIN = frozenset({"bool", "bytes", "dict", "float", "frozenset", "int", "list", "object", "slice", "str", "tuple"})
"""Types of Python's own that such objects name."""


@dataclass(frozen=True)
class WeightFile:
    """The content of a file of weights, or of a folder of them."""

    tree: Mapping[Any, Any]
    """What the file holds, as it was saved: dicts of tensors, and whatever stands beside these."""
    values: Mapping[str, object]
    """What stands in the tree, each under its names joined by dots."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The text that stands beside the tensors of a safetensors file."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The config.json beside the weights in a folder; empty for a file."""


def read(path: Path, key: str) -> WeightFile:
    """Read weights by what the file is and not by its suffix: safetensors, torch.save, or a folder of Hugging Face's.

    Args:
        path: of the file or folder.
        key: what named it, for the mistake.

    Raises:
        UserError: no such file, no weights, damaged, or a pickle that would run code.
    """
    try:
        if path.is_dir():
            return _read_folder(path)
        tree, metadata = _read_file(path)
        return WeightFile(tree, dict(_values(tree)), metadata)
    except Exception as error:  # bytes of any kind raise errors of any kind
        raise UserError.of(key, path, *_unreadable(error)) from None


def _read_folder(folder: Path) -> WeightFile:
    """Read the weights in a folder, and the config.json beside them."""
    config = read_object(folder / "config.json")
    if (folder / _INDEX).is_file():
        names = sorted({*json.loads(read_text(folder / _INDEX))["weight_map"].values()})
        if strange := [name for name in names if Path(name).name != name]:
            raise _NoWeights(f"its {_INDEX} names a file outside the folder, {printable(strange[0])}")
    else:
        names = [name for name in _IN_FOLDER if (folder / name).is_file()][:1]
        names = names or sorted(file.name for file in folder.glob("*.safetensors"))
    if not names:
        raise _NoWeights(f"the folder has neither {_IN_FOLDER[0]} nor {_IN_FOLDER[-1]}")
    if len(names) > 1 and not (folder / _INDEX).is_file():
        raise _NoWeights(f"the folder has {len(names)} files of weights, {', '.join(map(printable, names[:3]))}")
    tree: dict[Any, Any] = {}
    metadata: Mapping[str, str] = {}
    for name in names:
        part, metadata = _read_file(folder / name)
        tree |= part
    return WeightFile(tree, dict(_values(tree)), metadata, config)


def _read_file(path: Path) -> tuple[Mapping[Any, Any], Mapping[str, str]]:
    """Read what a file of weights holds, and the text beside its tensors. Raises errors of any kind."""
    if path.exists() and not path.is_file():
        raise _NoWeights("neither a file nor a link to one")  # a pipe or a device may have no end
    with path.open("rb") as file:
        start = file.read(9)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(MARK) - 64))
        ours = file.read().startswith(MARK)
    if start[8:] == b"{":  # after the length of its header in 8 bytes
        with safe_open(path, "pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}, tensors.metadata() or {}  # noqa: SIM118
    if start[:2] not in _OF_TORCH:
        raise _NoWeights("neither safetensors nor a file of torch.save" if size else "the file is empty")
    content = io.BytesIO(verify(path) if ours else path.read_bytes())
    tree = _load_tensors(content)
    if not isinstance(tree, Mapping):
        raise _NoWeights(f"it holds a {type(tree).__name__}, no layers by name")
    return tree, {}


def _load_tensors(content: io.BytesIO) -> Any:
    """Load what torch.save has written, with stand-ins for harmless objects. Raises errors of any kind."""
    stand_ins: dict[str, Any] = {}
    while True:
        try:
            with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in stand_ins.items()]):
                return torch.load(content, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            name = _global_of(error)
            name = f"builtins.{name}" if name in _PLAIN else name
            if name.partition(".")[0] not in {*_HARMLESS, "builtins"} or name in stand_ins:
                raise
            stand_ins[name] = _stand_in(name)
            content.seek(0)


def _stand_in(name: str) -> Any:
    """Return what stands in for a class of a pickle: torch puts items into dicts of its own kinds alone."""
    if name.endswith("defaultdict"):
        return _empty_dict
    return OrderedDict if name.endswith("Dict") else Inert


def _empty_dict(*_: object) -> OrderedDict[Any, Any]:
    return OrderedDict()


def _global_of(error: Exception) -> str:
    """Return the name of the function or class that a pickle would call, of the error that refuses it; or ""."""
    match = re.search(r"GLOBAL (\S+)", str(error))
    return match[1] if match else ""


def _unreadable(error: Exception) -> tuple[str, str]:
    """Return rule and fix for a file that cannot be read as weights."""
    text = " ".join(str(error).split())
    if runs := _global_of(error):
        rule = f"is a pickle that would run code, {runs}, when it is read, and is refused"
        return rule, "save the tensors alone: torch.save(model.state_dict(), FILE)"
    if isinstance(error, OSError):
        text = error.strerror or text
    elif not isinstance(error, _NoWeights):
        text = f"damaged: {text.rpartition('WeightsUnpickler error: ')[2][:100] or type(error).__name__}"
    return f"cannot be read as weights: {text}", "give a .safetensors or .pt"


def _values(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield what stands in a tree of dicts, each under its names joined by dots."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _values(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
