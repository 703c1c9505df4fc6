"""Look at a run's ranks on this node, and print what is seen as a line of JSON; a step beside the job's own does so.

python -m launcher.job.look {stacks | use} RUN_DIR

Nothing is stopped by it: for `stacks` each rank, and each data worker that was forked from it, writes where its threads
are to a file in the run directory, at a signal (`launcher.job.worker`); for `use` only /proc and nvidia-smi are read.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from launcher.record import Launch
from moco_dist import files
from moco_dist.ranks import host_memory

STACKS_SIGNAL = signal.SIGQUIT
"""At this signal a rank writes its stacks. The others that SLURM's users send, USR1 among them, stop it."""
_WORKER = b"launcher.job.worker"
_WRITING_SECONDS, _QUIET_SECONDS = 5.0, 0.1
_SAMPLE_SECONDS = 1.0
_NVIDIA_SMI_SECONDS = 10.0
_TICK, _PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
_GPU_KEYS = ("index", "utilization.gpu", "memory.used", "memory.total")

Ranks = dict[int, int]
"""Process ids of ranks on this node, with the number of each rank."""


def ranks_here(run_dir: Path) -> Ranks:
    """Find the ranks of a run on this node, of which several may stand on one machine."""
    ranks, node = {}, f"SLURMD_NODENAME={os.environ.get('SLURMD_NODENAME', '')}".encode()
    own = os.path.realpath(os.fsencode(run_dir))  # a rank knows it by the path that it was sent with, maybe a link
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if _WORKER in words and os.path.realpath(words[words.index(_WORKER) + 1]) == own:
                variables = (folder / "environ").read_bytes().split(b"\0")
                if node.endswith(b"=") or node in variables:
                    ranks[int(folder.name)] = int(next(v for v in variables if v.startswith(b"RANK="))[5:])
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def stacks(launch: Launch) -> list[dict[str, Any]]:
    """Have the ranks of a run on this node write where each of their threads is.

    Returns:
        Of each rank: `rank`, `pid`, `host`, and `stacks`, the text that it wrote; empty where it does not answer.
    """
    rows = []
    for pid, rank in ranks_here(launch.run_dir).items():
        text = _written(launch.stacks(rank), pid)
        for worker in _descendants(pid):
            if _catches(worker):
                text += f"data worker {worker}:\n{_written(launch.stacks(rank), worker)}"
        rows.append({"rank": rank, "pid": pid, "host": host(), "stacks": text})
    return rows


def use(launch: Launch) -> list[dict[str, Any]]:
    """Measure for a second what the ranks of a run use on this node.

    Returns:
        One row: `host`; `ranks`, their numbers; `cores`, CPU seconds a second of the ranks and their data workers, and
        `cores_allowed`; `memory_bytes`, resident, of them; `node_memory_bytes` and `node_memory_used_bytes`; `gpus`, a
        row each, as nvidia-smi tells it: `index`, `use` in percent, `memory_mib`, `memory_total_mib`.
    """
    ranks = ranks_here(launch.run_dir)
    processes = [process for pid in ranks for process in (pid, *_descendants(pid))]
    before, began = _cpu_seconds(processes), time.monotonic()
    time.sleep(_SAMPLE_SECONDS)
    cores = (_cpu_seconds(processes) - before) / (time.monotonic() - began)
    allowed = {core for pid in ranks for core in _cores(pid)}
    total, available = host_memory.total_and_available()
    row = {
        "host": host(),
        "ranks": sorted(ranks.values()),
        "cores": round(max(0.0, cores), 2),
        "cores_allowed": len(allowed),
        "memory_bytes": sum(map(_resident_bytes, processes)),
        "node_memory_bytes": total,
        "node_memory_used_bytes": total - available,
        "gpus": _gpus(),
    }
    return [row]


def host() -> str:
    """Return the node's name: SLURM's, where several stand on one machine."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _written(file: Path, pid: int) -> str:
    """Have a process write its stacks to a file, and return what it wrote; empty where it cannot, or does not."""
    try:
        before = file.stat().st_size
        if not _catches(pid):  # the signal would kill it
            return ""
        os.kill(pid, STACKS_SIGNAL)
        deadline, size, quiet_since = time.monotonic() + _WRITING_SECONDS, before, time.monotonic()
        while time.monotonic() < deadline and (size == before or time.monotonic() - quiet_since < _QUIET_SECONDS):
            time.sleep(0.01)
            if (now := file.stat().st_size) != size:
                size, quiet_since = now, time.monotonic()
        with files.open_bytes(file) as written:
            written.seek(before)
            return written.read().decode(errors="replace")
    except OSError:
        return ""


def _catches(pid: int) -> bool:
    """Return whether a process has a handler for the signal."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (STACKS_SIGNAL - 1) & 1)
    return False


def _descendants(pid: int) -> Iterator[int]:
    """List the children of a process, and theirs."""
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, file.read_text().split()):
                yield child
                yield from _descendants(child)


def _stat(pid: int) -> list[str]:
    """Return the fields of a process's /proc/PID/stat behind its name, which may hold spaces; none when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _cpu_seconds(processes: Iterable[int]) -> float:
    return sum(sum(map(int, fields[11:13])) / _TICK for fields in map(_stat, processes) if fields)


def _resident_bytes(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[21]) * _PAGE if fields else 0


def _cores(pid: int) -> set[int]:
    try:
        return os.sched_getaffinity(pid)
    except OSError:
        return set()


def _gpus() -> list[dict[str, float | None]]:
    """Ask nvidia-smi about the GPUs that the step may see; none where it is missing, or does not answer."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_GPU_KEYS)}", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_NVIDIA_SMI_SECONDS).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[_number(word) for word in line.split(",")] for line in text.splitlines() if line.count(",") == 3]
    return [dict(zip(("index", "use", "memory_mib", "memory_total_mib"), row, strict=True)) for row in rows]


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:  # [N/A]
        return None


LOOKS = {"stacks": stacks, "use": use}


def main() -> int:
    """Look, and print a line. Returns the exit status."""
    what, run_dir = sys.argv[1:]
    print(json.dumps(LOOKS[what](Launch(Path(run_dir)))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
