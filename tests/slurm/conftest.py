"""A real SLURM for the tests that ask for it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

from slurm.devcluster import Cluster, Settings, programs


@pytest.fixture(scope="session")
def slurm_programs() -> None:
    """Skip where SLURM is not installed; in CI that is a failure."""
    if programs.missing():
        reason = "SLURM is not installed; run as root: python -m slurm.devcluster install"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


@pytest.fixture(scope="session")
def cluster(slurm_programs: None) -> Iterator[Cluster]:
    """Two nodes with accounting, shared by all tests: leave them idle, and with no job."""
    with tempfile.TemporaryDirectory(prefix="dc", dir="/tmp") as folder, Cluster(folder, Settings()) as cluster:
        yield cluster
