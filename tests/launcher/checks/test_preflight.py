"""Preflight finds faults of made-up sites and folders; tests/slurm/test_site.py asks a real SLURM."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from launcher import cluster, slurm
from launcher.checks import dataset, estimate, fit, preflight, site
from launcher.checks.dataset import Folder
from launcher.checks.finding import Finding
from launcher.checks.site import Site
from launcher.cluster import Profile
from launcher.nodes import gpus
from launcher.record import Launch
from moco_dist import config as configs
from moco_dist.config import Config
from moco_dist.data import sources
from moco_dist.data.pack import pack
from moco_dist.errors import UserError
from moco_dist.run import status
from moco_dist.run.lease import Lease, process_start
from tests.launcher.made import MadeUp, job_in, make_run

ROOT = Path(__file__).parents[3]

# As scontrol and sinfo print it, of two nodes with eight A100 and one with four V100; shortened.
PARTITIONS = """\
PartitionName=gpu AllowGroups=ALL AllowAccounts=vision,speech AllowQos=normal,long Default=YES GraceTime=0 Hidden=NO \
MaxNodes=2 MaxTime=1-00:00:00 MaxCPUsPerNode=96 PriorityTier=1 PreemptMode=CANCEL State=UP MaxMemPerNode=512000
PartitionName=old AllowGroups=nobody_here DenyAccounts=speech DenyQos=long Default=NO GraceTime=120 Hidden=NO \
MaxNodes=UNLIMITED MaxTime=UNLIMITED MaxCPUsPerNode=UNLIMITED PriorityTier=9 PreemptMode=REQUEUE State=DRAIN \
MaxMemPerNode=UNLIMITED
PartitionName=empty AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL MaxNodes=UNLIMITED MaxTime=UNLIMITED State=UP
"""
NODES = """\
gpu|n1|mixed|gpu:a100:8(S:0-1),nvme:1|128|1031000|ib,nvlink
gpu|n2|idle|gpu:a100:8(S:0-1)|128|1031000|ib
gpu|n3|drained*|gpu:2080:4,gpu:v100:4|64|512000|(null)
old|n3|drained*|gpu:2080:4,gpu:v100:4|64|512000|(null)
"""
RESERVATIONS = "ReservationName=school StartTime=2026-01-01T00:00:00 Nodes=n1 State=ACTIVE\n"
SETTINGS = "JobRequeue              = 0\nPreemptType             = preempt/partition_prio\nKillWait = 30 sec\n"

FITS: dict[str, Any] = {"account": "vision", "qos": "normal", "gpu_type": "a100", "cpus_per_gpu": 12}


@pytest.fixture(autouse=True)
def _nothing_is_remembered() -> Iterator[None]:
    """Forget the sites and folders of other tests."""
    for remembered in (site.read, dataset.look):
        remembered.cache_clear()
    yield
    for remembered in (site.read, dataset.look):
        if hasattr(remembered, "cache_clear"):
            remembered.cache_clear()


def made_up_site(**replaced: str) -> Site:
    texts = {"partitions": PARTITIONS, "nodes": NODES, "reservations": RESERVATIONS, "settings": SETTINGS}
    return site.parse(**(texts | replaced))


def load(name: str = "digits", *overrides: str) -> Config:
    return configs.load(Path(name), overrides)


def local(config: Config, run_dir: Path, stage: str | None = None, nodes: int = 1, **keys: Any) -> list[Finding]:
    """Check a job that needs no SLURM."""
    profile = Profile(**({"gpus_per_node": 2} | keys))
    return preflight.check(*job_in(run_dir, config, profile, nodes, stage, "local"))


def lines(findings: list[Finding], level: str = "error") -> list[str]:
    return [one.text for one in findings if one.level == level]


def at(findings: list[Finding], key: str) -> list[tuple[str, str]]:
    """Level and line of what is said of a key."""
    return [(one.level, one.text) for one in findings if one.text.startswith(f"{key} = ")]


# The run's own shapes.


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10", "imagenet_v1", "imagenet_v2"])
def test_the_shipped_configs_are_in_order(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "look", lambda root: Folder(1_281_167, True, True, sides=(375, 500)))
    for file in (*dataset._FILES["mnist"], *dataset._FILES["cifar10"]):
        (tmp_path / "data" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / file).touch()
    config = load(name, *([f"data.root={tmp_path / 'data'}"] if name != "digits" else []))
    findings = local(config, tmp_path / "run", gpus_per_node=4, gpu_memory_gib=16, gpu_tflops=100)
    assert {one.level for one in findings} == {"note"}


@pytest.mark.parametrize(
    ("overrides", "nodes", "keys", "level", "line"),
    [
        (["global_batch=130"], 1, {"gpus_per_node": 4}, "error", "optim.global_batch = 130: must be divisible by"),
        (["bn_groups=4"], 1, {"gpus_per_node": 8}, "error", "moco.bn_groups = 4: must be divisible by the 8 ranks"),
        (["accumulate=100"], 1, {}, "error", "optim.global_batch = 128: must be divisible by ranks x optim.accumulate"),
        (
            ["global_batch=1440", "lr=0.1"],
            1,
            {},
            "error",
            "optim.global_batch = 1440: the training set has 1438 images",
        ),
        (["queue_size=2000"], 1, {}, "warning", "moco.queue_size = 2000: more than the 1438 training images"),
        (["queue_size=64"], 1, {}, "warning", "moco.queue_size = 64: less than the 128 keys of one step"),
        (
            ["lr=0.0037"],
            1,
            {},
            "warning",
            "optim.lr = 0.0037: far from the linear rule, 0.03 for a batch of 256, which",
        ),
        (["lr=0.061"], 1, {}, "warning", "optim.lr = 0.061: far from the linear rule"),
        (["image_size=9"], 1, {}, "error", "data.image_size = 9: the images of digits have 8 pixels a side"),
        (
            [],
            1,
            {"signal_seconds": 120, "time_minutes": 2},
            "error",
            "signal_seconds = 120: with time_minutes=2 the job",
        ),
        ([], 2, {}, "error", "--nodes = 2: --local runs on this machine alone; use --nodes 1"),
        *(
            (
                [],
                1,
                {"environment": {"X": value}},
                "warning",
                f"environment.X = {value}: reaches the job as it is written",
            )
            for value in ("/opt/x:$X", "${HOME}/x", "~/x", "/opt/x:~/y")
        ),
        ([], 1, {"setup": ("module load x",)}, "warning", "setup = [module load x]: is of no use to --local, which"),
        ([], 1, {"container": {"image": "/a.sif"}}, "warning", "container = /a.sif: is of no use to --local, which"),
        ([], 1, {"min_nodes": 2}, "error", "min_nodes = 2: must be at most the 1 nodes of the job"),
        ([], 4, {"min_nodes": 1}, "error", "moco.bn_groups = null: fewer nodes would change the groups, and with them"),
        (["bn_groups=16"], 4, {"min_nodes": 3}, "warning", "min_nodes = 3: no number of nodes from 3 to 3 divides"),
        (["bn_groups=16"], 4, {"min_nodes": 1}, "note", "when nodes die the job goes on with 1 or 2 of 4"),
        ([], 4, {"min_nodes": 1, "tasks": "rank"}, "warning", "min_nodes = 1: with tasks=rank a job that loses a node"),
    ],
)
def test_shapes(tmp_path: Path, overrides: list[str], nodes: int, keys: dict[str, Any], level: str, line: str) -> None:
    sections = {
        name: section for section in ("data", "moco", "optim") for name in type(getattr(load(), section)).model_fields
    }
    words = [f"{sections[word.partition('=')[0]]}.{word}" for word in ("bn_groups=null", *overrides)]
    findings = lines(local(load("digits", *words), tmp_path / "run", nodes=nodes, **keys), level)
    assert [text for text in findings if text.startswith(line)], findings


@pytest.mark.parametrize("overrides", [["optim.lr=0.06"], ["optim.lr=0.0038"], ["moco.queue_size=1438"]])
def test_what_is_just_right(tmp_path: Path, overrides: list[str]) -> None:
    assert {one.level for one in local(load("digits", *overrides), tmp_path / "run")} == {"note"}


def test_a_validation_split_leaves_fewer_images(tmp_path: Path) -> None:
    cut = load("digits", "eval.knn_split=validation", "moco.queue_size=1294")
    assert {one.level for one in local(cut, tmp_path / "run")} == {"note"}
    cut = load("digits", "eval.knn_split=validation", "moco.queue_size=1295")
    assert at(local(cut, tmp_path / "run"), "moco.queue_size")[0][0] == "warning"
    assert len(sources.load(cut).train) == 1294


def test_errors_come_first(tmp_path: Path) -> None:
    levels = [one.level for one in local(load("digits", "optim.lr=9", "data.image_size=9"), tmp_path / "run")]
    assert levels == sorted(levels, key=("error", "warning", "note").index) and len(set(levels)) == 3


# The data: the trainer itself says what is right.


def draw(path: Path, side: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side + 3)).save(path)


def flat(root: Path) -> None:
    for name in ("a.png", "deep/er/b.PNG", ".hidden.png", ".git/c.png", "notes.txt"):
        draw(root / f"{name}.png") if name == "notes.txt" else draw(root / name)


def classes(root: Path) -> None:
    for name in ("train/cat/a.png", "train/dog/b.jpeg", "train/dog/deep/c.png", "val/cat/d.png", "val/dog/e.png"):
        draw(root / name)
    (root / "train" / ".cache").mkdir()


def beside(root: Path) -> None:
    classes(root)
    draw(root / "train" / "loose.png")


def linked(root: Path) -> None:
    classes(root.with_name("elsewhere"))
    (root / "train").mkdir(parents=True)
    for name in ("cat", "dog"):
        (root / "train" / name).symlink_to(root.with_name("elsewhere") / "train" / name)


def train_alone(root: Path) -> None:
    for name in ("train/a.png", "train/b.png"):
        draw(root / name)


def foreign(root: Path) -> None:
    classes(root)
    draw(root / "val" / "emu" / "f.png")


def classes_in_root(root: Path) -> None:
    for number in range(20):
        draw(root / "cat" / f"{number}.png")
        draw(root / "dog" / f"{number}.jfif" if number == 7 else root / "dog" / f"{number}.png")


def capitals(root: Path) -> None:
    classes(root)
    (root / "train").rename(root / "Training")
    (root / "val").rename(root / "VALID")


def rivals(root: Path) -> None:
    classes(root)
    (root / "Train").mkdir()


def looped(root: Path) -> None:
    classes(root)
    (root / "train" / "cat" / "loop").symlink_to("..")
    (root / "train" / "cat" / "again").symlink_to("../dog")


def empty(root: Path) -> None:
    root.mkdir()


def no_image(root: Path) -> None:
    classes(root)
    for file in root.glob("train/**/*.*"):
        if file.is_file():
            file.rename(file.with_suffix(".txt"))


def small(root: Path) -> None:
    for name in "abc":
        draw(root / f"{name}.png", side=11)


def mixed(root: Path) -> None:
    for name, side in {"a": 11, "b": 30, "c": 30}.items():
        draw(root / f"{name}.png", side=side)


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(
    "make",
    [
        *(flat, classes, beside, linked, train_alone, foreign, empty, no_image, small, mixed, lambda root: None),
        *(classes_in_root, capitals, rivals, looped),
    ],
)
def test_a_tree_is_as_the_trainer_finds_it(tmp_path: Path, make: Callable[[Path], None], split: str) -> None:
    root = tmp_path / "data"
    make(root)
    config = configs.parse(
        {
            "data": {"source": "imagefolder", "root": str(root), "image_size": 12},
            "optim": {"global_batch": 2},
            "eval": {"knn_split": split},
        }
    )
    errors = lines(list(dataset.check(config, None)))
    counted = dataset.count(config, staged=False)
    try:
        trained = sources.load(config)
    except UserError as error:
        assert len(errors) == 1 and errors[0].partition(":")[0].split(" = ")[0] == str(error).split(" = ")[0]
    else:
        assert not errors
        assert counted and counted.exact and counted.count == len(trained.train)


def test_images_of_several_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer looks at others: only where none is large enough it is sure to refuse."""
    config = load("imagenet_v2", f"data.root={tmp_path}")
    for sides, expected in (((200, 200, 500), ["warning"]), ((200, 210), ["error"]), ((200, 500, 500), [])):
        monkeypatch.setattr(dataset, "look", lambda root, sides=sides: Folder(9, True, True, sides=sides))
        assert [level for level, _ in at(list(dataset.check(config, None)), "data.image_size")] == expected


