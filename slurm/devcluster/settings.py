"""Define what a cluster is to be like, and write the text of its configuration files."""

from __future__ import annotations

import os
import pwd
import socket
from dataclasses import dataclass, fields
from pathlib import Path

from slurm.devcluster import cgroups
from slurm.devcluster.errors import Misuse

FIRST_ADDRESS = 11
PROCTRACKS = ("linuxproc", "cgroup")
_LIMITS = {"nodes": (1, 64), "cpus": (1, 1024), "gpus": (0, 64), "port": (1024, 65400)}
_ALWAYS = {
    "ClusterName": "devcluster",
    "AuthType": "auth/munge",
    "CredType": "cred/munge",
    "SlurmctldDebug": "verbose",
    "SlurmdDebug": "verbose",
    "MailProg": "/bin/true",
    "TaskPlugin": "task/none",  # the others bind to CPUs, of which the machine may have too few
    "MpiDefault": "none",
    "SwitchType": "switch/none",
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_Core",
    "SlurmdParameters": "config_overrides",
    "GresTypes": "gpu",
    "ReturnToService": 2,
    "SlurmctldTimeout": 30,
    "SlurmdTimeout": 10,
    "MessageTimeout": 5,  # with both, a dead node is noticed after 15 to 20 s
    "KillWait": 5,
    "MinJobAge": 3600,
    "JobRequeue": 1,
    "SchedulerType": "sched/backfill",
    "SchedulerParameters": "bf_interval=1,sched_interval=1,batch_sched_delay=0",
    "PreemptType": "preempt/partition_prio",
    "PreemptMode": "REQUEUE",
    "JobAcctGatherType": "jobacct_gather/none",
    "JobCompType": "jobcomp/none",
}
"""Lines of `slurm.conf`, with every interval as short as SLURM takes it, so that a test waits for seconds."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a cluster is to be like.

    Raises:
        Misuse: a value that no cluster can have, or not on this machine.
    """

    nodes: int = 2
    cpus: int = 4
    """CPUs that each node claims to have; the machine may have fewer."""
    gpus: int = 4
    """Fake GPUs of each node: a job gets a real CUDA_VISIBLE_DEVICES, and /dev/null behind it."""
    accounting: bool = True
    """Whether there is sacct, which needs slurmdbd and MariaDB."""
    proctrack: str = "linuxproc"
    """How a job's processes are known: by their parents (linuxproc), or by cgroup, as most clusters do."""
    port: int | None = None
    """First of the ports, one for each daemon; unset, a free range is looked for."""
    preempt_signal: bool = True
    """Whether a preempted job gets its own signal (USR2) or SIGTERM."""
    own_hostnames: bool = False
    """Whether a job's hostname is its node's name, and not the machine's."""

    def __post_init__(self) -> None:
        for key, (least, most) in _LIMITS.items():
            value = getattr(self, key)
            if value is not None and not least <= value <= most:
                raise Misuse.of(key, value, f"must be from {least} to {most}", "choose another")
        if self.proctrack not in PROCTRACKS:
            raise Misuse.of("proctrack", self.proctrack, "is not known", f"choose {' or '.join(PROCTRACKS)}")
        if self.proctrack == "cgroup" and (os.geteuid() != 0 or cgroups.freezer() is None):
            rule = "needs root and a freezer of cgroup v1 that may be written to"
            raise Misuse.of("proctrack", "cgroup", rule, "choose linuxproc")
        if self.own_hostnames and os.geteuid() != 0:
            raise Misuse.of("own_hostnames", "true", "needs root", "leave it out")

    @property
    def node_names(self) -> list[str]:
        """Names of the nodes: loopback addresses, which resolve on every machine."""
        return [f"127.0.0.{FIRST_ADDRESS + index}" for index in range(self.nodes)]

    @property
    def port_count(self) -> int:
        """Ports in use, from the first one on: slurmctld, slurmdbd, and one for each node."""
        return 2 + self.nodes


def from_record(record: dict[str, object]) -> Settings:
    """Read settings that `dataclasses.asdict` has written; what another version wrote besides is dropped."""
    names = {field.name for field in fields(Settings)}
    return Settings(**{key: value for key, value in record.items() if key in names})  # type: ignore[arg-type]


