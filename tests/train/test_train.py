"""The trainer as a user starts it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from moco_dist import config, train
from moco_dist.engine.engine import Engine
from moco_dist.errors import UserError
from moco_dist.evaluate import online
from moco_dist.networks import weights
from moco_dist.networks.resnet import build_encoder
from moco_dist.run import status
from tests.ranks.test_rank import ONE_OF_TWO
from tests.without import without

FAST = ("model.width=8", "optim.global_batch=64", "track.wandb=disabled", "track.log_every=1", "eval.knn_every=0")


def start(*arguments: str, ranks: int = 0, timeout: int = 240) -> subprocess.CompletedProcess[str]:
    """Run the trainer by itself, or on so many ranks under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, *launcher, "-m", "moco_dist.train", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def write_images(folder: Path, count: int, side: int = 16, seed: int = 0) -> None:
    folder.mkdir(parents=True)
    for index, pixels in enumerate(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)):
        Image.fromarray(pixels).save(folder / f"{index:03}.png")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Three epochs of digits on two ranks, as the contract describes a run."""
    run_dir = tmp_path_factory.mktemp("runs") / "digits"
    result = start(
        *("model.width=8", "optim.global_batch=256", "optim.epochs=3", "eval.knn_every=2", "track.log_every=1"),
        *("moco.bn_groups=2", f"run.dir={run_dir}", "checkpoint.every_steps=4", "eval.online_images=300"),
        ranks=2,
    )
    assert result.returncode == 0, result.stderr
    return run_dir, result


def test_a_run_leaves_what_the_contract_names(digits: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    run_dir, result = digits
    training = [row for row in rows(run_dir) if "loss" in row]
    evaluations = [row for row in rows(run_dir) if "knn_top1" in row]
    assert [row["step"] for row in training] == list(range(1, 16))  # 1438 // 256 = 5 steps an epoch
    assert all(0 < row["loss"] < 30 and 0 <= row["top1"] <= row["top5"] <= 1 for row in training)
    assert training[0]["lr"] < training[8]["lr"] and training[-1]["lr"] < training[9]["lr"]
    assert [row["step"] for row in evaluations] == [10, 15]
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["loss"] == training[-1]["loss"]
    for figure in ("knn_top1", "linear_top1"):
        part, whole = (row[figure] for row in evaluations)
        assert 0.2 < part < 1 and (60 * part) % 1 == pytest.approx(0)  # of a fifth of 300 images
        assert 0.2 < whole < 1 and (359 * whole) % 1 == pytest.approx(0)  # the last one on all queries
        assert summary[figure] == whole
    lengths = {"total_steps": 15, "epoch_steps": 5}
    assert json.loads((run_dir / "status.json").read_text()) == {"state": "done", "step": 15, "reason": "", **lengths}
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == ["step_000000012.pt", "step_000000015.pt"]
    assert list((run_dir / "wandb").glob("offline-run-*")) and not (run_dir / "lease.json").exists()
    with Image.open(run_dir / "augmented_pairs.png") as pairs:
        assert pairs.size == (8 * 8, 2 * 8)
    accuracies = f"kNN {100 * summary['knn_top1']:.2f} %, linear probe {100 * summary['linear_top1']:.2f} %"
    assert accuracies in result.stdout and str(run_dir) in result.stdout
    assert run_dir.stat().st_mode & 0o077 == 0  # private to its user


def test_the_written_config_runs_again(digits: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    run_dir, _ = digits
    text = (run_dir / "config.yaml").read_text()
    assert re.match(r"# moco-dist \S+, git \w+.*torch ", text)
    assert config.load(run_dir / "config.yaml").optim.epochs == 3


def test_a_finished_run_started_again_changes_nothing(digits: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    run_dir, _ = digits
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(run_dir.rglob("*"))}
    assert train.run([str(run_dir / "config.yaml")]) == 0
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(run_dir.rglob("*"))} == before


def test_the_encoder_comes_back(digits: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    run_dir, _ = digits
    run = config.load(run_dir / "config.yaml")
    encoder = build_encoder(run.model, channels=1, seed=9)
    weights.load_backbone_(encoder, run_dir / "encoder.safetensors")
    state = torch.load(run_dir / "checkpoints" / "step_000000015.pt", weights_only=True)
    for name, tensor in load_file(run_dir / "encoder.safetensors").items():
        assert torch.equal(encoder.state_dict()[name], tensor) or "num_batches" in name
        assert torch.equal(state["encoder_q"][name], tensor)
    with pytest.raises(UserError, match=r"run\.init_from .* layers do not fit"):
        weights.load_backbone_(
            build_encoder(run.model.model_copy(update={"width": 16}), 1, 0), run_dir / "encoder.safetensors"
        )


BAD = {
    "unknown key": (["optim.learning_rate=1"], r"optim\.learning_rate .*unknown key"),
    "near key": (["optim.epoch=1"], r"optim\.epoch .*did you mean optim\.epochs\?"),
    "another section's key": (["optim.temperature=1"], r"did you mean moco\.temperature\?"),
    "type": (["optim.lr=fast"], r"optim\.lr = fast: must be a number"),
    "groups": (["optim.global_batch=126"], r"optim\.global_batch = 126: .*moco\.bn_groups=4; use .*=128"),
    "no root": (["data.source=imagefolder"], r"data\.root = null"),
    "missing root": (["data.source=imagefolder", "data.root=/nowhere"], r"data\.root = /nowhere: no such folder"),
    "empty root": (["data.source=mnist", "data.root={tmp}/empty"], r"data\.root = .*is empty"),
    "no images": (["data.source=imagefolder", "data.root={tmp}/text"], r"data\.root = .*no image below it"),
    "strange class": (["data.source=imagefolder", "data.root={tmp}/strange"], r"val/ .*train/ lacks: cow"),
    "small images": (["data.source=imagefolder", "data.root={tmp}/strange/train", "data.image_size=32"], r"16 pixels"),
    "crop": (["data.image_size=28"], r"data\.image_size = 28: .* 8 pixels"),
    "few images": (["optim.global_batch=2000"], r"optim\.global_batch = 2000: .*1438 images"),
    "no such weights": (["run.init_from=/nowhere.pt"], r"run\.init_from = /nowhere\.pt"),
    "no folder": (["run.dir={tmp}/text/a.txt"], r"run\.dir = .*: cannot be written"),
    "two configs": (["a.yaml", "b.yaml"], r"one config file at most"),
    "no config": (["configs/nothing.yaml"], r"no such file.*digits.*mnist"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_told_in_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").touch()
    write_images(tmp_path / "strange" / "train" / "cat", 2)
    write_images(tmp_path / "strange" / "val" / "cow", 2)
    arguments, pattern = BAD[name]
    code = train.run([f"run.dir={tmp_path}/run", *(a.format(tmp=tmp_path) for a in arguments)])
    error = capsys.readouterr().err
    assert code == 2 and re.search(pattern, error) and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_without_wandb_it_trains_and_evaluates_where_that_is_disabled(tmp_path: Path) -> None:
    """Both in one process, since starting one is what takes the time; submitit is missing as well."""
    script = (
        "import sys\n"
        "from moco_dist import train\n"
        "from moco_dist.evaluate import command as evaluate\n"
        "run_dir, *arguments = sys.argv[1:]\n"
        "sys.exit(train.run([f'run.dir={run_dir}', *arguments]) or evaluate.run([run_dir, '--knn']))\n"
    )
    command = [sys.executable, "-c", script, f"{tmp_path}/run", *FAST, "optim.steps=2"]
    environment = {**os.environ, **without(tmp_path / "bare", "wandb", "submitit"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0 and "warning" not in result.stderr, result.stderr
    assert "kNN" in result.stdout and (tmp_path / "run" / "evaluation.json").is_file()
    versions = (tmp_path / "run" / "config.yaml").read_text().splitlines()[0]
    assert re.search(
        r"; python 3\S+, torch \S+, torchvision \S+, numpy [^ ,]+, pillow [^ ,]+(, simplejpeg [^ ,]+)?$", versions
    )
    assert not (tmp_path / "run" / "wandb").exists()


def test_a_missing_wandb_is_told_by_one_rank_before_the_data_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was begun by an earlier start, and goes on on two ranks."""
    monkeypatch.setenv("PYTHONPATH", without(tmp_path / "bare", "wandb")["PYTHONPATH"])
    (tmp_path / "run").mkdir()
    status.write(tmp_path / "run", "stopped", 7, "on request")
    data = ("data.source=imagefolder", "data.root=/nowhere")
    result = start(*FAST, "track.wandb=online", *data, f"run.dir={tmp_path}/run", ranks=2)
    line = (
        "track.wandb = online: wandb is not installed here; install it (pip install wandb), or use track.wandb=disabled"
    )
    assert result.returncode == 1 and "exitcode  : 2" in result.stderr
    assert [text for text in result.stderr.splitlines() if "moco_dist.train: " in text] == [f"moco_dist.train: {line}"]
    assert "ModuleNotFoundError" not in result.stderr and "/nowhere" not in result.stderr
    assert status.read(tmp_path / "run") == status.Status("user_error", 7, line)
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["status.json"]


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_broken_wandb_is_a_mistake_of_one_line(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wandb.py").write_text("import no_such_dependency")
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    assert train.run([f"run.dir={tmp_path}/run", f"track.wandb={mode}"]) == 2
    line = rf"track\.wandb = {mode}: wandb cannot be imported here \(.*'no_such_dependency'\); install it .*=disabled\n"
    assert re.fullmatch(f"moco_dist\\.train: {line}", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.run([f"run.dir={tmp_path}/run", "device.type=cuda"]) == 2
    assert re.search(r"device\.type = cuda: there is no CUDA device", capsys.readouterr().err)


def test_ranks_that_do_not_divide(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for ranks, pattern in (("3", r"moco\.bn_groups = 4: .*3 ranks"), ("8", r"moco\.bn_groups = 4: .*8 ranks")):
        for name, value in {**ONE_OF_TWO, "WORLD_SIZE": ranks, "RANK": "0", "LOCAL_RANK": "0"}.items():
            monkeypatch.setenv(name, value)
        assert train.run([]) == 2
        assert re.search(pattern, capsys.readouterr().err)


def test_under_torchrun_one_rank_tells_the_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = "import os, time\nif os.environ.get('RANK') == '0':\n    time.sleep(3)\n"  # the one that is to speak
    (tmp_path / "sitecustomize.py").write_text(late)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    result = start("optim.lr=fast", f"run.dir={tmp_path}/run", ranks=2)
    assert result.returncode == 1
    assert result.stderr.count("moco_dist.train: optim.lr = fast") == 1
    assert "exitcode  : 2" in result.stderr and "UserError" not in result.stderr


def test_corrupt_images_are_replaced_named_once_and_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "images", 202)
    (tmp_path / "images" / "007.png").write_bytes(b"no image")
    (tmp_path / "images" / "009.png").write_bytes((tmp_path / "images" / "010.png").read_bytes()[:300])
    arguments = (*FAST, "data.source=imagefolder", f"data.root={tmp_path}/images", "data.augmentation=v2")
    arguments += ("data.image_size=16", "optim.global_batch=100", "optim.epochs=2", "data.workers=2")
    assert train.run([*arguments, f"run.dir={tmp_path}/run", "moco.queue_size=300"]) == 0
    errors = capfd.readouterr().err
    assert errors.count("007.png") == 1 and errors.count("009.png") == 1
    assert "moco.queue_size = 300: more than the 202 training images" in errors
    assert 1 <= sum(row.get("unreadable", 0) for row in rows(tmp_path / "run")) <= 4
    assert "knn_top1" not in json.loads((tmp_path / "run" / "summary.json").read_text())  # no labels: nothing asks

    for name in ("020.png", "021.png", "022.png"):
        (tmp_path / "images" / name).write_bytes(b"")
    assert train.run([*arguments, f"run.dir={tmp_path}/worse"]) == 2
    assert re.search(r"data\.root = .* of 202 images cannot be decoded, more than 1 %", capfd.readouterr().err)
    assert json.loads((tmp_path / "worse" / "status.json").read_text())["state"] == "user_error"


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = (*FAST, f"run.dir={tmp_path}/run", "checkpoint.every_steps=1", "optim.warmup_epochs=0", "optim.lr=1e25")
    assert train.run([*run, "optim.steps=20"]) == 1
    errors = capsys.readouterr().err
    mentioned = re.search(r"the loss is (nan|inf) at step (\d+); last checkpoint: step (\d+)", errors)
    assert mentioned and "Traceback" not in errors, errors
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("diverged", int(mentioned[2]))
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, int(mentioned[2])))
    for file in (tmp_path / "run" / "checkpoints").glob("*.pt"):
        state = torch.load(file, weights_only=True)
        assert all(t.isfinite().all() for t in state["encoder_q"].values())