def test_a_tree_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        for image in range(4):
            draw(tmp_path / "train" / f"class{number}" / f"{image}.png", side=8)
    ticks = iter(range(10_000))
    monkeypatch.setattr(dataset, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    monkeypatch.setattr(dataset, "_SECONDS", 24)  # ten folders, three classes, and two images of the fourth
    folder = dataset.look(str(tmp_path))
    assert (folder.images, folder.exact) == (40, False)
    assert folder.sides == (8,) * 9
    config = load("imagenet_v2", f"data.root={tmp_path}", "data.image_size=8")
    findings = local(config, tmp_path / "run", gpu_tflops=100)  # 40 images would be less than a batch, if it were sure
    assert not lines(findings) and any("an epoch" in line for line in lines(findings, "note"))
    dataset.look.cache_clear()
    monkeypatch.setattr(dataset, "_SECONDS", 0)
    assert dataset.look(str(tmp_path)).images is None
    assert not lines(local(config, tmp_path / "run"))


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes(tmp_path / "data")
    scandir = os.scandir

    def refuse(path: str | Path) -> Any:
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    config = load("imagenet_v2", f"data.root={tmp_path / 'data'}", "data.image_size=8")
    [line] = lines(list(dataset.check(config, None)))
    assert line.startswith(f"data.root = {tmp_path / 'data'}: ") and "dog cannot be read: Permission denied" in line


@pytest.mark.parametrize("source", ["mnist", "cifar10"])
def test_the_files_of_torchvision(tmp_path: Path, source: str) -> None:
    def findings() -> list[str]:
        return lines(list(dataset.check(load(source, f"data.root={tmp_path}"), None)))

    assert len(findings()) == 1
    for file in dataset._FILES[source]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert not findings()
    for file in dataset._FILES[source]:
        (tmp_path / file).unlink()
        rule = f"has no {file}, as torchvision lays {source} out; mend the path, or add data.download=true"
        assert findings() == [f"data.root = {tmp_path}: {rule}"]
        (tmp_path / file).touch()
    assert not lines(list(dataset.check(load(source, "data.root=/nowhere", "data.download=true"), None)))


def test_a_folder_that_the_source_does_not_read_is_told() -> None:
    for source in ("digits", "synthetic"):
        [line] = lines(
            list(dataset.check(load("digits", f"data.source={source}", "data.root=/images"), None)), "warning"
        )
        assert line.startswith(
            f"data.root = /images: data.source={source} reads no folder, so that it does not count; "
        )


def test_the_files_are_those_that_torchvision_opens() -> None:
    from torchvision.datasets import CIFAR10, MNIST

    mnist = {f"MNIST/raw/{Path(url).stem}" for url, _ in MNIST.resources}
    cifar10 = {f"{CIFAR10.base_folder}/{name}" for name, _ in CIFAR10.train_list + CIFAR10.test_list}
    assert (set(dataset._FILES["mnist"]), set(dataset._FILES["cifar10"])) == (mnist, cifar10)


def test_weights_to_begin_from(tmp_path: Path) -> None:
    weights = tmp_path / "encoder.safetensors"
    config = load("digits", f"run.init_from={weights}")
    assert lines(local(config, tmp_path / "run")) == [
        f"run.init_from = {weights}: no such file; give a file of safetensors or of torch.save"
    ]
    weights.touch()
    assert lines(local(config, tmp_path / "run")) == [f"run.init_from = {weights}: is empty; copy it again"]
    weights.write_text("weights")
    assert not lines(local(config, tmp_path / "run"))

    folder = tmp_path / "folder"
    folder.mkdir()
    config = load("digits", f"run.init_from={folder}")
    assert lines(local(config, tmp_path / "run")) == [
        f"run.init_from = {folder}: is a folder without weights: it holds none of *.safetensors, pytorch_model.bin, "
        "*.index.json and no checkpoint; give a run directory, a folder of weights or a file"
    ]
    for name in ("model.safetensors", "pytorch_model.bin", "checkpoints/step_000000004.pt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
        assert not lines(local(config, tmp_path / "run"))
        (folder / name).unlink()

    checkpoint = tmp_path / "run" / "checkpoints" / "step_000000004.pt"  # the run goes on, without the weights
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.touch()
    assert not lines(local(load("digits", "run.init_from=/nowhere.pt"), tmp_path / "run"))


def test_shards(tmp_path: Path) -> None:
    for number in range(10):
        for image in range(4):
            draw(tmp_path / "images" / "train" / f"class{number}" / f"{image}.png", side=8)
    out = tmp_path / "out"
    pack(tmp_path / "images", out, 1)
    assert dataset.look(str(out)) == dataset.look(str(tmp_path / "images"))
    config = load("imagenet_v2", f"data.root={out}", "data.image_size=8")
    assert dataset.count(config, staged=False) == dataset.Images(40, True)
    assert not lines(list(dataset.check(config, None)))
    assert not lines(list(dataset.check(load("imagenet_v2", "data.root=."), str(out))))
    dataset.look.cache_clear()
    (out / "train-000000.tar").unlink()
    [finding] = lines(list(dataset.check(config, None)))
    assert finding.startswith(f"data.root = {out}: the shard train-000000.tar is missing; ")


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_an_archive(tmp_path: Path, kind: str) -> None:
    classes(tmp_path / "data")
    form = {"tar": "tar", "tar.gz": "gztar", "zip": "zip"}[kind]
    archive = shutil.make_archive(str(tmp_path / "images"), form, tmp_path / "data")
    config = load("imagenet_v2", "data.root=.")
    assert not lines(local(config, tmp_path / "run", stage=archive))
    assert dataset.count(config, staged=True) is None  # "." would be another folder here


@pytest.mark.parametrize(
    ("root", "archive", "line"),
    [
        (".", "nothing.tar", "--stage = nothing.tar: cannot be read: No such file or directory; give a tar or zip"),
        (".", "notes.txt", "--stage = notes.txt: is no tar and no zip; pack the data as one of them"),
        ("/data", "images.tar", "data.root = /data: must be a folder in the archive of --stage; use data.root=. for"),
        ("a/../..", "images.tar", "data.root = a/../..: must be a folder in the archive of --stage"),
    ],
)
def test_an_archive_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str, archive: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("no archive\n" * 100)
    with tarfile.open("images.tar", "w") as packed:
        packed.add("notes.txt")
    [finding] = lines(local(load("imagenet_v2", f"data.root={root}"), tmp_path / "run", stage=archive))
    assert finding.startswith(line)


# The run directory.


def test_a_run_directory_of_others(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    run_dir.chmod(run_dir.stat().st_mode | stat.S_IWGRP)
    line = f"run.dir = {run_dir}: others may write to it; chmod go-w {run_dir}"
    assert lines(local(load(), run_dir)) == [line]
    run_dir.chmod(0o700)
    assert not lines(local(load(), run_dir))
    if os.getuid() == 0:
        os.chown(run_dir, 12345, -1)
        assert lines(local(load(), run_dir))[0].startswith(f"run.dir = {run_dir}: belongs to another user")


@pytest.mark.parametrize("name", ["50%", "two\nlines", "bell\a"])
def test_names_that_slurm_reads_otherwise(tmp_path: Path, name: str) -> None:
    [line] = lines(local(load(), tmp_path / name))
    assert "read % in the names of logs" in line and line.isprintable()


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch(mode=0o700)
    line = f"run.dir = {tmp_path / 'file' / 'run'}: {tmp_path / 'file'} cannot be written to; choose another"
    assert lines(local(load(), tmp_path / "file" / "run")) == [line]
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    assert lines(local(load(), tmp_path / "run")) == [
        f"run.dir = {tmp_path / 'run'}: {tmp_path} cannot be written to; choose another"
    ]
    monkeypatch.undo()
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY))
    assert len(lines(local(load(), tmp_path / "run"))) == 1


def test_room_for_the_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [0]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    one = estimate.checkpoint_bytes(load(), estimate.encoder_cost(load()))

    def level(*overrides: str) -> str:
        findings = at(local(load("digits", *overrides), tmp_path / "run"), "run.dir")
        assert len(findings) < 2
        return findings[0][0] if findings else ""

    for checkpoints, expected in ((2.9, "error"), (3.1, "warning"), (10, "")):
        free[0] = int(checkpoints * one)
        assert level() == expected
    free[0] = int(8.1 * one)
    assert level("checkpoint.keep=8") == "error"
    assert level("checkpoint.milestone_epochs=20") == "warning"  # 80 epochs: four more
    assert level("checkpoint.milestone_epochs=10") == "error"
    assert level("checkpoint.milestone_epochs=10", "optim.steps=22") == ""  # 2 epochs of 11 steps
    assert level("checkpoint.milestone_epochs=1", "optim.steps=22") == "warning"
    (tmp_path / "run" / "checkpoints").mkdir(parents=True, mode=0o700)
    (tmp_path / "run").chmod(0o700)
    free[0] = int(1.2 * one)  # two of the three are there
    (tmp_path / "run" / "checkpoints" / "step_000000200.pt").write_bytes(bytes(2 * one))
    assert level() == "warning"


# A run that was begun.


def begin(run_dir: Path, *overrides: str, ranks: int = 2) -> None:
    """A run directory with a checkpoint."""
    launch = make_run(run_dir, job="12", profile=Profile(gpus_per_node=ranks), state="stopped", step=100, starts=1)
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints" / "step_000000100.pt").touch()
    (run_dir / "config.yaml").write_text("# versions\n" + configs.dump(load("digits", *overrides)))
    assert launch.checkpoint_step() == 100
    run_dir.chmod(0o700)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    return MadeUp(monkeypatch)


def test_a_run_that_goes_on(tmp_path: Path, made_up: MadeUp) -> None:
    begin(tmp_path / "run")
    findings = local(load(), tmp_path / "run")
    assert {one.level for one in findings} == {"note"}
    assert f"the run in {tmp_path / 'run'} goes on from step 100" in lines(findings, "note")
    status.write(tmp_path / "run", "done", 100)
    [line] = [line for line in lines(local(load(), tmp_path / "run"), "note") if "goes on" in line]
    assert line.endswith("step 100, and was done; it goes on only if it is longer now")


@pytest.mark.parametrize(
    ("before", "now", "ranks", "expected"),
    [
        ([], ["optim.lr=0.02"], 2, "optim.lr = 0.02 (was 0.03): would change the curve"),
        ([], ["run.seed=4"], 2, "run.seed = 4 (was 0): would change the curve"),
        ([], ["track.log_every=9", "run.name=other"], 2, ""),
        ([], [], 4, ""),  # four groups on any number of ranks
        (["moco.bn_groups=null"], ["moco.bn_groups=null"], 2, ""),
        (["moco.bn_groups=null"], ["moco.bn_groups=null"], 4, "moco.bn_groups = null on 4 ranks (was 2)"),
        (["moco.bn_groups=null"], ["moco.bn_groups=2"], 1, ""),
        (["moco.bn_groups=null", "optim.accumulate=2"], [], 4, ""),
        ([], ["run.resume=never"], 2, "run.resume = never: "),
        (["data.decode=cpu"], [], 2, ""),  # auto goes on as the run was begun
        (["data.decode=pillow"], [], 2, ""),
        (["data.decode=pillow"], ["data.decode=cpu"], 2, "data.decode = cpu (was pillow): would change the curve"),
    ],
)
def test_a_config_that_would_change_the_curve(
    tmp_path: Path, made_up: MadeUp, before: list[str], now: list[str], ranks: int, expected: str
) -> None:
    begin(tmp_path / "run", *before)
    findings = lines(local(load("digits", *now), tmp_path / "run", gpus_per_node=ranks))
    assert len(findings) == bool(expected) and all(line.startswith(expected) for line in findings), findings


def test_a_job_in_the_queue(tmp_path: Path, made_up: MadeUp) -> None:
    run_dir = tmp_path / "run"
    begin(run_dir)
    assert not at(local(load(), run_dir), "run.dir")
    for state, word in (("PENDING", "requeued"), ("RUNNING", "running")):
        made_up.queues("12", state, run_dir)
        [(level, line)] = at(local(load(), run_dir), "run.dir")
        assert level == "error" and f"its job 12 is {word}, a second one cannot join" in line
        assert "python -m launcher cancel " in line
    made_up.queues("12", "RUNNING", "/another/run")  # its number has come around
    assert not at(local(load(), run_dir), "run.dir")
    made_up.queues("12", "CANCELLED", run_dir)
    assert not at(local(load(), run_dir), "run.dir")


def test_a_local_job_that_lives(tmp_path: Path) -> None:
    me = str(os.getpid())
    make_run(tmp_path / "run", job=me, executor="local", started=process_start(os.getpid()))
    (tmp_path / "run").chmod(0o700)
    [(_, line)] = at(local(load(), tmp_path / "run"), "run.dir")
    assert f"its process {me} is running, a second one cannot join" in line


def test_somebody_writes_to_it(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    lease = Lease(run_dir)
    [(level, line)] = at(local(load(), run_dir), "run.dir")
    lease.release()
    assert level == "error" and f"process {os.getpid()} on " in line and "is writing to it; wait for it" in line
    assert not at(local(load(), run_dir), "run.dir")


# The site.


def against(nodes: int = 2, replaced: dict[str, str] | None = None, **keys: Any) -> list[Finding]:
    return list(fit.check(made_up_site(**(replaced or {})), Profile(**(FITS | keys)), nodes))


def test_a_job_that_fits() -> None:
    assert {one.level for one in against(replaced={"settings": "JobRequeue = 1\n"})} == set()


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"partition": "gpus"}, "partition = gpus: the cluster has no such partition; choose empty, gpu, old"),
        ({"partition": "gpus,gpu"}, "partition = gpus: the cluster has no such partition"),
        ({"time_minutes": 1441}, "time_minutes = 1441: partition gpu allows 1440; use --time-minutes 1440"),
        ({"nodes": 3}, "--nodes = 3: partition gpu allows 2; use --nodes 2"),
        ({"cpus_per_gpu": 13}, "cpus_per_gpu = 13: partition gpu allows 96 CPUs a node, not 104; use --cpus-per-gpu 1"),
        ({"memory_gib": 501}, "memory_gib = 501: partition gpu allows 500 GiB a node; use --memory-gib 500"),
        ({"account": "cooking"}, "account = cooking: partition gpu does not allow it; choose vision, speech"),
        ({"qos": "short"}, "qos = short: partition gpu does not allow it; choose normal, long"),
        ({"reservation": "class"}, "reservation = class: there is no such reservation; choose school"),
        ({"gpu_type": "h100"}, "gpu_type = h100: 0 of 3 nodes of gpu fit, the job needs 2; there are 2080, a100, v100"),
        (
            {"gpus_per_node": 9, "cpus_per_gpu": 1},
            "gpus_per_node = 9: 0 of 3 nodes of gpu fit, the job needs 2; use --",
        ),
        ({"gpu_type": "v100", "gpus_per_node": 4}, "gpu_type = v100: 1 of 3 nodes of gpu fit, the job needs 2"),
        ({"constraint": "ib&nvlink"}, "constraint = ib&nvlink: 1 of 3 nodes of gpu fit, the job needs 2"),
        ({"constraint": "opa"}, "constraint = opa: no node of the cluster has opa; there are ib, nvlink"),
        ({"constraint": "[ib*2|eth]"}, "constraint = [ib*2|eth]: no node of the cluster has eth; there are ib, nvlink"),
        ({"exclude": ["n1,n2"]}, "exclude = n1,n2: 1 of 3 nodes of gpu fit, the job needs 2; exclude fewer"),
        ({"partition": "old", "nodes": 1, "gpu_type": None, "gpus_per_node": 4}, "partition = old: is drain; choose"),
        ({"partition": "old", "account": "speech"}, "account = speech: partition old does not allow it; choose"),
        ({"partition": "old", "qos": "long"}, "qos = long: partition old does not allow it; choose another"),
        ({"partition": "old"}, "--nodes = 2: partition old has 1 nodes; use --nodes 1"),
    ],
)
def test_a_job_that_does_not_fit(keys: dict[str, Any], line: str) -> None:
    nodes = keys.pop("nodes", 2)
    findings = lines(against(nodes, **keys))
    assert [text for text in findings if text.startswith(line)], findings


