"""`python -m moco_dist.embed` writes the features that `load_encoder` computes, on any number of ranks."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from moco_dist import packages
from moco_dist.config.schema import ModelSection
from moco_dist.data.decode import Unreadable
from moco_dist.data.pack import pack
from moco_dist.data.shards import IMAGE, PackedSplit, Places, index_of
from moco_dist.data.store import FileSource
from moco_dist.data.tree import SHARD_INDEX
from moco_dist.embed import command, process, stream, write
from moco_dist.embed.folder import open_folder
from moco_dist.embed.options import Options, check_out_of_features, of_arguments
from moco_dist.encoders.load import PretrainedEncoder, load_encoder
from moco_dist.errors import UserError
from moco_dist.networks.resnet import build_encoder
from moco_dist.ranks.collectives import World
from moco_dist.ranks.rank import Rank
from moco_dist.run.paths import RunPaths
from tests.embed.made import DAMAGED, STRANGE, copied, images_of, save_infinite
from tests.full_disk import full_disk
from tests.jobs import ROOT, environment_of
from tests.nobody import as_nobody, let_in
from tests.ranks import Ranks

BATCH = ("--batch=3", "--workers=0")


def embed(run: Path, folder: Path, out: Path, *options: str) -> tuple[np.ndarray, list[str]]:
    """Run the command, and return the features and names that it has written."""
    assert command.run([str(run), str(folder), "--out", str(out), *BATCH, *options]) == 0
    return np.load(out), json.loads(out.with_suffix(".files.json").read_text())["files"]


def one_by_one(encoder: PretrainedEncoder, folder: Path, names: list[str]) -> torch.Tensor:
    with torch.no_grad():
        return encoder.features(torch.stack([encoder.preprocess(folder / name) for name in names]))


def test_features_and_names_are_those_of_the_folder(run_dir: Path, images: Path, tmp_path: Path) -> None:
    features, names = embed(run_dir, images, tmp_path / "a.npy")
    readable = images_of(tmp_path / "again")
    assert names == readable and STRANGE in names and DAMAGED not in names
    assert features.dtype == np.float32 and features.flags.c_contiguous
    encoder = load_encoder(run_dir)
    np.testing.assert_allclose(features, one_by_one(encoder, images, names).numpy(), rtol=1e-4, atol=1e-6)
    about = json.loads((tmp_path / "a.files.json").read_text())
    assert (about["weights"], about["run"], about["step"]) == (encoder.digest, "digits", 4)
    assert about["preprocessing"] == json.loads(json.dumps(encoder.preprocess.fields()))
    assert about["images"] == 1 + len(names) and about["shape"] == list(features.shape)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.files.json", "a.npy", "again"]


def test_a_damaged_image_is_left_out_named_and_counted(
    run_dir: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embed(run_dir, images, tmp_path / "a.npy")
    printed = capsys.readouterr()
    assert f"moco_dist.embed: 1 image cannot be decoded, left out: {DAMAGED}: cannot identify image file" in printed.err
    assert "1 file with other suffixes passed over (.txt 1)" in printed.err
    assert printed.out == f"9 features: {tmp_path / 'a.npy'}\n"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            np.array([[0, 4095]] * 8, np.uint16),
            "[0, 65535]: images of more than 8 bits a channel hold 0 to 4095, under",
        ),
        (np.array([[0, 255]] * 8, np.float32), "null: FOLDER/1.npy has values from 0 to 255, beyond 0 to 1; give"),
    ],
)
def test_a_doubtful_range_of_deep_values_is_warned_of(
    values: np.ndarray, line: str, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    Image.new("L", (8, 8)).save(folder / "0.png")
    np.save(folder / "1.npy", np.resize(values, (8, 8)))
    embed(run_dir, folder, tmp_path / "a.npy")
    warned = f"data.value_range = {line.replace('FOLDER', str(folder))}"
    assert warned in capsys.readouterr().err
    embed(run_dir, folder, tmp_path / "b.npy", f"data.value_range=[0,{values.max()}]")
    assert "data.value_range" not in capsys.readouterr().err


def test_parquet_holds_the_same(run_dir: Path, images: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    features, names = embed(run_dir, images, tmp_path / "a.npy")
    out = tmp_path / "a.parquet"
    assert command.run([str(run_dir), str(images), "--out", str(out), *BATCH]) == 0
    table = parquet.read_table(out)
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("file", "string"),
        ("features", f"fixed_size_list<element: float>[{features.shape[1]}]"),
    ]
    assert np.array_equal(np.stack(table["features"].to_numpy()), features)
    assert table["file"].to_pylist() == [*names[:-1], "val/cat/line\nbyte\\udcff.png"]
    about = json.loads((tmp_path / "a.files.json").read_text())
    same = {key: value for key, value in about.items() if key not in ("files", "shape", "crc32")}
    assert json.loads(table.schema.metadata[b"moco_dist.features"]) == same


def test_many_rows_of_parquet_are_written_in_groups(
    run_dir: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(write, "_ROWS_OF_A_GROUP", 4)
    features, _ = embed(run_dir, images, tmp_path / "a.npy")
    assert command.run([str(run_dir), str(images), "--out", str(tmp_path / "a.parquet"), *BATCH]) == 0
    with parquet.ParquetFile(tmp_path / "a.parquet") as file:
        assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [4, 4, 1]
        assert np.array_equal(np.stack(file.read()["features"].to_numpy()), features)


def test_shards_have_the_names_and_features_of_their_folder(run_dir: Path, images: Path, tmp_path: Path) -> None:
    (folder := copied(images, tmp_path / "images")).joinpath("beside.png").unlink()  # which has no split
    (folder / "val").rename(folder / "test")  # which comes first in a walk
    list(pack(folder, tmp_path / "shards", 1))
    of_files, of_shards = (embed(run_dir, tmp_path / of, tmp_path / f"{of}.npy") for of in ("images", "shards"))
    assert of_files[1] == of_shards[1] and len(of_files[1]) == 8
    assert np.array_equal(of_files[0], of_shards[0])


def test_layers_encoders_and_steps(run_dir: Path, images: Path, tmp_path: Path) -> None:
    plain, names = embed(run_dir, images, tmp_path / "a.npy")
    pixels = load_encoder(run_dir).preprocess
    batch = torch.stack([pixels(images / name) for name in names])
    with torch.no_grad():
        head = load_encoder(run_dir, head=True)
        expected = {
            ("--features=head",): head.network(batch),
            ("--features=head", "--normalise"): head.project(batch),
            ("--normalise",): torch.nn.functional.normalize(torch.from_numpy(plain), dim=1),
            ("--encoder=key",): load_encoder(run_dir, encoder="key").features(batch),
            ("--step=2",): load_encoder(run_dir, step=2).features(batch),
        }
    for options, features in expected.items():
        written_ones, _ = embed(run_dir, images, tmp_path / "b.npy", *options)
        np.testing.assert_allclose(written_ones, features.numpy(), rtol=1e-4, atol=1e-5)
        assert written_ones.shape != plain.shape or not np.allclose(written_ones, plain, rtol=1e-6), options


def test_workers_change_nothing(run_dir: Path, images: Path, tmp_path: Path) -> None:
    for workers in ("0", "2"):
        embed(run_dir, images, tmp_path / f"{workers}.npy", "--workers", workers)
    for end in ("npy", "files.json"):
        assert (tmp_path / f"0.{end}").read_bytes() == (tmp_path / f"2.{end}").read_bytes()


def embed_on(world: World, options: Options, out: Path | None) -> Any:
    config = options.load_config()
    embedding = process.embed(options, out, config, world)
    return embedding.files, embedding.unreadable, None if out else embedding.features


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_change_no_bit(size: int, run_dir: Path, images: Path, tmp_path: Path, ranks: Ranks) -> None:
    """Some ranks have less to do than others, or nothing, since there are 4 chunks, the last one of a single image."""
    options = Options(run_dir, images, overrides={"data.workers": 0}, batch=3)
    for end in ("npy", "parquet"):
        alone, together = tmp_path / f"alone.{end}", tmp_path / f"together.{end}"
        assert command.run([str(run_dir), str(images), "--out", str(alone), *BATCH]) == 0
        printed = ranks.run(size, embed_on, options, together)
        assert alone.read_bytes() == together.read_bytes()
        assert all(one == printed[0] for one in printed)
    assert (tmp_path / "alone.files.json").read_bytes() == (tmp_path / "together.files.json").read_bytes()
    in_memory = ranks.run(size, embed_on, options, None)
    for files, unreadable, features in in_memory:
        assert (files, unreadable) == printed[0][:2] and [image.name for image in unreadable] == [DAMAGED]
        assert np.array_equal(features, np.load(tmp_path / "alone.npy"))


@pytest.mark.standin
def test_on_a_device_the_features_are_the_same(run_dir: Path, images: Path, tmp_path: Path, ranks: Ranks) -> None:
    options = Options(run_dir, images, overrides={"data.workers": 0}, batch=3, normalise=True)
    features, names = embed(run_dir, images, tmp_path / "a.npy", "--normalise")
    for files, _, on_device in ranks.run(2, embed_on, options, None, on_standin=True):
        assert files == names
        np.testing.assert_allclose(on_device, features, rtol=1e-4, atol=1e-6)


def test_under_torchrun_as_a_user_starts_it(run_dir: Path, images: Path, tmp_path: Path) -> None:
    features, _ = embed(run_dir, images, tmp_path / "a.npy")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "moco_dist.embed"]
    arguments = [sys.executable, *torchrun, run_dir, images, "--out", tmp_path / "b.npy", *BATCH]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=240, env=environment_of(ROOT))
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"9 features: {tmp_path / 'b.npy'}\n" and result.stderr.count("left out") == 1
    assert np.array_equal(np.load(tmp_path / "b.npy"), features)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing_behind(number: signal.Signals, run_dir: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "images").mkdir()
    Image.effect_noise((600, 600), 50).save(folder / "0.png")
    for name in range(1, 400):  # which take a minute
        os.link(folder / "0.png", folder / f"{name}.png")
    (out := tmp_path / "out").mkdir()
    (out / "a.npy").write_bytes(b"an earlier one")
    arguments = [sys.executable, "-m", "moco_dist.embed", run_dir, folder, "--out", out / "a.npy", "--batch=1"]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment_of(ROOT)
    ) as started:
        while started.poll() is None and not list(out.glob(".a.npy.*")):
            time.sleep(0.05)
        started.send_signal(number)
        _, printed = started.communicate(timeout=60)
    assert started.returncode == (130 if number == signal.SIGINT else -number), printed
    assert "Traceback" not in printed
    assert [path.name for path in out.iterdir()] == ["a.npy"] and (out / "a.npy").read_bytes() == b"an earlier one"


def test_a_full_disk_is_a_mistake_and_leaves_the_old_files(
    run_dir: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(run_dir, images, tmp_path / "a.npy")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write._Matrix, "add", full)
    assert command.run([str(run_dir), str(images), "--out", str(tmp_path / "a.npy")]) == 2
    assert (
        "--out = " in (printed := capsys.readouterr().err) and "cannot be written: No space left on device" in printed
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("end", ["npy", "parquet"])
def test_a_disk_that_is_full_to_the_end_is_told_in_a_line(
    end: str, run_dir: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rest in the buffers cannot be written either while the files are closed."""
    if end == "parquet":
        pytest.importorskip("pyarrow")
    with full_disk(300):
        printed = mistake_in([str(run_dir), str(images), "--out", str(tmp_path / f"a.{end}"), *BATCH], capsys)
    assert re.search(rf"--out = .*a\.{end}: cannot be written: .*; choose another place by --out", printed), printed
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_images_is_not_told_of_the_file(
    run_dir: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_files(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(stream.loader, "make_loader", without_files)
    with pytest.raises(OSError, match="Too many open files"):
        command.run([str(run_dir), str(images), "--out", str(tmp_path / "a.npy")])
    assert list(tmp_path.iterdir()) == []


def test_weights_from_elsewhere_are_warned_of_in_one_line(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = build_encoder(ModelSection(arch="resnet18", stem="small", width=8), 3, seed=0)
    torch.save(network.state_dict(), weights := tmp_path / "a.pth")
    arguments = [str(weights), str(images), "--out", str(tmp_path / "a.npy"), "--workers=0"]
    assert command.run(arguments) == 0
    printed = capsys.readouterr().err
    assert printed.count("a.pth does not describe its images: 32 pixels and ImageNet's") == 1
    assert re.search("^moco_dist: WEIGHTS = .*a.pth: took the", printed, re.MULTILINE)
    statistics = ["data.mean=0.5,0.5,0.5", "data.std=0.2,0.2,0.2"]
    assert command.run([*arguments, *statistics]) == 0
    assert "a.pth does not describe its images: 32 pixels are assumed;" in capsys.readouterr().err
    assert command.run([*arguments, *statistics, "data.image_size=24"]) == 0
    assert "does not describe" not in capsys.readouterr().err
    assert json.loads((tmp_path / "a.files.json").read_text())["preprocessing"]["image_size"] == 24


def test_the_command_that_is_proposed_means_the_same_paths(tmp_path: Path) -> None:
    path, folder, out = tmp_path / "a $HOME", Path("~me/b"), tmp_path / "$x.npy"
    program, *words = shlex.split(Options(path, folder, config=Path("$c.yaml")).as_command(out))
    assert program == "python" and words[:2] == ["-m", "moco_dist.embed"]
    parser = command.parser()
    parsed = parser.parse_intermixed_args(words[2:])
    assert (parsed.path, parsed.folder, parsed.out) == (path, Path("./~me/b"), out)
    assert of_arguments(parsed).config == Path("$c.yaml")


def test_features_that_are_not_finite_are_refused(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_infinite(tmp_path / "a.pth")
    out = tmp_path / "a.npy"
    assert command.run([str(tmp_path / "a.pth"), str(images), "--out", str(out), "--workers=0"]) == 2
    assert "the features of 9 images are not finite, such as those of beside.png" in capsys.readouterr().err
    assert not out.exists()


MISTAKES = [
    (["{run}", "{none}", "--out=a.npy"], "FOLDER = .*none: no such folder; give the folder that holds the images"),
    (["{run}", "{empty}", "--out=a.npy"], "FOLDER = .*empty: is empty"),
    (["{run}", "{images}/train/notes.txt", "--out=a.npy"], "FOLDER = .*: is a file, not a folder"),
    (["{run}", "{text}", "--out=a.npy"], r"FOLDER = .*text: no image below it \(\.jpg"),
    (["{run}", "{damaged}", "--out=a.npy"], "FOLDER = .*: none of its 1 images can be decoded; a.png: cannot identify"),
    (["{none}", "{images}", "--out=a.npy"], r"RUN_DIR\|WEIGHTS = .*none: no such file or folder"),
    (["{text}/a.txt", "{images}", "--out=a.npy"], "WEIGHTS = .*cannot be read as weights"),
    (["{run}", "{images}", "--out=none/a.npy"], "--out = none/a.npy: its folder does not exist; make it"),
    (["{run}", "{images}", "--out=a.txt"], r"--out = a.txt: must end with \.npy or \.parquet; write --out a\.npy"),
    (["{run}", "{images}", "--out=an out/$$HOME.txt"], r"; write --out 'an out/\$\$HOME\.npy'$"),
    (["{run}", "{images}", "--out=an out/a.npy"], "its folder does not exist; make it: mkdir -p 'an out'$"),
    (["{run}", "{images}", "--out={images}/a.npy"], "--out = .*: lies in .*, where it would be taken for an image"),
    (["{run}", "{images}", "--out={folder}"], "--out = .*: is a folder; name a new file"),
    (["{run}", "{images}", "--out=a.npy", "--batch=0"], "--batch = 0: must be from 1 to 65536"),
    (["{run}", "{images}", "--out=a.npy", "--step=3"], "has no checkpoint of step 3, but of 2, 4"),
    (["{run}", "{images}", "--out=a.npy", "digits"], "argument = digits: a run directory has its config"),
    (["{run}", "{images}", "--out=a.npy", "--device=cuda"], "device.type = cuda: there is no CUDA device here"),
    (["{weights}", "{images}", "--out=a.npy", "--step=2"], "--step = 2: is in the checkpoints of runs alone"),
    (["{weights}", "{images}", "--out=a.npy", "--features=head"], "--features = head: is in the checkpoints"),
    (["{weights}", "{images}", "--out=a.npy", "--encoder=key"], "--encoder = key: is in the checkpoints"),
    (["{weights}", "{images}", "--out=a.npy", "model.width=4"], "overrides = model.width: weights without a config"),
    (["{run}", "{images}"], "the following arguments are required: --out"),
]


def mistake_in(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command with a mistake, and return the one line that it prints about it."""
    assert command.run(arguments) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("moco_dist.embed: ")]
    return line


@pytest.mark.parametrize(("arguments", "line"), MISTAKES)
def test_a_mistake_is_one_line(
    arguments: list[str],
    line: str,
    run_dir: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "text", "damaged", "folder.npy"):
        (tmp_path / name).mkdir()
    (tmp_path / "text" / "a.txt").write_text("text")
    (tmp_path / "damaged" / "a.png").write_text("no image")
    here = {name: tmp_path / name for name in ("none", "empty", "text", "damaged")}
    here |= {"run": run_dir, "images": images, "folder": tmp_path / "folder.npy"}
    here["weights"] = RunPaths(run_dir).encoder
    before = {*tmp_path.rglob("*"), *images.rglob("*")}
    printed = mistake_in([argument.format(**here) for argument in arguments], capsys)
    monkeypatch.undo()
    assert re.search(line, printed), printed
    assert {*tmp_path.rglob("*"), *images.rglob("*")} == before


def test_a_closed_folder_is_a_mistake(run_dir: Path, images: Path, tmp_path: Path) -> None:
    folder = copied(images, tmp_path / "images")
    (folder / "train" / "cat").chmod(0)
    let_in(folder)
    encoder = load_encoder(run_dir)
    with as_nobody(), pytest.raises(UserError, match=r"FOLDER = .*: .*train/cat cannot be read: Permission denied"):
        open_folder(folder, encoder.preprocess)
    (folder / "train" / "cat").chmod(0o755)


def test_without_pyarrow_a_matrix_is_proposed(
    run_dir: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "fault", lambda name: f"{name} is not installed here")
    printed = mistake_in([str(run_dir), str(images), "--out", str(tmp_path / "a.parquet")], capsys)
    assert (
        "pyarrow is not installed here; install it (pip install 'moco-dist[parquet]'), or use a file of .npy" in printed
    )


def test_images_that_vanish_are_counted_and_never_replaced(
    run_dir: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    features, names = embed(run_dir, images, tmp_path / "a.npy")
    place, listed = copied(images, tmp_path / "images"), process.open_both

    def vanishing(options: Options, world: World) -> tuple[PretrainedEncoder, FileSource]:
        both = listed(options, world)
        (place / names[2]).unlink()
        (place / names[5]).write_bytes(b"")
        return both

    monkeypatch.setattr(process, "open_both", vanishing)
    rest, rest_names = embed(run_dir, place, tmp_path / "b.npy")
    kept = [row for row in range(len(names)) if row not in (2, 5)]
    assert rest_names == [names[row] for row in kept] and np.allclose(rest, features[kept], rtol=1e-4, atol=1e-6)
    printed = capsys.readouterr().err
    assert "3 images cannot be decoded, left out: " in printed and f"{names[2]}: [Errno 2] No such file" in printed


def embed_where_one_rank_cannot_read(world: World, options: Options, broken: dict[int, str]) -> Any:
    attempt, before = FileSource.attempt, embed_on(world, options, None)

    def on_this_rank(images: FileSource, place: int, read: Any) -> Any:
        if os.fsdecode(images.names[place]) == broken.get(world.rank):
            return Unreadable.of(images.file(place), OSError(errno.EIO, "Input/output error"))
        return attempt(images, place, read)

    FileSource.attempt = on_this_rank  # type: ignore[method-assign]
    try:
        return before, embed_on(world, options, None)
    finally:
        FileSource.attempt = attempt  # type: ignore[method-assign]


def test_an_image_that_one_rank_alone_cannot_read(run_dir: Path, images: Path, ranks: Ranks) -> None:
    """Rank 0 takes the first and the third chunk of three images, and rank 1 the second."""
    options = Options(run_dir, images, overrides={"data.workers": 0}, batch=3)
    names = embed_on(World(0, 1, 0, torch.device("cpu")), options, None)[0]
    both = ranks.run(2, embed_where_one_rank_cannot_read, options, {0: names[4], 1: names[3]})
    for before, after in both:
        assert before[0] == names and after[0] == [*names[:3], *names[4:]]
        assert [image.name for image in after[1]] == [names[3], DAMAGED]
        assert np.array_equal(after[2], np.delete(before[2], 3, axis=0))


def test_a_killed_worker_ends_the_work_and_leaves_nothing(
    run_dir: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.npy").write_bytes(b"an earlier one")

    others = multiprocessing.active_children()  # the ranks that tests share

    def add(*_: object) -> None:
        for worker in multiprocessing.active_children():
            if worker not in others:
                worker.kill()
                worker.join()

    monkeypatch.setattr(write._Matrix, "add", add)
    options = Options(run_dir, images, overrides={"data.workers": 1}, batch=1)
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* (killed|exited)"):
        process.call(options, tmp_path / "a.npy", options.load_config(), Rank(0, 1, 0))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]
    assert (tmp_path / "a.npy").read_bytes() == b"an earlier one"
    assert set(multiprocessing.active_children()) == set(others)


def test_weights_with_a_config_are_used_as_it_says(run_dir: Path, images: Path, tmp_path: Path) -> None:
    network = build_encoder(ModelSection(arch="resnet18", stem="small", width=8), 3, seed=0)
    torch.save(network.state_dict(), weights := tmp_path / "a.pth")
    (config := tmp_path / "mine.yaml").write_text("data: {source: imagefolder, root: nowhere, image_size: 20}\n")
    settings = ("model.width=8", "model.stem=small", "data.mean=0.5,0.5,0.5", "data.std=0.2,0.2,0.2")
    features, names = embed(weights, images, tmp_path / "a.npy", str(config), *settings)
    expected = load_encoder(weights, overrides={"data.image_size": 20, "data.mean": [0.5] * 3, "data.std": [0.2] * 3})
    np.testing.assert_allclose(features, one_by_one(expected, images, names).numpy(), rtol=1e-4, atol=1e-6)


def test_a_closed_place_is_told_before_the_work(run_dir: Path, images: Path, tmp_path: Path) -> None:
    (closed := tmp_path / "closed").mkdir(mode=0o555)
    let_in(closed)
    with as_nobody(), pytest.raises(UserError, match=r"--out = .*a\.npy: its folder cannot be written to; choose"):
        check_out_of_features(closed / "a.npy", images)


def refused_on(world: World, options: Options, copies: list[Path]) -> str:
    """Return the mistake where each rank has files of its own: weights, or images."""
    options = replace(options, **{"folder" if "images" in copies[0].name else "path": copies[world.rank]})
    with pytest.raises(UserError) as mistake:
        process.embed(options, None, options.load_config(), world)
    return str(mistake.value)


def test_ranks_that_see_other_files_are_refused(run_dir: Path, images: Path, tmp_path: Path, ranks: Ranks) -> None:
    options = Options(run_dir, images, overrides={"data.workers": 0}, batch=3)
    fewer = copied(images, tmp_path / "images")
    (fewer / "beside.png").unlink()
    for line in ranks.run(2, refused_on, options, [copied(images, tmp_path / "all images"), fewer]):
        assert "the ranks see different images in it: 10, 9 of them; give every node the same files" in line
    weights = [tmp_path / f"{seed}.pth" for seed in range(2)]
    for seed, file in enumerate(weights):
        torch.save(build_encoder(ModelSection(arch="resnet18", stem="small", width=8), 3, seed).state_dict(), file)
    for line in ranks.run(2, refused_on, options, weights):
        assert "the ranks read different weights from it; give every node the same files" in line


def test_shards_without_an_image_are_refused(run_dir: Path, tmp_path: Path) -> None:
    nothing = PackedSplit(np.array([], dtype=bytes), None, (), (), Places(tmp_path, (), "", np.empty(0, IMAGE)))
    np.savez(tmp_path / SHARD_INDEX, **index_of({"train": nothing, "test": nothing}))
    with pytest.raises(UserError, match=r"FOLDER = .*: no image in its shards; give the folder that holds the images"):
        open_folder(tmp_path, load_encoder(run_dir).preprocess)
