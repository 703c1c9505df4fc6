"""Report a mistake of the user's in one line."""

from __future__ import annotations

import json


class UserError(Exception):
    """A user has made a mistake; the line names key, value, rule and fix. The process exits with 2."""

    def __init__(self, line: str) -> None:
        # torch raises a data worker's UserError anew here, with the worker's traceback ahead of the line: drop that.
        super().__init__(line.rsplit("UserError: ", 1)[-1].rstrip())

    @classmethod
    def of(cls, key: str, value: object, rule: str, fix: str) -> UserError:
        """Word a mistake as `key = value: rule; fix`."""
        return cls(f"{key} = {shown(value)}: {rule}; {fix}")


def shown(value: object) -> str:
    """Write a value as the user would write it in YAML, on one line and not longer than a line."""
    text = json.dumps(value) if isinstance(value, bool | list | dict | type(None)) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."
