"""Read paths and overrides that a caller in Python gives: objects, or texts as on the command line."""

from __future__ import annotations

import numbers
import operator
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moco_dist.config.load import read_overrides
from moco_dist.config.paths import expanded, literal, possible
from moco_dist.errors import UserError

Overrides = Iterable[str] | Mapping[str, object]
"""A caller gives overrides as on the command line, `["optim.lr=0.06"]`, or by key, `{"optim.lr": 0.06}`."""


def as_path(name: str, path: str | os.PathLike[str]) -> Path:
    """Return a path: in a text, `~` and `$NAME` are expanded as on the command line; any other path stays as it is.

    Raises:
        UserError: names the argument.
    """
    if isinstance(path, str):
        return Path(expanded(name, path))
    try:
        return Path(possible(name, os.fspath(path)))
    except TypeError:
        raise UserError.of(name, path, "is no path", "give a text or a pathlib.Path") from None


def whole_of(name: str, number: Any) -> int | None:
    """Return a whole number as Python's, NumPy's too, which JSON does not know; None for None.

    Raises:
        UserError: names the argument.
    """
    if number is None:
        return None
    try:
        if not isinstance(number, bool):
            return operator.index(number)
    except TypeError:
        pass
    raise UserError.of(name, number, "must be a whole number", "write it without quotes and point")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse a value that is none of the choices. Raises UserError, which names the argument."""
    choices = tuple(choices)
    if not (isinstance(value, str) and value in choices):
        raise UserError.of(name, value, "is not known", f"use {' or '.join(choices)}")


def values_of(overrides: Overrides) -> dict[str, Any]:
    """Return overrides as values by key. Raises UserError for an object that is no override."""
    if isinstance(overrides, Mapping):
        return {str(key): plain(value) for key, value in overrides.items()}
    fix = 'write ["section.key=value"], or {"section.key": value}'
    if isinstance(overrides, str | bytes) or not isinstance(overrides, Iterable):
        raise UserError.of("overrides", overrides, "must be a list of texts or a mapping", fix)
    listed = list(overrides)
    for override in listed:
        if not isinstance(override, str) or "=" not in override:
            raise UserError.of("overrides", override, "is no section.key=value", fix)
    return read_overrides(listed)


def plain(value: Any) -> Any:
    """Return a value as a config takes it: paths as text that is not expanded, and the numbers of NumPy as Python's."""
    match value:
        case bool():
            return value
        case os.PathLike():
            return literal(os.fspath(value))
        case numbers.Integral():
            return int(value)
        case numbers.Real():
            return float(value)
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
    return value
