"""Report a mistake of the user's in one line."""

from __future__ import annotations

import json


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


def _flow(value: object) -> str:
    match value:
        case bool() | None:
            return json.dumps(value)
        case list() | tuple():
            return f"[{', '.join(map(_flow, value))}]"
        case dict():
            return f"{{{', '.join(f'{key}: {_flow(item)}' for key, item in value.items())}}}"
    return str(value)
