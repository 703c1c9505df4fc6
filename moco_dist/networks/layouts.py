"""Recognise an encoder in a file by the names that its program gives to the layers of a ResNet.

Ours are torchvision's names. A program adds a prefix to them, numbers them, or has names of its own.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from moco_dist.errors import UserError, printable, some_names

_MOST_ENCODERS = 8
"""Encoders of a file that are looked at; a file of more is refused by these."""
_FOLLOWERS = ("encoder_k", "momentum", "target", "key_encoder", "key_backbone")
"""MoCo's and BYOL's programs call the encoder that follows the trained one so; their own evaluation leaves it out.

Programs differ on which of a teacher and a student, or of weights and their average, is to be evaluated.
"""
_WRAPPERS = r"(?:(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)*"
"""torch adds these to the names in a module that is compiled, distributed or recomputed."""
_NETWORK = r"(conv|bn|norm|layer|stem|attnpool|relu|act|maxpool|avgpool|pool|global_pool)\d*\."
"""The names of torchvision's layers, and of others that change the features, begin so."""
_NUMBERED_WITH_POOL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""Children of torchvision's ResNet in an nn.Sequential, as lightly has them: 2 is the ReLU, 3 the pool."""
_NUMBERED = {"0": "conv1", "1": "bn1", "3": "layer1", "4": "layer2", "5": "layer3", "6": "layer4", "9": "fc"}
"""Children of a ResNet without a pool, and with its head, as the authors' CIFAR-10 demo numbers them."""
_DETECTRON2 = (
    (r"conv1\.", "stem.conv1."),
    (r"bn1\.", "stem.conv1.norm."),
    (r"layer([1-4])\.(\d+)\.conv([123])\.", r"res{}.\2.conv\3."),
    (r"layer([1-4])\.(\d+)\.bn([123])\.", r"res{}.\2.conv\3.norm."),
    (r"layer([1-4])\.(\d+)\.downsample\.0\.", r"res{}.\2.shortcut."),
    (r"layer([1-4])\.(\d+)\.downsample\.1\.", r"res{}.\2.shortcut.norm."),
)
"""The beginnings of our names, and detectron2's for them, whose stages have the number of ours and one more."""


def _as_torchvision(name: str) -> str | None:
    """Translate torchvision's names, and those of networks that call the layer beside a block `shortcut`."""
    if not re.match(r"(conv1|bn1|layer[1-4]|fc)\.", name):
        return None
    return re.sub(r"^(layer[1-4]\.\d+\.)shortcut\.", r"\1downsample.", name)


def _from_numbers(numbers: Mapping[str, str]) -> Callable[[str], str | None]:
    """Return a function that turns the number of a child into its name."""

    def rename(name: str) -> str | None:
        number, dot, rest = name.partition(".")
        return f"{numbers[number]}{dot}{rest}" if number in numbers else None

    return rename


def _from_transformers(name: str) -> str | None:
    """Translate a name of Hugging Face's transformers."""
    kinds = {"convolution": ("conv", "0"), "normalization": ("bn", "1")}
    if match := re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(\w+)", name):
        return f"{kinds[match[1]][0]}1.{match[2]}"
    pattern = r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(layer\.(\d+)|shortcut)\.(convolution|normalization)\.(\w+)"
    if not (match := re.fullmatch(pattern, name)):
        return None
    stage, block, _, number, kind, end = match.groups()
    layer = f"downsample.{kinds[kind][1]}" if number is None else f"{kinds[kind][0]}{int(number) + 1}"
    return f"layer{int(stage) + 1}.{block}.{layer}.{end}"


@dataclass(frozen=True)
class Layout:
    """A layout is the way in which some programs name the layers of a ResNet."""

    name: str
    """The layout in words, for messages."""
    landmark: str
    """A layer that an encoder of this layout has once; the text before its name in a file is the prefix of all."""
    ours: Callable[[str], str | None]
    """A function that translates a name without its prefix into ours, and any other name into None."""
    network: str
    """A pattern for the beginning, behind the prefix, of all names that change what the network computes."""
    is_told_by: str = ""
    """One of our names that an encoder of this layout has, and a similar sequence of layers lacks; empty for none."""
    has_pool: bool = True
    """This says whether the network has a pool behind a stem of 7x7."""


TORCHVISION = Layout("torchvision's names", "layer1.0.conv1.weight", _as_torchvision, _NETWORK)
NUMBERED_WITHOUT_POOL = Layout(
    "numbered children without a pool",
    "3.0.conv1.weight",
    _from_numbers(_NUMBERED),
    r"[0-6]\.",
    is_told_by="layer4.0.conv1.weight",
    has_pool=False,
)
_LAYOUTS = (
    TORCHVISION,
    Layout("numbered children", "7.0.conv1.weight", _from_numbers(_NUMBERED_WITH_POOL), r"[0-7]\."),
    NUMBERED_WITHOUT_POOL,
    Layout(
        "transformers' names",
        "embedder.embedder.convolution.weight",
        _from_transformers,
        r"(embedder|encoder|pooler)\.",
    ),
)


