"""Shards of a folder of images: training from them is training from the folder, and what is wrong with them is told."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from moco_dist.data import command, shards, sources
from moco_dist.data.identity import Identity
from moco_dist.data.image_file import Member
from moco_dist.data.index import Split
from moco_dist.data.loader import make_loader
from moco_dist.data.look.survey import survey
from moco_dist.data.pack import pack, verify
from moco_dist.data.store import FileSource
from moco_dist.data.tree import SHARD_INDEX
from moco_dist.errors import UserError
from tests.data.made import damaged_avif, draw, folder_of
from tests.data.test_stream import equal, steps_of
from tests.nobody import as_nobody, let_in

CPU = torch.device("cpu")
NAMES = ("a.png", "a.PNG", "a.jpg", "a b.jpg", "a.b.jpg", "a_b.jpg", "ä.bmp", "new\nline.png", "x..png")
BYTES = os.fsdecode(b"\xff\xfe.png")
LONG = "/".join(("d" * 99, "e" * 99, "f" * 96 + ".png"))


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Images of many formats and names, of two classes, some damaged; val/ has one of each class."""
    rng, folder = np.random.default_rng(0), tmp_path / "odd"
    for number, name in enumerate((*NAMES, BYTES, LONG, "deep.npy", "f.npy", "16.tif", "lzw.tiff", "p.gif", "w.webp")):
        path = folder / "train" / ("cat", "dog")[number % 2] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        values = rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)
        if path.suffix == ".npy":
            gray = values[:, :, 0].astype(np.uint16) * 200
            np.save(path, np.asfortranarray(gray) if name == "f.npy" else gray)
        elif name == "16.tif":
            Image.fromarray(values[:, :, 0].astype(np.uint16) * 200).save(path)
        else:
            Image.fromarray(values).save(path, **{"compression": "tiff_lzw"} if name == "lzw.tiff" else {})
    damaged_avif(folder / "train" / "cat" / "broken.avif")
    for suffix in ("jpg", "npy", "tif", "bmp", "ppm"):
        (folder / "train" / "dog" / f"broken.{suffix}").write_bytes(b"\x93NUMPY nothing")
    short = folder / "train" / "cat" / "short.npy"
    np.save(short, np.zeros((50, 50), np.uint8))
    short.write_bytes(short.read_bytes()[:-9])
    (folder / "train" / "cat" / "empty.png").touch()
    draw(folder / "val" / "cat" / "a.png", 40)
    draw(folder / "val" / "dog" / "b.c.jpg", 120)
    return folder


def packed(root: Path, shard_mib: int = 1) -> Path:
    out = root.with_name(f"{root.name}-shards")
    pack(root, out, shard_mib)
    return out


def both(root: Path, out: Path, split: Any = "train", **data: Any) -> tuple[FileSource, FileSource]:
    one, two = (sources.open_source(folder_of(place, **data), split) for place in (root, out))
    assert isinstance(one, FileSource) and isinstance(two, FileSource)
    return one, two


