"""`python -m moco_dist.convert` makes a run of a checkpoint of the authors' code."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import resnet18
from torchvision.models.resnet import BasicBlock, Bottleneck

from moco_dist import config as configs
from moco_dist import train
from moco_dist.convert import command, request
from moco_dist.engine import checkpoint
from moco_dist.errors import UserError
from moco_dist.interruption import interruptible
from moco_dist.networks.resnet import Encoder, build_encoder
from moco_dist.reference import write
from moco_dist.run import comparison, status
from moco_dist.run.checkpoints import CheckpointIndex
from moco_dist.run.directory import RunDirectory
from moco_dist.run.paths import RunPaths
from moco_dist.run.rows import read_rows
from moco_dist.verify import plan
from tests.full_disk import full_disk
from tests.nobody import as_nobody, let_in
from tests.reference import authors

FAST = ("track.wandb=disabled", "track.log_every=1", "eval.knn_every=0")
DIGITS = ("digits", *FAST, "model.width=8", "optim.global_batch=256", "optim.epochs=3", "checkpoint.every_steps=5")
IMAGES = (
    *("digits", *FAST, "data.source=synthetic", "data.samples=160", "data.channels=3", "data.image_size=32"),
    *("data.augmentation=v2", "model.stem=imagenet", "model.width=8", "model.dim=16", "moco.queue_size=64"),
    *("moco.symmetric=false", "moco.bn_groups=2", "optim.global_batch=16", "optim.weight_decay=1e-3"),
    *("optim.epochs=5", "optim.schedule=constant", "optim.warmup_epochs=0", "optim.lr=0.1"),
)
"""The overrides for a config that the checkpoint `good` fits, but for the head: 10 steps an epoch."""
V1, V2 = ("model.mlp=false",), ("model.mlp=true",)


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    """Make a checkpoint of a ResNet-18 that is narrow, for speed."""
    section = configs.load(Path("digits"), [*IMAGES[1:], *V1]).model
    model, optimizer = authors.trained(lambda: build_encoder(section, 3, 0), 16)
    content = authors.saved(model, optimizer, 2, "resnet18")
    content["state_dict"]["module.queue_ptr"][0] = 0  # 20 steps of 16 keys
    return content


@pytest.fixture
def saved(good: dict[str, Any], tmp_path: Path) -> Path:
    return save(good, tmp_path)


def save(content: object, folder: Path) -> Path:
    torch.save(content, folder / "theirs.pth.tar")
    return folder / "theirs.pth.tar"


def state_in(run_dir: Path) -> dict[str, Any]:
    index = CheckpointIndex(RunPaths(run_dir).checkpoints)
    return checkpoint.load(index.path(index.last()))


def encoder_in(run_dir: Path, which: str = "encoder_q") -> Encoder:
    """Load the encoder of a run, ready to compute."""
    config = configs.load(RunPaths(run_dir).config)
    encoder = build_encoder(config.model, config.data.channel_count, 1)
    encoder.load_state_dict(state_in(run_dir)[which])
    return encoder.eval()


BUILDS: dict[str, tuple[Callable[[], Any], str | None, tuple[str, ...]]] = {
    "v1": (lambda: authors.Narrow(BasicBlock, [2, 2, 2, 2], 16), "resnet18", V1),
    "v2 of a ResNet-50": (
        lambda: authors.with_mlp(authors.Narrow(Bottleneck, [3, 4, 6, 3], 16)),
        "resnet50",
        ("model.arch=resnet50", *V2),
    ),
    "the CIFAR-10 demo": (
        lambda: authors.Numbered(authors.Narrow(BasicBlock, [2, 2, 2, 2], 16)),
        None,
        (*V1, "model.stem=small"),
    ),
}


@pytest.mark.parametrize("kind", BUILDS)
def test_the_encoders_compute_what_the_authors_do(kind: str, tmp_path: Path) -> None:
    build, arch, overrides = BUILDS[kind]
    model, optimizer = authors.trained(build, 16, batch=4)
    content = authors.saved(model, optimizer, 2, arch)
    content["state_dict"]["module.queue_ptr"][0] = 0
    if arch is None:  # as the demo saves it
        del content["arch"]
        content["state_dict"] = {name.removeprefix("module."): t for name, t in content["state_dict"].items()}
    assert command.run([str(save(content, tmp_path)), f"{tmp_path}/run", *IMAGES, *overrides]) == 0
    images = torch.randn(3, 3, 40, 40)
    for which in ("encoder_q", "encoder_k"):
        with torch.no_grad():
            expected = getattr(model, which).eval()(images)
            torch.testing.assert_close(encoder_in(tmp_path / "run", which)(images), expected, rtol=1e-5, atol=1e-5)
    state = state_in(tmp_path / "run")
    assert torch.equal(state["queue"], model.queue.T) and state["cursor"] == 0
    buffers = [entry["momentum_buffer"] for entry in optimizer.state_dict()["state"].values()]
    ours = [entry["momentum_buffer"] for entry in state["optimizer"]["state"].values()]
    assert all(torch.equal(a, b) for a, b in zip(ours, buffers, strict=True)) and len(ours) > 60


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run of three epochs of five steps."""
    run_dir = tmp_path_factory.mktemp("runs") / "digits"
    assert train.run([*DIGITS, f"run.dir={run_dir}"]) == 0
    return run_dir


