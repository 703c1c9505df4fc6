"""Lay the configs of runs side by side: which keys differ, from each other and from a shipped config."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from moco_dist import config as configs
from moco_dist import files
from moco_dist.errors import masked, shown

Settings = Mapping[str, Any]
"""Values of a config by `section.key`, as its file has them."""

_OF_THE_PLACE = {"run.name", "run.dir", "data.root", "data.download", "data.decode", "data.workers", "track.wandb"}
"""Keys of where a run lies and what it is called."""
_MOST_VALUES, _MOST_LEVELS = 10_000, 20
"""Values of a config that are shown, at most, and how deep they may be nested."""


def read(file: Path) -> tuple[dict[str, Any], str]:
    """Read the resolved config of a run.

    Returns:
        The tree of its sections, and the comment of the versions that ran it. Both are empty where the file is
        missing or damaged, since a page shows what there is.
    """
    try:
        text = files.read_text(file, errors="replace", most_bytes=configs.MOST_BYTES)
        tree = yaml.safe_load(text)
        if any(count > _MOST_VALUES or level > _MOST_LEVELS for count, level in enumerate(_levels(tree))):
            return {}, ""
    except (OSError, yaml.YAMLError, RecursionError, ValueError):
        return {}, ""
    first = text.partition("\n")[0]
    versions = first.removeprefix("#").strip() if first.startswith("#") else ""
    if not isinstance(tree, dict):
        return {}, versions
    return {str(name): section for name, section in tree.items() if isinstance(section, dict)}, masked(versions)


def _levels(value: Any, level: int = 0) -> Iterator[int]:
    """Yield the level of each value, as if aliases were written out; that of a value within itself has no end."""
    yield level
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    for part in parts:
        yield from _levels(part, level + 1)


def is_of_the_place(key: str) -> bool:
    """Tell whether a key differs from place to place, and tells nothing of how a run learns."""
    return key in _OF_THE_PLACE


@functools.cache
def _shipped() -> dict[str, dict[str, Any]]:
    """Return the values of all shipped configs by their names, whatever W&B's variables say here."""
    values = {}
    for file in sorted(configs.SHIPPED_CONFIGS.glob("*.yaml")):
        tree = configs.read_tree(file)
        place = {} if file == configs.DEFAULT_CONFIG else {"root": "DATA"}
        shipped = configs.parse({**tree, "data": {**tree["data"], **place}})
        values[file.stem] = configs.flat(shipped.model_dump(mode="json", context=True))
    return values


def nearest_shipped(settings: Settings) -> tuple[str, dict[str, Any]]:
    """Return the name and the values of the shipped config that differs from a run's in the fewest keys."""

    def distance(name: str) -> tuple[bool, int]:
        shipped = _shipped()[name]
        keys = shipped.keys() - _OF_THE_PLACE
        other_source = shipped["data.source"] != settings.get("data.source")
        return other_source, sum(shipped[key] != settings.get(key) for key in keys)

    name = min(_shipped(), key=distance)
    return name, _shipped()[name]


def differing(runs: Sequence[Settings]) -> list[str]:
    """Return the keys in which runs differ, but for their names and places, in the order of the first config.

    A run of an earlier version has what a key that came after it meant until then; one whose config is missing counts
    for nothing.
    """
    keys = dict.fromkeys(key for settings in runs for key in settings)
    recorded = [settings for settings in runs if settings]
    return [
        key
        for key in keys
        if key not in ("run.name", "run.dir")
        and len({shown(settings.get(key, configs.earlier_values().get(key, ""))) for settings in recorded}) > 1
    ]
