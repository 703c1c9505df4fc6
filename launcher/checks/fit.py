"""Check whether a job fits a site: partition, limits, and nodes that can hold a part of it."""

import contextlib
import grp
import os
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from launcher.checks import finding
from launcher.checks.site import Node, Partition, Site, hostnames
from launcher.cluster import Profile
from moco_dist.errors import some_names

_FEWEST_GRACE_SECONDS = 10
"""A large run can hardly save in less time than this."""


def check(site: Site, profile: Profile, nodes: int) -> Iterator[finding.Finding]:
    """Find what stands between a job and its start. Raises slurm.Unavailable, slurm.Refused."""
    default = [partition.name for partition in site.partitions.values() if partition.default]
    names = profile.partition.split(",") if profile.partition else default
    choice = "choose " + _few(sorted(site.partitions)) if site.partitions else "ask the site"
    if not names:
        yield finding.error("partition", None, "the cluster has no default partition", choice)
    for name in names:
        if name not in site.partitions:
            yield finding.error("partition", name, "the cluster has no such partition", choice)
    if unknown := sorted(_features(profile.constraint or "") - site.features):
        choice = f"there are {_few(sorted(site.features))}" if site.features else "drop it, its nodes have no features"
        yield finding.error("constraint", profile.constraint, f"no node of the cluster has {unknown[0]}", choice)
        profile = profile.model_copy(update={"constraint": None})
    offers = [
        list(_check_partition(site, site.partitions[name], profile, nodes)) for name in names if name in site.partitions
    ]
    if offers:  # of several partitions SLURM takes one that fits
        yield from min(offers, key=lambda offer: sum(one.level == "error" for one in offer))
    if profile.reservation and profile.reservation not in site.reservations:
        fix = f"choose {_few(sorted(site.reservations))}" if site.reservations else "drop it"
        yield finding.error("reservation", profile.reservation, "there is no such reservation", fix)
    if site.settings.get("JobRequeue") == "0":
        yield finding.note("the site requeues no job by itself (JobRequeue=0); this one asks for it by --requeue")


def _check_partition(site: Site, partition: Partition, profile: Profile, nodes: int) -> Iterator[finding.Finding]:
    """Check the job against one partition."""
    yield from _limits(partition, profile, nodes)
    yield from _allowed(partition, profile)
    if site.preempts and any(other.tier > partition.tier for other in site.partitions.values()):
        yield from _preempted(partition)
    members = site.nodes.get(partition.name, ())
    if members:
        yield from _room(partition, members, profile, nodes)
    else:
        yield finding.warning("partition", partition.name, "SLURM tells of no nodes in it", "ask the site")


def _limits(partition: Partition, profile: Profile, nodes: int) -> Iterator[finding.Finding]:
    """Check state, time, nodes, CPUs and memory. SLURM would let most of these jobs wait for ever."""
    allows = f"partition {partition.name} allows"
    if partition.state != "UP":
        yield finding.error("partition", partition.name, f"is {partition.state.lower()}", "choose another, or wait")
    if (most := partition.max_minutes) is not None and profile.time_minutes > most:
        fix = f"use --time-minutes {most}; the job goes on after it by itself"
        yield finding.error("time_minutes", profile.time_minutes, f"{allows} {most}", fix)
    if (most := partition.max_nodes) is not None and nodes > most:
        yield finding.error("--nodes", nodes, f"{allows} {most}", f"use --nodes {most}")
    cpus = profile.cpus_per_gpu * profile.gpus_per_node
    if (most := partition.max_cpus) is not None and cpus > most:
        fix = f"use --cpus-per-gpu {max(1, most // profile.gpus_per_node)}"
        yield finding.error("cpus_per_gpu", profile.cpus_per_gpu, f"{allows} {most} CPUs a node, not {cpus}", fix)
    memory = profile.memory_gib
    if (most := partition.max_memory_mib) is not None and memory is not None and 1024 * memory > most:
        rule = f"{allows} {most // 1024} GiB a node"
        yield finding.error("memory_gib", memory, rule, f"use --memory-gib {most // 1024}")


def _allowed(partition: Partition, profile: Profile) -> Iterator[finding.Finding]:
    """Check whether the user may use the partition."""
    name = partition.name
    for key, value, allowed, denied in (
        ("account", profile.account, partition.accounts, partition.denied_accounts),
        ("qos", profile.qos, partition.qos, partition.denied_qos),
    ):
        if value and ((allowed is not None and value not in allowed) or value in denied):
            fix = f"choose {_few(allowed)}" if allowed is not None else "choose another"
            yield finding.error(key, value, f"partition {name} does not allow it", fix)
        elif value is None and allowed is not None:
            rule = f"partition {name} is for {_few(allowed)}, and yours by default may be another"
            yield finding.warning(key, None, rule, f"add --{key}")
    if partition.groups is not None and os.getuid() and not set(partition.groups) & _my_groups():
        rule = f"is for the groups {_few(partition.groups)}, and you seem to be in none of them"
        yield finding.warning("partition", name, rule, "choose another, or ask the site")