def test_the_fix_is_what_so_many_nodes_have() -> None:
    nodes = NODES.replace("|128|1031000|ib\n", "|128|204800|ib\n")  # of n2
    [line] = lines(against(replaced={"nodes": nodes}, memory_gib=300))
    assert line == "memory_gib = 300: 1 of 3 nodes of gpu fit, the job needs 2; use --memory-gib 200"


@pytest.mark.parametrize("constraint", ["ib", "ib|nvlink", "ib&nvlink|ib", "[ib*2]", "(ib|nvlink)&ib", "ib*2"])
def test_constraints_that_nodes_meet(constraint: str) -> None:
    assert not lines(against(constraint=constraint))


def test_of_several_partitions_one_that_fits_will_do() -> None:
    assert not lines(against(partition="old,gpu"))
    assert lines(against(partition="old,gpu", account="cooking"))


def test_what_is_only_doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    [(level, line)] = at(against(account=None), "account")
    assert level == "warning" and "partition gpu is for vision, speech, and yours by default may be another" in line
    [(level, line)] = [said for said in at(against(partition="old"), "partition") if "groups" in said[1]]
    assert level == "warning" and "is for the groups nobody_here, and you seem to be in none of them" in line
    [(level, line)] = at(against(), "partition")
    assert level == "warning" and "cancels preempted jobs" in line
    assert any("has 0 s to save in (GraceTime of gpu)" in text for text in lines(against(), "note"))
    assert any("JobRequeue=0" in text for text in lines(against(), "note"))
    hasty = PARTITIONS.replace("GraceTime=120", "GraceTime=0")
    assert not any(
        "GraceTime" in text for text in lines(against(replaced={"partitions": hasty}, partition="old"), "note")
    )
    calm = SETTINGS.replace("preempt/partition_prio", "preempt/none")
    assert not at(against(replaced={"settings": calm}), "partition")
    assert at(against(partition="empty"), "partition")[0][0] == "warning"


