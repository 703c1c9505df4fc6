"""A run begins with random weights, those of another run, or those of a file, which it needs once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from moco_dist.encoders.load import load_encoder
from moco_dist.run.checkpoints import CheckpointIndex
from moco_dist.run.paths import RunPaths
from tests.jobs import train_here

QUICK = {"optim.steps": 2, "checkpoint.every_steps": 1, "eval.knn_every": 0}


def begun(run_dir: Path, start: Path | str, **settings: Any) -> int:
    return train_here(run_dir, {**QUICK, "run.init_from": start, **settings})


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "first"
    assert train_here(run_dir, QUICK) == 0
    return run_dir


@pytest.mark.parametrize("name", ["", "config.yaml", "encoder.safetensors", "checkpoints/step_000000002.pt"])
def test_a_run_begins_from_another(
    name: str, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(first.parent)
    monkeypatch.setenv("HOME", str(first.parent))
    start = f"{'~' if not name else '.'}/{first.name}/{name}"  # of the home, or relative
    assert begun(tmp_path / "run", start, **{"optim.lr": 1e-30, "optim.steps": 1}) == 0
    assert "took the encoder's 100 tensors" in capsys.readouterr().err
    of_first = load_encoder(first).state_dict()
    for name, tensor in load_encoder(tmp_path / "run").state_dict().items():
        if not name.startswith("network.fc.") and "num_batches" not in name and "running" not in name:
            assert torch.equal(tensor, of_first[name]), name


def test_a_run_that_is_not_done_gives_its_last_checkpoint(first: Path, tmp_path: Path) -> None:
    shutil.copytree(first, tmp_path / "copy")
    RunPaths(tmp_path / "copy").encoder.unlink()
    assert begun(tmp_path / "run", tmp_path / "copy") == 0
    shutil.rmtree(RunPaths(tmp_path / "copy").checkpoints)
    assert begun(tmp_path / "run 2", tmp_path / "copy") == 2


def test_a_run_goes_on_without_the_weights_that_it_began_from(first: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    shutil.copy(RunPaths(first).encoder, weights)
    assert begun(tmp_path / "whole", weights) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    index = CheckpointIndex(RunPaths(tmp_path / "parts").checkpoints)
    index.path(2).unlink()
    RunPaths(tmp_path / "parts").encoder.unlink()
    weights.unlink()
    assert begun(tmp_path / "parts", weights) == 0
    whole, parts = (load_encoder(tmp_path / name) for name in ("whole", "parts"))
    assert whole.digest == parts.digest

    index.path(1).unlink()
    index.path(2).unlink()
    assert begun(tmp_path / "parts", weights) == 2  # it would begin anew


COMMANDS = {
    "train": (["moco_dist.train", "digits", "run.dir=run", "run.init_from=weights.pt"], "run.init_from"),
    "evaluate": (["moco_dist.evaluate", "weights.pt", "digits"], "WEIGHTS"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_that_would_run_code_is_one_line_of_a_command(name: str, tmp_path: Path) -> None:
    torch.save({"a": zipfile.ZipFile}, tmp_path / "weights.pt")
    words, key = COMMANDS[name]
    command = [sys.executable, "-m", *words, "track.wandb=disabled"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if f"{key} = " in line]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert len(lines) == 1 and "is a pickle that would run code, zipfile.ZipFile, when it is read" in lines[0]