@pytest.mark.parametrize("split", ["train", "test"])
def test_shards_hold_what_the_folder_held(odd: Path, split: str) -> None:
    folder, of_shards = both(odd, packed(odd), split)
    assert of_shards.places is not None and folder.places is None
    assert Identity.of(of_shards) == Identity.of(folder)
    assert of_shards.names.tolist() == folder.names.tolist() and of_shards.classes == folder.classes
    assert of_shards.labels is not None and folder.labels is not None
    assert of_shards.labels.tolist() == folder.labels.tolist() and of_shards.labels.dtype == folder.labels.dtype
    assert of_shards.sample_digest() == folder.sample_digest()
    assert of_shards.shortest_side() == folder.shortest_side()
    for one, two in zip(folder.sample(99), of_shards.sample(99), strict=True):
        assert one.read_bytes() == two.read_bytes() and str(two).endswith(f".tar!{one.relative_to(odd)}")  # type: ignore[union-attr]
    few = np.array([1, 0])
    assert of_shards.subset(few).digest() == folder.subset(few).digest()
    assert of_shards.subset(few).file(0) == of_shards.file(1)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_evaluation_sees_the_same(odd: Path, channels: int) -> None:
    """It sees the same pixels and replaces the same images; some reasons are worded otherwise where no file is."""
    folder, of_shards = both(odd, packed(odd), channels=channels, value_range=[0, 65535])
    (one, bad), (two, bad_too) = (source.centred(np.arange(len(source)), 8) for source in (folder, of_shards))
    assert torch.equal(one, two)
    relative = [str(Path(image.name).relative_to(odd)) for image in bad]
    assert len(bad) == 8 and [image.name.partition("!")[2] for image in bad_too] == relative
    assert all(Path(image.name.partition("!")[0]).is_file() for image in bad_too)
    assert all("0x" not in image.reason and image.reason for image in bad_too)  # no address of an object


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_bit_for_bit_those_of_the_folder(tmp_path: Path, workers: int) -> None:
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.{('png', 'jpg')[number % 3 == 0]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (tmp_path / "images" / "a" / "4.png").write_bytes(b"no png")
    of_folder, of_shards = (
        list(make_loader(steps_of(folder_of(root, batch=4)), range(7), count, CPU))
        for root, count in ((tmp_path / "images", 0), (packed(tmp_path / "images"), workers))
    )
    assert all(map(equal, of_shards, of_folder)) and len(of_shards) == 7
    names = [[image.name.rpartition("/")[2] for batch in batches for image in batch.unreadable]
             for batches in (of_folder, of_shards)]  # fmt: skip
    assert names[0] == names[1] and set(names[0]) == {"4.png"}


def test_a_source_travels_to_workers_without_open_files(tree: Path) -> None:
    _, source = both(tree, packed(tree))
    before = source.centred(np.arange(5), 8)[0]  # opens the shard
    there = pickle.loads(pickle.dumps(source))
    assert torch.equal(there.centred(np.arange(5), 8)[0], before)
    assert len(pickle.dumps(source)) < 5000


def test_tars_are_in_the_layout_of_webdataset(odd: Path) -> None:
    """Each key has one image and its class, next to one another; what follows a file's first dot is the suffix."""
    out, seen = packed(odd), dict[str, dict[str, bytes]]()
    source = shards.open_split(out, "train")
    assert sorted(file.name for file in out.iterdir()) == [SHARD_INDEX, "train-000000.tar", "val-000000.tar"]
    with tarfile.open(out / "train-000000.tar", "r|") as tar:
        for member in tar:
            assert member.isreg() and (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
            match = re.fullmatch(r"((?:.*/|)[^./]+)[.]([^/]*)", member.name, re.DOTALL)
            assert match, member.name
            file = tar.extractfile(member)
            assert file
            if match[1] not in seen:
                assert all(len(fields) == 2 for fields in seen.values())
            seen.setdefault(match[1], {})[match[2]] = file.read()
    assert len(seen) == len(source.names)
    for fields, name, label in zip(seen.values(), source.names, source.labels, strict=True):  # type: ignore[arg-type]
        [suffix] = {*fields} - {"cls"}
        assert int(fields["cls"]) == label and name.endswith(b"." + os.fsencode(suffix))
        assert fields[suffix] == (odd / "train" / os.fsdecode(name)).read_bytes()
    assert f"train/{'dog' if NAMES.index('a b.jpg') % 2 else 'cat'}/a b" in seen


def test_tar_gives_the_files_back(tree: Path, tmp_path: Path) -> None:
    long = tree / "train" / "cat" / LONG
    draw(long, 50)
    draw(long.with_name(BYTES), 60)
    out = packed(tree)
    for file in out.glob("*.tar"):
        subprocess.run(["tar", "xf", file, "-C", tmp_path], check=True, capture_output=True)
    assert (tmp_path / "train" / "cat" / LONG).read_bytes() == long.read_bytes()
    assert (tmp_path / "train" / "cat" / "10.cls").read_text() == "0"


def test_packing_twice_gives_equal_bytes(odd: Path, tmp_path: Path) -> None:
    first = {file.name: file.read_bytes() for file in packed(odd).iterdir()}
    copy = Path(shutil.copytree(odd, tmp_path / "elsewhere", copy_function=shutil.copyfile))
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    assert {file.name: file.read_bytes() for file in packed(copy).iterdir()} == first


def test_shards_have_a_size(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / "images").mkdir(exist_ok=True)
        np.save(tmp_path / "images" / f"{number}.npy", np.full((500, 1000 if number != 2 else 5000), number, np.uint8))
    out = packed(tmp_path / "images")
    assert [file.name for file in sorted(out.glob("*.tar"))] == [f"images-{number:06d}.tar" for number in range(3)]
    sizes = [file.stat().st_size for file in sorted(out.glob("*.tar"))]
    assert max(sizes) > 2**20 and sorted(sizes)[-2] <= 2**20 and not any(size % 10240 for size in sizes)
    folder, of_shards = both(tmp_path / "images", out)
    assert of_shards.labels is None and of_shards.digest() == folder.digest()
    assert torch.equal(folder.centred(np.arange(5), 8)[0], of_shards.centred(np.arange(5), 8)[0])
    names = list[str]()
    for file in out.glob("*.tar"):
        with tarfile.open(file) as tar:
            names += tar.getnames()
    assert sorted(names) == [f"{number}.npy" for number in range(5)]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"0")


def flip(place: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)

    return change


def replace_by_another(path: Path) -> None:
    """Another shard of the same size."""
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("train-000000.tar", Path.unlink, "the shard train-000000.tar is missing; copy it again, or pack it again: "),
        ("val-000000.tar", Path.unlink, "the shard val-000000.tar is missing; "),
        ("train-000000.tar", cut, "the shard train-000000.tar has 20479 bytes, and 20480 were packed; "),
        (
            "train-000000.tar",
            lengthen,
            "has 20481 bytes, and 20480 were packed; ",
        ),
        ("train-000000.tar", replace_by_another, "was changed: it does not begin as it was packed; "),
        (SHARD_INDEX, cut, f"{SHARD_INDEX} cannot be read: "),
        (SHARD_INDEX, flip(900), f"{SHARD_INDEX} cannot be read: "),
        (SHARD_INDEX, lambda path: path.write_bytes(b""), f"{SHARD_INDEX} cannot be read: "),
        (SHARD_INDEX, lambda path: path.write_text("no index"), f"{SHARD_INDEX} cannot be read: "),
        (SHARD_INDEX, lambda path: np.savez(path, format=1), f"{SHARD_INDEX} cannot be read: "),
        (SHARD_INDEX, lambda path: np.savez(path, format=2), "has the format 2, and this version reads 1; "),
        (SHARD_INDEX, Path.unlink, f"and of the shards in it no {SHARD_INDEX}, with which packing ends; "),
    ],
)
def test_what_is_missing_or_changed_is_told_at_the_start(
    tree: Path, name: str, change: Callable[[Path], Any], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = packed(tree)
    change(out / name)
    with pytest.raises(UserError) as mistake:
        sources.load(folder_of(out, batch=1))
    assert str(mistake.value).startswith(f"data.root = {out}: ") and line in str(mistake.value)
    assert command.run(["verify", str(out)]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"moco_dist.data: OUT = {out}: ")


def test_no_bit_of_the_contents_of_the_index_is_lost_in_silence(tree: Path) -> None:
    """The list of contents has no checksum in a zip file: a name may be lost, or be said to be encrypted."""
    file = packed(tree) / SHARD_INDEX
    content, refusals = file.read_bytes(), 0
    whole = [shards.read_split(file.parent, split).arrays() for split in get_args(Split)]
    for place in range(content.rindex(b"train/labels") - 46, len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        try:
            arrays = [shards.read_split(file.parent, split).arrays() for split in get_args(Split)]
        except UserError:
            refusals += 1
            continue
        for split, expected in zip(arrays, whole, strict=True):
            assert split.keys() == expected.keys()
            assert all(np.array_equal(split[name], expected[name]) for name in expected), place
    assert refusals > 100


def test_a_changed_byte_is_told_where_it_is_read(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = packed(tree)
    _, of_shards = both(tree, out)
    assert command.run(["verify", str(out)]) == 0
    assert capsys.readouterr().out == "2 shards with 7 images are as they were packed\n"
    member = of_shards.file(4)
    assert isinstance(member, Member) and member.offset > shards.HEAD_BYTES
    flip(member.offset + member.length // 2)(out / "train-000000.tar")
    [unreadable] = sources.open_source(folder_of(out), "train").centred(np.arange(5), 8)[1]
    assert str(unreadable) == (
        f"{out}/train-000000.tar!train/dog/deeper/110.JPEG: "
        "its shard was changed: these are not the bytes that were packed"
    )
    assert command.run(["verify", str(out)]) == 2
    assert "the shard train-000000.tar was changed: its sha256 is not that" in capsys.readouterr().err
    (out / "val-000000.tar").unlink()
    with pytest.raises(UserError, match=r"train-000000\.tar was changed: .*; 2 of 2 shards have a fault; copy"):
        verify(out)


def test_a_shard_that_ends_while_it_is_read(tree: Path) -> None:
    out = packed(tree)
    source = sources.open_source(folder_of(out), "train")
    os.truncate(out / "train-000000.tar", 4000)
    images, unreadable = source.centred(np.arange(5), 8)
    assert {image.reason for image in unreadable} == {"its shard ends before it"} and len(images) == 5


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["pack", "tree"], "the following arguments are required: OUT"),
        (["pack", "tree", "full"], "OUT = full: is there already, and not empty; choose another name"),
        (["pack", "tree", "tree/val/cat/a.png"], "a.png: is there already, and not empty"),
        (["pack", "tree", "tree/val/cat/a.png/b"], "cannot be written: Not a directory"),
        (["pack", "nowhere", "out"], "data.root = nowhere: no such folder"),
        (["pack", "shards", "out"], "FOLDER = shards: is a folder of shards; give the folder of images"),
        (["pack", "tree", "out", "--shard-mib", "0"], "argument --shard-mib: 0: must be a number above 0"),
        (["pack", "closed", "out"], "FOLDER = closed/b.png: cannot be read: Permission denied; mend or remove it"),
        (["verify", "tree"], f"OUT = tree: has no {SHARD_INDEX}; give a folder that was packed to its end"),
        (["verify", "nowhere"], f"OUT = nowhere: has no {SHARD_INDEX}"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_leaves_nothing(
    tree: Path, arguments: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tree)
    for name in ("train", "val"):
        shutil.copytree(tree / name, tree / "tree" / name)
    pack(tree / "tree", tree / "shards", 1)
    (tree / "full").mkdir()
    (tree / "full" / ".hidden").touch()
    for name in "abc":
        draw(tree / "closed" / f"{name}.png", 10)
    (tree / "closed" / "b.png").chmod(0)
    let_in(tree)
    tree.chmod(0o777)
    before = sorted(map(str, tree.rglob("*")))
    with as_nobody():
        assert command.run(arguments) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("moco_dist.data: ") and line in message
    assert sorted(map(str, tree.rglob("*"))) == before


@pytest.mark.parametrize(
    ("number", "status", "left"),
    [(signal.SIGINT, 130, False), (signal.SIGTERM, -15, False), (signal.SIGHUP, -1, False), (signal.SIGKILL, -9, True)],
)
def test_packing_that_was_interrupted_looks_unfinished(
    tmp_path: Path, number: signal.Signals, status: int, left: bool
) -> None:
    for image in range(100):
        draw(tmp_path / "images" / f"{image}.png", 10)
    script = (
        "import runpy, time; from moco_dist.data import pack; contents = pack._contents\n"
        "def slow(listing):\n    for n, content in enumerate(contents(listing)):\n"
        "        if n == 90: print('half', flush=True); time.sleep(60)\n        yield content\n"
        "pack._contents = slow; runpy.run_module('moco_dist.data', run_name='__main__', alter_sys=True)"
    )
    arguments = [sys.executable, "-c", script, "pack", str(tmp_path / "images"), str(tmp_path / "out")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "half\n"
        time.sleep(0.1)
        process.send_signal(number)
        _, errors = process.communicate()
    assert process.returncode == status, errors
    assert (tmp_path / "out").exists() == left
    if left:
        with pytest.raises(UserError, match=f"no image below it .* of the shards in it no {SHARD_INDEX}"):
            sources.load(folder_of(tmp_path / "out"))


def test_the_look_sees_in_shards_what_it_sees_in_the_folder(odd: Path) -> None:
    folder, of_shards = survey(odd, None), survey(packed(odd), None)
    for field in ("splits", "classes", "training_images", "held_out_images", "suffixes", "measured"):
        assert getattr(folder, field) == getattr(of_shards, field), field
    assert [image.name for image in folder.damaged] == [image.name for image in of_shards.damaged]


def test_opening_shards_and_counting_images_needs_no_torch(tree: Path) -> None:
    out = packed(tree)
    script = (
        "import sys; from pathlib import Path; from moco_dist.data import command, pack, shards\n"
        f"assert len(shards.open_split(Path({str(out)!r}), 'train').names) == 5\n"
        "assert not {'torch', 'torchvision'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