@dataclass(frozen=True)
class Recognised:
    """A recognised encoder is one whose layers were found in a file by their names."""

    layout: Layout
    prefix: str
    """The text before the name of each of the encoder's layers in the file."""
    theirs: Mapping[str, str]
    """The name in the file of each layer, by ours; `fc.` begins the names of a head."""
    others: Sequence[str]
    """Names in the file that are no layers of the encoder."""
    strays: Sequence[str] = ()
    """Names among the encoder's own that are no layers of a ResNet of ours."""

    @property
    def follows(self) -> bool:
        """Return whether the encoder's name says that it follows another one, which is trained."""
        return any(word in self.prefix for word in _FOLLOWERS)

    def lines(self, taken: Iterable[str]) -> list[str]:
        """Say which layers are taken, renamed and left out, a line for each of the three.

        Args:
            taken: our names of the layers that are.
        """
        names = {ours: self.theirs[ours] for ours in taken}
        place = f"{short(self.prefix)}*" if self.prefix else "whose names have no prefix"
        lines = [f"took the encoder's {len(names)} tensors, {place}"]
        renamed = [f"{short(theirs)} to {ours}" for ours, theirs in names.items() if theirs != self.prefix + ours]
        if renamed:
            lines.append(f"renamed {len(renamed)} of them ({self.layout.name}): {some_names(renamed)}")
        left = [*(theirs for ours, theirs in self.theirs.items() if ours not in names), *self.others]
        if groups := self._groups([name for name in left if "num_batches_tracked" not in name]):
            lines.append(f"left out what is not of the encoder: {some_names(groups, 6)}")
        return lines

    def _groups(self, names: Sequence[str]) -> list[str]:
        """Summarise names by their first part behind the prefix, with the number of names in each group."""
        own = self.prefix.split(".")[:-1]
        counts: Counter[str] = Counter()
        for name in names:
            parts = name.split(".")
            shared = next((n for n, (a, b) in enumerate(zip(own, parts, strict=False)) if a != b), len(own))
            counts[".".join(parts[: shared + 1])] += 1
        return [f"{short(group)} ({count})" if count > 1 else short(group) for group, count in counts.items()]


def find(names: Iterable[str]) -> list[Recognised]:
    """Find all encoders in a file by the names in it, joined by dots."""
    names = dict.fromkeys(names)
    places = (
        (layout, match[1])
        for layout in _LAYOUTS
        for name in names
        if (match := re.fullmatch(rf"((?:.*\.)?){_wrapped(layout.landmark)}", name, re.DOTALL))
    )
    encoders = [_translated(layout, prefix, names) for layout, prefix in itertools.islice(places, _MOST_ENCODERS)]
    return [encoder for encoder in encoders if encoder.layout.is_told_by in ("", *encoder.theirs)]


def _wrapped(name: str) -> str:
    """Return a pattern for a name whose parts may be wrapped by torch."""
    return rf"\.{_WRAPPERS}".join(map(re.escape, name.split(".")))


def _translated(layout: Layout, prefix: str, names: Iterable[str]) -> Recognised:
    """Divide the names in a file into layers of the encoder and others."""
    theirs, others, strays = dict[str, str](), list[str](), list[str]()
    for name in names:
        own = re.sub(rf"(?<=\.){_WRAPPERS}", "", name.removeprefix(prefix)) if name.startswith(prefix) else None
        ours = layout.ours(own) if own is not None else None
        if ours is not None and ours not in theirs:
            theirs[ours] = name
            continue
        others.append(name)
        if own is not None and re.match(layout.network, own):
            strays.append(name)
    return Recognised(layout, prefix, theirs, others, strays)


def refuse(names: Sequence[str], key: str, path: Path) -> NoReturn:
    """Refuse a file that holds no encoder of a known layout, and show the first of its names. Raises UserError."""
    if any(f".{name}".endswith(".5.0.conv1.weight") for name in names):
        # Its ReLU after the first BatchNorm is no child, so that an nn.Sequential of the children lacks it.
        rule = "holds the children of lightly's ResNetGenerator, which has no ReLU after its first BatchNorm"
        raise UserError.of(key, path, rule, "it computes something else; train one of torchvision's ResNets")
    first = ", ".join(map(short, names[:5])) or "nothing"
    raise UserError.of(key, path, f"holds no ResNet's layers, but {first}", "docs/weights.md lists what is read")


def short(name: str) -> str:
    """Write a name on one line, not longer than most of a line."""
    name = printable(" ".join(name[:200].split()))
    return name if len(name) <= 80 else f"{name[:77]}..."


def to_detectron2(name: str) -> str:
    """Translate our name of a layer, without the head, into detectron2's."""
    for ours, theirs in _DETECTRON2:
        if match := re.match(ours, name):
            stage = int(match[1]) + 1 if match.groups() else 0
            return match.expand(theirs.format(stage)) + name[match.end() :]
    raise AssertionError(f"{name} is no layer of a backbone")
