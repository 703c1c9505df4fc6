"""`python -m moco_dist.why`: one screen, or JSON, on a run in any state."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moco_dist import config as configs
from moco_dist import train, why
from moco_dist.run import lease
from tests.health.made import CHANCE, config_of, rows, write_run

EARLIER = Path(__file__).parent.parent / "earlier_run"
STEPS = 320


def blind(step: int) -> dict[str, Any]:
    return {"loss": 0.999 * CHANCE}


def screen(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert why.run([str(run_dir)]) == 0
    out, err = capsys.readouterr()
    assert err == "" and all(len(line) <= 120 or line.startswith("Another run with") for line in out.splitlines())
    return " ".join(out.split())


def as_json(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert why.run([str(run_dir), "--json"]) == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def test_a_broken_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = {"state": "done", "step": STEPS, "total_steps": STEPS, "epoch_steps": 32}
    run_dir = write_run(tmp_path / "run", rows(STEPS, blind), status, config_of(run__name="mine"))
    text = screen(run_dir, capsys)
    assert f"{run_dir}: done, step 320 of 320" in text and "NOT HEALTHY: at_chance." in text
    assert "at_chance, since step 140: the loss is that of an encoder that sees nothing" in text
    assert "99.9% of the 6.240" in text and "change: optim.lr=0.005" in text
    assert f"-m moco_dist.train {run_dir}/config.yaml run.name=mine_2 optim.lr=0.005" in text
    assert "Note on queue_filling, steps 1 to 9" in text and "Fine: collapsed, dimensions_collapsed" in text
    assert "kNN from 81.3% (step 64) to 86.4% (step 320)" in text
    content = as_json(run_dir, capsys)
    [finding] = content["findings"]
    assert not content["healthy"] and {note["name"] for note in content["notes"]} == {"queue_filling", "first_epoch"}
    assert (finding["name"], finding["key"], finding["value"]) == ("at_chance", "optim.lr", 0.005)
    assert (finding["first_step"], finding["last_step"]) == (140, 320) and "99.9%" in finding["evidence"]
    configs.load(run_dir / "config.yaml", [f"{finding['key']}={finding['value']}"])


def test_a_healthy_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = {"state": "done", "step": STEPS, "total_steps": STEPS, "epoch_steps": 32}
    run_dir = write_run(tmp_path / "run", rows(STEPS), status, config_of())
    assert "HEALTHY: nothing was wrong up to step 320, by 18 of 18 rules." in screen(run_dir, capsys)
    content = as_json(run_dir, capsys)
    assert content["healthy"] and content["findings"] == [] and len(content["fine"]) == 18


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"state": "running", "step": 300}, "broken off, and no process goes on with it; saved at step 300"),
        ({"state": "stopped", "step": 3, "reason": "on request"}, "stopped at step 3: on request"),
        ({"state": "crashed", "step": 3, "reason": "rank 1: OSError"}, "crashed at step 3: rank 1: OSError"),
        ({"state": "user_error", "step": 0, "reason": "data.root = x: no"}, "user_error at step 0: data.root = x: no"),
        ({"state": "odd"}, "no status, so that it has hardly begun"),
    ],
)
def test_a_run_in_any_state(
    status: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = write_run(tmp_path / "run", rows(STEPS), status, config_of())
    text = screen(run_dir, capsys)
    assert words in text and "HEALTHY: nothing was wrong" in text
    assert as_json(run_dir, capsys)["reason"] == status.get("reason", "")


def test_a_running_run_with_a_torn_last_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = write_run(tmp_path / "run", rows(STEPS), {"state": "running", "step": 300}, config_of())
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('\0\0\0\n{"step": 3')
    holder = lease.Lease(run_dir)
    try:
        assert f"running (process {os.getpid()} on" in screen(run_dir, capsys)
    finally:
        holder.release()


def test_a_diverged_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = {"state": "diverged", "step": 31, "reason": "the loss is nan at step 31; last checkpoint: none"}
    run_dir = write_run(tmp_path / "run", rows(30), status, config_of(optim__lr=1.5))
    text = screen(run_dir, capsys)
    assert "NOT HEALTHY: lr_too_high." in text and "change: optim.lr=0.0075" in text
    [finding] = as_json(run_dir, capsys)["findings"]
    assert (finding["first_step"], finding["last_step"]) == (31, 31)


@pytest.mark.parametrize(("ranks", "groups", "leaks"), [(1, None, False), (4, None, True), (1, 4, True)])
def test_ranks_and_images_are_those_of_the_last_start(
    ranks: int, groups: int | None, leaks: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(moco__shuffle="none", moco__bn_groups=groups, moco__queue_size=2100)
    status = {"state": "done", "step": STEPS, "total_steps": STEPS, "epoch_steps": 32}
    made = [row for row in rows(STEPS, lambda step: {"top1": 0.9}) if "knn_top1" not in row]  # there are no classes
    run_dir = write_run(tmp_path / "run", made, status, config)
    starts = ({"step": 0, "ranks": 3, "data": {"images": 9}}, {"step": 9, "ranks": ranks, "data": {"images": 2049}})
    (run_dir / "provenance.jsonl").write_text("".join(json.dumps(start) + "\n" for start in starts))
    findings = {finding["name"]: finding["evidence"] for finding in as_json(run_dir, capsys)["findings"]}
    assert "the 2049 training images" in findings["queue_larger_than_data"]  # not the 2111 that an epoch allows
    assert ("batchnorm_leak" in findings) == leaks
    assert ("4 BatchNorm groups" in findings.get("batchnorm_leak", "")) == leaks


def test_a_run_without_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = write_run(tmp_path / "run", [], {"state": "running"}, config_of())
    assert "Nothing to judge yet" in screen(run_dir, capsys)
    (run_dir / "metrics.jsonl").unlink()
    assert "Not checked, no rows yet: at_chance" in screen(run_dir, capsys)
    content = as_json(run_dir, capsys)
    assert content["notes"] == [] and content["healthy"] is None


def test_a_run_that_ended_before_its_config_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "status.json").write_text('{"state": "user_error", "step": 0, "reason": "data.root = x: no folder"}')
    text = screen(tmp_path, capsys)
    assert "user_error at step 0: data.root = x: no folder" in text and "nothing to judge" in text
    content = as_json(tmp_path, capsys)
    assert content["healthy"] is None and content["findings"] == content["notes"] == []


def test_a_run_of_an_earlier_revision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = shutil.copytree(EARLIER, tmp_path / "run")
    text = screen(run_dir, capsys)
    assert "done, step 5" in text and "Not checked, no loss_at_chance in the rows: at_chance" in text
    content = as_json(run_dir, capsys)
    assert content["findings"] == [] and content["unchecked"]["collapsed"] == "no q_std in the rows"


def test_the_config_of_a_run_means_its_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = write_run(tmp_path / "run", rows(30), {"state": "done", "step": 30}, config_of())
    assert f"{run_dir}: done, step 30" in screen(run_dir / "config.yaml", capsys)


def _fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml"])
def test_a_fifo_is_refused_at_once(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = write_run(tmp_path / "run", rows(30), {"state": "done", "step": 30}, config_of())
    _fifo(run_dir / name)
    refused(
        [str(run_dir)],
        f"{name} is not a regular file; remove it"
        if "metrics" in name
        else f"{name}: is not a regular file; remove it",
        capsys,
    )


def refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert why.run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("moco_dist.why: ") and words in err, err


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing, file = tmp_path / "none", tmp_path / "file"
    file.write_text("")
    refused([str(missing)], f"RUN_DIR = {missing}: no such directory; give the directory of a run", capsys)
    refused([str(file)], f"RUN_DIR = {file}: is no directory; give the directory of a run", capsys)
    refused([str(tmp_path)], f"RUN_DIR = {tmp_path}: holds no config.yaml; give the directory of a run", capsys)
    refused([], "the following arguments are required: RUN", capsys)
    refused([str(tmp_path), "--js"], "unrecognized arguments: --js; see python -m moco_dist.why --help", capsys)
    (tmp_path / "config.yaml").write_text("optim: {lr: fast}")
    refused([str(tmp_path)], "optim.lr = fast", capsys)
    (tmp_path / "config.yaml").write_text("optim: {lr: 0.1")
    refused([str(tmp_path)], "cannot be read as YAML", capsys)


def test_a_real_run_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fast = Path(__file__).parent.parent / "fast.yaml"
    run = [str(fast), f"run.dir={tmp_path}/run", "optim.steps=6", "moco.queue_size=4096", "eval.knn_every=0"]
    assert train.run(run) == 0
    assert "health: queue_larger_than_data begins at step 1" in capsys.readouterr().err
    content = as_json(tmp_path / "run", capsys)
    [finding] = content["findings"]
    assert (finding["key"], finding["value"], finding["first_step"]) == ("moco.queue_size", 512, 1)
    assert "more than the 1438 training images" in finding["evidence"]


def test_the_command_needs_no_torch(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", rows(30), {"state": "done", "step": 30}, config_of())
    script = f"import sys\nfrom moco_dist import why\ncode = why.run([{str(run_dir)!r}])\n"
    script += "assert not {'torch', 'numpy', 'wandb', 'matplotlib'} & set(sys.modules), code"
    assert subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL).returncode == 0
    command = [sys.executable, "-m", "moco_dist.why", "--help"]
    assert "--json" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
