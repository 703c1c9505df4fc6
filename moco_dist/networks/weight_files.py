"""Read files of weights, also those of other programs, without running any code that they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import safe_open
from torch import Tensor

from moco_dist.errors import UserError, printable
from moco_dist.files import open_bytes, read_object
from moco_dist.networks import torch_files
from moco_dist.networks.torch_files import NotWeights
from moco_dist.run.paths import ENCODER

_IN_FOLDER = ("model.safetensors", ENCODER, "pytorch_model.bin")
"""Names of the weights in a folder, as Hugging Face and timm write it, and a run directory of ours."""
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""The file that says in which files of a folder the tensors of a large model lie."""
_MOST_VALUES, _MOST_LEVELS = 200_000, 32
"""Values of a file that are looked at, and how deep they may lie in dicts of dicts."""


@dataclass(frozen=True)
class WeightFile:
    """This is the content of a file of weights, or of a folder of them."""

    tree: Mapping[Any, Any]
    """The content of the file, as it was saved: dicts of tensors, and all other values beside these."""
    values: Mapping[str, object]
    """The values of the tree, each under its names joined by dots."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The text that stands beside the tensors of a safetensors file."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The config.json beside weights that lie in a folder as Hugging Face and timm write it; else empty."""


def read(path: Path, key: str) -> WeightFile:
    """Read weights from a safetensors file, a file of torch.save, or a folder of Hugging Face's, whatever its suffix.

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
        config = read_object(path.parent / "config.json") if path.name in _IN_FOLDER else {}
        return WeightFile(tree, _values(tree), metadata, config)
    except Exception as error:  # bytes of any kind raise errors of any kind
        raise UserError.of(key, path, *_unreadable(error)) from None


def _read_folder(folder: Path) -> WeightFile:
    """Read the weights in a folder, and the config.json beside them."""
    config = read_object(folder / "config.json")
    names = [name for name in _IN_FOLDER if (folder / name).is_file()][:1]
    index = next((name for name in _INDICES if (folder / name).is_file()), None)
    if not names and index:
        parts = _read_parts(folder, index)
        return WeightFile(parts, _values(parts), {}, config)
    names = names or sorted(file.name for file in folder.glob("*.safetensors"))
    if not names:
        raise NotWeights(f"the folder has neither {_IN_FOLDER[0]} nor {_IN_FOLDER[-1]}")
    if len(names) > 1:
        raise NotWeights(f"the folder has {len(names)} files of weights, {', '.join(map(printable, names[:3]))}")
    tree, metadata = _read_file(folder / names[0])
    return WeightFile(tree, _values(tree), metadata, config)


def _read_parts(folder: Path, index: str) -> dict[Any, Any]:
    """Read the tensors of a model from the files that its index names, each from the one where it says it lies."""
    part_of = read_object(folder / index).get("weight_map")
    if not isinstance(part_of, dict) or not all(isinstance(name, str) for name in part_of.values()):
        raise NotWeights(f"its {index} has no weight_map from names to files")
    tree: dict[Any, Any] = {}
    for name in sorted({*part_of.values()}):
        if Path(name).name != name:
            raise NotWeights(f"its {index} names a file outside the folder, {printable(name)[:80]}")
        part, _ = _read_file(folder / name)
        tree |= {tensor: value for tensor, value in part.items() if part_of.get(tensor) == name}
    if missing := [tensor for tensor in part_of if tensor not in tree]:
        raise NotWeights(f"{printable(missing[0])[:80]} is not in the file that its {index} names")
    return tree


def _read_file(path: Path) -> tuple[Mapping[Any, Any], Mapping[str, str]]:
    """Read the content of a file of weights, and the text beside its tensors. Raises errors of any kind."""
    if path.exists() and not path.is_file():
        raise NotWeights("neither a file nor a link to one")  # a pipe or a device may have no end
    with open_bytes(path) as file:
        start = file.read(9)
        if start[8:] == b"{":  # after the length of its header in 8 bytes
            with safe_open(_in_utf8(path, file), "pt") as tensors:
                content = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
                return content, tensors.metadata() or {}
    if start[:2] not in torch_files.BEGINNINGS:
        raise NotWeights("neither safetensors nor a file of torch.save" if start else "the file is empty")
    tree = torch_files.load(path)
    if not isinstance(tree, Mapping):
        raise NotWeights(f"it holds a {type(tree).__name__}, no layers by name")
    return tree, {}


def _in_utf8(path: Path, file: BinaryIO) -> str:
    """Return a name for safetensors, which takes those in UTF-8 alone: the path, or one by the number of the file."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return f"/proc/self/fd/{file.fileno()}"
    return str(path)


def _unreadable(error: Exception) -> tuple[str, str]:
    """Return rule and fix for a file that cannot be read as weights."""
    text = " ".join(str(error).split())
    if code := torch_files.named_code(error):
        rule = f"is a pickle that would run code, {code}, when it is read, and is refused"
        return rule, "save the tensors alone: torch.save(model.state_dict(), FILE)"
    if isinstance(error, OSError):
        text = error.strerror or text
    elif not isinstance(error, NotWeights):
        text = f"damaged or cut short: {text.rpartition('WeightsUnpickler error: ')[2][:100] or type(error).__name__}"
    return f"cannot be read as weights: {text}", "give a file of safetensors or of torch.save"


def _values(tree: Mapping[Any, Any]) -> dict[str, object]:
    """Return the values in a tree of dicts, each under its names joined by dots.

    Raises:
        NotWeights: two tensors have one name, or a dict holds itself.
    """
    values = dict[str, object]()
    for name, value in _walk(tree):
        if isinstance(value, Tensor) and isinstance(values.get(name), Tensor):
            raise NotWeights(f"two of its tensors are named {printable(name)[:80]}")
        values[name] = value
    return values


def _walk(tree: Mapping[Any, Any]) -> Iterator[tuple[str, object]]:
    """Yield the values in a tree of dicts, in order. Raises NotWeights, also where dicts hold themselves."""
    levels, prefixes, visited = [iter(tree.items())], [""], 0
    while levels:
        item = next(levels[-1], None)
        if item is None:
            levels.pop()
            prefixes.pop()
            continue
        visited += 1
        if len(levels) > _MOST_LEVELS or visited > _MOST_VALUES:
            raise NotWeights(f"it holds more than {_MOST_VALUES} values, or dicts nested {_MOST_LEVELS} deep")
        name = f"{prefixes[-1]}{item[0]}"
        if isinstance(item[1], Mapping):
            levels.append(iter(item[1].items()))
            prefixes.append(f"{name}.")
        else:
            yield name, item[1]
