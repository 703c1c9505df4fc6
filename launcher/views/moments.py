"""Read the moments and times that a person or a file gives, and write them for people."""

import contextlib
import re
import time
from datetime import datetime

from moco_dist.errors import UserError

_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def of_text(text: str) -> float | None:
    """Read a local time, `2026-11-20T08:00:00`, in seconds since the epoch; None for what is none."""
    with contextlib.suppress(ValueError, OverflowError):
        return datetime.fromisoformat(text).timestamp()
    return None


def of_option(option: str, text: str) -> float:
    """Read the moment that a person means by `2d`, `12h`, `2026-11-20` or `2026-11-20T08:00`. Raises UserError."""
    if match := re.fullmatch(r"(\d{1,6})([mhdw])", text):
        return time.time() - int(match[1]) * _SECONDS[match[2]]
    moment = of_text(text)
    if moment is None:
        raise UserError.of(option, text, "must be a time", f"use {option} 2d, 12h or 2026-11-20")
    return moment


def iso(moment: float | None) -> str | None:
    """Write a moment with its offset from UTC, for programs; None where it is not known."""
    return None if moment is None else datetime.fromtimestamp(moment).astimezone().isoformat(timespec="seconds")


def clock(moment: float | None) -> str:
    """Write a moment for a person, as short as it is clear: 21:05 today, Nov 26 21:05, 2025-11-26; empty for None."""
    if moment is None:
        return ""
    then, now = datetime.fromtimestamp(moment), datetime.now()
    if then.date() == now.date():
        return f"{then:%H:%M}"
    return f"{then:%b %d %H:%M}" if then.year == now.year else f"{then:%Y-%m-%d}"


def duration(seconds: float | None) -> str:
    """Write a time for a person: 42s, 12m, 3h05m, 2d04h; empty for None."""
    if seconds is None:
        return ""
    minutes = int(seconds) // 60
    if minutes < 1:
        return f"{int(seconds)}s"
    if minutes < 60:
        return f"{minutes}m"
    hours = minutes // 60
    return f"{hours}h{minutes % 60:02}m" if hours < 24 else f"{hours // 24}d{hours % 24:02}h"
