"""A run directory that an earlier revision has written (moco-dist 0.1.0, at git 47b4f43): it resumes and is evaluated.

It holds five steps of `tests/fast.yaml` with `optim.schedule=constant`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from moco_dist import train
from moco_dist.evaluate import command
from moco_dist.run import status
from moco_dist.run.paths import RunPaths
from tests.jobs import losses

EARLIER = Path(__file__).parent / "earlier_run"
LOSSES = {6: 6.080793380737305, 7: 6.090798377990723, 8: 6.218897342681885}
"""The losses with which that revision itself went on."""


def test_a_run_of_an_earlier_revision_resumes_and_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "run"
    shutil.copytree(EARLIER, run_dir)
    begun = losses(run_dir)
    assert status.read(run_dir) == status.Status("done", 5)
    settings = ["optim.schedule=constant", "optim.steps=8", "eval.knn_every=1", "checkpoint.every_steps=100"]
    assert train.run([str(RunPaths(run_dir).config), *settings]) == 0  # it was begun as run5, and moved
    assert not Path("run5").exists()
    resumed = losses(run_dir)
    assert {step: resumed[step] for step in begun} == begun
    assert {step: resumed[step] for step in LOSSES} == pytest.approx(LOSSES, abs=1e-3)
    assert status.read(run_dir) == status.Status("done", 8, "", total_steps=8, epoch_steps=22)
    assert command.run([str(RunPaths(run_dir).config), "--knn", "--out", str(tmp_path / "out")]) == 0
    [row] = json.loads((tmp_path / "out" / "evaluation.json").read_text())["rows"]
    assert row["test_accuracy_mean"] == json.loads((run_dir / "summary.json").read_text())["knn_top1"]


def test_a_run_of_an_earlier_revision_is_evaluated_as_it_is(tmp_path: Path) -> None:
    assert command.run([str(EARLIER), "--knn", "--features", "head", "--out", str(tmp_path)]) == 0
    [row] = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
    assert row["test_accuracy_mean"] > 0.2
