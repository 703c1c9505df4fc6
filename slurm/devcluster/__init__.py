"""A real SLURM in one private directory of one machine, for tests and demos."""

from __future__ import annotations

from slurm.devcluster.cluster import Cluster, Status
from slurm.devcluster.errors import ClusterError, UserError
from slurm.devcluster.settings import Settings

__all__ = ["Cluster", "ClusterError", "Settings", "Status", "UserError"]
