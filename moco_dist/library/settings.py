"""Read the config that a caller gives in any of its forms: a path, a name, sections, or a config. No torch."""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moco_dist import config as configs
from moco_dist.config import Config
from moco_dist.errors import UserError
from moco_dist.run import directory
from moco_dist.run.paths import RunPaths

ConfigLike = str | os.PathLike[str] | Mapping[str, Any] | Config
"""A YAML file, a shipped config's name, the directory of a run, a mapping of sections, or a config."""
Overrides = Iterable[str] | Mapping[str, object]
"""Overrides as on the command line, `["optim.lr=0.06"]`, or values by key, `{"optim.lr": 0.06}`."""


def path_of(name: str, path: str | os.PathLike[str]) -> Path:
    """Return a path: in a text, `~` and `$NAME` are expanded as on the command line; any other path stays as it is.

    Raises:
        UserError: names the argument.
    """
    return Path(configs.expanded(name, path) if isinstance(path, str) else path)


def values_of(overrides: Overrides) -> dict[str, Any]:
    """Return overrides as values by key. Raises UserError for what is none."""
    if isinstance(overrides, Mapping):
        return {str(key): _plain(value) for key, value in overrides.items()}
    fix = 'write ["section.key=value"], or {"section.key": value}'
    if isinstance(overrides, str):
        raise UserError.of("overrides", overrides, "must be a list of texts or a mapping", fix)
    listed = list(overrides)
    for override in listed:
        if not isinstance(override, str) or "=" not in override:
            raise UserError.of("overrides", override, "is no section.key=value", fix)
    return configs.read_overrides(listed)


def config_of(config: ConfigLike | None, overrides: Overrides = ()) -> Config:
    """Return the config in any of its forms, with overrides; None is the embedded default.

    An override of `run.name` alone means the directory `runs/<name>`, whatever directory the config of a run is of.

    Raises:
        UserError: whatever is wrong with it, in one line.
    """
    values = values_of(overrides)
    if isinstance(config, Config):
        if "run.name" in values:
            values = {"run.dir": None, **values}
        return configs.resolve(config.model_dump(mode="json", context=True), values)
    if isinstance(config, Mapping):
        return configs.resolve(_plain(config), values)
    file = None if config is None else path_of("config", config)
    if file is not None and file.is_dir():
        file = RunPaths(directory.existing(file)).config
    return directory.load_config(file, values=values)


def _plain(value: Any) -> Any:
    """Return a value as a config takes it: paths as text that is not expanded, and the numbers of NumPy as Python's."""
    match value:
        case bool():
            return value
        case os.PathLike():
            return configs.literal(os.fspath(value))
        case numbers.Integral():
            return int(value)
        case numbers.Real():
            return float(value)
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    return value
