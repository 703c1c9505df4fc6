"""The search finds what a comparison of all features finds, with or without features in a file."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moco_dist import packages
from moco_dist.embed import command as embed
from moco_dist.embed.options import Options
from moco_dist.embed.stream import Stream
from moco_dist.encoders.load import load_encoder
from moco_dist.encoders.preprocessing import Preprocessing
from moco_dist.ranks.collectives import World
from moco_dist.run.paths import RunPaths
from moco_dist.search import command, picture, process
from moco_dist.search.request import Request
from tests.embed.made import DAMAGED, STRANGE, copied, save_infinite
from tests.jobs import ROOT, environment_of
from tests.ranks import Ranks

QUERY = "train/cat/2.png"


@pytest.fixture
def folder(images: Path, tmp_path: Path) -> Path:
    """Make a folder of the images, with two copies of the query and a link to it."""
    folder = copied(images, tmp_path / "images")
    shutil.copy(folder / QUERY, folder / "train" / "dog" / "copy.png")
    shutil.copy(folder / QUERY, folder / "another copy.png")
    os.link(folder / QUERY, folder / "link.png")
    return folder


def search(run_dir: Path, folder: Path, out: Path, *options: str) -> int:
    return command.run([str(run_dir), str(folder), "--out", str(out), "--batch=3", "--workers=0", *options])


def features_of(run_dir: Path, folder: Path, out: Path, *options: str) -> Path:
    assert embed.run([str(run_dir), str(folder), "--out", str(out), "--batch=3", "--workers=0", *options]) == 0
    return out


def test_the_nearest_images_are_found_printed_and_drawn(
    run_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = np.load(features_of(run_dir, folder, tmp_path / "a.npy", "--normalise"))
    names = json.loads((tmp_path / "a.files.json").read_text())["files"]
    cosines = dict(zip(names, matrix @ matrix[names.index(QUERY)], strict=True))
    others = sorted(
        set(names) - {QUERY, "link.png"}, key=lambda name: (-round(float(cosines[name]), 5), names.index(name))
    )
    capsys.readouterr()
    out = tmp_path / "a.png"
    assert search(run_dir, folder, out, f"--query={folder / QUERY}", "--count=6") == 0
    printed = capsys.readouterr()
    first, *lines, last = printed.out.splitlines()
    assert first == str(folder / QUERY) and last == f"picture: {out}"
    assert [line[16:] for line in lines] == [name.replace("\n", "?").replace("\udcff", "?") for name in others[:6]]
    assert lines[:2] == ["    1   1.0000  another copy.png", "    2   1.0000  train/dog/copy.png"]
    assert [float(line[7:14]) for line in lines] == pytest.approx([cosines[name] for name in others[:6]], abs=1e-4)
    assert f"1 image cannot be decoded, left out: {DAMAGED}" in printed.err
    with Image.open(out) as picture:
        assert picture.size == (round(7 * 1.45 * 160), round(1.9 * 160))


def test_the_same_search_gives_the_same_bytes_with_features_of_any_file(
    run_dir: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("pyarrow")
    files = [features_of(run_dir, folder, tmp_path / name) for name in ("a.npy", "a.parquet")]
    queries = [f"--query={folder / name}" for name in (QUERY, STRANGE)]
    outcomes = []
    for number, options in enumerate([[], [], *([f"--features-file={file}"] for file in files)]):
        if number == 2:  # from here on, no image of the folder is encoded
            monkeypatch.setattr(Stream, "__iter__", None)
        out = tmp_path / str(number) / "a.png"
        out.parent.mkdir()
        capsys.readouterr()
        assert search(run_dir, folder, out, *queries, "--count=20", *options) == 0
        outcomes.append((capsys.readouterr().out.replace(str(out), ""), out.read_bytes()))
    assert len(outcomes[0][0].splitlines()) == 2 + (12 - 2) + (12 - 1) + 1
    assert all(outcome == outcomes[0] for outcome in outcomes)


def search_on(world: World, options: Options, request: Request) -> None:
    process.search(options, request, options.load_config(), world)


@pytest.mark.parametrize("in_file", [False, True])
def test_ranks_find_the_same(in_file: bool, run_dir: Path, folder: Path, tmp_path: Path, ranks: Ranks) -> None:
    features = features_of(run_dir, folder, tmp_path / "a.npy") if in_file else None
    of_file = [f"--features-file={features}"] if in_file else []
    assert search(run_dir, folder, tmp_path / "alone.png", f"--query={folder / QUERY}", *of_file) == 0
    request = Request((folder / QUERY,), 10, features, tmp_path / "together.png")
    ranks.run(2, search_on, Options(run_dir, folder, overrides={"data.workers": 0}, batch=3), request)
    assert (tmp_path / "alone.png").read_bytes() == (tmp_path / "together.png").read_bytes()


def test_a_folder_with_the_query_alone(
    run_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(folder / QUERY, tmp_path / "one" / "a.png")
    assert search(run_dir, tmp_path / "one", tmp_path / "a.png", f"--query={tmp_path / 'one' / 'a.png'}") == 0
    assert "no other image in the folder" in capsys.readouterr().out and (tmp_path / "a.png").is_file()


def test_many_links_to_the_query_leave_as_many_others(
    run_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(30):  # as where links repeat the images of a rare class
        (folder / f"{number}.png").symlink_to(folder / QUERY)
    assert search(run_dir, folder, tmp_path / "a.png", f"--query={folder / QUERY}", "--count=6") == 0
    shown = capsys.readouterr().out.splitlines()[1:-1]
    assert len(shown) == 6 and shown[:2] == ["    1   1.0000  another copy.png", "    2   1.0000  train/dog/copy.png"]


def test_features_of_something_else_are_refused(
    run_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features_of(run_dir, folder, plain := tmp_path / "plain.npy")
    features_of(run_dir, folder, tmp_path / "head.npy", "--features=head")
    features_of(run_dir, folder, tmp_path / "key.npy", "--encoder=key")
    for name in ("swapped", "short", "alone", "format", "many", "unsigned", "open"):
        shutil.copy(plain, tmp_path / f"{name}.npy")
        if name != "alone":
            shutil.copy(plain.with_suffix(".files.json"), tmp_path / f"{name}.files.json")
    matrix = np.load(plain)
    np.save(tmp_path / "swapped.npy", matrix[::-1].copy())
    np.save(tmp_path / "short.npy", matrix[:-1])
    (tmp_path / "many.npy").write_bytes(plain.read_bytes()[:-1])
    described = json.loads(plain.with_suffix(".files.json").read_text())
    (tmp_path / "format.files.json").write_text(json.dumps({**described, "format": 2}))
    unsigned = {key: value for key, value in described.items() if key != "crc32"}
    (tmp_path / "unsigned.files.json").write_text(json.dumps(unsigned))
    (tmp_path / "open.npy").write_bytes(plain.read_bytes().replace(b"), }", b" , }", 1))
    expected = {
        "head": "are outputs of the head, not of the backbone; compute them again: python -m moco_dist.embed ",
        "key": r"are of other weights \([0-9a-f]{12}, step 4\) than .*small \([0-9a-f]{12}, step 4\); compute",
        "swapped": r"cannot be used: its numbers are not those that swapped\.files\.json belongs to",
        "short": r"cannot be used: it is no matrix of float32 \[12, \d+\], as short\.files\.json says",
        "alone": r"cannot be used: alone\.files\.json: No such file or directory; compute them again",
        "format": "cannot be used: it has 12 rows and 12 names, in format 2",
        "unsigned": r"cannot be used: its numbers are not those that unsigned\.files\.json belongs to",
        "open": "cannot be used: .*; compute them again",
        "many": "cannot be used: mmap length is greater than file size",
        "none": r"none\.npy: no such file; compute them: python -m moco_dist\.embed RUN_DIR FOLDER --out .*none\.npy",
    }
    for name, line in expected.items():
        refused(run_dir, folder, tmp_path, line, capsys, f"--features-file={tmp_path / name}.npy")
    with_option = "are of images that were prepared in another way; compute them again"
    refused(run_dir, folder, tmp_path, with_option, capsys, f"--features-file={plain}", "data.image_size=16")
    key_as_command = r"--out .*plain\.npy --encoder key data\.workers=1$"
    refused(
        run_dir, folder, tmp_path, key_as_command, capsys, f"--features-file={plain}", "--encoder=key", "--workers=1"
    )
    (folder / "new.png").write_bytes((folder / QUERY).read_bytes())
    refused(
        run_dir,
        folder,
        tmp_path,
        r"are of other images than .* has now \(13, now 14\)",
        capsys,
        f"--features-file={plain}",
    )
    (folder / "new.png").rename(folder / DAMAGED)
    refused(
        run_dir, folder, tmp_path, r"are of other images than .* \(13, now 13\)", capsys, f"--features-file={plain}"
    )


def test_damaged_tables_are_refused(
    run_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    file = features_of(run_dir, folder, tmp_path / "a.parquet")
    (tmp_path / "short.parquet").write_bytes(file.read_bytes()[:-100])
    table = parquet.read_table(file)
    parquet.write_table(table.replace_schema_metadata({}), tmp_path / "bare.parquet")
    parquet.write_table(table.take(list(range(12))[::-1]), tmp_path / "turned.parquet")
    parquet.write_table(table.drop_columns("features"), tmp_path / "less.parquet")
    bit = (changed := bytearray(file.read_bytes())).index(np.stack(table["features"].to_numpy())[5].tobytes()) + 2
    changed[bit] ^= 1  # of a number, which stays a number
    (tmp_path / "changed.parquet").write_bytes(changed)
    parquet.write_table(table.slice(0, 0), tmp_path / "none.parquet")
    for name in ("short", "bare", "turned", "less", "changed", "none"):
        refused(
            run_dir, folder, tmp_path, "cannot be used: .*compute", capsys, f"--features-file={tmp_path / name}.parquet"
        )
    monkeypatch.setattr(packages, "fault", lambda name: f"{name} is not installed here")
    refused(run_dir, folder, tmp_path, "pyarrow is not installed here; install it", capsys, f"--features-file={file}")


def refused(
    run_dir: Path, folder: Path, tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str], *options: str
) -> None:
    """Search with a mistake, which must be told in one line and leave no picture."""
    out = tmp_path / "none.png"
    query = [] if any(option.startswith("--query") for option in options) else [f"--query={folder / QUERY}"]
    capsys.readouterr()
    assert search(run_dir, folder, out, *query, *options) == 2
    printed = capsys.readouterr().err.splitlines()
    assert [text for text in printed if text.startswith("moco_dist.search: ") and re.search(line, text)] == printed[
        -1:
    ], printed
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--query={folder}/none.png"], "--query = .*none.png: no such file; give the file of an image"),
        (["--query={folder}/train"], "--query = .*train: is a folder; give the file of an image"),
        (["--query={folder}/pipe"], "--query = .*pipe: is not a regular file"),
        (["--query={folder}/train/dog/1.png"], "--query = .*: cannot be decoded: cannot identify image file; give"),
        (["--count=0"], "--count = 0: must be from 1 to 100"),
        (["--count=101"], "--count = 101: must be from 1 to 100"),
        (["--query={folder}/beside.png"] * 21 + ["--count=100"], "21 queries with 100 images each do not fit"),
        (["--out={folder}/a.png"], "--out = .*a.png: lies in .*, where it would be taken for an image of it"),
        (["--out={folder}/a.jpg"], r"--out = .*a.jpg: must end with \.png"),
        (["--out={folder}/none/a.png"], "--out = .*a.png: its folder does not exist"),
        (["--features-file={folder}/a.txt"], r"--features-file = .*a.txt: must be a file of \.npy or \.parquet"),
        (["--step=3"], "has no checkpoint of step 3"),
    ],
)
def test_a_mistake_is_one_line(
    options: list[str], line: str, run_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(folder / "pipe")
    refused(run_dir, folder, tmp_path, line, capsys, *(option.format(folder=folder) for option in options))


def test_a_picture_that_cannot_be_written_is_a_mistake(
    run_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from moco_dist.evaluate import plots

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plots, "save", full)
    refused(run_dir, folder, tmp_path, "--out = .*: cannot be written: No space left on device", capsys)


def test_weights_are_searched_by_too(
    run_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of = [run_dir, RunPaths(run_dir).encoder]
    printed = []
    for path in of:
        assert search(path, folder, tmp_path / "a.png", f"--query={folder / QUERY}") == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_a_query_whose_features_are_not_finite(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_infinite(tmp_path / "a.pth")
    assert search(tmp_path / "a.pth", images, tmp_path / "a.png", f"--query={images / QUERY}") == 2
    assert "a.pth: the features of a query are not finite; look at the run's loss" in capsys.readouterr().err


def test_a_full_memory_is_no_damaged_image(
    run_dir: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(picture, "decode", full)
    with pytest.raises(MemoryError):
        picture.read(images / QUERY, 1, None)
    monkeypatch.setattr(Preprocessing, "pixels", full)
    with pytest.raises(MemoryError):
        process._pixels_of(images / QUERY, load_encoder(run_dir))


def test_a_neighbour_that_vanishes_is_drawn_as_such(
    run_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = process._others

    def vanished(*arguments: Any) -> list[process.Neighbour]:
        (folder / "another copy.png").unlink(missing_ok=True)
        return others(*arguments)

    monkeypatch.setattr(process, "_others", vanished)
    assert search(run_dir, folder, tmp_path / "a.png", f"--query={folder / QUERY}") == 0
    assert "    1   1.0000  another copy.png\n" in capsys.readouterr().out


def test_as_a_user_types_it_and_ended_by_a_signal(run_dir: Path, images: Path, tmp_path: Path) -> None:
    """The signal comes while the picture is written, which is in place of an earlier one."""
    out = tmp_path / "nearest.png"
    words = [str(run_dir), str(images), f"--query={images / QUERY}", f"--out={out}", "--workers=0"]
    script = "import os, pathlib, runpy, signal, sys\n{}runpy.run_module('moco_dist.search', run_name='__main__')\n"
    ended = "pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
    for ahead, status in (("", 0), (ended, -signal.SIGTERM)):
        command_line = [sys.executable, "-c", script.format(ahead), *words]
        result = subprocess.run(command_line, capture_output=True, text=True, timeout=240, env=environment_of(ROOT))
        assert result.returncode == status and "Traceback" not in result.stderr, result.stderr
        assert [path.name for path in tmp_path.iterdir()] == [out.name]
    with Image.open(out) as picture:
        assert picture.width > 1000
