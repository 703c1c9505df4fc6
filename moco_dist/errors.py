"""Report a mistake of the user's in one line, and mask the passwords of URLs in what is printed or kept."""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

_CREDENTIALS = re.compile(r"(?<=://)[^\s/'\"]+@(?!sha256:)")
"""User name and password ahead of the host of a URL; the digest of a container's image is neither."""
_PASSWORD = re.compile(
    r"://[^\s/'\"@:]*:(?![$`])[^\s/'\"]+@(?!sha256:)"  # user:password@; a variable of the shell is none
    r"|https?://(?![$`])[^\s/'\"@:]+@"  # a token alone
)


class UserError(Exception):
    """A user has made a mistake; the line names key, value, rule and fix. The process exits with 2."""

    def __init__(self, line: str) -> None:
        # torch raises a data worker's UserError anew here, with the worker's traceback ahead of the line: drop that.
        line = line.rsplit("UserError: ", 1)[-1].rstrip()
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        super().__init__(masked(line))

    @classmethod
    def of(cls, key: str, value: object, rule: str, fix: str) -> UserError:
        """Word a mistake as `key = value: rule; fix`."""
        return cls(f"{key} = {shown(value)}: {rule}; {fix}")


class OwnMistake(UserError):
    """A user's mistake that this rank has met by itself, in its images for example: the others may not know of it."""


def masked(text: str) -> str:
    """Replace user and password of every URL in a text by `***`; all that may hold one is printed and kept so."""
    return _CREDENTIALS.sub("***@", text)


def holds_password(text: str) -> bool:
    """Return whether a URL in a text has a password, or a token in its place."""
    return bool(_PASSWORD.search(text))


def print_masked(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback as Python does, with its URLs masked; for sys.excepthook."""
    sys.stderr.write(masked("".join(traceback.format_exception(kind, error, trace))))


def tell(line: str) -> None:
    """Print a line on stderr, if that is there: it may have gone with those who read it, which stops nothing."""
    if sys.stderr is not None:  # it was closed from the start, and print would take stdout instead
        with suppress(OSError, ValueError):
            # In one piece, for ranks share it: print would write the line's end apart where Python does not buffer.
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()


def written(value: object) -> str:
    """Write a value as the user would write it in YAML, on one line."""
    return masked(" ".join(_flow(value).split()))


def shown(value: object) -> str:
    """Write a value as `written` does, and not longer than a line."""
    text = written(value)
    return text if len(text) <= 80 else text[:77] + "..."


def reason(error: BaseException) -> str:
    """Write an error that is no user's mistake on one line, not longer than two lines, to be told in brackets."""
    return masked(" ".join(f"{type(error).__name__}: {error}".split()))[:200]


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