def test_nodes_out_of_service() -> None:
    nodes = NODES.replace("idle", "draining")
    [(level, line)] = at(against(replaced={"nodes": nodes}), "--nodes")
    assert level == "warning" and "1 of 2 nodes that fit are in service, n2 not; the job waits for them" in line
    silent = NODES.replace("idle", "idle*")
    assert at(against(replaced={"nodes": silent}), "--nodes")
    asleep = NODES.replace("idle", "idle~")  # powered down, and woken for a job
    assert not at(against(replaced={"nodes": asleep}), "--nodes")


def test_no_default_partition() -> None:
    findings = against(replaced={"partitions": PARTITIONS.replace("Default=YES", "Default=NO")})
    assert "partition = null: the cluster has no default partition; choose empty, gpu, old" in lines(findings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpu:a100:8(S:0-1),nvme:1", {"a100": 8}),
        ("gpu:4", {"": 4}),
        ("gpu:2080:4,gpu:v100:2(S:0,2)", {"2080": 4, "v100": 2}),
        ("gpu:a100_3g.20gb:2,gpu:a100_3g.20gb:1", {"a100_3g.20gb": 3}),
        ("nogpu:4,craynetwork:4", {}),
        ("(null)", {}),
    ],
)
def test_gpus_in_slurms_words(text: str, expected: dict[str, int]) -> None:
    assert gpus(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("1-00:00:00", 1440), ("00:30:00", 30), ("7-12:30:59", 10830), ("UNLIMITED", None)]
)
def test_times_in_slurms_words(text: str, expected: int | None) -> None:
    assert site.minutes(text) == expected


