"""Define what a check of a job finds: a plain line, with its fix where something is to be done."""

from dataclasses import dataclass
from typing import Literal

from moco_dist.errors import UserError, masked


@dataclass(frozen=True)
class Finding:
    """One thing that was found, in a line. An error stops a submission."""

    level: Literal["error", "warning", "note"]
    text: str


def error(key: str, value: object, rule: str, fix: str) -> Finding:
    """Return an error, which stops a submission: `key = value: rule; fix`."""
    return Finding("error", str(UserError.of(key, value, rule, fix)))


def warning(key: str, value: object, rule: str, fix: str) -> Finding:
    """Return a warning of what is seldom meant, or may go wrong: `key = value: rule; fix`."""
    return Finding("warning", str(UserError.of(key, value, rule, fix)))


def note(text: str) -> Finding:
    """Return a note of what is good to know."""
    return Finding("note", masked(text))
