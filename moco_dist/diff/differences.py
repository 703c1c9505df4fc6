"""List what two runs record differently, and say which of it can move a number."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from moco_dist import config as configs
from moco_dist.diff.side import NOT_RECORDED, Side

Section = Literal["config", "seed", "data", "code", "versions", "hardware", "ranks", "evaluation"]
SECTIONS: tuple[Section, ...] = ("seed", "data", "config", "ranks", "hardware", "code", "versions", "evaluation")

_IGNORED_VERSIONS = ("wandb",)
"""Packages that compute no number of a run."""


@dataclass(frozen=True)
class Difference:
    """A difference is one thing that two runs record differently."""

    section: Section
    name: str
    one: Any
    other: Any
    effect: configs.Effect
    """The most that the difference can change; "none": it cannot move a number."""

    @property
    def recorded(self) -> bool:
        """Return whether both runs record it."""
        return NOT_RECORDED not in (self.one, self.other)


def differences(one: Side, other: Side) -> list[Difference]:
    """Return all that the two runs record differently, or that one of them does not record."""
    return [*_of_config(one, other), *_of_machines(one, other), *_of_evaluation(one, other)]


def _of_config(one: Side, other: Side) -> Iterator[Difference]:
    for key in dict.fromkeys((*one.config, *other.config)):
        values = [_plain(side.value(key)) for side in (one, other)]
        if values[0] != values[1] and not _same_number(*values):
            section: Section = "seed" if key == "run.seed" else "config"
            effect = _effect_of_key(key, values, one, other)
            yield Difference(section, key, values[0], values[1], effect)


def _effect_of_key(key: str, values: list[Any], one: Side, other: Side) -> configs.Effect:
    """Return what a key can do between these runs: only the images of folders are decoded."""
    decodes = "imagefolder" in (one.value("data.source"), other.value("data.source"))
    return "none" if key == "data.decode" and not decodes else configs.effect_of(key, *values)


def _of_machines(one: Side, other: Side) -> Iterator[Difference]:
    if one.ranks != other.ranks or one.ranks == NOT_RECORDED:
        yield Difference("ranks", "the number of ranks", one.ranks, other.ranks, _effect_of_ranks(one, other))
    pairs: tuple[tuple[Section, str, str, str, configs.Effect], ...] = (
        ("data", "training images", one.data, other.data, "curve"),
        ("hardware", "hardware", one.hardware, other.hardware, "bits"),
        ("code", "files of the trainer", one.code, other.code, "curve"),
    )
    for section, name, ours, theirs, effect in pairs:
        if ours != theirs or ours == NOT_RECORDED:
            yield Difference(section, name, ours, theirs, effect)
    same_files = one.code == other.code != NOT_RECORDED  # a dirty checkout of one revision has other files, or not
    if one.git != other.git or one.git in ("unknown", NOT_RECORDED):
        yield Difference("code", "git revision", one.git, other.git, "none" if same_files else "curve")
    for name in dict.fromkeys((*one.versions, *other.versions)):
        ours, theirs = (side.versions.get(name, NOT_RECORDED) for side in (one, other))
        if ours != theirs:
            yield Difference("versions", name, ours, theirs, "none" if name in _IGNORED_VERSIONS else "bits")


def _effect_of_ranks(one: Side, other: Side) -> configs.Effect:
    """Return what other numbers of ranks can do: they set the BatchNorm groups where the config does not."""
    if None in (one.value("moco.bn_groups"), other.value("moco.bn_groups")):
        return "curve"
    return "none" if one.exact and other.exact else "bits"


def _of_evaluation(one: Side, other: Side) -> Iterator[Difference]:
    for name, ours in one.final_figures.items():
        theirs = other.final_figures.get(name, ours)
        if ours != theirs:
            yield Difference("evaluation", name, ours, theirs, "none")


def _plain(value: Any) -> Any:
    """Return a value of a config as its text, whether it was read from YAML or is a default."""
    match value:
        case None:
            return None
        case bool():
            return str(value).lower()
        case list() | tuple():
            return [_plain(item) for item in value]
    return str(value)


def _same_number(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(a == b or _same_number(a, b) for a, b in zip(one, other, strict=True))
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        return False
