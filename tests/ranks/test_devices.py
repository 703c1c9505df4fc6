"""A rank knows the cores and the memory that it may count on."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch

from moco_dist import config as configs
from moco_dist.ranks import devices


@pytest.mark.parametrize(
    ("group", "files", "limits"),
    [
        ("0::/job/step", {"job/step/memory.max": "max", "job/memory.max": "3000"}, {3000}),
        ("0::/a/b", {"a/b/memory.max": "20", "a/memory.max": "30", "memory.max": "90"}, {20, 30, 90}),
        ("0::/of/the/host", {"memory.max": "4000"}, {4000}),
        ("4:cpu,memory:/job", {"memory/job/memory.limit_in_bytes": "5000", "job/memory.max": "1"}, {5000}),
        ("4:cpu:/job", {"job/memory.max": "1"}, set()),
    ],
)
def test_the_limits_of_a_job(tmp_path: Path, group: str, files: dict[str, str], limits: set[int]) -> None:
    for name, limit in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(limit + "\n")
    (tmp_path / "cgroup").write_text(group + "\n")
    _, *memory_limits = devices._memory_limits(tmp_path / "cgroup", tmp_path / "fs")
    assert set(memory_limits) == limits


def test_a_rank_counts_on_its_part_of_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(devices, "_memory_limits", lambda: [1 << 20])
    assert devices.memory(torch.device("cpu")) == (1 << 20) // 8
    monkeypatch.setattr(devices, "_memory_limits", lambda: [1 << 60])
    assert 0 < devices.memory(torch.device("cpu")) < 1 << 50


@pytest.mark.parametrize(
    ("group", "files", "limits"),
    [
        ("0::/job/step", {"job/step/cpu.max": "max 100000", "job/cpu.max": "350000 100000"}, [3]),
        ("0::/job", {"job/cpu.max": "50000 100000"}, [1]),
        ("4:cpu,cpuacct:/job", {"cpu/job/cpu.cfs_quota_us": "800000", "cpu/job/cpu.cfs_period_us": "100000"}, [8]),
        ("4:cpu:/job", {"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, []),
        ("4:memory:/job", {"job/cpu.max": "100000 100000"}, []),
    ],
)
def test_the_core_limits_of_a_job(tmp_path: Path, group: str, files: dict[str, str], limits: list[int]) -> None:
    for name, limit in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(limit + "\n")
    (tmp_path / "cgroup").write_text(group + "\n")
    assert list(devices._core_limits(tmp_path / "cgroup", tmp_path / "fs")) == limits


@pytest.mark.parametrize(
    ("bound", "of_groups", "of_slurm", "ranks", "cores"),
    [(64, [], None, 1, 64), (64, [], "32", 4, 8), (64, [16], "32", 4, 4), (2, [], "", 4, 1)],
)
def test_a_rank_has_its_share_of_the_cores(
    bound: int, of_groups: list[int], of_slurm: str | None, ranks: int, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(bound))
    monkeypatch.setattr(devices, "_core_limits", lambda: of_groups)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    if of_slurm is not None:
        monkeypatch.setenv("SLURM_CPUS_ON_NODE", of_slurm)
    assert devices.cores() == cores


@pytest.mark.parametrize(
    ("bound", "changes", "cores"),
    [
        (8, {}, 8),
        (64, {}, 8),  # SLURM binds no process to its cores
        (32, {"TORCHELASTIC_RUN_ID": "a job"}, 8),  # torchrun in an interactive step of as many tasks
        (32, {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}, 8),  # a task is a node
    ],
)
def test_a_rank_that_is_a_task_of_slurm_has_its_cores_for_itself(
    bound: int, changes: dict[str, str], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(bound))
    monkeypatch.setattr(devices, "_core_limits", lambda: [])
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    ranks = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    of_slurm = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_CPUS_ON_NODE": "32"}
    for name, value in {**ranks, **of_slurm, **changes}.items():
        monkeypatch.setenv(name, value)
    assert devices.cores() == cores


def place_of_compiled_code(*overrides: str) -> str | None:
    devices.prepare(configs.load(None, overrides), torch.device("cpu"))
    return os.environ.get("TORCHINDUCTOR_CACHE_DIR")


def test_compiled_code_is_kept_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # noted, so that it is put back in the end
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for base, folder in ((tmp_path / "xdg", tmp_path / "xdg"), ("not/absolute", tmp_path / "home" / ".cache")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(base))
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        assert place_of_compiled_code() is None
        assert not folder.exists()
        place = place_of_compiled_code("device.compile=true")
        assert place == str(folder / "moco-dist" / "torch-compile")
        assert stat.S_IMODE(Path(place).stat().st_mode) == 0o700
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/by/the/user")
    assert place_of_compiled_code("device.compile=true") == "/by/the/user"


def test_a_cache_that_cannot_be_made_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    assert place_of_compiled_code("device.compile=true") is None
