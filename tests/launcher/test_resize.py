"""A start of a job with a range of nodes keeps as many as the run can be laid on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher import resize
from launcher.cluster import Profile
from launcher.record import Launch
from tests.launcher.made import make_run
from tests.launcher.programs import Programs

CONFIG = "moco: {bn_groups: 8, queue_size: 64}\noptim: {global_batch: 64}\n"


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    launch = make_run(tmp_path / "run", job="7", nodes=4, least_nodes=1, profile=Profile(gpus_per_node=2))
    launch.config_file.write_text(CONFIG)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setattr("sys.argv", ["resize", str(launch.run_dir)])
    return launch


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    return Programs(tmp_path / "programs", monkeypatch)


def allocated(monkeypatch: pytest.MonkeyPatch, count: int, nodes: str) -> None:
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", str(count))
    monkeypatch.setenv("SLURM_JOB_NODELIST", nodes)


def test_nodes_that_fit_are_kept(
    launch: Launch, programs: Programs, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    allocated(monkeypatch, 2, "n[1-2]")
    programs.keeps("scontrol")
    assert resize.main() == 0
    assert capfd.readouterr().out == "2 n[1-2]\n"
    assert not programs.given("scontrol")


def test_nodes_too_many_are_released_at_once(
    launch: Launch, programs: Programs, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    allocated(monkeypatch, 3, "n[1-3]")
    programs.keeps("scontrol")
    programs.says("squeue", {"": f"7|RUNNING|None|n[1-2]|1:00|{launch.run_dir}\n"})
    assert resize.main() == 0
    assert capfd.readouterr().out == "2 n[1-2]\n"
    assert [words for words, _ in programs.given("scontrol")] == [["update", "JobId=7", "NumNodes=2"]]
    assert "keeps 2 of 3 nodes" in (launch.logs / "launcher.log").read_text()


def test_where_slurm_does_not_take_nodes_back_the_run_does_without_them(
    launch: Launch, programs: Programs, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    allocated(monkeypatch, 3, "n[1-3]")
    programs.runs(
        "scontrol",
        'case "$1" in show) printf "n1\\nn2\\nn3\\n" ;; *) echo "slurm_update error: no" >&2; exit 1 ;; esac',
    )
    assert resize.main() == 0
    assert capfd.readouterr().out == "2 n1,n2\n"
    assert "1 of 3 nodes stay idle, since SLURM does not take them" in (launch.logs / "launcher.log").read_text()


def test_a_config_that_fits_no_number_of_nodes_ends_the_run(
    launch: Launch, programs: Programs, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    allocated(monkeypatch, 3, "n[1-3]")
    launch.config_file.write_text(CONFIG.replace("bn_groups: 8", "bn_groups: 1"))
    assert resize.main() == 2
    assert capfd.readouterr().out == ""
    status = json.loads((launch.run_dir / "status.json").read_text())
    assert status["state"] == "user_error" and status["reason"].startswith("--nodes = 1-4: batch and BatchNorm groups")
