"""No command waits for ever for something in a run directory that is no file, such as a FIFO."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.__main__ import main
from tests.launcher.made import MadeUp, make_run, train_row
from tests.test_files import alarm, put

__all__ = ["alarm"]


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_no_command_of_the_launcher_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    MadeUp(monkeypatch).tells("sinfo", "")
    Path("runs").mkdir(mode=0o700)
    run = make_run(Path("runs/x"), job="12", state="crashed", step=3, starts=1, rows=[train_row(3)])
    run.run_dir.chmod(0o700)
    of_run = (run.paths.metrics, run.paths.status, run.paths.config, run.paths.lease, run.log(0))
    of_launch = (run.starts_file, run.failures_file, run.config_file, run.logs / "launcher.log", run.job_file)
    commands = ["status", "status runs/x", "logs x", "logs --all x", "cancel x", "requeue x", "sweep status runs"]
    commands += ["sweep again runs", "submit --local --dry-run run.name=x --gpus-per-node 1"]
    for file in (*of_run, *of_launch):
        put(kind, file)
        for command in commands:
            assert main(command.split()) in (0, 1, 2), (file, command)


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_the_logs_of_a_run_that_begins_or_cannot_save_make_status_wait_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    made_up = MadeUp(monkeypatch)
    begins = make_run(Path("runs/begins"), job="12", starts=1, stage="/data.tar")
    rows = [train_row(9, checkpoint_failures=1)]
    unsaved = make_run(Path("runs/unsaved"), job="13", state="running", step=9, starts=1, rows=rows)
    for run, job, file in ((begins, "12", begins.logs / "launcher.log"), (unsaved, "13", unsaved.log(0))):
        made_up.queues(job, "RUNNING", run.run_dir.resolve())
        put(kind, file)
        assert main(["status"]) == 0
