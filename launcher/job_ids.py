"""Name jobs of several clusters: `12`, or `12_3` for a member of an array, and behind an @ the cluster, `12@gpu`."""

import os
from collections.abc import Collection


def address(job: str, cluster: str | None) -> str:
    """Return what a job is called here: its number, and behind an @ the cluster, where one is named."""
    return f"{job}@{cluster}" if cluster else job


def number(job: str) -> str:
    """Return what a job is called on its own cluster: `12` or `12_3`."""
    return job.partition("@")[0]


def array(job: str) -> str:
    """Return what the array is called that a job is a member of; of another job, its own name."""
    name, _, cluster = job.partition("@")
    return address(name.partition("_")[0], cluster)


def on_cluster(cluster: str | None) -> list[str]:
    """Return the option that has SLURM's commands ask a cluster; none where that is the one that this job runs on."""
    return [f"--clusters={cluster}"] if cluster and cluster != os.environ.get("SLURM_CLUSTER_NAME") else []


def words(job: str) -> list[str]:
    """Return the words by which a command is told of a job."""
    name, _, cluster = job.partition("@")
    return [name, *on_cluster(cluster)]


def is_federated(number: str) -> bool:
    """Return whether a federation has numbered a job: the number of the cluster it was sent to is in its upper bits."""
    digits = number.partition("_")[0]
    return digits.isdecimal() and int(digits) >> 26 > 0


def in_accounting(cluster: str | None, numbers: Collection[str]) -> list[str]:
    """Return the option that has sacct ask a cluster for jobs, or for jobs of a federation all of its clusters."""
    return on_cluster(cluster) or (["--federation"] if any(map(is_federated, numbers)) else [])


def by_cluster(ids: Collection[str]) -> dict[str, list[str]]:
    """Sort jobs by their clusters, under their numbers there."""
    clusters = sorted({job.partition("@")[2] for job in ids})
    return {cluster: sorted(number(job) for job in ids if job.partition("@")[2] == cluster) for cluster in clusters}
