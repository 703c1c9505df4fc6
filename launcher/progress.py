"""Say how far a command has come that goes through many runs."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

_EVERY_SECONDS = 1.0


def counted(items: Sequence[T], what: str) -> Iterator[T]:
    """Yield the items, and print on stderr how many are done, each second: `40 of 100 members are checked`."""
    printed = time.monotonic()
    for number, item in enumerate(items):
        if time.monotonic() - printed >= _EVERY_SECONDS:
            print(f"{number} of {len(items)} {what}", file=sys.stderr, flush=True)
            printed = time.monotonic()
        yield item