def test_a_run_goes_on_as_it_would_have(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = checkpoint.load(CheckpointIndex(RunPaths(digits).checkpoints).path(10))
    content = write.of_run(state)
    encoder, loss = write.remarks(state)
    assert encoder.endswith("with model.stem=small, model.width=8 and 1 channels") and "symmetric" in loss
    run_dir = tmp_path / "a $HOME run"
    assert command.run([str(save(content, tmp_path)), configs.literal(run_dir), *DIGITS]) == 0
    printed = capsys.readouterr().out
    assert "2 epochs of 5 steps (1438 images in batches of 256)" in printed and "step 10 of 15" in printed
    assert re.search(r"SGD's momentum of (\d+) of \1 parameters", printed)
    assert "moco.temperature=0.2" in printed and "left out" not in printed and "look at" not in printed
    now = status.read(run_dir)
    assert (now.state, now.step, now.total_steps, now.epoch_steps) == ("stopped", 10, 15, 5)
    (line,) = [line for line in printed.splitlines() if "goes on, under" in line]
    words = shlex.split(line.partition(": ")[2])
    assert words[:3] == ["python", "-m", "moco_dist.train"] and words[4:6] == ["goes", "on,"]
    assert train.run([words[3]]) == 0
    expected, rows = ({r["step"]: r for r in read_rows(RunPaths(d).metrics) if "loss" in r} for d in (digits, run_dir))
    assert [*rows] == [11, 12, 13, 14, 15]
    for step, row in rows.items():
        names = [name for name in row if comparison.counts(name)]
        assert len(names) > 10
        assert {n for n in names if not comparison.equal_bits(row[n], expected[step][n])} == set(), step
    ends = [state_in(folder) for folder in (digits, run_dir)]
    for part in ("encoder_q", "encoder_k"):
        assert all(torch.equal(ends[0][part][name], ends[1][part][name]) for name in ends[0][part])
    assert plan.choose(digits, None, None).start == 0  # a short run is replayed from its start
    assert plan.choose(run_dir, None, None).start == 10  # whose first steps the converted run did not take
    with pytest.raises(UserError, match=r"--from = 0: .*use one of 10$"):
        plan.choose(run_dir, None, 0)


def test_the_run_knows_what_it_began_from(saved: Path, tmp_path: Path) -> None:
    assert command.run([str(saved), f"{tmp_path}/run", *IMAGES, *V1, "run.name=mine"]) == 0
    paths = RunPaths(tmp_path / "run")
    origin = json.loads(paths.converted.read_text())
    assert (origin["checkpoint"], origin["epoch"], origin["step"]) == (str(saved), 2, 20)
    assert len(origin["sha256"]) == 64 and "queue" in origin["lines"][0]
    config = configs.load(paths.config)
    assert (config.run.name, config.run.dir) == ("mine", f"{tmp_path}/run")
    assert not paths.lease.exists() and sorted(p.name for p in tmp_path.iterdir()) == ["run", "theirs.pth.tar"]
    assert {path.stat().st_mode & 0o77 for path in (paths.folder, paths.checkpoints)} == {0}


def test_any_number_of_ranks_goes_on(saved: Path, tmp_path: Path) -> None:
    """The number of BatchNorm groups is the config's, and not that of the one process that converts."""
    assert command.run([str(saved), f"{tmp_path}/run", *IMAGES, *V1, "moco.bn_groups=4"]) == 0
    state, config = state_in(tmp_path / "run"), configs.load(RunPaths(tmp_path / "run").config)
    assert state["group_size"] == 4
    for ranks in (1, 2, 4):
        configs.check_resumable(state["config"], state["group_size"], config, configs.layout(config, ranks))


def test_the_rest_of_a_file_is_named(good: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {**good, "scaler": {}, "best_acc1": torch.tensor(3.0)}
    assert command.run([str(save(content, tmp_path)), f"{tmp_path}/run", *IMAGES, *V1]) == 0
    assert "moco_dist.convert: left out: scaler, best_acc1\n" in capsys.readouterr().out


def same(content: dict[str, Any]) -> dict[str, Any]:
    return content


DOUBTS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], tuple[str, ...], str | None]] = {
    "other images": (same, ("data.samples=170",), None),
    "a number of images that the cursor does not fit": (same, ("data.samples=177",), "the queue's cursor is 0, and 22"),
    "no optimizer": (lambda c: {**c, "optimizer": None}, (), "momentum begins at 0"),
    "another rate": (same, ("optim.lr=0.2",), "learning rate was 0.1 in the last epoch"),
    "another schedule": (same, ("optim.schedule=cosine",), "it was 0.0904508 to 0.0654508"),
    "the schedule of the CIFAR-10 demo, whose epochs count from 1": (
        lambda c: with_group(lr=0.1 * 0.5 * (1 + math.cos(math.pi * 2 / 5)))(c),
        ("optim.schedule=cosine",),
        None,
    ),
    "drops": (same, ("optim.schedule=step", "optim.milestones=[1]"), "it was 0.01 to 0.01"),
}


