"""Write the weights of encoders to files and read them back, those of other programs too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from moco_dist.config.section import MOST_CHANNELS
from moco_dist.errors import UserError, some_names
from moco_dist.files import replacing
from moco_dist.networks import layouts, variants, weight_files
from moco_dist.networks.resnet import DEPTHS, BasicBlock, Bottleneck, Encoder
from moco_dist.networks.torch_files import Inert
from moco_dist.networks.weight_files import WeightFile


def backbone_of(encoder: Encoder) -> dict[str, Tensor]:
    """Return the layers of an encoder without its head, in torchvision's names, on the CPU and in float32."""
    return {
        name: tensor.detach().float().cpu().contiguous() if tensor.is_floating_point() else tensor.cpu()
        for name, tensor in encoder.state_dict().items()
        if not name.startswith("fc.")
    }


def as_safetensors(encoder: Encoder, metadata: Mapping[str, str] = {}) -> bytes:
    """Return the encoder without its head, in torchvision's names, as a file of safetensors.

    Args:
        encoder: what the file holds.
        metadata: text that stands beside the tensors.
    """
    content = save(backbone_of(encoder), metadata={"format": "pt", **metadata})
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))  # which safetensors puts in any order
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def save_backbone(encoder: Encoder, path: Path, metadata: Mapping[str, str] = {}) -> None:
    """Write the backbone to a file in place of an old one, as `as_safetensors` returns it. Raises OSError."""
    with replacing(path) as file:
        file.write(as_safetensors(encoder, metadata))


def digest(encoder: Encoder, *, head: bool) -> str:
    """Return the sha256 of the weights of an encoder, of its head or of all else."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        if name.startswith("fc.") == head and "num_batches" not in name:
            sha256.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return sha256.hexdigest()


def load_backbone_(encoder: Encoder, path: Path, key: str = "run.init_from") -> list[str]:
    """Load all but the head, in place, from the weights of any program whose layout is known.

    Args:
        encoder: the one to load into.
        path: of a file of weights, or of a folder of Hugging Face's or timm's.
        key: what named the file, for the mistake.

    Returns:
        A line each that says what was taken, renamed and left out.

    Raises:
        UserError: no such file, not weights of one ResNet, or layers that do not fit.
    """
    return take_backbone_(encoder, weight_files.read(path, key), path, key)


def take_backbone_(encoder: Encoder, file: WeightFile, path: Path, key: str) -> list[str]:
    """Load all but the head, in place, from a file that was read already; all else as `load_backbone_`."""
    recognised, layers = fitting_layers(encoder, file, path, key)
    encoder.load_state_dict(layers, strict=False)
    return [f"{key} = {path}: {line}" for line in [*recognised.lines(layers), *variants.remarks(file, recognised)]]


def fitting_layers(
    encoder: Encoder, file: WeightFile, path: Path, key: str
) -> tuple[layouts.Recognised, dict[str, Tensor]]:
    """Find the encoder in a file and its layers by our names, without the head.

    Args:
        encoder: what they are to fit; it may be without values, on the device meta.
        file: what was read.
        path: of the file.
        key: what named it, for the mistake.

    Raises:
        UserError: not weights of one ResNet, or layers that do not fit.
    """
    recognised = recognise(file, path, key)
    own = {n: t for n, t in encoder.state_dict().items() if not n.startswith("fc.") and "num_batches" not in n}
    layers = layers_of(file, recognised, own, key, path)
    _check_layers(own, layers, recognised.strays, key, path)
    for name in own:
        if fault := fault_of(name, layers[name]):
            raise UserError.of(key, path, f"{layouts.short(recognised.theirs[name])} {fault[0]}", fault[1])
    return recognised, {name: layers[name] for name in own}


def layers_of(
    file: WeightFile, recognised: layouts.Recognised, wanted: Mapping[str, object], key: str, path: Path
) -> dict[str, Tensor]:
    """Return the layers of an encoder in a file, by our names.

    Args:
        file: what was read.
        recognised: the encoder in it.
        wanted: our names of the layers that are needed, whose values must be dense tensors of floats.
        key: what named the file, for the mistake.
        path: of the file.

    Raises:
        UserError: something else stands under the name of a layer that is wanted.
    """
    values = {ours: file.values[theirs] for ours, theirs in recognised.theirs.items()}
    for name in wanted:
        if name in values and (fault := _fault(values[name])):
            raise UserError.of(key, path, f"{layouts.short(recognised.theirs[name])} {fault[0]}", fault[1])
    return {name: value for name, value in values.items() if isinstance(value, Tensor) and not value.is_nested}


def recognise(file: WeightFile, path: Path, key: str) -> layouts.Recognised:
    """Find the one encoder in a file; of an encoder and the one that follows it, the former.

    Raises:
        UserError: the file has no ResNet, several, or one that computes something else than ours.
    """
    variants.check(file, key, path)
    encoders = layouts.find(file.values)
    if not encoders:
        tensors = [name for name, value in file.values.items() if isinstance(value, Tensor)]
        layouts.refuse(tensors or list(file.values), key, path)
    distinct = list[layouts.Recognised]()
    for encoder in [encoder for encoder in encoders if not encoder.follows] or encoders:
        if not any(_equal(file, encoder, other) for other in distinct):  # one module may have two names
            distinct.append(encoder)
    if len(distinct) > 1:
        prefixes = [layouts.short(encoder.prefix) or "(no prefix)" for encoder in distinct]
        rule = f"holds several encoders: {some_names(prefixes, 5)}"
        raise UserError.of(key, path, rule, "keep the one that you mean, as docs/weights.md shows")
    variants.check_stem(file, distinct[0], key, path)
    return distinct[0]


def _equal(file: WeightFile, one: layouts.Recognised, other: layouts.Recognised) -> bool:
    """Return whether two encoders in a file have the same layers."""
    if one.theirs.keys() != other.theirs.keys():
        return False
    layers = {name: theirs for name, theirs in one.theirs.items() if "num_batches" not in name}
    pairs = ((file.values[theirs], file.values[other.theirs[name]]) for name, theirs in layers.items())
    return all(
        isinstance(a, Tensor)
        and isinstance(b, Tensor)
        and not (_fault(a) or _fault(b))
        and torch.equal(a.float(), b.float())  # as they would be taken
        for a, b in pairs
    )


def fault_of(name: str, value: object) -> tuple[str, str] | None:
    """Return rule and fix for what stands under a layer's name and cannot be its weights; None where it can."""
    if (fault := _fault(value)) is not None:
        return fault
    assert isinstance(value, Tensor)
    values = value.float()
    if not values.isfinite().all() or (name.endswith("running_var") and (values < 0).any()):
        return "holds NaN, infinity or a variance below 0", "give weights of a run that has not diverged"
    return None


