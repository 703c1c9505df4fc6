"""Define what a cluster is to be like, and fill in the templates of its configuration files."""

from __future__ import annotations

import os
import pwd
import socket
from dataclasses import dataclass, fields
from pathlib import Path
from string import Template

from slurm.devcluster import cgroups
from slurm.devcluster.errors import Misuse

FIRST_ADDRESS = 11
PROCTRACKS = ("linuxproc", "cgroup")
_LIMITS = {"nodes": (1, 64), "cpus": (1, 1024), "gpus": (0, 64), "port": (1024, 65400)}
_TEMPLATES = Path(__file__).parent / "conf"


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


def configuration(root: Path, settings: Settings, port: int) -> dict[str, str]:
    """Fill in the templates in `conf/`. Returns the text of each file of the configuration by its name.

    A line that is for some clusters alone begins with $if_..., which is a comment's sign in the others.
    """
    last = FIRST_ADDRESS + settings.nodes - 1
    switches = {"accounting": settings.accounting, "preempt_signal": settings.preempt_signal, "gpus": settings.gpus}
    values = {
        "root": root,
        "user": user_name(),
        "host": socket.gethostname().partition(".")[0],
        "port": port,
        "slurmdbd_port": port + 1,
        "first_node_port": port + 2,
        "last_port": port + 1 + settings.nodes,
        "nodes": f"127.0.0.[{FIRST_ADDRESS}-{last}]",
        "cpus": settings.cpus,
        "gres": f"Gres=gpu:{settings.gpus}" if settings.gpus else "",
        "last_gpu": settings.gpus - 1,
        "proctrack": settings.proctrack,
        "storage": "slurmdbd" if settings.accounting else "none",
        "cgroups": (cgroups.freezer() or Path("/sys/fs/cgroup/freezer")).parent,
        **{f"if_{name}": "" if on else "# " for name, on in switches.items()},
    }
    return {file.name: Template(file.read_text()).substitute(values) for file in _TEMPLATES.glob("*.conf")}
