"""Check a job before it is sent, by all that can be known on a login node."""

from __future__ import annotations

import netrc
import os
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from launcher import slurm
from launcher.checks import batch, dataset, directory, estimate, finding, fit, site
from launcher.checks.finding import Finding
from launcher.cluster import Profile
from launcher.record import Submission
from moco_dist import config as configs
from moco_dist import packages
from moco_dist.config import Config
from moco_dist.errors import UserError

_OWN_DISKS = ("/tmp", "/var/tmp", "/dev/shm", "/run")
"""Folders that each node has for itself."""


def check(config: Config, submission: Submission) -> list[Finding]:
    """Find what is wrong, doubtful or worth knowing about a job. Returns the errors first."""
    findings, layout, cost = list[Finding](), None, None
    with ThreadPoolExecutor() as pool:  # SLURM and torch take their time while the disks are looked at
        site_read = pool.submit(site.read) if submission.executor == "slurm" else None
        runners = pool.submit(directory.check_free, config.run_dir.absolute())
        measured = pool.submit(estimate.encoder_cost, config)
        try:
            layout = configs.layout(config, submission.ranks)
        except UserError as error:
            findings.append(Finding("error", str(error)))
        images = dataset.count(config, staged=submission.stage is not None)
        findings += batch.check_nodes(config, submission, layout)
        findings += batch.check_data(config, images)
        findings += dataset.check(config, submission.stage)
        try:
            cost = measured.result()
        except estimate.Unmeasured as error:
            findings.append(finding.note(f"memory, time and size of a checkpoint are not estimated: {error}"))
        findings += directory.check(config, images, cost)
        findings += directory.check_resumed(config, layout)
        findings += batch.check_resources(config, submission.profile, layout, images, cost)
        findings += _check_tracking(config, submission.profile)
        findings += _check_sender()
        findings += runners.result()
        try:
            findings += _check_site(site_read.result(), config, submission) if site_read else _check_local(submission)
        except (slurm.Unavailable, slurm.Refused) as error:
            findings.append(Finding("error", str(error)))
    return sorted(findings, key=lambda one: ("error", "warning", "note").index(one.level))


def _check_site(there: site.Site, config: Config, submission: Submission) -> Iterator[Finding]:
    """Check the job against the cluster."""
    yield from fit.check(there, submission.profile, submission.nodes)
    names = {node.name for nodes in there.nodes.values() for node in nodes}
    if not all(name.startswith("127.") or name == socket.gethostname() for name in names):
        yield from _check_shared(config, submission)


def _check_local(submission: Submission) -> Iterator[Finding]:
    if submission.nodes > 1:
        yield finding.error("--nodes", submission.nodes, "--local runs on this machine alone", "use --nodes 1")


def _check_shared(config: Config, submission: Submission) -> Iterator[Finding]:
    """Check whether the nodes see what the job needs."""
    profile, stage = submission.profile, submission.stage
    reads = config.data.root if config.data.source in ("mnist", "cifar10", "imagefolder") else None
    for key, place in (
        ("Python", None if profile.container else sys.prefix),
        ("run.dir", config.run_dir),
        ("--stage", stage),
        ("data.root", None if stage else reads),
        ("run.init_from", config.run.init_from),
    ):
        path = Path(place).resolve() if place else None
        own = [disk for disk in (*_OWN_DISKS, profile.local_disk) if path and path.is_relative_to(disk)]
        if path and own:
            rule = f"lies in {own[0]}, which each node has for itself"
            yield finding.warning(key, path, rule, "put it on a disk that the nodes share")


def _check_sender() -> Iterator[Finding]:
    """Check whether this machine can send the job. Only a warning, since slurm/train.sbatch needs no submitit."""
    if not packages.installed("submitit"):
        text = "submitit is not installed here, and submit and sweep need it; install it (pip install submitit)"
        yield Finding("warning", text)


def _check_tracking(config: Config, profile: Profile) -> Iterator[Finding]:
    """Check whether the job will have wandb, and W&B will know who we are."""
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