def test_no_slurm_is_one_error(tmp_path: Path, made_up: MadeUp) -> None:
    answer = slurm.NotInstalled("scontrol is not installed here; log in")
    made_up.broken = dict.fromkeys(("scontrol", "sinfo", "squeue", "sacct"), answer)
    profile = Profile(gpus_per_node=2)
    assert lines(preflight.check(*job_in(tmp_path / "run", load(), profile))) == [str(answer)]


@pytest.mark.parametrize("answer", [slurm.Unavailable("no answer in 20 s"), slurm.Refused("scontrol: not allowed")])
def test_what_slurm_does_not_tell_is_no_error(tmp_path: Path, made_up: MadeUp, answer: Exception) -> None:
    begin(tmp_path / "run")
    made_up.broken = dict.fromkeys(("scontrol", "sinfo", "squeue", "sacct"), answer)
    keys = {"partition": "gpu", "reservation": "mine", "constraint": "ib", "exclude": ("n1",)}
    findings = preflight.check(*job_in(tmp_path / "run", load(), Profile(gpus_per_node=2, **keys)))
    assert not lines(findings)
    warnings = sorted(text for text in lines(findings, "warning") if str(answer) in text)
    assert warnings[0] == f"not checked: partitions, nodes, reservations, settings of the site ({answer})"
    assert "SLURM does not tell whether its job 12 lives" in warnings[1]
    site.read.cache_clear()
    made_up.broken = {"sinfo": answer}  # what it does tell is checked
    made_up.tells("scontrol", PARTITIONS)
    findings = preflight.check(*job_in(tmp_path / "run", load(), Profile(**(FITS | {"time_minutes": 9999}))))
    assert f"not checked: nodes of the site ({answer})" in lines(findings, "warning")
    assert any(text.startswith("time_minutes = 9999: partition gpu allows 1440") for text in lines(findings))
    assert not any(text.startswith("partition = ") for text in lines(findings))


