"""Small images are decoded once and kept; whatever is cut out of them has the bits that the files give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moco_dist import config
from moco_dist.data import cache, sources
from moco_dist.data.cache import DecodedSource
from moco_dist.data.identity import Identity
from moco_dist.data.pack import pack
from moco_dist.data.store import FileSource
from moco_dist.data.stream import pretraining
from moco_dist.errors import UserError
from moco_dist.ranks import devices
from moco_dist.ranks.collectives import World
from tests.data.made import draws, folder_of
from tests.ranks import Ranks

ALONE = World(0, 1, 0, torch.device("cpu"))
IMAGES, DAMAGED = 23, ("05", "06", "22")
"""Images and their names: two neighbours and the last one cannot be read."""
SUFFIXES = ("png", "jpg")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Colour images of 20x24 pixels, some of them damaged."""
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 20, 24, 3), dtype=np.uint8)
    for number in range(IMAGES):
        path = tmp_path / "images" / "train" / "ab"[number // 12] / f"{number:02}.{SUFFIXES[number % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(path)
        if path.stem in DAMAGED:
            path.write_bytes(b"no image")
    return tmp_path / "images"


def opened(folder: Path, world: World = ALONE, **data: object) -> tuple[config.Config, FileSource, FileSource]:
    """The config, the files, and what is kept of them."""
    run = folder_of(folder, knn_every=0, batch=8, **data)
    kept = sources.on_all_ranks(run, world, sources.load).train
    files = sources.open_source(run, "train")
    assert isinstance(files, FileSource) and isinstance(kept, FileSource)
    return run, files, kept


@pytest.mark.parametrize(
    ("shards", "channels", "decode", "workers"),
    [(False, 3, "cpu", 1), (False, 1, "pillow", 2), (True, 3, "cpu", 2), (True, 3, "pillow", 1)],
)
def test_what_is_kept_has_the_bits_of_the_files(
    folder: Path,
    shards: bool,
    channels: int,
    decode: str,
    workers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "cores", lambda: workers)
    monkeypatch.setattr(cache, "_CHUNK", 4)
    if shards:
        folder, root = tmp_path / "shards", folder
        pack(root, folder, 1)
    run, files, kept = opened(folder, channels=channels, decode=decode)
    assert isinstance(kept, DecodedSource) and kept.images.shape == (IMAGES, channels, 20, 24)
    assert kept.sample_digest() == files.sample_digest() and Identity.of(kept) == Identity.of(files)
    of_some = np.array([22, 5, 6, 0, 21, 5])  # 22 is replaced by 5, which is replaced by 6, and that by 0
    for one, other in ((kept, files), (kept.subset(of_some), files.subset(of_some))):
        indices = np.arange(len(other))
        assert [image.name for image in other.centred(indices, 8)[1]]
        assert one.labels is not None and other.labels is not None and one.labels.tolist() == other.labels.tolist()
        for (views, unreadable), (expected, of_files) in (
            (one.crops(indices, draws(len(other), 2), run.data), other.crops(indices, draws(len(other), 2), run.data)),
            (one.centred(indices, 8), other.centred(indices, 8)),
        ):
            assert isinstance(views, torch.Tensor) and isinstance(expected, torch.Tensor)
            assert torch.equal(views, expected) and unreadable == of_files
    batches = [pretraining(source, run, ALONE)[3] for source in (kept, files)]
    assert torch.equal(batches[0].views, batches[1].views) and batches[0].unreadable == batches[1].unreadable


def test_ranks_decode_a_share_each(folder: Path, ranks: Ranks) -> None:
    expected = opened(folder)[2]
    assert isinstance(expected, DecodedSource)
    for kept, attempts in ranks.run(2, _kept, folder):
        assert torch.equal(kept.images, expected.images) and kept.replaced == expected.replaced
        assert attempts in (range(12), range(12, IMAGES))


def _kept(world: World, folder: Path) -> tuple[FileSource, range]:
    attempts: list[int] = []
    attempt = FileSource.attempt
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "cores", lambda: 1)
        patch.setattr(cache, "_shape", lambda source, data: (20, 24, 3))
        patch.setattr(FileSource, "attempt", lambda self, *of: attempts.append(of[0]) or attempt(self, *of))
        return opened(folder, world)[2], range(attempts[0], attempts[-1] + 1)