def _fault(value: object) -> tuple[str, str] | None:
    """Return rule and fix for a value that is no dense tensor of floats; None for such a tensor."""
    if not isinstance(value, Tensor):
        kind = "an array of numpy" if isinstance(value, Inert) else f"of type {type(value).__name__}"
        return f"is {kind}, not a tensor of floats", "save a state_dict()"
    if not value.is_floating_point() or str(value.dtype).endswith("_x2"):  # two in a byte, which torch cannot convert
        return f"is a tensor of {value.dtype}, not a tensor of floats", "save a state_dict()"
    if value.is_meta or value.is_nested or value.layout != torch.strided:
        kind = "without values" if value.is_meta else f"in a {'nested' if value.is_nested else 'sparse'} layout"
        return f"is a tensor {kind}", "save dense tensors"
    return None


def _check_layers(
    own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], strays: Sequence[str], key: str, path: Path
) -> None:
    """Compare shapes. Raises UserError, with the settings that would fit where the shapes tell them."""
    wrong = [name for name, tensor in own.items() if name not in theirs or theirs[name].shape != tensor.shape]
    more = [n for n in theirs if n not in own and not n.startswith("fc.") and "num_batches" not in n]
    more = [*map(layouts.short, [*more, *strays])]
    if not wrong and not more:
        return
    layers = [f"{n} is {_shape(theirs.get(n))} where the model has {list(own[n].shape)}" for n in wrong]
    rule = f"{len(wrong)} of {len(own)} layers do not fit: {some_names(layers)}"
    if not wrong:
        rule = f"{len(more)} layers do not fit: {more[0]} and its like are not in the model"
    ours, needed = settings_of(own), settings_of(theirs)
    changes = {name: value for name, value in needed.items() if value != ours[name]} if needed else {}
    raise UserError.of(key, path, rule, _setting(changes) or "no model.arch, stem and width has these layers")


def _setting(changes: dict[str, Any]) -> str:
    """Word the advice to change settings; "" for none. Not every source of images has a choice of channels."""
    channels = changes.pop("data.channels", None)
    advice = [f"set {' '.join(f'{name}={value}' for name, value in changes.items())}"] if changes else []
    if channels:
        images = f"images of {channels} channel{'s' * (channels > 1)}"
        advice.append(f"give {images} (data.channels={channels} for a folder)")
    return ", and ".join(advice)


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(list(tensor.shape))


def settings_of(layers: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the settings of a ResNet off the shapes of its layers; nothing where none of ours has them."""
    depths = [len({n.split(".")[1] for n in layers if n.startswith(f"layer{stage}.")}) for stage in (1, 2, 3, 4)]
    block = Bottleneck if "layer1.0.conv3.weight" in layers else BasicBlock
    arch = next((name for name, ours in DEPTHS.items() if ours == (block, depths)), None)
    stem_shape, inner = ([*layers[n].shape] if n in layers else [] for n in ("conv1.weight", "layer1.0.conv2.weight"))
    if arch is None or len(stem_shape) != 4 or stem_shape[-1] not in (3, 7):
        return {}
    width, channels, _, kernel = stem_shape
    if inner != [width, width, 3, 3]:  # wide, or in groups
        return {}
    if width < 8 or width % 8 or not 0 < channels <= MOST_CHANNELS:
        return {}
    stem = "small" if kernel == 3 else "imagenet"
    return {"model.arch": arch, "model.stem": stem, "model.width": width, "data.channels": channels}
