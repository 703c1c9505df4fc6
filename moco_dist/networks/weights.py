"""Write the weights of encoders to files and read them back, those of other programs too."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from moco_dist.errors import UserError, some_names
from moco_dist.files import replacing
from moco_dist.networks.resnet import DEPTHS, BasicBlock, Bottleneck, Encoder
from moco_dist.run.checkpoints import MARK, verify

_LANDMARK = "layer1.0.conv1.weight"
"""A layer that every ResNet has once: what stands before its name in a file is the prefix of all of them."""
_COPIES = ("encoder_k", "momentum", "target")
"""What programs call the encoder that follows the trained one."""

_OF_TORCH = (b"PK", b"\x80\x02")
"""What a file of torch.save begins with: an archive, or a pickle as before torch 1.6."""


class _NoWeights(Exception):
    """A file holds something else than weights."""


class _Inert:
    """Stand in for an object that checkpoints of other programs hold beside the weights; it does nothing."""

    def __new__(cls, *_: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


_NUMPY = [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")]
_INERT: list[Any] = [
    (_Inert, name)
    for name in (*_NUMPY, "numpy.ndarray", "numpy.dtype", "argparse.Namespace", "pathlib.PosixPath")
]  # fmt: skip
"""Options of a command line and numpy's numbers, which are seldom missing beside old weights and never needed."""


def save_backbone(encoder: Encoder, path: Path) -> None:
    """Write the encoder without its head, in torchvision's parameter names, as safetensors."""
    backbone = {
        name: tensor.detach().float().cpu().contiguous() if tensor.is_floating_point() else tensor.cpu()
        for name, tensor in encoder.state_dict().items()
        if not name.startswith("fc.")
    }
    with replacing(path) as file:
        file.write(save(backbone, metadata={"format": "pt"}))


def load_backbone_(encoder: Encoder, path: Path, key: str = "run.init_from") -> str:
    """Load all but the head, in place, from safetensors or a file of torch's, whatever prefix the names have there.

    Args:
        encoder: the one to load into.
        path: of the file.
        key: what named the file, for the mistake.

    Returns:
        One line that says what was taken.

    Raises:
        UserError: no such file, not weights of one ResNet, or layers that do not fit.
    """
    try:
        values = dict(_values(_read(path)))
    except Exception as error:  # bytes of any kind raise errors of any kind
        raise UserError.of(key, path, *_unreadable(error)) from None
    prefix = _prefix(values, key, path)
    own = {n: t for n, t in encoder.state_dict().items() if not n.startswith("fc.") and "num_batches" not in n}
    theirs = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    for name in own:
        if name in theirs and (fault := _fault(name, theirs[name])):
            raise UserError.of(key, path, f"{prefix}{name} {fault[0]}", fault[1])
    tensors = {n: t for n, t in theirs.items() if isinstance(t, Tensor)}
    _check_layers(own, tensors, key, path)
    encoder.load_state_dict({n: tensors[n] for n in own}, strict=False)
    return f"{key} = {path}: took the {len(own)} layers of {prefix or 'the backbone, without a prefix'}"


