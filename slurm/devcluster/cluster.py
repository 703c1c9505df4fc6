"""Start, watch and stop a cluster as a whole; kill its nodes and bring them back."""

from __future__ import annotations

import contextlib
import functools
import os
from dataclasses import dataclass
from pathlib import Path

from slurm.devcluster import directory, processes, programs
from slurm.devcluster.daemons import READY_SECONDS, Daemon, daemons, explained, first_port, make_database, marks
from slurm.devcluster.directory import Record, Settings, user_name
from slurm.devcluster.errors import ClusterError, Misuse

_GRACE_SECONDS = 5.0
_FOREIGN = ("SLURM", "SBATCH_", "SALLOC_", "SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_", "SCONTROL_")
"""Prefixes of the variables that a job, or the settings for another cluster, leave in an environment."""
_LEFT_OVERS = ("slurmscriptd", "srun", "salloc", "sbatch", "sattach")
"""A crashed slurmctld's helper, and clients that would wait on for a cluster that is gone."""


@dataclass(frozen=True)
class ClusterStatus:
    """The state of a cluster's daemons and nodes."""

    daemons: dict[str, bool]
    """Each daemon, and whether it lives."""
    nodes: dict[str, str]
    """Each node's state in SLURM's words: idle, mixed, allocated, down …; with a `*` where it does not respond."""

    @property
    def up(self) -> bool:
        """True where all daemons live and all nodes take jobs."""
        return all(self.daemons.values()) and all(map(_in_service, self.nodes.values()))