def test_a_run_that_dies_in_its_last_evaluation_takes_no_step_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*FAST, "eval.knn_every=1", "eval.online_images=100", "optim.steps=3")
    assert train.run([*arguments, f"run.dir={tmp_path}/whole"]) == 0
    run, last = [*arguments, f"run.dir={tmp_path}/run"], tmp_path / "run" / "checkpoints" / "step_000000003.pt"

    def die(*_: object, **__: object) -> None:
        deadline = time.monotonic() + 60
        while not last.exists() and time.monotonic() < deadline:  # it is written beside the evaluation
            time.sleep(0.05)
        raise RuntimeError("the test ends the evaluation")

    with monkeypatch.context() as patch:
        patch.setattr(online, "accuracies", die)
        with pytest.raises(RuntimeError, match="the test ends the evaluation"):
            train.run(run)
    assert last.exists() and "knn_top1" not in rows(tmp_path / "run")[-1]
    monkeypatch.setattr(Engine, "step", None)  # nothing is left but the evaluation
    assert train.run(run) == 0
    one, other = ([row.get("loss", row.get("knn_top1")) for row in rows(tmp_path / name)] for name in ("run", "whole"))
    assert one == other and len(one) == 4


def losses_in(precision: str, run_dir: Path, *extra: str) -> list[float]:
    """Train six steps in a precision. Returns their losses."""
    assert train.run([*FAST, "optim.steps=6", f"run.dir={run_dir}", f"device.precision={precision}", *extra]) == 0
    return [row["loss"] for row in rows(run_dir)]


@pytest.fixture(scope="module")
def losses_in_fp32(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses_in("fp32", tmp_path_factory.mktemp("fp32") / "run")


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp64"])
def test_precisions_learn_alike(precision: str, tmp_path: Path, losses_in_fp32: list[float]) -> None:
    extra = ["device.channels_last=true"] if precision == "bf16" else []
    losses = losses_in(precision, tmp_path / "run", *extra)
    assert losses == pytest.approx(losses_in_fp32, rel=0.05) and losses != losses_in_fp32
