"""A run that is started again after its images have changed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from moco_dist import train
from moco_dist.data.pack import pack
from moco_dist.engine import checkpoint
from moco_dist.run import status
from moco_dist.run.paths import RunPaths
from tests.jobs import losses
from tests.train.test_train import write_images

RUN = ("model.width=8", "model.stem=small", "optim.global_batch=8", "moco.bn_groups=1", "moco.queue_size=16")
RUN += ("track.wandb=disabled", "track.log_every=1", "data.source=imagefolder", "data.image_size=16")
RUN += ("optim.epochs=2", "checkpoint.every_steps=2", "checkpoint.keep=9")


def start(place: Path, *more: str) -> int:
    return train.run([*RUN, f"data.root={place}/images", f"run.dir={place}/run", *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of three steps each."""
    place = tmp_path_factory.mktemp("finished")
    for seed, name in enumerate(("train/cat", "train/dog", "val/cat", "val/dog")):
        write_images(place / "images" / name, 12 if "train" in name else 4, seed=seed)
    assert start(place) == 0
    return place


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "place"))


def interrupt(place: Path) -> None:
    """Leave the run as if it had been stopped after its first epoch and a step."""
    (place / "run/checkpoints/step_000000006.pt").unlink()
    (place / "run/summary.json").unlink()
    status.write(place / "run", "stopped", 4, "on request")


def kept(run_dir: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run_dir)): file.read_bytes() for file in run_dir.rglob("*") if file.is_file()}


def double(images: Path) -> None:
    write_images(images / "train" / "emu", 24)


def halve(images: Path) -> None:
    for number in range(6):
        for name in ("cat", "dog"):
            (images / "train" / name / f"{number:03}.png").unlink()


def swap(images: Path) -> None:
    (images / "train" / "cat" / "011.png").rename(images / "train" / "dog" / "012.png")


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize(
    ("change", "images"), [(double, "48 images of 3"), (halve, "12 images of 2"), (swap, "24 images of 2")]
)
def test_on_other_images_it_is_refused_and_nothing_is_lost(
    place: Path, change: Callable[[Path], None], images: str, ended: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if not ended:
        interrupt(place)
    before = kept(place / "run")
    change(place / "images")
    assert start(place) == 2
    rule = rf"has {images} classes, sha256 \w+, and the run in {place}/run was begun with 24 images of 2 classes"
    assert re.fullmatch(
        rf"moco_dist\.train: data\.root = {place}/images: {rule}, sha256 \w+: other images would change its curve; "
        r"put them back, or begin another with run\.name=NAME\n",
        capsys.readouterr().err,
    )
    after = kept(place / "run")
    if not ended:
        assert status.read(place / "run").state == "user_error" and status.read(place / "run").step == 4
        del before["status.json"], after["status.json"]
    assert after == before


def test_where_the_images_have_moved_it_goes_on(place: Path, finished: Path) -> None:
    interrupt(place)
    (place / "images").rename(place / "elsewhere")
    (place / "elsewhere" / "train" / "notes.txt").touch()
    assert start(place, f"data.root={place}/elsewhere") == 0
    assert losses(place / "run") == losses(finished / "run")


def test_a_checkpoint_that_names_no_images_is_held_to_the_steps_of_an_epoch(place: Path, finished: Path) -> None:
    interrupt(place)
    for file in RunPaths(place / "run").checkpoints.glob("*.pt"):
        state = checkpoint.load(file)
        del state["data"]
        checkpoint.write(file, state)
    shutil.copytree(place / "images" / "train" / "cat", place / "images" / "train" / "emu")
    assert start(place) == 2
    assert re.search(r"gives 4 steps an epoch, .* had 3: other images", status.read(place / "run").reason)
    shutil.rmtree(place / "images" / "train" / "emu")
    assert start(place) == 0
    assert losses(place / "run") == losses(finished / "run")


def test_a_run_goes_from_the_folder_to_its_shards_and_back(place: Path, finished: Path) -> None:
    pack(place / "images", place / "shards", 1)
    interrupt(place)
    assert start(place, f"data.root={place}/shards") == 0
    assert losses(place / "run") == losses(finished / "run")
    shutil.rmtree(place / "run")
    assert start(place, f"data.root={place}/shards") == 0
    assert losses(place / "run") == losses(finished / "run")
    interrupt(place)
    assert start(place) == 0
    assert losses(place / "run") == losses(finished / "run")
