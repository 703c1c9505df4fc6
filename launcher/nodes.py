"""Ask SLURM about the nodes that a job runs on."""

import re
import time
from collections.abc import Iterable, Sequence

from launcher import job_ids, slurm


def hostnames(names: Iterable[str]) -> list[str]:
    """List the names in SLURM's lists of nodes, `n[1-3],n7`, in their order. Raises Unavailable, Refused."""
    text = ",".join(names)
    lines = slurm.call("scontrol", "show", "hostnames", text) if "[" in text else text
    return re.findall(r"[^\s,]+", lines)


def usable(partition: str | None, constraint: str | None, gpu_type: str | None) -> frozenset[str]:
    """List the nodes that take jobs, of a partition or of all of this cluster, and that one with these needs could use.

    Raises:
        Unavailable, Refused: SLURM does not tell.
    """
    what = ("--responding", "--states=idle,mixed,allocated", "--format=%N|%f|%G")
    where = ["--partition=" + partition] if partition else []
    lines = slurm.call("sinfo", "--Node", "--noheader", *what, *where).splitlines()
    described = [[word.strip() for word in line.split("|")] for line in lines if line.count("|") == 2]
    return frozenset(
        name
        for name, own_features, gres in described
        if (not constraint or matches(constraint, frozenset(own_features.split(","))))
        and (not gpu_type or f"gpu:{gpu_type}:" in gres)
    )


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
