"""Every misfit of a job is told at once, and a job with all the fixes fits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import elastic
from launcher.checks import batch, fit, site
from launcher.checks.finding import Finding
from launcher.cluster import Profile
from moco_dist import config as configs
from tests.launcher.made import job_in

PARTITION = "PartitionName=gpu Default=YES MaxNodes={nodes} MaxCPUsPerNode={cpus} MaxMemPerNode={memory} MaxTime=5:00"
NODES = """\
gpu|n1|idle|gpu:8|64|512000|ib
gpu|n2|idle|gpu:4|128|1024000|ib
gpu|n3|idle|gpu:4|16|64000|ib
gpu|n4|idle|gpu:3|64|256000|ib
"""
DIGITS = configs.load(Path("digits"), ["optim.global_batch=64", "moco.bn_groups=8"])


def check(nodes: int, limits: dict[str, str] | None = None, **keys: Any) -> list[Finding]:
    """Check a job of the digits on a site of four unlike nodes."""
    unlimited = {"nodes": "UNLIMITED", "cpus": "UNLIMITED", "memory": "UNLIMITED"}
    there = site.parse(PARTITION.format(**(unlimited | (limits or {}))), NODES, "", "")
    profile = Profile(**({"time_minutes": 5, "cpus_per_gpu": 1} | keys))
    findings = list(fit.check(there, profile, nodes, lambda ranks: elastic.divides(DIGITS, ranks)))
    return [*findings, *batch.check_nodes(DIGITS, job_in(Path("run"), DIGITS, profile, nodes)[1], None)]


def errors(findings: list[Finding]) -> list[str]:
    return [one.text for one in findings if one.level == "error"]


def fixes(findings: list[Finding]) -> dict[str, int]:
    """Read the options that the errors tell to use."""
    words = re.findall(r"--([\w-]+) (\d+)", " ".join(text.partition("; ")[2] for text in errors(findings)))
    return {name.replace("-", "_"): int(value) for name, value in words}


def test_every_misfit_is_told_at_once() -> None:
    findings = check(3, gpus_per_node=6, cpus_per_gpu=20, memory_gib=600, time_minutes=9, exclude=["n9"])
    assert errors(findings) == [
        "exclude = n9: the cluster has no node n9, and sbatch refuses it; leave it out",
        "time_minutes = 9: partition gpu allows 5; use --time-minutes 5; the job goes on after it by itself",
        "gpus_per_node = 6: 1 of 4 nodes of gpu fit, the job needs 3; use --gpus-per-node 4",
        "cpus_per_gpu = 20: 1 of 4 nodes of gpu fit, the job needs 3; use --cpus-per-gpu 4",
        "memory_gib = 600: 1 of 4 nodes of gpu fit, the job needs 3; use --memory-gib 62",
    ]


UNMET = "of 4 nodes of gpu fit, the job needs"


@pytest.mark.parametrize(
    ("nodes", "keys", "line"),
    [
        # With three GPUs a node the batch would not divide, though each node has them.
        (4, {"gpus_per_node": 4}, f"gpus_per_node = 4: 3 {UNMET} 4; use --gpus-per-node 2"),
        (6, {"min_nodes": 5}, "--nodes = 6: partition gpu has 4 nodes; use --nodes 4 --min-nodes 4"),
        (1, {"gpus_per_node": 8, "cpus_per_gpu": 9}, f"cpus_per_gpu = 9: 0 {UNMET} 1; use --cpus-per-gpu 8"),
        (
            1,
            {"time_minutes": 9, "signal_seconds": 400},
            "time_minutes = 9: partition gpu allows 5; use --time-minutes 5 --signal-seconds 150; the job goes on",
        ),
        (
            1,
            {"signal_seconds": 400},
            "signal_seconds = 400: with time_minutes=5 the job would be told to save as it starts; use --signal-sec",
        ),
    ],
)
def test_no_fix_leads_to_the_next_error(nodes: int, keys: dict[str, Any], line: str) -> None:
    keys = {"gpus_per_node": 2, **keys}
    findings = check(nodes, **keys)
    [told] = errors(findings)
    assert told.startswith(line)
    repaired = {"nodes": nodes, **keys, **fixes(findings)}
    assert not errors(check(repaired.pop("nodes"), **repaired))


@given(
    nodes=st.integers(1, 6),
    gpus=st.integers(1, 10),
    cpus=st.integers(1, 40),
    memory=st.none() | st.integers(1, 1200),
    most=st.sampled_from(["UNLIMITED", "1", "3"]),
    most_cpus=st.sampled_from(["UNLIMITED", "12", "64"]),
    most_memory=st.sampled_from(["UNLIMITED", "30720"]),
)
def test_a_job_with_all_its_fixes_fits(
    nodes: int, gpus: int, cpus: int, memory: int | None, most: str, most_cpus: str, most_memory: str
) -> None:
    limits = {"nodes": most, "cpus": most_cpus, "memory": most_memory}
    keys: dict[str, Any] = {"gpus_per_node": gpus, "cpus_per_gpu": cpus, "memory_gib": memory}
    findings = check(nodes, limits, **keys)
    repaired = {**keys, **fixes(findings)}
    if not any("choose another" in text for text in errors(findings)):
        assert not errors(check(repaired.pop("nodes", nodes), limits, **repaired)), errors(findings)


def test_what_the_site_does_not_tell_is_no_misfit() -> None:
    there = site.parse(PARTITION.format(nodes=1, cpus=64, memory=1), "", "", "")
    profile = Profile(exclude=("n1",), gpus_per_node=8, time_minutes=5)
    assert not errors(list(fit.check(there, profile, 1)))


@pytest.mark.parametrize(
    ("nodes", "most", "expected"),
    [
        (1, 1, ["--nodes = 1: partition gpu takes no job of fewer than 3 nodes; use --nodes 4"]),  # 64 by 3 is no batch
        (1, 4, []),
        (4, 4, []),
    ],
)
def test_a_partition_for_wide_jobs(nodes: int, most: int, expected: list[str]) -> None:
    """SLURM lets a smaller job wait for ever."""
    wide = PARTITION.format(nodes="UNLIMITED", cpus="UNLIMITED", memory="UNLIMITED") + " MinNodes=3 ReqResv=NO"
    profile = Profile(time_minutes=5, cpus_per_gpu=1, gpus_per_node=2)
    there = site.parse(wide, NODES, "", "")
    findings = list(fit.check(there, profile, nodes, lambda ranks: elastic.divides(DIGITS, ranks), most))
    assert errors(findings) == expected


def test_a_partition_that_has_no_room_for_its_least_job() -> None:
    wide = PARTITION.format(nodes="UNLIMITED", cpus="UNLIMITED", memory="UNLIMITED") + " MinNodes=50"
    profile = Profile(time_minutes=5, cpus_per_gpu=1, gpus_per_node=2)
    findings = list(fit.check(site.parse(wide, NODES, "", ""), profile, 1))
    refusal = "--nodes = 1: partition gpu takes no job of fewer than 50 nodes; choose another partition"
    assert errors(findings) == [refusal]


def test_a_partition_that_needs_a_reservation() -> None:
    there = site.parse("PartitionName=gpu Default=YES ReqResv=YES", NODES, "ReservationName=mine Nodes=n1", "")
    keys = {"cpus_per_gpu": 1, "gpus_per_node": 2}
    refusal = "reservation = null: partition gpu takes no job without one; add --reservation NAME"
    assert errors(list(fit.check(there, Profile(**keys), 1))) == [refusal]
    assert not errors(list(fit.check(there, Profile(**keys, reservation="mine"), 1)))