def test_places_that_the_nodes_do_not_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat(tmp_path / "data")
    words = [f"data.root={tmp_path / 'data'}", "data.image_size=8", "optim.global_batch=2", "moco.bn_groups=1"]
    config = load("imagenet_v2", *words, "optim.lr=0.0003", "moco.queue_size=2")

    def warned(partitions: Site, **keys: Any) -> set[str]:
        monkeypatch.setattr(site, "read", lambda _: partitions)
        profile = Profile(**(FITS | {"gpus_per_node": 1} | keys))
        findings = preflight.check(*job_in(tmp_path / "run", config, profile))
        assert not lines(findings)
        return {line.split(" = ")[0] for line in lines(findings, "warning") if "each node has for itself" in line}

    monkeypatch.setattr(preflight, "_OWN_DISKS", ())
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    assert warned(made_up_site(), local_disk="/nowhere") == set()
    assert warned(made_up_site(), local_disk=str(tmp_path)) == {"Python", "run.dir", "data.root"}
    container: dict[str, Any] = {"image": "x.sif"}
    assert warned(made_up_site(), local_disk=str(tmp_path), container=container) == {"run.dir", "data.root"}
    here = made_up_site(nodes=NODES.replace("|n", "|127.0.0.1"))
    assert warned(here, local_disk=str(tmp_path)) == set()


