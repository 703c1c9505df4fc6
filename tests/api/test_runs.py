"""`Run` shows a run that goes on, one that has ended, and a damaged one."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

import moco_dist
from moco_dist import config as configs
from moco_dist.errors import UserError
from moco_dist.health import TITLES
from moco_dist.run import lease, rows, status
from moco_dist.run.paths import RunPaths
from tests.nobody import as_nobody, let_in


def figures(loss: float) -> dict[str, float]:
    return {"top1": 0.5, "top5": 0.75, "q_std": 0.9, "loss_at_chance": 7.0, "encoder_distance": loss}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Make the directory of a run that a process writes, after two of four steps."""
    folder = tmp_path / "runs" / "moved"
    folder.mkdir(parents=True)
    paths = RunPaths(folder)
    paths.config.write_text("# moco-dist\n" + configs.dump(configs.load(None, ["run.name=mine", "optim.lr=0.5"])))
    status.write(folder, "running", 2, total_steps=4, epoch_steps=2)
    file = rows.MetricsFile(paths.metrics)
    for step in (1, 2):
        file.append(rows.training_row(step, 0, 7.0 / step, 0.5, 100.0, figures(0.1 * step)))
        if step == 1:
            file.append(rows.evaluation_row(step, 0, {"knn_top1": 0.25}))
            file.append(rows.finding_row(step, 0, "lr_too_high", "begins", "optim.lr", 0.25, "The loss rises."))
    file.close()
    paths.checkpoints.mkdir()
    for step in (2, 1):
        (paths.checkpoints / f"step_{step:09}.pt").touch()
    (paths.checkpoints / "step_000000003.pt.damaged").touch()
    held = lease.Lease(folder)
    yield folder
    held.release()


def test_a_run_that_goes_on(folder: Path) -> None:
    digits = moco_dist.Run(folder)
    assert (digits.path, digits.name, digits.config.optim.lr) == (folder, "mine", 0.5)
    assert digits.config.run_dir == folder  # where it lies now
    assert [row["step"] for row in digits.rows] == [1, 1, 1, 2]
    assert [row["loss"] for row in digits.training_rows] == [7.0, 3.5]
    assert digits.evaluation_rows == [{"step": 1, "epoch": 0, "knn_top1": 0.25}]
    assert (digits.figures["step"], digits.figures["loss"], digits.figures["knn_top1"]) == (2, 3.5, 0.25)
    assert digits.status == status.Status("running", 2, "", 4, 2) and str(os.getpid()) in digits.writer
    checkpoints = {step: folder / "checkpoints" / f"step_{step:09}.pt" for step in (1, 2)}
    assert digits.checkpoints == checkpoints and list(digits.checkpoints) == [1, 2]
    assert digits.evaluation == []
    findings = {finding.name: finding.override for finding in digits.findings}
    assert findings["lr_too_high"] == "optim.lr=0.25" and findings.keys() <= TITLES.keys()
    assert repr(digits) == f"<Run '{folder}': running, step 2 of 4>"


def test_what_is_written_meanwhile_is_read(folder: Path) -> None:
    digits = moco_dist.Run(folder)
    assert digits.figures["loss"] == 3.5
    file = rows.MetricsFile(RunPaths(folder).metrics)
    file.append(rows.training_row(3, 1, 1.5, 0.5, 100.0, figures(0.3)))
    file.close()
    status.write(folder, "stopped", 3, "stopped on request")
    assert digits.figures["loss"] == 1.5 and len(digits.training_rows) == 3
    assert digits.figures["knn_top1"] == 0.25  # of step 1, as evaluation_rows tell
    assert repr(digits) == f"<Run '{folder}': stopped, step 3 of 4>"


def test_a_run_that_is_done_has_its_final_figures(folder: Path) -> None:
    digits, summary = moco_dist.Run(folder), {"name": "mine", "loss": 0.125, "knn_top1": 0.5}
    RunPaths(folder).summary.write_text(json.dumps(summary))
    assert digits.figures["loss"] == 3.5  # a summary of before, of a run that was made longer
    status.write(folder, "done", 2)
    assert digits.figures == summary
    RunPaths(folder).summary.write_text("{")
    assert digits.figures["loss"] == 3.5
    RunPaths(folder).evaluation_table.write_text(json.dumps({"rows": [{"method": "kNN"}, 3]}))
    assert digits.evaluation == [{"method": "kNN"}]
    for damaged in ("[]", '{"rows": 3}', "", '{"rows"'):
        RunPaths(folder).evaluation_table.write_text(damaged)
        assert digits.evaluation == []


