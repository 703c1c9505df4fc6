"""Check a job before it is sent, by all that can be known on a login node."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from launcher import slurm
from launcher.checks import batch, dataset, directory, estimate, finding, fit, machine, resources, site
from launcher.checks.estimate import EncoderCost, Unmeasured
from launcher.checks.finding import Finding
from launcher.checks.site import Site
from launcher.cluster import Profile
from moco_dist import config as configs
from moco_dist.config import Config, Layout
from moco_dist.errors import UserError

Executor = Literal["slurm", "local"]


def check(
    config: Config,
    profile: Profile,
    nodes: int,
    *,
    run_dir: Path,
    stage: str | None = None,
    executor: Executor = "slurm",
) -> list[Finding]:
    """Find what is wrong, doubtful or worth knowing about a job. Returns the errors first.

    Args:
        config: config of the run.
        profile: profile of the cluster.
        nodes: nodes that the job asks for.
        run_dir: its run directory.
        stage: archive of the data, where each node unpacks one.
        executor: what runs it.
    """
    run_dir = run_dir.absolute()
    with ThreadPoolExecutor() as pool:  # SLURM and torch take their time while the disks are looked at
        site_read = pool.submit(site.read) if executor == "slurm" else None
        runners = pool.submit(directory.check_free, run_dir)
        measured = pool.submit(estimate.encoder_cost, config)
        layout, findings = _layout(config, nodes * profile.gpus_per_node)
        images = dataset.count(config, staged=stage is not None)
        findings += [
            *batch.check_nodes(config, profile, nodes, layout),
            *batch.check_data(config, images),
            *dataset.check(config, stage),
        ]
        cost = _cost(measured, findings)
        findings += [
            *directory.check(config, run_dir, images, cost),
            *directory.check_resumed(config, layout, run_dir),
            *resources.check(config, profile, layout, images, cost),
            *machine.check_tracking(config, profile),
            *machine.check_sender(),
            *runners.result(),
        ]
        try:
            findings += (
                _check_site(site_read.result(), config, profile, nodes, run_dir, stage)
                if site_read
                else _check_local(nodes)
            )
        except (slurm.Unavailable, slurm.Refused) as error:
            findings.append(Finding("error", str(error)))
    return sorted(findings, key=lambda one: ("error", "warning", "note").index(one.level))


def _layout(config: Config, ranks: int) -> tuple[Layout | None, list[Finding]]:
    """Lay the batch on the ranks. Returns the layout, or why there is none."""
    try:
        return configs.layout(config, ranks), []
    except UserError as error:
        return None, [Finding("error", str(error))]


def _cost(measured: Future[EncoderCost], findings: list[Finding]) -> EncoderCost | None:
    """Return the cost of the encoder; where it could not be measured, add a note that says so."""
    try:
        return measured.result()
    except Unmeasured as error:
        findings.append(finding.note(f"memory, time and size of a checkpoint are not estimated: {error}"))
        return None


def _check_site(
    there: Site, config: Config, profile: Profile, nodes: int, run_dir: Path, stage: str | None
) -> Iterator[Finding]:
    """Check the job against the cluster."""
    yield from fit.check(there, profile, nodes)
    names = {node.name for nodes in there.nodes.values() for node in nodes}
    if not all(name.startswith("127.") or name == socket.gethostname() for name in names):
        yield from machine.check_shared(config, profile, run_dir, stage)


def _check_local(nodes: int) -> Iterator[Finding]:
    if nodes > 1:
        yield finding.error("--nodes", nodes, "--local runs on this machine alone", "use --nodes 1")
