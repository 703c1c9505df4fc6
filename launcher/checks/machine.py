"""Check what the job needs beside the run itself: disks that the nodes share, packages, and a key for W&B."""

from __future__ import annotations

import netrc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from launcher.checks import finding
from launcher.checks.finding import Finding
from launcher.cluster import Profile
from moco_dist import config as configs
from moco_dist import packages
from moco_dist.config import Config

_OWN_DISKS = ("/tmp", "/var/tmp", "/dev/shm", "/run")
"""Folders that each node has for itself."""


def check_shared(config: Config, profile: Profile, run_dir: Path, stage: str | None) -> Iterator[Finding]:
    """Check whether the nodes see what the job needs."""
    reads = config.data.root if config.data.source in ("mnist", "cifar10", "imagefolder") else None
    for key, place in (
        ("Python", None if profile.container else sys.prefix),
        ("run.dir", run_dir),
        ("--stage", stage),
        ("data.root", None if stage else reads),
        ("run.init_from", config.run.init_from),
    ):
        path = Path(place).resolve() if place else None
        own = [disk for disk in (*_OWN_DISKS, profile.local_disk) if path and path.is_relative_to(disk)]
        if path and own:
            rule = f"lies in {own[0]}, which each node has for itself"
            yield finding.warning(key, path, rule, "put it on a disk that the nodes share")


def check_sender() -> Iterator[Finding]:
    """Check whether this machine can send the job. Only a warning, since slurm/train.sbatch needs no submitit."""
    if not packages.installed("submitit"):
        text = "submitit is not installed here, and submit and sweep need it; install it (pip install submitit)"
        yield Finding("warning", text)


def check_tracking(config: Config, profile: Profile) -> Iterator[Finding]:
    """Check whether the job will have wandb, and W&B will know who we are."""
    yield from map(finding.note, configs.overruled(config.track))
    mode = config.track.wandb
    if mode != "disabled" and profile.container is None and not packages.installed("wandb"):
        rule = "wandb is not installed here, and the job runs this Python"
        fix = "install it (pip install wandb), or use track.wandb=disabled"
        yield finding.error("track.wandb", mode, rule, fix)
        return
    if mode != "online" or any(os.environ.get(f"WANDB_{v}") for v in ("API_KEY", "IDENTITY_TOKEN_FILE")):
        return
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    files = [os.environ.get("NETRC"), Path.home() / ".netrc", Path.home() / "_netrc"]
    if not any(_in_netrc(Path(file), host) for file in files if file):
        rule = f"there is no key for {host}, so the run will be offline"
        yield finding.warning("track.wandb", "online", rule, "run wandb login, or export WANDB_API_KEY")


def _in_netrc(file: Path, host: str) -> bool:
    try:
        return netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return False
