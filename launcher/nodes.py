"""Ask SLURM about nodes: those of a site, and those that a job runs on."""

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from launcher import job_ids, slurm
from launcher.cluster import Profile

_OUT_OF_SERVICE = ("down", "drain", "fail", "maint", "unknown", "inval", "future", "blocked")

FORM = "--format=%R|%N|%T|%G|%c|%m|%f"
"""The columns that sinfo is asked for."""


@dataclass(frozen=True)
class Node:
    """A node of a partition."""

    name: str
    state: str
    gpus: dict[str, int]
    """GPUs by type; the type is empty where the site names none."""
    cpus: int
    memory_mib: int
    features: frozenset[str]

    def gpus_of(self, kind: str | None) -> int:
        """Return how many GPUs of a type it has; without a type, how many in all."""
        return self.gpus.get(kind, 0) if kind else sum(self.gpus.values())

    @property
    def usable(self) -> bool:
        """True where the node takes jobs now, or will when it is free or powered up."""
        return not self.state.endswith("*") and not self.state.startswith(_OUT_OF_SERVICE)


def hostnames(names: Iterable[str]) -> list[str]:
    """List the names in SLURM's lists of nodes, `n[1-3],n7`, in their order. Raises Unavailable, Refused."""
    text = ",".join(names)
    lines = slurm.call("scontrol", "show", "hostnames", text) if "[" in text else text
    return re.findall(r"[^\s,]+", lines)


def usable(partition: str | None, profile: Profile) -> frozenset[str]:
    """List the nodes that take jobs, of a partition or of all of this cluster, and that can hold a part of a job.

    Args:
        partition: the partition; None for all.
        profile: what the job asks for.

    Raises:
        Unavailable, Refused: SLURM does not tell.
    """
    what = ("--responding", "--states=idle,mixed,allocated", FORM)
    where = ["--partition=" + partition] if partition else []
    nodes_by_partition = read_nodes(slurm.call("sinfo", "--Node", "--noheader", *what, *where))
    names = frozenset(node.name for nodes in nodes_by_partition.values() for node in nodes if _serves(node, profile))
    return names & _reserved(profile.reservation) if profile.reservation else names


def _serves(node: Node, profile: Profile) -> bool:
    """Return whether a node has what each node of a job must have."""
    return (
        (not profile.constraint or matches(profile.constraint, node.features))
        and node.gpus_of(profile.gpu_type) >= profile.gpus_per_node
        and node.cpus >= profile.cpus_per_gpu * profile.gpus_per_node
        and node.memory_mib >= 1024 * (profile.memory_gib or 0)
    )


def _reserved(reservation: str) -> frozenset[str]:
    """List the nodes of a reservation. Raises Unavailable, Refused."""
    text = slurm.call("scontrol", "show", "reservation", reservation, "--oneliner")
    return frozenset(hostnames(re.findall(r"\bNodes=(\S+)", text)))


def matches(constraint: str, features_of_node: frozenset[str]) -> bool:
    """Return whether a node may serve: with all features of `a&b`, with one of what is more involved."""
    names = features(constraint)
    return bool(names & features_of_node) if re.search(r"[|\[(]", constraint) else names <= features_of_node


def features(constraint: str) -> set[str]:
    """Return the names in a constraint, `[a|b]*2&c`."""
    return {name.strip().partition("*")[0] for name in re.split(r"[&|,()\[\]]", constraint)} - {""}


def exclude(job: str, names: Sequence[str]) -> None:
    """Have a waiting job leave out these nodes, and no others. Raises Unavailable, Refused."""
    slurm.call("scontrol", "update", f"JobId={job_ids.number(job)}", f"ExcNodeList={','.join(names)}")


def lost(nodes: str, since: float) -> list[str]:
    """List those of a job's nodes that are down, do not answer, or have started anew since then.

    Args:
        nodes: the nodes in SLURM's words, `n[1-3]`.
        since: when the job has started on them, in seconds since the epoch.

    Raises:
        Unavailable, Refused: SLURM does not tell.
    """
    lines = slurm.call("scontrol", "show", "node", nodes, "--oneliner").splitlines()
    described = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines]
    return [words["NodeName"] for words in described if "NodeName" in words and _is_lost(words, since)]


def _is_lost(words: dict[str, str], since: float) -> bool:
    if re.search(r"^DOWN|\*|NOT_RESPONDING", words.get("State", "")):
        return True
    try:
        return time.mktime(time.strptime(words.get("SlurmdStartTime", ""), "%Y-%m-%dT%H:%M:%S")) > since
    except ValueError:  # None, Unknown
        return False


def gpus(gres: str) -> dict[str, int]:
    """Read the GPUs by type in SLURM's words, `gpu:a100:8(S:0-1),nvme:1`; the type is empty where none is named."""
    numbers: dict[str, int] = {}
    for kind, count in re.findall(r"(?:^|,)gpu(?::([^:,()]+))?:(\d+)", gres):
        numbers[kind] = numbers.get(kind, 0) + int(count)
    return numbers


def read_nodes(text: str) -> dict[str, tuple[Node, ...]]:
    """Read the nodes by partition in the lines of sinfo's, which has been asked for `FORM`."""
    by_partition: dict[str, tuple[Node, ...]] = {}
    for line in text.splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) == 7:
            partition, name, state, gres, cpus, memory, own_features = parts
            named = frozenset(own_features.split(",")) - {"(null)", ""}
            node = Node(name, state, gpus(gres), number(cpus) or 0, number(memory) or 0, named)
            by_partition[partition] = (*by_partition.get(partition, ()), node)
    return by_partition


def number(text: str) -> int | None:
    """Read the whole number that a text begins with; None without one."""
    digits = re.match(r"\d+", text)
    return int(digits[0]) if digits else None
