"""Read the config that a caller gives in any of its forms: a path, a name, sections, or a config. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from moco_dist import config as configs
from moco_dist.config import Config
from moco_dist.config.from_python import Overrides, as_path, plain, values_of
from moco_dist.run import directory
from moco_dist.run.paths import RunPaths

ConfigLike = str | os.PathLike[str] | Mapping[str, Any] | Config
"""A caller gives a config as a YAML file, a shipped one's name, a run's directory, a mapping of sections, or itself."""


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
        return configs.resolve(plain(config), values)
    file = None if config is None else as_path("config", config)
    if file is not None and file.is_dir():
        file = RunPaths(directory.existing(file)).config
    return directory.load_config(file, values=values)
