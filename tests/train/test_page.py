"""A run leaves its page when it ends; what goes wrong with it stops nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from moco_dist.report import page as pages
from moco_dist.run.paths import RunPaths
from moco_dist.train import page
from tests.jobs import train_here


def test_a_run_leaves_its_page_and_a_view_of_its_features(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = {"optim.steps": 3, "eval.knn_every": 1, "model.width": 8}
    assert train_here(tmp_path / "run", settings) == 0
    paths = RunPaths(tmp_path / "run")
    text = paths.report.read_text()
    assert "It is done" in text and "Map of the features" in text and "after step 3" in text
    assert "report.html" in capfd.readouterr().out


def test_a_page_that_cannot_be_made_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no template")

    monkeypatch.setattr(pages, "write", broken)
    warnings: list[str] = []
    assert not page.leave(tmp_path, warnings.append)
    command = f"python -m moco_dist.report {tmp_path} writes it"
    assert warnings == [f"{tmp_path}/report.html: not written (RuntimeError: no template); {command}"]


def test_a_page_that_takes_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(pages, "write", lambda *_, **__: time.sleep(1))
    warnings: list[str] = []
    assert not page.leave(tmp_path, warnings.append)
    assert len(warnings) == 1 and "it takes longer than 0.05 s" in warnings[0]
