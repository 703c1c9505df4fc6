"""Check whether a job fits a site: partition, limits, and nodes that can hold a part of it."""

import contextlib
import grp
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from launcher.checks import finding
from launcher.checks.site import Partition, Site
from launcher.cluster import Profile
from launcher.nodes import Node, features, hostnames, matches
from moco_dist.errors import some_names

Works = Callable[[int], bool]
"""Returns whether batch and BatchNorm groups divide by so many ranks."""

_FEWEST_GRACE_SECONDS = 10
"""A large run can hardly save in less time than this."""


def check(
    site: Site, profile: Profile, nodes: int, works: Works = lambda _: True, most_nodes: int | None = None
) -> Iterator[finding.Finding]:
    """Find what stands between a job and its start.

    Args:
        site: where it is to run.
        profile: what it asks for.
        nodes: how many nodes it needs.
        works: whether the run can be laid on so many ranks.
        most_nodes: how many it takes where they are idle; None for no more than it needs.

    Raises:
        slurm.Unavailable, slurm.Refused: SLURM does not tell.
    """
    default = [partition.name for partition in site.partitions.values() if partition.default]
    names = profile.partition.split(",") if profile.partition else default
    choice = "choose " + _few(sorted(site.partitions)) if site.partitions else "ask the site"
    if site.unanswered:
        cause = next(iter(site.unanswered.values()))
        yield finding.Finding("warning", f"not checked: {', '.join(site.unanswered)} of the site ({cause})")
    if not names and "partitions" not in site.unanswered:
        yield finding.error("partition", None, "the cluster has no default partition", choice)
    for name in names:
        if name not in site.partitions and "partitions" not in site.unanswered:
            yield finding.error("partition", name, "the cluster has no such partition", choice)
    yield from (unknown := list(_check_names(site, profile)))
    if any(one.text.startswith("constraint") for one in unknown):
        profile = profile.model_copy(update={"constraint": None})
    offers = [
        list(_check_partition(site, site.partitions[name], profile, (nodes, most_nodes or nodes), works))
        for name in names
        if name in site.partitions
    ]
    if offers:  # of several partitions SLURM takes one that fits
        yield from min(offers, key=lambda offer: sum(one.level == "error" for one in offer))
    if site.settings.get("JobRequeue") == "0":
        yield finding.note("the site requeues no job by itself (JobRequeue=0); this one asks for it by --requeue")


def _check_names(site: Site, profile: Profile) -> Iterator[finding.Finding]:
    """Find features, nodes and a reservation that the cluster does not have."""
    unknown = sorted(features(profile.constraint or "") - site.features)
    if unknown and "nodes" not in site.unanswered:
        choice = f"there are {_few(sorted(site.features))}" if site.features else "drop it, its nodes have no features"
        yield finding.error("constraint", profile.constraint, f"no node of the cluster has {unknown[0]}", choice)
    names = {node.name for members in site.nodes.values() for node in members}
    if profile.exclude and names and (strange := sorted({*hostnames(profile.exclude)} - names)):
        rule = f"the cluster has no node {_few(strange)}, and sbatch refuses it"
        yield finding.error("exclude", ",".join(profile.exclude), rule, "leave it out")
    if profile.reservation and profile.reservation not in site.reservations and "reservations" not in site.unanswered:
        fix = f"choose {_few(sorted(site.reservations))}" if site.reservations else "drop it"
        yield finding.error("reservation", profile.reservation, "there is no such reservation", fix)


def _check_partition(
    site: Site, partition: Partition, profile: Profile, sizes: tuple[int, int], works: Works
) -> Iterator[finding.Finding]:
    """Check the job, of the fewest and the most nodes in `sizes`, against one partition."""
    yield from _limits(partition, profile)
    yield from _allowed(partition, profile)
    if site.preempts and any(other.tier > partition.tier for other in site.partitions.values()):
        yield from _preempted(partition)
    members, (nodes, most) = site.nodes.get(partition.name, ()), sizes
    if most < (least := partition.min_nodes):  # SLURM would let it wait for ever
        room = min(len(members) or least, partition.max_nodes or max(least, len(members)))
        counts = range(least, room + 1)
        wider = next((count for count in counts if works(count * profile.gpus_per_node)), None)
        rule = f"partition {partition.name} takes no job of fewer than {least} nodes"
        yield finding.error("--nodes", most, rule, f"use --nodes {wider}" if wider else "choose another partition")
        if not wider:
            return
        nodes = wider
    if members:
        yield from _room(partition, members, profile, nodes, works)
    elif "nodes" not in site.unanswered:
        yield finding.warning("partition", partition.name, "SLURM tells of no nodes in it", "ask the site")


def _limits(partition: Partition, profile: Profile) -> Iterator[finding.Finding]:
    """Check state and time. SLURM would let most of these jobs wait for ever."""
    if partition.state != "UP":
        yield finding.error("partition", partition.name, f"is {partition.state.lower()}", "choose another, or wait")
    if (most := partition.max_minutes) is not None and profile.time_minutes > most:
        fix = f"use --time-minutes {most}"
        if profile.signal_seconds >= 60 * most:
            fix += f" --signal-seconds {30 * most}"
        rule = f"partition {partition.name} allows {most}"
        yield finding.error("time_minutes", profile.time_minutes, rule, f"{fix}; the job goes on after it by itself")


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
    if partition.needs_reservation and not profile.reservation:
        yield finding.error("reservation", None, f"partition {name} takes no job without one", "add --reservation NAME")
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