def test_rows_fit_into_a_table(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist(
        [dict.fromkeys(("step", "loss", "knn_top1")) | row for row in digits_rows(folder)]
    )
    assert table["loss"].to_pylist() == [7.0, None, None, 3.5]


def digits_rows(folder: Path) -> list[dict[str, object]]:
    return moco_dist.Run(folder).rows


def test_a_run_is_a_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = moco_dist.Run(folder / "config.yaml")
    assert Path(digits) == folder == moco_dist.Run(digits).path
    monkeypatch.chdir(folder.parent)
    relative = moco_dist.Run("moved")
    monkeypatch.chdir("/")
    assert relative == digits and len({relative, digits, moco_dist.Run(str(folder))}) == 1 and relative != folder
    assert relative.name == "mine"
    monkeypatch.setenv("PLACE", str(folder.parent))
    assert moco_dist.Run("$PLACE/moved") == digits
    assert pickle.loads(pickle.dumps(digits)) == digits


def test_a_run_that_has_hardly_begun_is_empty(tmp_path: Path) -> None:
    status.write(tmp_path, "user_error", 0, "optim.lr = fast: must be a number")
    digits = moco_dist.Run(tmp_path)
    assert digits.name == tmp_path.name and digits.writer == ""
    assert (digits.rows, digits.figures, digits.checkpoints, digits.findings, digits.evaluation) == ([], {}, {}, [], [])
    assert repr(digits) == f"<Run '{tmp_path}': user_error, step 0>"
    with pytest.raises(UserError, match=r"^config .*config\.yaml: no such file"):
        _ = digits.config


def test_damaged_files_are_told_or_passed_over(folder: Path) -> None:
    digits, paths = moco_dist.Run(folder), RunPaths(folder)
    with paths.metrics.open("ab") as file:
        file.write(b'\0\0\0\n{"step": 3, "lo')
    assert len(digits.rows) == 4 and digits.figures["loss"] == 3.5
    paths.status.write_text("{")
    assert digits.status.state is None and repr(digits) == f"<Run '{folder}': no status yet, step 0>"
    paths.config.write_text("optim: {lr: fast}")
    for name in ("name", "config", "findings"):
        with pytest.raises(UserError, match=r"^optim\.lr = fast: must be a number") as raised:
            getattr(digits, name)
        assert "\n" not in str(raised.value)
    paths.metrics.unlink()
    os.mkfifo(paths.metrics)  # it would be waited for
    for name in ("rows", "training_rows", "evaluation_rows", "figures"):
        with pytest.raises(UserError, match=r"^RUN_DIR = .*metrics\.jsonl.*not a regular file"):
            getattr(digits, name)


@pytest.mark.parametrize("kind", ["nothing", "a file", "an empty folder", "a pipe for a config", "a variable"])
def test_what_is_no_run_is_refused(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    if kind == "a file":
        folder.touch()
    if kind in ("an empty folder", "a pipe for a config"):
        folder.mkdir()
    if kind == "a pipe for a config":
        os.mkfifo(folder / "config.yaml")
    with pytest.raises(UserError, match=r"^RUN_DIR = ") as raised:
        moco_dist.Run("$NOTHING_LIKE_IT" if kind == "a variable" else folder)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_closed_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "closed" / "run").mkdir(parents=True)
    (tmp_path / "closed").chmod(0)
    try:
        with pytest.raises(UserError, match=r"^RUN_DIR = .*ermission denied.*may read"):
            moco_dist.Run(tmp_path / "closed" / "run")
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_a_run_that_is_closed_to_the_user_is_told(folder: Path) -> None:
    let_in(folder)
    folder.parent.chmod(0)
    with as_nobody(), pytest.raises(UserError, match=r"RUN_DIR = .*moved: Permission denied; give the"):
        moco_dist.Run(folder)
    folder.parent.chmod(0o755)
