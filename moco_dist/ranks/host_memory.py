"""Read how much memory this machine has, and how much of it is in use, from Linux; without torch."""

from contextlib import suppress
from pathlib import Path

_MEMORY = Path("/proc/meminfo")


def total_and_available() -> tuple[int, int]:
    """Return the bytes of this machine's memory, and those that can still be had. Raises OSError beside Linux."""
    lines = _MEMORY.read_text(encoding="ascii").splitlines()[:10]
    try:
        kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        return 1024 * kib["MemTotal"], 1024 * kib["MemAvailable"]
    except (ValueError, KeyError, IndexError) as error:
        raise OSError(f"{_MEMORY} does not tell the memory") from error


def in_use() -> int:
    """Return the bytes of this machine's memory that cannot be had any more, whoever uses them; 0 beside Linux."""
    with suppress(OSError):
        total, available = total_and_available()
        return total - available
    return 0
