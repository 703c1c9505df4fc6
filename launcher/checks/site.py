"""Ask SLURM about a site: its partitions with their limits, its nodes, its reservations and settings."""

import functools
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field

from launcher import job_ids, slurm
from launcher.nodes import FORM, Node, number, read_nodes

Names = tuple[str, ...]


def minutes(text: str) -> int | None:
    """Read a time of SLURM's as minutes; None for UNLIMITED."""
    seconds = slurm.seconds(text)
    return None if seconds is None else seconds // 60


def _names(text: str) -> Names | None:
    return None if text.upper() == "ALL" else tuple(name for name in text.split(",") if name)


_Limit = Annotated[int | None, BeforeValidator(number)]
_Number = Annotated[int, BeforeValidator(lambda text: number(text) or 0)]
_Yes = Annotated[bool, BeforeValidator(lambda text: text == "YES")]
_Allowed = Annotated[Names | None, BeforeValidator(_names)]
_Denied = Annotated[Names, BeforeValidator(lambda text: _names(text) or ())]


class Partition(BaseModel):
    """A partition of a site, read from SLURM's words for it. A limit of None means that there is none."""

    name: str = Field(alias="PartitionName")
    default: _Yes = Field(False, alias="Default")
    state: str = Field("UP", alias="State")
    max_minutes: Annotated[int | None, BeforeValidator(minutes)] = Field(None, alias="MaxTime")
    min_nodes: _Number = Field(0, alias="MinNodes")
    max_nodes: _Limit = Field(None, alias="MaxNodes")
    max_cpus: _Limit = Field(None, alias="MaxCPUsPerNode")
    """CPUs of a node that its jobs may have."""
    max_memory_mib: _Limit = Field(None, alias="MaxMemPerNode")
    """Memory of a node that its jobs may have."""
    accounts: _Allowed = Field(None, alias="AllowAccounts")
    qos: _Allowed = Field(None, alias="AllowQos")
    groups: _Allowed = Field(None, alias="AllowGroups")
    denied_accounts: _Denied = Field((), alias="DenyAccounts")
    denied_qos: _Denied = Field((), alias="DenyQos")
    needs_reservation: _Yes = Field(False, alias="ReqResv")
    preempt_mode: str = Field("OFF", alias="PreemptMode")
    grace_seconds: _Number = Field(0, alias="GraceTime")
    """Time between the signal to a preempted job and its end."""
    tier: _Number = Field(0, alias="PriorityTier")
    """Jobs of a higher tier go first, and may preempt."""


@dataclass(frozen=True)
class Site:
    """SLURM's answers about a site."""

    partitions: dict[str, Partition]
    nodes: dict[str, tuple[Node, ...]]
    """Nodes by partition."""
    reservations: frozenset[str]
    settings: dict[str, str]
    """Settings of slurm.conf, as SLURM has read them."""
    unanswered: Mapping[str, str] = field(default_factory=dict)
    """The names of the fields above that SLURM did not tell, and why."""

    @property
    def features(self) -> frozenset[str]:
        """All features that a job may ask for."""
        return frozenset().union(*(node.features for nodes in self.nodes.values() for node in nodes))

    @property
    def preempts(self) -> bool:
        """True where a job may have to go for another."""
        return self.settings.get("PreemptType", "preempt/none") not in ("preempt/none", "(null)")


@functools.cache  # a sweep checks each of its members
def read(cluster: str | None = None) -> Site:
    """Ask SLURM about a cluster, or the local one; what it does not tell is left out. Raises NotInstalled."""
    questions = {
        "partitions": ("scontrol", "show", "partition", "--all", "--oneliner"),
        "nodes": ("sinfo", "--all", "--noheader", "--Node", FORM),
        "reservations": ("scontrol", "show", "reservation", "--oneliner"),
        "settings": ("scontrol", "show", "config"),
    }
    with ThreadPoolExecutor(len(questions)) as pool:
        place = job_ids.on_cluster(cluster)
        answers = {name: pool.submit(slurm.call, *question, *place) for name, question in questions.items()}
    texts, unanswered = dict.fromkeys(questions, ""), {}
    for name, answer in answers.items():
        try:
            texts[name] = answer.result()
        except slurm.NotInstalled:
            raise
        except (slurm.Unavailable, slurm.Refused) as error:
            unanswered[name] = str(error)
    return replace(parse(**texts), unanswered=unanswered)


def parse(partitions: str, nodes: str, reservations: str, settings: str) -> Site:
    """Read a site from SLURM's answers to the four questions."""
    lines = (dict(re.findall(r"(\w+)=(\S*)", line)) for line in partitions.splitlines())
    parsed = [Partition.model_validate(words) for words in lines if "PartitionName" in words]
    return Site(
        partitions={partition.name: partition for partition in parsed},
        nodes=read_nodes(nodes),
        reservations=frozenset(re.findall(r"ReservationName=(\S+)", reservations)),
        settings=dict(re.findall(r"^(\w+)\s*= (.*?)\s*$", settings, re.MULTILINE)),
    )
