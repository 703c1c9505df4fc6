"""The baselines share torchvision's networks, a command line, and a row for each step as the trainer writes it.

torchrun --nproc_per_node=R -m benchmarks.baselines.NAME --steps N --rows PATH [CONFIG.yaml] [section.key=value ...]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from moco_dist import config as configs
from moco_dist.errors import UserError
from moco_dist.ranks import devices

Step = Callable[[], Tensor]
"""Takes a step, and returns its loss, which may still be on its way."""


def encoder(config: configs.Config) -> nn.Module:
    """Build torchvision's ResNet with the stem and the head of the config."""
    model, channels = config.model, config.data.channel_count
    assert model.width == 64, "torchvision's ResNets have 64 channels in the first stage"
    network: nn.Module = getattr(torchvision.models, model.arch)(num_classes=model.dim)
    if model.stem == "small":
        network.conv1, network.maxpool = nn.Conv2d(channels, 64, 3, padding=1, bias=False), nn.Identity()
    elif channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    if model.mlp:
        features = network.fc.in_features
        network.fc = nn.Sequential(nn.Linear(features, features), nn.ReLU(), network.fc)
    return network


def sgd(network: nn.Module, config: configs.Config) -> torch.optim.SGD:
    """Make the optimizer of the config."""
    optim = config.optim
    return torch.optim.SGD(network.parameters(), optim.lr, optim.sgd_momentum, weight_decay=optim.weight_decay)


def run(
    arguments: Sequence[str], module: str, description: str | None, start: Callable[[configs.Config, int, int], Step]
) -> int:
    """Take the steps of a baseline on this rank, and write a row for each on rank 0.

    Args:
        arguments: command line.
        module: of the baseline.
        description: for `--help`.
        start: makes the step from the config, this rank and the number of ranks.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, required=True, metavar="N")
    parser.add_argument("--rows", type=Path, required=True, metavar="PATH", help="written by rank 0, a line a step")
    parser.add_argument("words", nargs="*", metavar="CONFIG.yaml, section.key=value", help="as for moco_dist.train")
    options = parser.parse_args(arguments)
    try:
        config = configs.load(*configs.parse_arguments(options.words))
        devices.pick(config, int(os.environ.get("LOCAL_RANK", 0)))
    except UserError as error:
        print(f"{module}: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(config.device.threads)
    torch.backends.cudnn.benchmark = True
    rank, ranks = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    step = start(config, rank, ranks)
    began = time.perf_counter()
    for number in range(1, options.steps + 1):
        loss = step().item()
        now = time.perf_counter()
        if rank == 0:
            row = {"step": number, "loss": loss, "images_per_second": config.optim.global_batch / (now - began)}
            with options.rows.open("a") as rows:
                rows.write(json.dumps(row) + "\n")
        began = now
    return 0