# Memory, time, W&B.


def test_memory_is_never_an_error(tmp_path: Path) -> None:
    def warned(gib: float, *more: str) -> str:
        config = load("imagenet_v2", "data.root=x", "data.source=synthetic", "device.precision=fp32", *more)
        findings = local(config, tmp_path / "run", gpu_memory_gib=gib)
        warnings = [(level, line) for level, line in at(findings, "optim.global_batch") if "of memory a GPU" in line]
        assert all(level == "warning" for level, _ in warnings)
        return warnings[0][1] if warnings else ""

    assert not warned(80)
    assert warned(1).endswith("which has 1; use more GPUs, a smaller batch, or device.precision=bf16")
    fix = warned(11).partition("; use ")[2]
    assert fix.startswith("optim.accumulate=") and not warned(11, fix)
    assert not warned(1, "device.type=cpu")


def test_time_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "look", lambda root: Folder(1_281_167, True, True))

    def said(time_minutes: int, *overrides: str) -> str:
        config = load("imagenet_v2", f"data.root={tmp_path}", *overrides)
        keys: dict[str, Any] = {"gpus_per_node": 8, "gpu_tflops": 15.7, "time_minutes": time_minutes}
        [line] = [line for line in lines(local(config, tmp_path / "run", **keys), "note") if "an epoch" in line]
        return line

    assert said(2880) == "about 13.9 minutes an epoch and 46.4 hours in all, if the data come fast enough"
    assert "46.4 hours in all, in 2 starts of 24 hours, if" in said(1440)
    assert "in 5 starts of 10 hours, if" in said(600)
    assert "23.2 hours in all, if" in said(1440, "optim.steps=500400")  # a hundred epochs


@pytest.mark.parametrize(
    ("mode", "keys", "missing"),
    [
        ("offline", {}, True),
        ("online", {}, True),
        ("disabled", {}, False),
        ("offline", {"container": {"runtime": "pyxis", "image": "moco.sqsh"}}, False),  # which has a Python of its own
    ],
)
def test_a_job_that_would_miss_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, keys: dict[str, Any], missing: bool
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    findings = local(load("digits", f"track.wandb={mode}"), tmp_path / "run", **keys)
    rule = "wandb is not installed here, and the job runs this Python"
    line = f"track.wandb = {mode}: {rule}; install it (pip install wandb), or use track.wandb=disabled"
    assert at(findings, "track.wandb") == [("error", line)] * missing