def _my_groups() -> set[str]:
    names = set()
    for number in os.getgroups():
        with contextlib.suppress(KeyError):  # a group without a name
            names.add(grp.getgrgid(number).gr_name)
    return names


def _preempted(partition: Partition) -> Iterator[finding.Finding]:
    """Say what becomes of jobs that have to go for others."""
    if partition.preempt_mode == "CANCEL":
        rule = "cancels preempted jobs; this one asks to be requeued, if it is told before"
        yield finding.warning("partition", partition.name, rule, "else python -m launcher requeue sends it again")
    if partition.preempt_mode in ("CANCEL", "REQUEUE") and partition.grace_seconds < _FEWEST_GRACE_SECONDS:
        grace = f"a preempted job has {partition.grace_seconds} s to save in (GraceTime of {partition.name})"
        yield finding.note(f"{grace}; what it loses is set by checkpoint.every_minutes")


class _Need(NamedTuple):
    """One thing that a node must have."""

    key: str
    value: object
    fits: Callable[[Node], bool]
    fix: str


def _room(partition: Partition, members: tuple[Node, ...], profile: Profile, nodes: int) -> Iterator[finding.Finding]:
    """Check whether so many nodes can hold a part of the job, and are in service."""
    if len(members) < nodes:
        rule = f"partition {partition.name} has {len(members)} nodes"
        yield finding.error("--nodes", nodes, rule, f"use --nodes {len(members)}")
        return
    fitting = list(members)
    for needs in (_kinds, _amounts):
        for need in needs(profile, fitting, nodes):
            fitting = [node for node in fitting if need.fits(node)]
            if len(fitting) < nodes:
                rule = f"{len(fitting)} of {len(members)} nodes of {partition.name} fit, the job needs {nodes}"
                yield finding.error(need.key, need.value, rule, need.fix)
                return
    out = sorted(node.name for node in fitting if not node.usable)
    if len(fitting) - len(out) < nodes:
        rule = f"{len(fitting) - len(out)} of {len(fitting)} nodes that fit are in service, {_few(out)} not"
        yield finding.warning("--nodes", nodes, rule, "the job waits for them")


def _kinds(profile: Profile, fitting: list[Node], nodes: int) -> Iterator[_Need]:
    """Say which nodes may serve, and with which GPUs."""
    if profile.exclude:
        excluded = hostnames(profile.exclude)
        yield _Need("exclude", ",".join(profile.exclude), lambda node: node.name not in excluded, "exclude fewer")
    if constraint := profile.constraint:
        yield _Need("constraint", constraint, lambda node: _matches(constraint, node.features), "ask for less")
    if kind := profile.gpu_type:
        kinds = sorted({name for node in fitting for name in node.gpus if name})
        fix = f"there are {_few(kinds)}" if kinds else "drop it, these nodes have no types of GPUs"
        yield _Need("gpu_type", kind, lambda node: kind in node.gpus, fix)


def _amounts(profile: Profile, fitting: list[Node], nodes: int) -> Iterator[_Need]:
    """Say how much of each a node must have; the fix is what so many nodes have at least."""

    def need(key: str, value: int, has: Callable[[Node], int]) -> _Need:
        least = sorted(map(has, fitting), reverse=True)[nodes - 1]
        fix = f"use --{key.replace('_', '-')} {least}" if least else "choose another partition, or ask for less"
        return _Need(key, value, lambda node: has(node) >= value, fix)

    gpus, kind = profile.gpus_per_node, profile.gpu_type
    yield need("gpus_per_node", gpus, lambda node: node.gpus.get(kind, 0) if kind else sum(node.gpus.values()))
    yield need("cpus_per_gpu", profile.cpus_per_gpu, lambda node: node.cpus // gpus)
    if profile.memory_gib:
        yield need("memory_gib", profile.memory_gib, lambda node: node.memory_mib // 1024)


def _matches(constraint: str, features: frozenset[str]) -> bool:
    """Return whether a node may serve: with all features of `a&b`, with one of what is more involved."""
    names = _features(constraint)
    return bool(names & features) if re.search(r"[|\[(]", constraint) else names <= features


def _features(constraint: str) -> set[str]:
    """Return the names in a constraint, `[a|b]*2&c`."""
    return {name.strip().partition("*")[0] for name in re.split(r"[&|,()\[\]]", constraint)} - {""}


def _few(names: tuple[str, ...] | list[str]) -> str:
    """List names, no more than fit in a line."""
    return some_names(names, 8)