def _room(
    partition: Partition, members: Sequence[Node], profile: Profile, nodes: int, works: Works
) -> Iterator[finding.Finding]:
    """Check whether so many nodes can hold a part of the job. Every misfit is told, and the fixes fit together."""
    name, fitting = partition.name, list(members)
    unmet = f"of {len(members)} nodes of {name} fit, the job needs {nodes}"
    for key, value, fits, fix in _kinds(profile, fitting):
        left = [node for node in fitting if fits(node)]
        if len(left) < min(nodes, len(members)):
            yield finding.error(key, value, f"{len(left)} {unmet}", fix)
            profile = profile.model_copy(update={key: None})
        else:
            fitting = left
    most = min(len(members), partition.max_nodes or len(members))
    counts = sorted((node.gpus_of(profile.gpu_type) for node in fitting), reverse=True)
    fewer, gpus = _shape(counts, most, nodes, profile.gpus_per_node, works)
    if nodes > most:
        rule = f"has {len(members)} nodes" if most == len(members) else f"allows {most}"
        option = f" --min-nodes {fewer}" if (profile.min_nodes or 0) > fewer else ""
        yield finding.error("--nodes", nodes, f"partition {name} {rule}", f"use --nodes {fewer}{option}")
    if gpus < (wanted := profile.gpus_per_node):
        rule = f"{sum(count >= wanted for count in counts)} {unmet}"
        yield finding.error("gpus_per_node", wanted, rule, _use("gpus_per_node", gpus))
    fitting = [node for node in fitting if node.gpus_of(profile.gpu_type) >= gpus]
    for amount in _amounts(partition, profile, max(1, gpus)):
        least = sorted(map(amount.has, fitting), reverse=True)[: max(1, fewer)][-1]
        if amount.wanted > min(least, amount.allowed):
            rule = f"{sum(amount.has(node) >= amount.wanted for node in fitting)} {unmet}"
            rule = rule if amount.wanted <= amount.allowed else f"partition {name} allows {amount.limit}"
            yield finding.error(amount.key, amount.wanted, rule, _use(amount.key, min(least, amount.allowed)))
        fitting = [node for node in fitting if amount.has(node) >= min(amount.wanted, least)]
    out = sorted(node.name for node in fitting if not node.usable)
    if len(fitting) - len(out) < nodes <= len(fitting):
        rule = f"{len(fitting) - len(out)} of {len(fitting)} nodes that fit are in service, {_few(out)} not"
        yield finding.warning("--nodes", nodes, rule, "the job waits for them")


def _kinds(profile: Profile, fitting: Sequence[Node]) -> Iterator[tuple[str, object, Callable[[Node], bool], str]]:
    """Say which nodes may serve, and with which GPUs: key, value, what a node must be, and the fix."""
    if profile.exclude:
        excluded = {*hostnames(profile.exclude)}
        yield "exclude", ",".join(profile.exclude), lambda node: node.name not in excluded, "exclude fewer"
    if constraint := profile.constraint:
        yield "constraint", constraint, lambda node: matches(constraint, node.features), "ask for less"
    if kind := profile.gpu_type:
        kinds = sorted({name for node in fitting for name in node.gpus if name})
        fix = f"there are {_few(kinds)}" if kinds else "drop it, these nodes have no types of GPUs"
        yield "gpu_type", kind, lambda node: kind in node.gpus, fix


def _shape(counts: Sequence[int], most: int, nodes: int, gpus: int, works: Works) -> tuple[int, int]:
    """Return the nodes, and the GPUs a node, of the largest job that fits; what fits already stays as it is.

    Args:
        counts: GPUs of each node that may serve, the most first.
        most: nodes that there are.
        nodes: nodes that the job asks for.
        gpus: GPUs that it asks for on each node.
        works: whether the run can be laid on so many ranks.
    """
    choices = [
        (fewer, count)
        for fewer in (range(most, 0, -1) if nodes > most else [nodes])
        for least in [counts[: max(1, fewer)][-1]]
        for count in (range(least, 0, -1) if gpus > least else [gpus])
    ]
    return next((choice for choice in choices if works(math.prod(choice))), (choices or [(min(nodes, most), 0)])[0])


@dataclass(frozen=True)
class _Amount:
    """An amount of something that each node must have."""

    key: str
    wanted: int
    allowed: float
    """The amount that the partition allows; infinity without a limit."""
    limit: str
    """The limit in words."""
    has: Callable[[Node], int]


def _amounts(partition: Partition, profile: Profile, gpus: int) -> Iterator[_Amount]:
    """List how much a node with so many GPUs must have."""
    cpus, limit = profile.cpus_per_gpu, partition.max_cpus
    words = f"{limit} CPUs a node, not {cpus * gpus}"
    yield _Amount("cpus_per_gpu", cpus, _share(limit, gpus), words, lambda node: node.cpus // gpus)
    if profile.memory_gib:
        allowed = _share(partition.max_memory_mib, 1024)
        words = f"{allowed} GiB a node"
        yield _Amount("memory_gib", profile.memory_gib, allowed, words, lambda node: node.memory_mib // 1024)


def _share(limit: int | None, parts: int) -> float:
    return math.inf if limit is None else limit // parts


def _use(key: str, most: float) -> str:
    """Word the fix of a value that is too large."""
    return f"use --{key.replace('_', '-')} {most}" if most else "choose another partition, or ask for less"


def _few(names: tuple[str, ...] | list[str]) -> str:
    """List names, no more than fit in a line."""
    return some_names(names, 8)