@pytest.mark.parametrize("package", ["tensorboard", "trackio"])
def test_a_sink_whose_package_is_missing(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moco_dist.packages.installed", lambda name: name != package)
    findings = local(load("digits", f"track.{package}=true"), tmp_path / "run")
    rule = f"{package} is not installed here, and the job runs this Python"
    fix = f"install it (pip install 'moco-dist[{package}]'), or use track.{package}=false"
    line = f"track.{package} = true: {rule}; {fix}"
    assert at(findings, f"track.{package}") == [("error", line)]
    assert not at(local(load("digits"), tmp_path / "run"), f"track.{package}")


def test_wandb_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    online = load("digits", "track.wandb=online")

    def findings() -> list[tuple[str, str]]:
        findings = local(online, tmp_path / "run")
        assert not any("secret0key" in one.text for one in findings)
        return at(findings, "track.wandb")

    [(level, line)] = findings()
    assert level == "warning" and "no key for api.wandb.ai, so the run will be offline; run wandb login" in line
    assert not at(local(load("digits", "track.wandb=offline"), tmp_path / "run"), "track.wandb")
    (tmp_path / ".netrc").write_text("machine other.host login user password secret0key\n")
    assert findings()
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret0key\n")
    assert not findings()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.mine:8080")
    assert "wandb.mine" in findings()[0][1]
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login\n")
    assert findings()
    monkeypatch.setenv("WANDB_API_KEY", "secret0key")
    assert not findings()


def test_variables_of_wandb_that_do_not_count_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    for words, notes in ((["track.project=mine"], 1), (["track.project=theirs"], 0), ([], 0)):
        findings = local(load("digits", *words), tmp_path / "run")
        line = "track.project = mine: it is set, so WANDB_PROJECT=theirs does not count"
        assert at(findings, "track.project") == [("note", line)] * notes


# The command line.


def launcher(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launcher", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_command(tmp_path: Path) -> None:
    words = ("--nodes", "1", "optim.lr=0.03", "--local", "digits", "--gpus-per-node", "4", "moco.bn_groups=4")
    done = launcher("preflight", *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "ok: it can be sent"
    done = launcher("preflight", *words, "data.image_size=9", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout.startswith("error: data.image_size = 9: ") and done.stdout.endswith(
        "1 error: it would not be sent\n"
    )
    assert not list(tmp_path.iterdir())  # it only looks


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "0"], "argument --nodes: must be a whole number above 0, not '0'"),
        (["--nodes", "two"], "argument --nodes: must be a whole number above 0, not 'two'"),
        (["--nodes", "-2"], "argument --nodes: must be a whole number above 0, not '-2'"),
        (["--nodes"], "argument --nodes: expected one argument"),
        (["--node", "2"], "unrecognized arguments: --node"),
        (["--gpus-per-node", "-1"], "gpus_per_node = -1: must be greater than 0"),
        (["--min-nodes", "x"], "min_nodes = x: must be an integer"),
        (["--time-minutes", "0123"], "time_minutes = 0123: must be a plain decimal number"),
        (["--memory-gib", "1_0"], "memory_gib = 1_0: must be a plain decimal number"),
        (["--tasks", "job"], "tasks = job: must be 'node' or 'rank'"),
        (["--cluster", "nope"], "--cluster nope: no such file"),
        (["digits", "mnist"], "argument mnist: one config file at most"),
        (["optim.lr=fast"], "optim.lr = fast: must be a number"),
    ],
)
def test_bad_options_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from launcher.__main__ import main

    assert main(["preflight", *words]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err.startswith("launcher: ") and message in err


def test_options_take_the_place_of_the_profiles_keys() -> None:
    import argparse

    from launcher import options

    parser = argparse.ArgumentParser()
    options.add_job_options(parser)
    words = ["--cluster", "devcluster", "--partition", "high", "--exclude", "n[1,3],n5", "--memory-gib", "7"]
    words += ["--account", "a", "--qos", "q", "--constraint", "ib&x", "--reservation", "r", "--gpus-per-node", "3"]
    words += ["--cpus-per-gpu", "5", "--time-minutes", "9", "--signal-seconds", "33", "--min-nodes", "1"]
    profile = options.submission_of(parser.parse_args([*words, "--tasks", "rank", "--max-restarts", "0"])).profile
    assert profile == cluster.load("devcluster").model_copy(
        update={
            **{"partition": "high", "exclude": ("n[1,3],n5",), "memory_gib": 7, "account": "a", "qos": "q"},
            **{"constraint": "ib&x", "reservation": "r", "gpus_per_node": 3, "cpus_per_gpu": 5, "time_minutes": 9},
            **{"signal_seconds": 33, "min_nodes": 1, "tasks": "rank", "max_restarts": 0},
        }
    )


def test_it_needs_neither_torch_nor_slurm(tmp_path: Path) -> None:
    """A whole check, with a tree of images and a run that goes on, where there is no SLURM."""
    classes(tmp_path / "data")
    begin(tmp_path / "run")
    script = (
        "import sys\n"
        "from launcher.__main__ import main\n"
        "code = main(['preflight', *sys.argv[1:]])\n"
        "print(code, sorted({'torch', 'torchvision', 'wandb', 'sklearn', 'numpy', 'submitit'} & sys.modules.keys()))\n"
    )
    words = [
        f"data.root={tmp_path / 'data'}",
        "data.source=imagefolder",
        f"run.dir={tmp_path / 'run'}",
        "--gpus-per-node=2",
    ]
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        env={"PATH": str(tmp_path), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert "error: scontrol is not installed here; log in to a node of the cluster, or use --local\n" in done.stdout
    assert "error: data.source = imagefolder (was digits): would change the curve" in done.stdout
    assert done.stdout.splitlines()[-1] == "2 []"


def test_a_sweep_asks_once(tmp_path: Path, made_up: MadeUp) -> None:
    for number in range(3):
        preflight.check(*job_in(tmp_path / str(number), load(), Profile()))
    assert sum("config" in command for command in made_up.asked) == 1


def test_launch_folders_are_left_alone(tmp_path: Path) -> None:
    local(load(), tmp_path / "run")
    assert not Launch(tmp_path / "run").folder.exists()