@pytest.mark.parametrize("what", DOUBTS)
def test_what_the_config_does_not_explain_is_told(
    what: str, good: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, overrides, text = DOUBTS[what]
    assert command.run([str(save(change(good), tmp_path)), f"{tmp_path}/run", *IMAGES, *V1, *overrides]) == 0
    doubts = [line for line in capsys.readouterr().out.splitlines() if "look at this: " in line]
    assert len(doubts) == (text is not None) and all(text in line for line in doubts)


def without_epoch(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != "epoch"}


def test_a_file_without_epochs_needs_them(good: dict[str, Any], tmp_path: Path) -> None:
    arguments = [str(save(without_epoch(good), tmp_path)), f"{tmp_path}/run", *IMAGES, *V1]
    assert command.run([*arguments, "--epoch", "3"]) == 0
    assert state_in(tmp_path / "run")["step"] == 30


def test_an_epoch_that_is_not_finished_is_not_exported(digits: Path) -> None:
    state = checkpoint.load(CheckpointIndex(RunPaths(digits).checkpoints).path(10))
    with pytest.raises(UserError, match="--step = 12: is within an epoch of 5 steps"):
        write.of_run({**state, "step": 12})
    with pytest.raises(UserError, match="kept no number of images"):
        write.of_run({**state, "data": None})
    odd = {**state["config"], "moco": {**state["config"]["moco"], "queue_size": 1000, "symmetric": False}}
    assert write.remarks({**state, "config": odd})[1:] == [
        "main_moco.py needs a queue of whole batches, and 1000 is no multiple of 256"
    ]


# -------------------------------------------------------------------- mistakes


def mistake_in(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command with a mistake, and return the line that is all it prints."""
    assert command.run(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and not printed.out, printed
    return printed.err.removesuffix("\n")


def with_group(**settings: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        (group,) = content["optimizer"]["param_groups"]
        return {**content, "optimizer": {**content["optimizer"], "param_groups": [{**group, **settings}]}}

    return change


def with_state(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda c: {**c, "state_dict": {**c["state_dict"], **{f"module.{n}": v for n, v in values.items()}}}


def shallower(state: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in state.items() if "layer3.1." not in name}


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], tuple[str, ...], str]] = {
    "another queue": (same, ("moco.queue_size=128",), r"moco\.queue_size = 128: .*had 64; add moco\.queue_size=64$"),
    "another dim": (same, ("model.dim=32",), r"model\.dim = 32: .*had 16; add model\.dim=16$"),
    "another architecture": (same, ("model.arch=resnet50",), r"model\.arch = resnet50: .*; add model\.arch=resnet18$"),
    "a deeper one of the same blocks": (same, ("model.arch=resnet34",), r"add model\.arch=resnet18$"),
    "another stem": (same, ("model.stem=small",), r"model\.stem = small: .* imagenet; add model\.stem=imagenet$"),
    "another width": (same, ("model.width=16",), r"model\.width = 16: .* 8; add model\.width=8$"),
    "another head": (same, ("model.mlp=true",), r"model\.mlp = true: .* false; add model\.mlp=false$"),
    "all of these": (
        same,
        ("model.arch=resnet50", "model.width=16", "model.dim=8", "moco.queue_size=9"),
        r"add model\.arch=resnet18 model\.width=8 model\.dim=16 moco\.queue_size=64$",
    ),
    "images of another kind": (same, ("data.channels=1",), r"have 1 channels, and the file's encoder sees 3"),
    "not its arch": (lambda c: {**c, "arch": "resnet50"}, (), "resnet50, and its layers .* resnet18"),
    "an arch of others": (lambda c: {**c, "arch": "resnext50_32x4d"}, (), "resnext50_32x4d, and its layers"),
    "a network of none": (
        lambda c: {"epoch": 2, "optimizer": c["optimizer"], "state_dict": shallower(c["state_dict"])},
        (),
        r"model\.arch = resnet18: the file's encoder is none of the ResNets known here",
    ),
    "another momentum": (same, ("optim.sgd_momentum=0.8",), r"= 0\.8: .* 0\.9; add optim\.sgd_momentum=0\.9$"),
    "another decay": (same, ("optim.weight_decay=0",), r"= 0\.0: .* 0\.001; add optim\.weight_decay=0\.001$"),
    "Nesterov": (with_group(nesterov=True), (), r"nesterov=true .*run\.init_from"),
    "a dampening": (with_group(dampening=0.1), (), r"dampening=0\.1"),
    "many values of one": (with_group(nesterov=torch.zeros(2)), (), r"nesterov=tensor\("),
    "a rate beyond floats": (with_group(lr=10**400), (), "the lr of its optimizer is no number"),
    "a momentum of text": (with_group(momentum="0.9"), (), "the momentum of its optimizer is no number"),
    "no epochs left": (same, ("optim.epochs=2",), r"optim\.epochs = 2: 2 are done .*optim\.epochs=3 or more"),
    "no steps left": (same, ("optim.steps=20",), r"optim\.steps = 20: 20 are done .*optim\.steps=30 or more"),
    "no epoch": (without_epoch, (), r"--epoch = null: .*add --epoch N"),
    "two epochs": (same, ("--epoch", "3"), "the file says that 2 are finished"),
    "epoch 0": (same, ("--epoch", "0"), "--epoch = 0: must be the number"),
    "a cursor between batches": (with_state(queue_ptr=torch.tensor([8])), (), "in the file is 8, which batches of 16"),
    "a cursor behind the end": (with_state(queue_ptr=torch.tensor([64])), (), "64, outside of the queue of 64"),
    "NaN": (with_state(queue=torch.full((16, 64), torch.nan)), (), "module.queue holds NaN"),
    "half": (with_state(queue=torch.ones(16, 64).half()), (), "module.queue is a tensor of torch.float16"),
    "an encoder alone": (
        lambda c: {"state_dict": {n: t for n, t in c["state_dict"].items() if "encoder_q" in n}},
        (),
        r"no key encoder .*run\.init_from",
    ),
    "a backbone": (lambda c: resnet18().state_dict(), (), r"is no checkpoint of the authors' .*run\.init_from"),
    "a list": (lambda c: [1, 2], (), "no layers by name"),
    "no groups": (same, ("moco.bn_groups=null",), r"moco\.bn_groups = null: must be set: .*add moco\.bn_groups=N"),
    "weights beside": (same, ("run.init_from=a.pt",), r"run\.init_from = a\.pt: .*; add run\.init_from=null$"),
    "a directory beside": (same, ("run.dir=elsewhere",), r"run\.dir = elsewhere: .*; drop it"),
    "no resuming": (same, ("run.resume=never",), r"add run\.resume=auto"),
    "two configs": (same, ("a.yaml",), r"argument = a\.yaml: "),
    "an unknown key": (same, ("moco.size=3",), r"moco\.size"),
    "an unknown option": (same, ("--overwrite",), "see python -m moco_dist.convert --help"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_is_told_in_one_line(
    what: str, good: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, overrides, pattern = WRONG[what]
    file = save(change(good), tmp_path)
    arguments = [str(file), f"{tmp_path}/deep/run", *IMAGES, *V1]
    error = mistake_in([*arguments, *overrides], capsys)
    assert re.search(pattern, error), error
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.pth.tar"]
    if fix := re.search(r"; add ((?:\w+\.\w+=[\w.]+ ?)+)$", error.replace("=N,", "=4,")):
        assert command.run([*arguments, *overrides, *fix[1].split()]) == 0, "the fix does not help"


PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a run": (lambda path: (path.mkdir(), (path / "status.json").touch()), "holds a run; name a new directory"),
    "something": (lambda path: (path.mkdir(), (path / "notes.txt").touch()), "not empty, it holds notes.txt"),
    "a file": (lambda path: path.touch(), "is no directory"),
    "a link to an empty folder": (
        lambda path: (path.with_name("other").mkdir(), path.symlink_to("other")),
        "is no direc",
    ),
    "a link to nowhere": (lambda path: path.symlink_to("nowhere"), "is no directory"),
    "below a file": (lambda path: path.parent.rmdir() or path.parent.touch(), "cannot be written: "),
}


@pytest.mark.parametrize("what", PLACES)
def test_a_directory_that_is_taken_is_left_alone(
    what: str, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, pattern = PLACES[what]
    place = tmp_path / "runs" / "mine"
    place.parent.mkdir()
    make(place)
    before = sorted(tmp_path.rglob("*"))
    error = mistake_in([str(saved), str(place), *IMAGES, *V1], capsys)
    assert re.search(pattern, error), error
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_directory_is_used(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert command.run([str(saved), f"{tmp_path}/run", *IMAGES, *V1]) == 0
    assert status.read(tmp_path / "run").state == "stopped"


def test_a_full_disk_leaves_nothing(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0") from None  # as torch's writer does

    monkeypatch.setattr(checkpoint, "write", full)
    error = mistake_in([str(saved), f"{tmp_path}/run", *IMAGES, *V1], capsys)
    assert "run: cannot be written: No space left on device" in error
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.pth.tar"]


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch hacked",)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda file: file.unlink(), "No such file"),
    "a folder": (lambda file: (file.unlink(), file.mkdir()), "is a folder"),
    "a pipe": (lambda file: (file.unlink(), os.mkfifo(file)), "neither a file nor a link to one"),
    "empty": (lambda file: os.truncate(file, 0), "the file is empty"),
    "cut short": (lambda file: os.truncate(file, file.stat().st_size // 2), "damaged"),
    "text": (lambda file: file.write_text("hello"), "neither safetensors nor"),
    "code": (lambda file: torch.save({"state_dict": Evil()}, file), "would run code, posix.system"),
}


@pytest.mark.parametrize("what", FILES)
def test_a_bad_file_is_told_in_one_line(
    what: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, pattern = FILES[what]
    spoil(saved)
    monkeypatch.chdir(tmp_path)
    error = mistake_in([str(saved), "run", *IMAGES, *V1], capsys)
    assert error.startswith(f"moco_dist.convert: CHECKPOINT = {saved}: ")
    assert pattern in error and {path.name for path in tmp_path.iterdir()} <= {saved.name}


def test_the_command_as_a_user_types_it(saved: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": Evil()}, saved)
    words = [sys.executable, "-m", "moco_dist.convert", str(saved), f"{tmp_path}/run", *IMAGES]
    result = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "run code" in result.stderr, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [saved.name]


@pytest.mark.parametrize("most_bytes", [0, 2000])
def test_a_disk_that_is_full_from_the_start_or_later(
    most_bytes: int, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with full_disk(most_bytes):
        assert command.run([str(saved), f"{tmp_path}/run", *IMAGES, *V1]) == 2
    line = f"moco_dist.convert: RUN_DIR = {tmp_path}/run: cannot be written: File too large; name another directory\n"
    assert capsys.readouterr().err == line
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.pth.tar"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing(
    number: signal.Signals, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals: list[int] = []
    signal.signal(number, lambda number, _: signals.append(number))
    monkeypatch.setattr(RunDirectory, "record", lambda *_: signal.raise_signal(number))
    with pytest.raises(KeyboardInterrupt), interruptible():
        command.run([str(saved), f"{tmp_path}/run", *IMAGES, *V1])
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.pth.tar"]
    assert signals == [signal.SIGTERM] * (number == signal.SIGTERM)


def test_two_at_once_into_one_directory_leave_the_first(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, record = [str(saved), f"{tmp_path}/run", *IMAGES, *V1], RunDirectory.record

    def overtaken(directory: RunDirectory, config: configs.Config) -> None:
        record(directory, config)
        monkeypatch.setattr(RunDirectory, "record", record)
        assert command.run([*arguments, "run.name=first"]) == 0

    monkeypatch.setattr(RunDirectory, "record", overtaken)
    assert command.run(arguments) == 2
    assert f"RUN_DIR = {tmp_path}/run: cannot be written: Directory not empty; name" in capsys.readouterr().err
    assert configs.load(RunPaths(tmp_path / "run").config).run.name == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "theirs.pth.tar"]


def test_a_closed_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0)
    let_in(tmp_path)
    with as_nobody(), pytest.raises(UserError, match=r"RUN_DIR = .*run: cannot be read: Permission denied"):
        request._check_free(tmp_path / "run")
