"""Define what can go wrong: the user's mistakes, and a cluster that does not do what it should."""

from __future__ import annotations


class Misuse(Exception):
    """A mistake of the user's: one line that names key, value, rule and fix. The process exits with 2."""

    @classmethod
    def of(cls, key: str, value: object, rule: str, fix: str) -> Misuse:
        return cls(f"{key} = {one_line(str(value), 80)}: {rule}; {fix}")


class ClusterError(Exception):
    """A daemon or a command of the cluster failed, or took too long. The process exits with 1."""


def one_line(text: str, longest: int = 300) -> str:
    """Return a text on one line, cut where it is longer."""
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 3] + "..."