def test_what_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size_bytes = IMAGES * 20 * 24 * 3
    room = cache._PART * size_bytes
    for value, there_is, is_kept in (
        ("auto", room, True),
        ("auto", room - 1, False),
        ("memory", size_bytes, True),
        ("none", room, False),
    ):
        monkeypatch.setattr(devices, "memory", lambda device, there_is=there_is: there_is)
        data = sources.on_all_ranks(folder_of(folder, knn_every=0, batch=8, cache=value), ALONE, sources.load)
        assert isinstance(data.train, DecodedSource) is is_kept
        assert data.notes == (f"data.cache: {IMAGES} images were decoded into 0 MB of memory",) * is_kept
    monkeypatch.setattr(devices, "memory", lambda device: size_bytes - 1)
    with pytest.raises(UserError, match=r"^data\.cache = memory: the images take 3\.3e-05 GB, more than there is for"):
        opened(folder, cache="memory")


def test_a_run_of_less_than_an_epoch_decodes_what_it_sees(folder: Path) -> None:
    for steps, is_kept in ((2, False), (3, True)):
        run = folder_of(folder, knn_every=0, batch=8)
        run = run.model_copy(update={"optim": run.optim.model_copy(update={"steps": steps})})
        kept = sources.on_all_ranks(run, ALONE, sources.load).train
        assert isinstance(kept, DecodedSource) is is_kept


def test_images_of_several_sizes_stay_on_disk(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (24, 21)).save(folder / "train" / "b" / "21.jpg")  # not among those that are looked at first
    assert not isinstance(opened(folder)[2], DecodedSource)
    for _ in range(2):
        rule = r"^data\.cache = memory: the images are of several sizes, 24x2. and 24x2. among them; use data\.cache=a"
        with pytest.raises(UserError, match=rule):
            opened(folder, cache="memory")
        Image.new("RGB", (24, 21)).save(folder / "train" / "a" / "00.png")
        Image.new("RGB", (24, 20)).save(folder / "train" / "b" / "21.jpg")


def test_without_a_readable_image_it_is_told(folder: Path) -> None:
    kept = opened(folder)[2]
    with pytest.raises(UserError, match=r"^data\.root = .*: none of its 2 images can be decoded; .*; mend the files"):
        kept.subset(np.array([5, 22]))
    for path in folder.rglob("*.*"):
        path.write_bytes(b"no image")
    assert not isinstance(opened(folder)[2], DecodedSource)


def test_a_colour_jpeg_among_gray_images_is_noticed(tmp_path: Path) -> None:
    """It is none of the nine images that are looked at."""
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        image = Image.fromarray(pixels) if number == 7 else Image.fromarray(pixels).convert("L")
        image.save(tmp_path / f"{number:02}.jpg")
    assert not isinstance(opened(tmp_path, channels=1, decode="cpu")[2], DecodedSource)
    (tmp_path / "07.jpg").unlink()
    assert isinstance(opened(tmp_path, channels=1, decode="cpu")[2], DecodedSource)


def test_images_that_would_have_other_bits_stay_on_disk(folder: Path) -> None:
    """Colour JPEGs as gray crops are decoded otherwise than as gray centres, and large ones at a reduced scale."""
    for settings, rule in (
        ({"channels": 1}, "with data.decode=cpu, crops have other pixels than the evaluation's images"),
        ({"image_size": 6}, "with data.decode=cpu, images of 24x20 are decoded at a reduced scale for crops of 6"),
    ):
        assert isinstance(opened(folder, decode="pillow", **settings)[2], DecodedSource)
        assert not isinstance(opened(folder, decode="cpu", **settings)[2], DecodedSource)
        with pytest.raises(UserError, match=rule):
            opened(folder, decode="cpu", cache="memory", **settings)
