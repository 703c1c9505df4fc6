"""Report a mistake of the user's in one line."""

from __future__ import annotations

import json
from collections.abc import Sequence


class UserError(Exception):
    """A user has made a mistake; the line names key, value, rule and fix. The process exits with 2."""

    def __init__(self, line: str) -> None:
        # torch raises a data worker's UserError anew here, with the worker's traceback ahead of the line: drop that.
        line = line.rsplit("UserError: ", 1)[-1].rstrip()
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line))

    @classmethod
    def of(cls, key: str, value: object, rule: str, fix: str) -> UserError:
        """Word a mistake as `key = value: rule; fix`."""
        return cls(f"{key} = {shown(value)}: {rule}; {fix}")


def shown(value: object) -> str:
    """Write a value as the user would write it in YAML, on one line and not longer than a line."""
    text = " ".join(_flow(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def reason(error: BaseException) -> str:
    """Write an error that is no user's mistake on one line, not longer than two lines, to be told in brackets."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def some_names(names: Sequence[str], count: int = 3) -> str:
    """Write the first of some names, on one line, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(map(printable, names[:count])) + more


def printable(name: str) -> str:
    """Write a name on one line, with ? for what cannot be printed, such as bytes that are no UTF-8."""
    return "".join(character if character.isprintable() else "?" for character in name)


def _flow(value: object) -> str:
    match value:
        case bool() | None:
            return json.dumps(value)
        case list() | tuple():
            return f"[{', '.join(map(_flow, value))}]"
        case dict():
            return f"{{{', '.join(f'{key}: {_flow(item)}' for key, item in value.items())}}}"
    return str(value)
