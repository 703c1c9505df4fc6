"""A run belongs to its data: what tells training sets apart, between ranks and between starts."""

from __future__ import annotations

import re
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moco_dist.data import sources
from moco_dist.data.identity import Identity, check_begun
from moco_dist.errors import UserError
from moco_dist.ranks.collectives import World
from tests.data.made import config_of, draw, folder_of
from tests.ranks import Ranks


def add(root: Path) -> None:
    draw(root / "train" / "cat" / "40.jpg", 40)


def remove(root: Path) -> None:
    (root / "train" / "dog" / "deeper" / "110.JPEG").unlink()


def rename(root: Path) -> None:
    (root / "train" / "cat" / "10.jpg").rename(root / "train" / "cat" / "11.jpg")


def relabel(root: Path) -> None:
    (root / "train" / "cat" / "30.jpg").rename(root / "train" / "dog" / "30.jpg")


def rename_class(root: Path) -> None:
    for split in ("train", "val"):
        (root / split / "cat").rename(root / split / "civet")


def add_class(root: Path) -> None:
    (root / "train" / "eel").mkdir()


CHANGES: list[Callable[[Path], None]] = [add, remove, rename, relabel, rename_class, add_class]


def identity(root: Path) -> Identity:
    return sources.load(folder_of(root)).identity


def moved(tree: Path) -> Path:
    """A copy elsewhere."""
    return Path(shutil.copytree(tree, tree.with_name(f"{tree.name}-copy")))


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_does_not_go_on_with_other_images(tree: Path, change: Callable[[Path], None]) -> None:
    config, before = folder_of(tree), identity(tree)
    assert before[:2] == (5, 2)
    copy = moved(tree)
    (copy / "train").rename(copy / "Training")
    check_begun(before._asdict(), None, identity(copy), 2, config)
    change(tree)
    now = identity(tree)
    with pytest.raises(UserError) as mistake:
        check_begun(before._asdict(), None, now, 2, config)
    numbers = f"{now.images} images of {now.classes} classes, sha256 {now.digest[:12]}"
    assert str(mistake.value).startswith(f"data.root = {tree}: has {numbers}, and the run in ")
    assert f"was begun with 5 images of 2 classes, sha256 {before.digest[:12]}: " in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_what_an_earlier_revision_has_begun_is_told_by_the_steps_of_an_epoch(tree: Path) -> None:
    config, now = folder_of(tree), identity(tree)
    check_begun(None, None, now, 2, config)
    check_begun(None, 2, now, 2, config)
    with pytest.raises(UserError, match=r"gives 2 steps an epoch, and the run in runs/.* had 3: other images would"):
        check_begun(None, 3, now, 2, config)


def write_mnist(root: Path, pixels: np.ndarray) -> None:
    """Files of torchvision's layout: of both splits, the same images."""
    (root / "MNIST" / "raw").mkdir(parents=True, exist_ok=True)
    labels = np.arange(len(pixels), dtype=np.uint8) % 10
    for name in ("train", "t10k"):
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (root / "MNIST" / "raw" / f"{name}-{kind}-ubyte").write_bytes(head + array.tobytes())


def test_images_in_memory_are_told_apart_by_every_pixel(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)
    write_mnist(tmp_path, pixels)
    config = config_of(source="mnist", root=str(tmp_path), image_size=28)
    before = sources.load(config).identity
    assert before[:2] == (40, 10)
    pixels[17, 3, 5] ^= 1
    write_mnist(tmp_path, pixels)
    with pytest.raises(UserError, match=r"data.root = .*has 40 images of 10 .*begun with 40 images of 10"):
        check_begun(before._asdict(), None, sources.load(config).identity, 20, config)
    for source in ("digits", "synthetic"):
        one, two = (sources.load(config_of(source=source)).identity for _ in range(2))
        assert one == two != before


def see(world: World, roots: list[str]) -> str:
    """Return what this rank is told, where each rank has a folder of its own."""
    config = folder_of(Path(roots[world.rank]))
    try:
        sources.on_all_ranks(config, world, sources.load)
    except UserError as mistake:
        return str(mistake)
    return ""


@pytest.mark.parametrize("change", [*CHANGES, lambda root: shutil.rmtree(root / "val")])
def test_ranks_that_see_different_images_are_told(tree: Path, ranks: Ranks, change: Callable[[Path], None]) -> None:
    copy = moved(tree)
    if change is CHANGES[0]:
        assert ranks.run(3, see, [str(tree), str(copy), str(tree)]) == [""] * 3
    change(copy)
    lines = ranks.run(3, see, [str(tree), str(copy), str(tree)])
    rest = lines[0].partition(": ")[2]
    assert all(line.partition(": ")[2] == rest for line in lines)
    host = socket.gethostname()
    what, mine, other = "held-out", "2 images of 2 classes", "no images"
    if (copy / "val").exists():
        now = identity(copy)
        what, mine, other = "training", "5 images of 2 classes", f"{now.images} images of {now.classes} classes"
    assert re.fullmatch(
        rf"the ranks see different {what} images: {mine}, sha256 \w+ on ranks 0, 2 \({host}\); "
        rf"{other}(, sha256 \w+)? on rank 1 \({host}\); give every node the same files",
        rest,
    )


def test_figures_of_other_pixels_of_the_same_names_are_others(tree: Path) -> None:
    """The digest that a run is held to leaves contents out; an evaluation looks at a few files too."""
    one, copy = sources.load(folder_of(tree)).train, moved(tree)
    two = sources.load(folder_of(copy)).train
    assert (one.digest(), one.sample_digest()) == (two.digest(), two.sample_digest())
    draw(copy / "train" / "cat" / "20.jpg", 200)
    assert one.digest() == two.digest() and one.sample_digest() != two.sample_digest()
    (copy / "train" / "cat" / "20.jpg").unlink()
    assert two.sample_digest() != one.sample_digest()  # and no error
