"""The device of a rank, and torch's global switches."""

from __future__ import annotations

import os

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
    """Bytes that a rank may count on: free ones of its GPU, or half its share of the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    everything = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return everything // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
