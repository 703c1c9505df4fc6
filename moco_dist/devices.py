"""The device of a rank, and torch's global switches."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import torch

from moco_dist.collectives import World
from moco_dist.config import Config, UserError


def pick(config: Config, world: World) -> torch.device:
    """The device that `device.type` asks for. Raises UserError."""
    wanted, there = config.device.type, torch.cuda.device_count() if torch.cuda.is_available() else 0
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if wanted == "cpu" or (wanted == "auto" and there < local_ranks):
        return torch.device("cpu")
    if not there:
        raise UserError.of("device.type", wanted, "there is no CUDA device here", "use device.type=cpu or auto")
    if there < local_ranks:
        rule = f"there are {there} CUDA devices for {local_ranks} ranks"
        raise UserError.of("device.type", wanted, rule, f"use --nproc_per_node={there}")
    return torch.device("cuda", world.local_rank)


def prepare(config: Config, device: torch.device) -> None:
    """Global switches of torch that the config asks for."""
    torch.set_num_threads(config.device.threads)
    if config.device.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not config.device.deterministic


def memory(device: torch.device) -> int:
    """Bytes that a rank may count on: free ones of its GPU, or half its share of what the machine or the job has."""
    if device.type == "cuda":
        kept_by_torch = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept_by_torch
    everything = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(everything, *_memory_limits()) // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _memory_limits(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Bytes that this process's control groups and those above them allow, as SLURM and containers set them."""
    limits = [sys.maxsize]
    for line in groups.read_text().splitlines() if groups.exists() else ():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            top, name = root, "memory.max"
        elif "memory" in controllers.split(","):  # version 1
            top, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        own = top / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(top):
                with contextlib.suppress(OSError, ValueError):  # not seen from inside a container; "max"
                    limits.append(int((folder / name).read_text()))
    return limits
