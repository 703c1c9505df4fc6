"""Recognise an encoder by the names of its layers: what other programs call the layers of a ResNet, and what we do.

Ours are torchvision's names. A program adds a prefix to them, numbers them, or has names of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moco_dist.errors import UserError, some_names

_COPIES = ("encoder_k", "momentum", "target", "key_encoder")
"""What programs call the encoder that follows the trained one."""
_NUMBERED_WITH_POOL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""Children of torchvision's ResNet in an nn.Sequential, as lightly has them: 2 is the ReLU, 3 the pool."""
_NUMBERED = {"0": "conv1", "1": "bn1", "3": "layer1", "4": "layer2", "5": "layer3", "6": "layer4", "9": "fc"}
"""The same without the pool and with the head, as the authors' CIFAR-10 demo has them."""
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
    """Take torchvision's names, and those of networks that call the layer beside a block `shortcut`."""
    if not re.match(r"(conv1|bn1|layer[1-4]|fc)\.", name):
        return None
    return re.sub(r"^(layer[1-4]\.\d+\.)shortcut\.", r"\1downsample.", name)


def _from_numbers(numbers: Mapping[str, str]) -> Callable[[str], str | None]:
    """Return what turns the number of a child into its name."""

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
    """The layout in words for people."""
    landmark: str
    """A layer that an encoder of this layout has once: what stands before its name in a file is the prefix of all."""
    ours: Callable[[str], str | None]
    """Translates a name without its prefix into ours; None for what is no layer of the encoder."""
    last: str = ""
    """Another layer that tells the layout from others; empty where the landmark is enough."""


TORCHVISION = Layout("torchvision's names", "layer1.0.conv1.weight", _as_torchvision)
NUMBERED_WITHOUT_POOL = Layout(
    "numbered children without a pool", "3.0.conv1.weight", _from_numbers(_NUMBERED), "6.0.conv1.weight"
)
_LAYOUTS = (
    TORCHVISION,
    Layout("numbered children", "7.0.conv1.weight", _from_numbers(_NUMBERED_WITH_POOL)),
    NUMBERED_WITHOUT_POOL,
    Layout("transformers' names", "embedder.embedder.convolution.weight", _from_transformers),
)


@dataclass(frozen=True)
class Recognised:
    """An encoder that was recognised in a file."""

    layout: Layout
    prefix: str
    """What stands before the name of each of its layers in the file."""
    theirs: Mapping[str, str]
    """The name in the file of each layer, by ours; `fc.` begins the names of a head."""
    others: Sequence[str]
    """Names in the file that are no layers of the encoder."""

    def lines(self, taken: Iterable[str]) -> list[str]:
        """Say in a line each what is taken, renamed and left out.

        Args:
            taken: our names of the layers that are.
        """
        names = {ours: self.theirs[ours] for ours in taken}
        lines = [f"took the {len(names)} layers of {self.prefix or 'the backbone, without a prefix'}"]
        renamed = [f"{theirs} to {ours}" for ours, theirs in names.items() if theirs != self.prefix + ours]
        if renamed:
            lines.append(f"renamed {len(renamed)} layers ({self.layout.name}): {some_names(renamed)}")
        left = [*(theirs for ours, theirs in self.theirs.items() if ours not in names), *self.others]
        if groups := self._groups([name for name in left if "num_batches_tracked" not in name]):
            lines.append(f"left out: {some_names(groups, 6)}")
        return lines

    def _groups(self, names: Sequence[str]) -> list[str]:
        """Join names that part from the prefix at the same place, with their number."""
        own = self.prefix.split(".")[:-1]
        counts: Counter[str] = Counter()
        for name in names:
            parts = name.split(".")
            shared = next((n for n, (a, b) in enumerate(zip(own, parts, strict=False)) if a != b), len(own))
            counts[".".join(parts[: shared + 1])] += 1
        return [f"{group} ({count})" if count > 1 else group for group, count in counts.items()]


def recognise(names: Iterable[str], key: str, path: Path) -> Recognised:
    """Find the one encoder in a file by the names in it; of an encoder and the one that follows it, the former.

    Args:
        names: all names in the file, joined by dots.
        key: what named the file, for the mistake.
        path: of the file.

    Raises:
        UserError: the file has no ResNet, several, or one that is computed otherwise than ours.
    """
    names = dict.fromkeys(names)
    places = [
        (layout, name.removesuffix(layout.landmark))
        for layout in _LAYOUTS
        for name in names
        if f".{name}".endswith(f".{layout.landmark}")
        and (not layout.last or f"{name.removesuffix(layout.landmark)}{layout.last}" in names)
    ]
    places = [place for place in places if not any(word in place[1] for word in _COPIES)] or places
    if not places:
        _refuse(list(names), key, path)
    if len(places) > 1:
        rule = f"holds several encoders: {', '.join(prefix or '(no prefix)' for _, prefix in places[:5])}"
        raise UserError.of(key, path, rule, "save the one that you mean alone")
    ((layout, prefix),) = places
    theirs, others = dict[str, str](), list[str]()
    for name in names:
        ours = layout.ours(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if ours is None:
            others.append(name)
        else:
            theirs[ours] = name
    return Recognised(layout, prefix, theirs, others)


def _refuse(names: Sequence[str], key: str, path: Path) -> None:
    """Refuse a file without an encoder that we know, by the first of its names. Raises UserError."""
    if any(f".{name}".endswith(".5.0.conv1.weight") for name in names):
        # Its ReLU after the first BatchNorm is no child, so that an nn.Sequential of the children lacks it.
        rule = "holds the children of lightly's ResNetGenerator, which has no ReLU after its first BatchNorm"
        raise UserError.of(key, path, rule, "it computes something else; train one of torchvision's ResNets")
    first = " ".join(", ".join(names[:5]).split())[:200] or "nothing"
    raise UserError.of(key, path, f"holds no ResNet's layers, but {first}", "give a ResNet in torchvision's names")


def to_detectron2(name: str) -> str:
    """Translate our name of a layer, without the head, into detectron2's."""
    for ours, theirs in _DETECTRON2:
        if match := re.match(ours, name):
            stage = int(match[1]) + 1 if match.groups() else 0
            return match.expand(theirs.format(stage)) + name[match.end() :]
    raise AssertionError(f"{name} is no layer of a backbone")
