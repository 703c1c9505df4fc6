"""What a rank may count on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

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
