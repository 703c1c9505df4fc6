"""Results of an evaluation are added to the run at W&B, by the real client and a server of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moco_dist import config as configs
from moco_dist.errors import UserError
from moco_dist.run import lease, status
from moco_dist.run.rows import MetricsFile
from moco_dist.tracking import wandb_results
from tests import wandb_file
from tests.fake_wandb import FakeWandb
from tests.tracking.test_wandb import environment

ADD = """
import sys
from pathlib import Path
from moco_dist.tracking import wandb_results
result = {"method": sys.argv[2], "labels": None, "draws": 1, "test_accuracy_mean": 0.75, "seconds": 1.0}
wandb_results.show(Path(sys.argv[1]), [result, {**result, "labels": 100, "test_accuracy_mean": 0.5}], "test", print)
"""


def run_directory(path: Path, mode: str, state: status.State = "done") -> Path:
    """Make the directory of a run of four steps."""
    (path / "checkpoints").mkdir(parents=True)
    config = configs.parse({"run": {"name": "digits"}, "track": {"wandb": mode}, "eval": {"knn_every": 3}})
    (path / "config.yaml").write_text(configs.dump(config))
    metrics = MetricsFile(path / "metrics.jsonl")
    for step in range(1, 5):
        metrics.append({"step": step, "loss": 1 / step, "lr": 0.03})
    metrics.close()
    status.write(path, state, 4)
    return path


def add(run_dir: Path, method: str, env: dict[str, str]) -> str:
    command = [sys.executable, "-c", ADD, str(run_dir), method]
    done = subprocess.run(command, env=environment(env), capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout


def test_results_are_a_table_and_in_the_summary_of_the_same_run(tmp_path: Path) -> None:
    run_dir = run_directory(tmp_path / "run", "online")
    with FakeWandb() as server:
        add(run_dir, "linear", server.env())
        add(run_dir, "knn", server.env())
    ((name, run),) = server.runs.items()
    assert name == (run_dir / "wandb/id").read_text() and run.exit_code == 0 and not server.alerts
    assert [row["train/step"] for row in run.history if "train/loss" in row] == [1, 2, 3, 4]
    assert run.summary["results/test/linear/all"] == 0.75 and run.summary["results/test/knn/100"] == 0.5
    assert run.config["eval"]["knn_every"] == 3  # not what the evaluation needs itself
    tables = [json.loads(data) for name, data in server.stored.items() if name.endswith(".table.json")]
    assert sorted(table["data"][0][:2] for table in tables) == [["knn", None], ["linear", None]]


def test_results_offline(tmp_path: Path) -> None:
    run_dir = run_directory(tmp_path / "run", "offline")
    assert add(run_dir, "knn", {}) == f"W&B: offline, look with: wandb leet {run_dir}/wandb\n"
    [segment] = (run_dir / "wandb").glob("offline-run-*")
    assert list(segment.glob("files/media/table/results/test*.table.json"))
    assert wandb_file.read(segment).steps() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("mode", "state", "line"),
    [
        ("disabled", "done", "the run has track.wandb=disabled; drop --wandb"),
        ("online", "running", "is training, and has its run at W&B open; wait for its end"),
    ],
)
def test_a_run_that_takes_no_results(tmp_path: Path, mode: str, state: status.State, line: str) -> None:
    run_dir = run_directory(tmp_path / "run", mode, state)
    holder = lease.Lease(run_dir)
    with pytest.raises(UserError) as error:
        wandb_results.check(run_dir)
    assert str(error.value).endswith(f": {line}")
    holder.release()


def test_a_run_that_was_broken_off_takes_results(tmp_path: Path) -> None:
    wandb_results.check(run_directory(tmp_path / "run", "online", "running"))  # and no process goes on with it


@pytest.mark.parametrize(("state", "exit_code"), [("stopped", 75), ("diverged", 1), ("running", 1)])
def test_a_run_that_is_not_done_does_not_become_so(tmp_path: Path, state: status.State, exit_code: int) -> None:
    run_dir = run_directory(tmp_path / "run", "online", state)
    with FakeWandb() as server:
        add(run_dir, "knn", server.env())
    (run,) = server.runs.values()
    assert run.exit_code == exit_code and run.preempting == (state == "stopped")


def test_weights_alone_take_no_results(tmp_path: Path) -> None:
    (tmp_path / "encoder.safetensors").touch()
    with pytest.raises(UserError, match="weights alone have no run at W&B"):
        wandb_results.check(tmp_path / "encoder.safetensors")