def _read(path: Path) -> object:
    """Read what a file of weights holds, by what it is and not by its suffix. Raises errors of any kind."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise _NoWeights("neither a file nor a link to one")  # a pipe or a device may have no end
    with path.open("rb") as file:
        start = file.read(9)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(MARK) - 64))
        ours = file.read().startswith(MARK)
    if start[8:] == b"{":  # after the length of its header in 8 bytes
        return load_file(path)
    if start[:2] not in _OF_TORCH:
        raise _NoWeights("neither safetensors nor a file of torch.save" if size else "the file is empty")
    content = io.BytesIO(verify(path) if ours else path.read_bytes())
    with torch.serialization.safe_globals(_INERT):
        return torch.load(content, map_location="cpu", weights_only=True)


def _unreadable(error: Exception) -> tuple[str, str]:
    """Return rule and fix for a file that cannot be read as weights."""
    text = " ".join(str(error).split())
    if runs := re.search(r"GLOBAL (\S+)", text):
        rule = f"is a pickle that would run code, {runs[1]}, when it is read, and is refused"
        return rule, "save the tensors alone: torch.save(model.state_dict(), FILE)"
    if isinstance(error, OSError):
        text = error.strerror or text
    elif not isinstance(error, _NoWeights):
        text = f"damaged: {text.rpartition('WeightsUnpickler error: ')[2][:100] or type(error).__name__}"
    return f"cannot be read as weights: {text}", "give a .safetensors or .pt"


def _values(tree: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield what stands in a tree of dicts, each under its names joined by dots. Raises _NoWeights for no dict."""
    if not isinstance(tree, Mapping):
        raise _NoWeights(f"it holds a {type(tree).__name__}, no layers by name")
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _values(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _prefix(names: Mapping[str, object], key: str, path: Path) -> str:
    """Return what stands before the names of the one encoder in a file. Raises UserError where there is not one."""
    ends = [name for name in names if f".{name}".endswith(f".{_LANDMARK}")]
    prefixes = [name.removesuffix(_LANDMARK) for name in ends]
    prefixes = [p for p in prefixes if not any(word in p for word in _COPIES)] or prefixes
    if not prefixes:
        first = " ".join(", ".join(list(names)[:5]).split())[:200] or "nothing"
        raise UserError.of(key, path, f"holds no ResNet's layers, but {first}", "give a ResNet in torchvision's names")
    if len(prefixes) > 1:
        rule = f"holds several encoders: {', '.join(prefix or '(no prefix)' for prefix in prefixes[:5])}"
        raise UserError.of(key, path, rule, "save the one that you mean alone")
    return prefixes[0]


def _fault(name: str, value: object) -> tuple[str, str] | None:
    """Return rule and fix for what stands under a layer's name and cannot be its weights; None where it can."""
    if not isinstance(value, Tensor):
        kind = "an array of numpy" if isinstance(value, _Inert) else f"of type {type(value).__name__}"
        return f"is {kind}, not a tensor of floats", "save a state_dict()"
    if not value.is_floating_point():
        return f"is a tensor of {value.dtype}, not a tensor of floats", "save a state_dict()"
    if value.is_meta or value.layout != torch.strided:
        return f"is a tensor {'without values' if value.is_meta else 'in a sparse layout'}", "save dense tensors"
    if not value.float().isfinite().all() or (name.endswith("running_var") and (value.float() < 0).any()):
        return "holds NaN, infinity or a variance below 0", "give weights of a run that has not diverged"
    return None


def _check_layers(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], key: str, path: Path) -> None:
    """Compare shapes. Raises UserError, with the settings that would fit where the shapes tell them."""
    wrong = [name for name, tensor in own.items() if name not in theirs or theirs[name].shape != tensor.shape]
    more = [name for name in theirs if name.startswith("layer") and name not in own and "num_batches" not in name]
    if not wrong and not more:
        return
    layers = [f"{n} {list(theirs[n].shape) if n in theirs else 'missing'} for {list(own[n].shape)}" for n in wrong]
    rule = f"{len(wrong)} of {len(own)} layers do not fit: {some_names(layers)}"
    if not wrong:
        rule = f"{len(more)} layers do not fit: {more[0]} and its like are not in the model"
    ours, needed = _settings(own), _settings(theirs)
    changes = [f"{name}={value}" for name, value in needed.items() if value != ours[name]] if needed else []
    fix = f"set {' '.join(changes)}" if changes else "no model.arch, stem and width has these layers"
    raise UserError.of(key, path, rule, fix)


def _settings(layers: Mapping[str, Tensor]) -> dict[str, object]:
    """Read the settings of a ResNet off its shapes; nothing where none of ours has them."""
    depths = [len({n.split(".")[1] for n in layers if n.startswith(f"layer{stage}.")}) for stage in (1, 2, 3, 4)]
    block = Bottleneck if "layer1.0.conv3.weight" in layers else BasicBlock
    arch = next((name for name, ours in DEPTHS.items() if ours == (block, depths)), None)
    stem_shape, inner = ([*layers[n].shape] if n in layers else [] for n in ("conv1.weight", "layer1.0.conv2.weight"))
    if arch is None or len(stem_shape) != 4 or stem_shape[-1] not in (3, 7):
        return {}
    width, channels, _, kernel = stem_shape
    if inner != [width, width, 3, 3]:  # wide, or in groups
        return {}
    stem = "small" if kernel == 3 else "imagenet"
    return {"model.arch": arch, "model.stem": stem, "model.width": width, "data.channels": channels}
