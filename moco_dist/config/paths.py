"""Expand `~` and `$NAME` in the paths that a user writes, in a file or on a command line."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, PlainSerializer, SerializationInfo, ValidationInfo

from moco_dist.errors import UserError, holds_password, shown

_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|(?P<name>\w+)|\{(?P<braced>\w+)\}|(?P<odd>\{[^}]*\}?))", re.ASCII)

_NO_HOME = "the variable HOME is not set here, or empty; export it, or write the path out"


def expand(text: str) -> str:
    """Expand a leading `~` or `~user`, `$NAME` and `${NAME}` of a path; `$$` is a dollar sign.

    Raises:
        ValueError: the text is empty, a variable is not set or is empty, there is no such user, or a name is too long.
    """
    if not text:
        raise ValueError("must be a path; for none, write null")
    if not text.startswith("~"):
        return _possible(_VARIABLE.sub(_value, text))
    user, slash, rest = text.partition("/")
    if user == "~" and os.environ.get("HOME") == "":  # of which Python would make /
        raise ValueError(_NO_HOME)
    try:
        home = str(Path(user).expanduser())
    except RuntimeError:
        if user == "~":
            raise ValueError(_NO_HOME) from None
        raise ValueError(f"there is no user {user[1:]}; write ./{user} for a folder of that name") from None
    return _possible(home + slash + _VARIABLE.sub(_value, rest))


def _possible(path: str) -> str:
    """Return the path if Linux can have it. Raises ValueError."""
    refuse_password(path)
    if "\0" in path:
        raise ValueError("holds a zero byte, which no path can; drop it")
    if len(os.fsencode(path)) > 4000 or any(len(os.fsencode(name)) > 255 for name in path.split("/")):
        raise ValueError("must have names of at most 255 bytes, and 4000 in all; shorten it")
    return path


def refuse_password(text: str) -> None:
    """Refuse a URL with a password, since a config is kept in files. Raises ValueError."""
    if holds_password(text):
        raise ValueError("holds a password, which has no place in a file; export it in the shell, or use ~/.netrc")


def _value(match: re.Match[str]) -> str:
    if match["dollar"]:
        return "$"
    if match["odd"]:
        raise ValueError(f"{match[0]} is no ${{NAME}}; write the path out, or $$ for a dollar sign")
    name = match["name"] or match["braced"]
    if not (value := os.environ.get(name)):
        raise ValueError(
            f"the variable {name} is not set here, or empty; export it, or write the path out, or $$ for a dollar sign"
            " (what only a job's node knows may stand in a profile's local_disk alone)"
        )
    return value


def literal(path: object) -> str:
    """Write a path so that `expand` gives it back as it is."""
    text = re.sub(r"\$(?=[$\w{])", "$$", str(path))
    return f"./{text}" if text.startswith("~") else text


def expanded(key: str, text: str) -> str:
    """Expand a path that stands on a command line. Raises UserError, which names the argument or option."""
    return _read_as(key, text, expand)


def possible(key: str, path: str) -> str:
    """Return a path that is not to be expanded if Linux can have it. Raises UserError, which names the argument."""
    return _read_as(key, path, _possible)


def _read_as(key: str, text: str, read: Callable[[str], str]) -> str:
    try:
        return read(text)
    except ValueError as error:
        raise UserError(f"{key} = {shown(text)}: {error}") from None


def _read(text: str, info: ValidationInfo) -> str:
    return expand(text) if info.context else text


def _written(text: str, info: SerializationInfo) -> str:
    return literal(text) if info.context else text


PathText = Annotated[str, AfterValidator(_read), PlainSerializer(_written)]
"""A path in a model: with a context, which `load` and `dump` give, it is read expanded and written literally."""