def user_name() -> str:
    """Return the name of the user who owns the cluster. Raises Misuse where the system knows none."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        rule = "has no name here, and SLURM wants one"
        raise Misuse.of("user", os.geteuid(), rule, "be a user of /etc/passwd") from None


def slurm_conf(root: Path, settings: Settings, port: int) -> str:
    """Write `slurm.conf`: what holds for every cluster, what is this one's, its nodes and its partitions."""
    lines = {**_ALWAYS, **_own_lines(root, settings, port)}
    first, last = FIRST_ADDRESS, FIRST_ADDRESS + settings.nodes - 1
    names = f"127.0.0.[{first}-{last}]"
    gres = f" Gres=gpu:{settings.gpus}" if settings.gpus else ""
    return "".join(f"{key}={value}\n" for key, value in lines.items()) + (
        f"NodeName={names} NodeHostname={names} NodeAddr={names} Port=[{port + 2}-{port + 1 + settings.nodes}]"
        f" CPUs={settings.cpus} RealMemory=65536{gres} State=UNKNOWN\n"
        "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=15 PreemptMode=REQUEUE\n"
        "PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF\n"
    )


def _own_lines(root: Path, settings: Settings, port: int) -> dict[str, object]:
    lines: dict[str, object] = {
        "SlurmctldHost": f"{socket.gethostname().partition('.')[0]}(127.0.0.1)",
        "SlurmctldPort": port,
        "SlurmdPort": port + 2,
        "SlurmUser": user_name(),
        "SlurmdUser": user_name(),
        "AuthInfo": f"socket={root}/run/munge.sock,cred_expire=5",  # a requeued job waits for so long
        "StateSaveLocation": f"{root}/state",
        "SlurmctldPidFile": f"{root}/run/slurmctld.pid",
        "SlurmdPidFile": f"{root}/run/slurmd.%n.pid",
        "SlurmdSpoolDir": f"{root}/spool/%n",
        "SlurmctldLogFile": f"{root}/log/slurmctld.log",
        "SlurmdLogFile": f"{root}/log/slurmd.%n.log",
        "ProctrackType": f"proctrack/{settings.proctrack}",
        "AccountingStorageType": f"accounting_storage/{'slurmdbd' if settings.accounting else 'none'}",
    }
    if settings.accounting:
        lines["AccountingStorageHost"] = "127.0.0.1"
        lines["AccountingStoragePort"] = port + 1
        lines["AccountingStoragePass"] = f"{root}/run/munge.sock"
        lines["AccountingStorageTRES"] = "gres/gpu"
    if settings.preempt_signal:
        lines["SlurmctldParameters"] = "preempt_send_user_signal"
    return lines


def gres_conf(root: Path, settings: Settings) -> str:
    """Write `gres.conf`: the GPUs are files, which jobs see as real ones."""
    if not settings.gpus:
        return ""
    return f"Name=gpu File={root}/dev/nvidia[0-{settings.gpus - 1}] Flags=nvidia_gpu_env\n"


def cgroup_conf() -> str:
    """Write `cgroup.conf`: the hierarchies as the machine has mounted them."""
    place = (cgroups.freezer() or Path("/sys/fs/cgroup/freezer")).parent
    return f"CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nCgroupMountpoint={place}\n"


def slurmdbd_conf(root: Path, port: int) -> str:
    """Write `slurmdbd.conf`; MariaDB's socket is found by MYSQL_UNIX_PORT."""
    lines = {
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={root}/run/munge.sock",
        "DbdHost": "localhost",
        "DbdAddr": "127.0.0.1",
        "DbdPort": port + 1,
        "SlurmUser": user_name(),
        "LogFile": f"{root}/log/slurmdbd.log",
        "PidFile": f"{root}/run/slurmdbd.pid",
        "StorageType": "accounting_storage/mysql",
        "StorageHost": "localhost",
        "StorageUser": "root",
        "StorageLoc": "slurm_acct",
        "CommitDelay": 1,
    }
    return "".join(f"{key}={value}\n" for key, value in lines.items())
