"""Show what a running job uses on each of its nodes: GPUs, CPU cores, memory, and its share of time waited for data."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from typing import Any

from launcher.options import add_run
from launcher.views import inside, runs
from launcher.views.table import show_rows
from moco_dist.errors import UserError

_GIB = 2**30


def arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's options."""
    add_run(parser)
    text = "look again every so many seconds (5), until Ctrl-C"
    parser.add_argument("--watch", nargs="?", const="5", metavar="SECONDS", help=text)
    parser.add_argument("--json", action="store_true", help="an object: run, step, data_wait, and nodes, a list")


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    if options.watch is not None and not re.fullmatch(r"\d+(\.\d+)?", options.watch):
        raise UserError.of("--watch", options.watch, "must be a number of seconds", "use --watch 5")
    while True:
        now = inside.running(options.run_dir)
        nodes = sorted(inside.rows(now, "use"), key=lambda row: str(row["host"]))
        _print(now, _with_data_waits(nodes, now.figures.node_data_waits), as_json=options.json)
        if options.watch is None:
            return 0
        time.sleep(max(0.2, float(options.watch)))


def _print(now: runs.Run, nodes: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print one look."""
    speed, wait = now.figures.images_per_second, now.figures.data_wait
    if as_json:
        print(json.dumps({"run": now.name, "step": now.step, "data_wait": wait, "nodes": nodes}, indent=1), flush=True)
        return
    parts = [f"step {now.step}", *([f"{speed:.3g} images/s"] if speed else [])]
    parts += [f"{100 * wait:.0f} % of the time waited for data, as a mean of all ranks"] if wait is not None else []
    print(f"{time.strftime('%H:%M:%S')} {now.name}: {', '.join(parts)}")
    heads = ("node", "ranks", "data wait %", "cores", "memory GiB", "node's GiB", "GPU use %", "GPU GiB")
    show_rows(heads, (_cells(node) for node in nodes))


def _with_data_waits(nodes: list[dict[str, Any]], shares: Sequence[float]) -> list[dict[str, Any]]:
    """Add to each node its share of time waited for data, None where the rows do not tell it of just these nodes.

    Args:
        nodes: in any order; each has the numbers of its ranks.
        shares: by node, in the order of their ranks.
    """
    if len(shares) != len(nodes) or not all(node["ranks"] for node in nodes):
        return [{**node, "data_wait": None} for node in nodes]
    in_order = sorted(nodes, key=lambda node: min(node["ranks"]))
    by_host = {node["host"]: share for node, share in zip(in_order, shares, strict=True)}
    return [{**node, "data_wait": by_host[node["host"]]} for node in nodes]


def _cells(row: dict[str, Any]) -> list[str]:
    """Return the cells of a node."""
    ranks, gpus = row["ranks"], row["gpus"]
    use = " ".join("-" if gpu["use"] is None else f"{gpu['use']:.0f}" for gpu in gpus)
    memory = " ".join(_gpu_memory(gpu) for gpu in gpus)
    return [
        row["host"],
        f"{ranks[0]}-{ranks[-1]}" if len(ranks) > 1 else ", ".join(map(str, ranks)) or "none yet",
        "-" if row["data_wait"] is None else f"{100 * row['data_wait']:.0f}",
        f"{row['cores']:.1f} of {row['cores_allowed']}",
        f"{row['memory_bytes'] / _GIB:.1f}",
        f"{row['node_memory_used_bytes'] / _GIB:.0f} of {row['node_memory_bytes'] / _GIB:.0f}",
        use or "none",
        memory or "none",
    ]


def _gpu_memory(gpu: dict[str, float | None]) -> str:
    memory, total = gpu["memory_mib"], gpu["memory_total_mib"]
    return "-" if memory is None or total is None else f"{memory / 1024:.0f}/{total / 1024:.0f}"
