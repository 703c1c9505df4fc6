"""The run directory: who notes what, and what a killed start leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moco_dist import train
from moco_dist.errors import UserError
from moco_dist.evaluate import command, options
from moco_dist.run import status
from moco_dist.run.directory import RunDirectory, load_config
from moco_dist.run.paths import RunPaths
from moco_dist.run.rows import evaluation_row, is_evaluation, is_training, training_row
from tests.nobody import as_nobody


def test_unfinished_files_of_a_killed_start_are_removed(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    left = [tmp_path / f".{path.name}.4711" for path in (paths.encoder, paths.metrics, paths.pairs_picture)]
    kept = [tmp_path / "mine", tmp_path / ".hidden", paths.metrics]
    for file in (*left, *kept):
        file.write_text("x")
    run_dir = RunDirectory(tmp_path)
    run_dir.open()
    run_dir.close()
    assert not any(file.exists() for file in left) and all(file.exists() for file in kept)


def test_a_closed_folder_takes_no_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.yaml", "status.json"):
        (tmp_path / name).touch()
    with as_nobody():
        assert train.run([str(tmp_path / "config.yaml")]) == 2
        assert train.run([f"run.dir={tmp_path}", "moco.bn_groups=null", "optim.accumulate=128"]) == 2  # of the layout
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("config.yaml: cannot be read: Permission denied; give a file that you may read")
    assert len(lines) == 2 and "leaves one image for each of 128 BatchNorm groups" in lines[1]


def test_a_config_in_a_run_directory_means_that_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = Path("runs/a$b")  # what a variable looks like is a name here
    run_dir.mkdir(parents=True)
    file = RunPaths(run_dir).config
    file.write_text("run: {name: a, dir: old/place}\n")
    assert load_config(file).run_dir == Path("old/place")  # a file of that name alone
    status.write(run_dir, "stopped", 3)
    for moved in (file, tmp_path / file):
        assert load_config(moved, ["optim.lr=1"]).run_dir == moved.parent
    assert load_config(file, ["run.dir=elsewhere"]).run_dir == Path("elsewhere")
    assert load_config(file, ["run.name=b"]).run_dir == Path("runs/b")  # another run, as a message proposes
    file.write_text("run: {name: a, dir: runs/a$$b}\n")
    assert load_config(tmp_path / file).run.dir == "runs/a$b"  # it lies where it was begun
    monkeypatch.chdir(run_dir)
    assert load_config(Path("config.yaml")).run_dir.samefile(tmp_path / run_dir)
    assert load_config(None).run_dir == Path("runs/digits")


def test_evaluation_takes_the_config_of_a_run_for_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status.write(tmp_path, "done", 3)
    RunPaths(tmp_path).config.write_text("run: {name: a, dir: old/place}\n")
    monkeypatch.setenv("RUNS", str(tmp_path.parent))
    for path in (tmp_path, RunPaths(tmp_path).config, f"$RUNS/{tmp_path.name}"):
        chosen = options.parse([str(path), "--out", "${RUNS}/out"])
        assert (chosen.path, chosen.out) == (tmp_path, tmp_path.parent / "out")
        assert options.load_config(chosen).run_dir == tmp_path
    for words in (["$NOT_SET_HERE/a"], ["a", "--out", "$NOT_SET_HERE"]):
        with pytest.raises(UserError, match="the variable NOT_SET_HERE is not set here"):
            options.parse(words)


def test_a_status_keeps_what_a_later_one_does_not_tell(tmp_path: Path) -> None:
    assert status.read(tmp_path) == status.Status()
    status.write(tmp_path, "running", 3, total_steps=90, epoch_steps=9)
    status.write(tmp_path, "stopped", 7, "asked to")
    assert status.read(tmp_path) == status.Status("stopped", 7, "asked to", 90, 9)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"state": [], "step": 1, "reason": ""}', '{"state": "dreaming", "step": 1, "reason": ""}'],
)
def test_a_damaged_status_is_none(tmp_path: Path, content: str) -> None:
    RunPaths(tmp_path).status.write_text(content)
    assert status.read(tmp_path) == status.Status()


@pytest.mark.parametrize("length", [None, 0, -1, True, 2.5, "9"])
def test_a_length_that_is_none_is_passed_over(tmp_path: Path, length: object) -> None:
    content = {"state": "running", "step": 1, "reason": "", "total_steps": length}
    RunPaths(tmp_path).status.write_text(json.dumps(content))
    assert status.read(tmp_path) == status.Status("running", 1)


def test_rows_have_every_name_once() -> None:
    row = training_row(3, 0, 1.5, 0.1, 640.0, {"top1": 0.5}, unreadable=2)
    assert [*row] == ["step", "epoch", "loss", "lr", "top1", "images_per_second", "unreadable"]
    assert is_training(row) and not is_evaluation(row)
    assert is_evaluation(evaluation_row(3, 0, {"knn_top1": 0.5}))
    with pytest.raises(AssertionError, match="has the name of another"):
        training_row(3, 0, 1.5, 0.1, 640.0, {"lr": 0.5})


@pytest.mark.parametrize(("rank", "local_rank", "speaks"), [(0, 0, True), (2, 0, True), (3, 1, False)])
def test_a_mistake_of_one_node_is_told_by_it(
    rank: int, local_rank: int, speaks: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("moco_dist.ranks.rank._LET_RANK_0_SPEAK_SECONDS", 0.0)
    variables = {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": 4, "MASTER_ADDR": "here", "MASTER_PORT": 1}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    assert train.run(["optim.lr=fast"]) == 2
    assert ("moco_dist.train: optim.lr = fast" in capsys.readouterr().err) == speaks
    assert command.run(["no/such/run"]) == 2
    assert ("moco_dist.evaluate: RUN_DIR|WEIGHTS = no/such/run" in capsys.readouterr().err) == speaks
