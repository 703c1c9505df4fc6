"""A page is read from a run directory, whatever state it is in."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from moco_dist import health
from moco_dist.errors import UserError
from moco_dist.report import record, settings
from moco_dist.run import features_view, status
from moco_dist.run.paths import RunPaths
from moco_dist.run.rows import Row
from tests.health import made
from tests.report.conftest import STEPS, a_run, a_view


def test_a_run_is_read_with_its_figures_findings_and_starts(tmp_path: Path) -> None:
    run = record.read(a_run(tmp_path / "a", bad_from=200))
    assert (run.name, run.step, run.rows) == ("a", STEPS, STEPS + STEPS // (2 * made.EPOCH_STEPS))
    assert run.diagnosis and [f.name for f in run.diagnosis.findings] == ["collapsed"]
    knn, loss = run.curves["knn_top1"], run.curves["loss"]
    assert knn.steps == list(range(64, STEPS + 1, 64)) and knn.last == 0.8 + 0.1
    assert loss.rows == STEPS and loss.steps == list(range(1, STEPS + 1))
    highest = max(range(STEPS), key=loss.values.__getitem__)
    assert loss.high == (highest + 1, pytest.approx(loss.values[highest], rel=1e-5))
    assert [start["step"] for start in run.starts] == [0, 300]
    assert run.features == a_view()


def test_unknown_figures_and_strange_values_do_no_harm(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "a")
    strange = [{"step": 641, "loss": 1.0, "new/figure": 7}, {"step": 642, "loss": 2.0, "new/figure": "text"}]
    strange += [{"step": 643, "loss": 3.0, "new/figure": [1, 2]}, {"step": 644, "loss": 1e999, "new/figure": True}]
    strange += [{"step": 645, "loss": 4.0, "huge": 10**400}, {"step": 646, "new/figure": 9.5}]
    with RunPaths(folder).metrics.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in strange) + '{"step": 647, "lo')
    run = record.read(folder)
    assert run.curves["new/figure"].values == [7, 1, 9.5]
    assert run.curves["loss"].last == 4.0


def test_curves_are_shown_where_the_judgement_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(rows: Iterator[Row], *_: object, **__: object) -> None:
        next(rows)
        raise RuntimeError("a row of another version")

    monkeypatch.setattr(health, "diagnose", broken)
    run = record.read(a_run(tmp_path / "a"))
    assert run.diagnosis is None and run.not_judged == "RuntimeError: a row of another version"
    assert run.curves["loss"].rows == STEPS


@pytest.mark.parametrize("missing", ["config", "metrics", "status", "pairs_picture", "features_view", "provenance"])
@pytest.mark.parametrize("content", [None, b"", b"\xff{]not this", b"[1, 2]", b'{"version": 1}'])
def test_what_is_missing_or_damaged_is_left_out(tmp_path: Path, missing: str, content: bytes | None) -> None:
    folder = a_run(tmp_path / "a")
    file = getattr(RunPaths(folder), missing)
    file.unlink() if content is None else file.write_bytes(content)
    run = record.read(folder)
    if missing in ("config", "metrics"):
        assert run.diagnosis is None or not run.diagnosis.checked or missing == "config"
    assert bool(run.curves) == (missing != "metrics")
    assert bool(run.features) == (missing != "features_view")
    assert bool(run.settings) == (missing != "config")


@pytest.mark.parametrize(
    "change",
    [
        {"labels": [99] * 60},
        {"points": [(0.0, 0.0)]},
        {"confusions": [(0, 77, 1)]},
        {"version": 2},
        {"neighbours": [{"query": {"label": 0, "picture": "", "kind": "svg+xml"}, "images": [], "predicted": 0}]},
    ],
)
def test_a_view_that_does_not_fit_together_is_not_read(tmp_path: Path, change: dict[str, object]) -> None:
    file = tmp_path / "view.json"
    features_view.write(file, a_view())
    assert features_view.read(file) == a_view()
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert features_view.read(file) is None


def test_runs_of_a_sweep_are_found_at_any_depth(tmp_path: Path) -> None:
    for name in ("b/2", "b/10", "a"):
        status.write(_folder(tmp_path / name), "done", 3)
    status.write(_folder(tmp_path / "a" / "checkpoints" / "copy"), "done", 3)
    _folder(tmp_path / "empty")
    assert [str(run.relative_to(tmp_path)) for run in record.runs_below(tmp_path)] == ["a", "b/10", "b/2"]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    for folder, rule in ((tmp_path, "holds no run"), (tmp_path / "none", "no such folder")):
        with pytest.raises(UserError, match=rule):
            record.read_all([folder])


def test_several_processes_read_what_one_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = a_run(tmp_path / "a", bad_from=200)
    second = shutil.copytree(first, tmp_path / "b")
    one = record.read_all([first, second])
    monkeypatch.setattr(record, "_LARGE", 1)
    assert record.read_all([first, second]) == one


def test_the_shipped_config_with_the_fewest_differences_is_compared() -> None:
    name, values = settings.nearest_shipped({**settings.nearest_shipped({"data.source": "mnist"})[1], "optim.lr": 7})
    assert name == "mnist" and values["data.source"] == "mnist"


@pytest.mark.parametrize("variable", ["WANDB_MODE=shared", "WANDB_PROJECT=lab", "WANDB_DISABLED=perhaps"])
def test_the_shipped_configs_are_the_same_whatever_the_environment_says(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, value = variable.partition("=")
    before = settings.nearest_shipped({"data.source": "mnist"})
    settings._shipped.cache_clear()
    monkeypatch.setenv(name, value)
    assert settings.nearest_shipped({"data.source": "mnist"}) == before


def test_only_keys_that_differ_are_told() -> None:
    runs = [{"run.name": "a", "optim.lr": 0.1, "moco.dim": 3}, {"run.name": "b", "optim.lr": 0.2, "moco.dim": 3}]
    assert settings.differing(runs) == ["optim.lr"]
    assert settings.differing([{"optim.lr": 0.1, "moco.dim": 3}, {"moco.dim": 3}]) == ["optim.lr"]
    assert settings.differing([{"optim.lr": 0.03, "moco.dim": 3}, {"moco.dim": 3}]) == []  # the default
    assert settings.differing([{"optim.lr": 0.1}, {}]) == []


def test_links_to_runs_are_runs_of_a_sweep(tmp_path: Path) -> None:
    elsewhere, sweep = tmp_path / "elsewhere", tmp_path / "sweep"
    for folder in (elsewhere / "run", elsewhere / "data", sweep / "b"):
        folder.mkdir(parents=True)
    for run in (elsewhere / "run", sweep / "b"):
        RunPaths(run).metrics.touch()
    for name, target in {"a": elsewhere / "run", "c": sweep / "b", "d": elsewhere, "e": sweep, "f": "gone"}.items():
        (sweep / name).symlink_to(target)
    assert record.runs_below(sweep) == [sweep / "a", sweep / "b"]


def test_a_process_that_dies_while_it_reads_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = a_run(tmp_path / "a")
    runs = [first, shutil.copytree(first, tmp_path / "b")]
    monkeypatch.setattr(record, "_LARGE", 1)
    monkeypatch.setattr(record, "_MOST_POINTS", 1000)
    monkeypatch.setattr(status, "read", lambda folder: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match=r"^RUN_DIR = 2 runs: a process that read them was out of memory, or killed"):
        record.read_all(runs)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path