class Cluster:
    """A SLURM in a directory.

        with Cluster("/tmp/dc", Settings(nodes=2)) as cluster:
            cluster.call("sbatch", "--wait", "--wrap", "hostname")

    Args:
        root: a directory that is new, empty, or that of a cluster before, whose job ids go on.
        settings: what the cluster is to be like; unset, as it was before.

    Raises:
        Misuse: the directory or the settings will not do.
    """

    def __init__(self, root: Path | str, settings: Settings | None = None) -> None:
        self.directory = directory.checked(root)
        self._wanted = settings

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def exists(self) -> bool:
        """True where a cluster was ever started in the directory."""
        return directory.read(self.directory) is not None

    @property
    def settings(self) -> Settings:
        """The settings of the cluster. Raises Misuse where there is none in the directory."""
        return self._record().settings

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes."""
        return self.settings.node_names

    @property
    def environment(self) -> dict[str, str]:
        """The environment for a client of the cluster, without what belongs to a job or to another cluster."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
        return {**kept, **marks(self.directory)}

    def call(self, program: str, *arguments: str, timeout_seconds: float = 30) -> str:
        """Return what a client command prints. Raises ClusterError where it fails or takes too long."""
        command = [programs.find_program(program), *arguments]
        return processes.call(command, self.environment, timeout_seconds)

    def start(self) -> list[str]:
        """Start what does not run, and wait until every node takes jobs.

        Returns:
            the daemons that were started; none where all were running.

        Raises:
            ClusterError: it does not come up; what was started is stopped again.
        """
        record = directory.read(self.directory)
        settings = self._wanted or (record.settings if record else Settings())
        programs.require(settings.accounting)
        directory.make(self.directory)
        started = []
        with directory.locked(self.directory), contextlib.ExitStack() as undo:
            self._configure(settings)
            if settings.accounting and not settings.beside:
                make_database(self.directory)
            for daemon in self._daemons():
                if not daemon.pids():
                    started.append(daemon.name)
                    undo.callback(self._end, daemon)
                    daemon.launch()
            for node in self.nodes:
                self._wait_in_service(node)
            undo.pop_all()
        return started

    def stop(self) -> None:
        """Cancel all jobs and end every process, also what a crash has left; the directory stays."""
        self._record()
        with directory.locked(self.directory):
            self._cancel_jobs()
            for daemon in reversed(self._daemons()):
                self._end(daemon)
            processes.kill(lambda: processes.with_descendants(processes.find(marks(self.directory), *_LEFT_OVERS)))

    def kill_node(self, node: str) -> None:
        """End a node as a power cut would: its slurmd and all its tasks at once, none with a last word."""
        self._check_node(node)
        with directory.locked(self.directory):
            self._kill_node(node)

    def start_node(self, node: str) -> None:
        """Bring a node back, and wait until it takes jobs."""
        self._check_node(node)
        with directory.locked(self.directory):
            for daemon in self._daemons():
                if daemon.node == node and not daemon.pids():
                    daemon.launch()
            self._wait_in_service(node)

    def status(self) -> ClusterStatus:
        """Return which daemons and nodes are up."""
        states = self.node_states()
        alive = {daemon.name: bool(daemon.pids()) for daemon in self._daemons()}
        return ClusterStatus(alive, {node: states.get(node, "unknown") for node in self.nodes})

    def node_states(self) -> dict[str, str]:
        """Return each node's state; empty where slurmctld does not run or answer."""
        if not self._controlled():
            return {}
        try:
            lines = self.call("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T").splitlines()
        except ClusterError:
            return {}
        return dict(line.split() for line in lines)

    def wait_idle(self, timeout_seconds: float = 60) -> None:
        """Wait until every node is idle. Raises ClusterError when that takes too long."""
        processes.wait_for("idle cluster", lambda: set(self.node_states().values()) == {"idle"}, timeout_seconds)

    def _record(self) -> Record:
        record = directory.read(self.directory)
        if record is None:
            raise Misuse.of("DIR", self.directory, "holds no cluster", "name the one that start was given")
        return record

    def _daemons(self) -> list[Daemon]:
        return daemons(self.directory, self._record())

    def _controlled(self) -> bool:
        """Return whether a client would be answered; without one of these daemons it waits long."""
        home, _ = directory.accounting(self.directory, self._record())
        return all(
            processes.find(marks(root), name) for root, name in ((home, "munged"), (self.directory, "slurmctld"))
        )

    def _configure(self, settings: Settings) -> None:
        """Write the configuration, unless the cluster runs with it already."""
        record = directory.read(self.directory)
        if record and any(daemon.pids() for daemon in self._daemons()):
            if settings != record.settings:
                fix = f"python -m slurm.devcluster stop {self.directory}"
                raise Misuse.of("DIR", self.directory, "a cluster with other settings runs in it", fix)
            return
        # The cgroups of another cluster have the same names, its jobs perhaps the same numbers.
        mine = processes.find(marks(self.directory))
        for node in settings.node_names if settings.proctrack == "cgroup" else ():
            if processes.cgroup_exists(node) and processes.find({"SLURMD_NODENAME": node}, "slurmd") - mine:
                rule = "another cluster of this machine has the cgroups of these nodes"
                raise Misuse.of("proctrack", "cgroup", rule, "stop that one, or choose linuxproc")
        directory.write(self.directory, Record(settings, first_port(settings, record)))

    def _wait_in_service(self, node: str) -> None:
        """Wait until a node takes jobs; one that was taken out of service, or that SLURM gave up, is resumed."""

        def in_service() -> bool:
            state = self.node_states().get(node, "unknown")
            if state.startswith(("down", "drain")) and not state.endswith("*"):
                with contextlib.suppress(ClusterError):  # it may have returned by itself
                    self.call("scontrol", "update", f"nodename={node}", "state=resume")
            return _in_service(state)

        with explained(self.directory, f"slurmd.{node}"):
            processes.wait_for("node in service", in_service, READY_SECONDS)

    def _cancel_jobs(self) -> None:
        """Cancel what runs and waits, so that the books are right and nothing begins by itself at the next start."""
        if not self._controlled():
            return
        with contextlib.suppress(ClusterError):  # it hangs, or lacks a node: all is ended without it
            self.call("scancel", "--quiet", f"--user={user_name()}", timeout_seconds=10)
            processes.kill(self._tasks)
            running = ("squeue", "--noheader", "--states=running,completing,suspended")
            processes.wait_for("end of all jobs", lambda: not self.call(*running), _GRACE_SECONDS)

    def _tasks(self) -> set[int]:
        """Return the jobs' processes, without SLURM's own, which then report the end of the job."""
        pids = {pid for node in self.nodes for pid in self._node_processes(node)}
        return pids - processes.find(marks(self.directory), "slurmd", "slurmstepd")

    def _end(self, daemon: Daemon) -> None:
        if daemon.node:
            self._kill_node(daemon.node)
        processes.end(daemon.pids, _GRACE_SECONDS)
        if daemon.node and self.settings.proctrack == "cgroup":
            processes.remove_cgroup(daemon.node)

    def _kill_node(self, node: str) -> None:
        processes.kill(functools.partial(self._node_processes, node))

    def _node_processes(self, node: str) -> set[int]:
        pids = processes.with_descendants(processes.find(marks(self.directory, node)))
        if self.settings.proctrack == "cgroup":
            processes.thaw_cgroup(node)
            pids |= processes.cgroup_pids(node)
        return pids

    def _check_node(self, node: str) -> None:
        if node not in self.nodes:
            raise Misuse.of("NODE", node, "is no node of this cluster", f"choose {' or '.join(self.nodes)}")


def _in_service(state: str) -> bool:
    """Return whether a node takes jobs; SLURM appends + while a job ends there, and - while one is planned."""
    return state.rstrip("+-") in {"idle", "mixed", "allocated", "completing", "planned"}
