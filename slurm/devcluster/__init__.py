"""A real SLURM in one private directory of one machine, for tests and demos."""

from slurm.devcluster.cluster import Cluster, ClusterStatus
from slurm.devcluster.directory import Settings
from slurm.devcluster.errors import ClusterError, Misuse

__all__ = ["Cluster", "ClusterError", "ClusterStatus", "Misuse", "Settings"]
