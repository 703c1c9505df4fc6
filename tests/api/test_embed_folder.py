"""`embed_folder` computes what the command writes, in memory or in a file, and prints nothing."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moco_dist
from moco_dist.embed import command
from moco_dist.embed.options import Options
from tests.embed.made import DAMAGED, images_of

IN_THIS_PROCESS = {"data.workers": 0, "device.type": "cpu"}


@pytest.fixture
def run(run_dir: Path) -> moco_dist.Run:
    return moco_dist.Run(run_dir)


def test_the_call_gives_what_the_command_writes(
    run: moco_dist.Run, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command.run([str(run.path), str(images), "--out", str(tmp_path / "a.npy"), "--workers=0", "--batch=4"]) == 0
    capfd.readouterr()
    in_memory = moco_dist.embed_folder(run, images, overrides=IN_THIS_PROCESS, batch=4)
    printed = capfd.readouterr()
    assert not printed.out and printed.err.splitlines() == [
        f"moco_dist.embed_folder: 1 image cannot be decoded, left out: {DAMAGED}: cannot identify image file"
    ]
    assert in_memory.path is None and in_memory.files == images_of(tmp_path / "again")
    assert [(image.name, image.reason) for image in in_memory.unreadable] == [(DAMAGED, "cannot identify image file")]
    assert np.array_equal(in_memory.features, np.load(tmp_path / "a.npy"))
    for name in ("b.npy", "b.parquet"):
        if name.endswith("parquet"):
            pytest.importorskip("pyarrow")
        in_file = moco_dist.embed_folder(
            str(run.path), str(images), out=tmp_path / name, overrides=["data.workers=0", "device.type=cpu"], batch=4
        )
        assert (in_file.path, in_file.files) == (tmp_path / name, in_memory.files)
        assert np.array_equal(in_file.features, in_memory.features) and in_file.features.dtype == np.float32
        assert in_file.features.flags.writeable == name.endswith("parquet")  # a matrix is mapped, to be read alone


def test_the_process_is_given_back(run: moco_dist.Run, images: Path, tmp_path: Path) -> None:
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    try:
        torch.set_num_threads(2)
        moco_dist.embed_folder(run, images, overrides=IN_THIS_PROCESS)
        with pytest.raises(moco_dist.UserError, match="none of its 1 images can be decoded"):
            (tmp_path / "a.png").write_text("no image")
            moco_dist.embed_folder(run, tmp_path, overrides=IN_THIS_PROCESS)
        assert (torch.get_num_threads(), torch.backends.cudnn.benchmark) == (2, benchmark)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"folder": "none"}, "FOLDER = none: no such folder"),
        ({"run_or_weights": "none"}, r"RUN_DIR\|WEIGHTS = none: no such file or folder"),
        ({"out": "a.txt"}, "--out = a.txt: must end with"),
        ({"overrides": "data.workers=0"}, "overrides = data.workers=0: must be a list of texts or a mapping"),
        ({"overrides": {"data.worker": 1}}, "data.worker"),
        ({"batch": 0}, "--batch = 0"),
        ({"encoder": "k"}, "--encoder = k: is not known; use query or key"),
        ({"features": "projection"}, "--features = projection: is not known; use backbone or head"),
    ],
)
def test_mistakes_are_raised(arguments: dict[str, object], line: str, run: moco_dist.Run, images: Path) -> None:
    with pytest.raises(moco_dist.UserError, match=line):
        moco_dist.embed_folder(**{"run_or_weights": run, "folder": images, **arguments})  # type: ignore[arg-type]


def test_the_call_has_all_options_of_the_command() -> None:
    arguments = set(inspect.signature(moco_dist.embed_folder).parameters)
    options = {"run_or_weights" if name == "path" else name for name in inspect.signature(Options).parameters}
    assert arguments == options | {"out", "verbose"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("encoder", "Query"),
        ("encoder", None),
        ("features", "heads"),
        ("step", True),
        ("batch", "8"),
        ("overrides", None),
    ],
)
def test_a_word_that_is_no_choice_is_refused_and_not_taken_for_another(
    name: str, value: object, run: moco_dist.Run, images: Path
) -> None:
    arguments: dict[str, Any] = {name: value}
    with pytest.raises(moco_dist.UserError):
        moco_dist.embed_folder(run, images, **arguments)
    if name in ("encoder", "step", "overrides"):
        with pytest.raises(moco_dist.UserError):
            moco_dist.load_encoder(run, **arguments)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "", 1.5, None])
def test_a_device_that_is_not_here_is_told_in_a_line(device: Any, run: moco_dist.Run) -> None:
    with pytest.raises(moco_dist.UserError, match=r"device = .*: cannot be used here: "):
        moco_dist.load_encoder(run, device=device)


@pytest.mark.parametrize("path", ["a\0b", Path("a\0b"), 5, b"runs", None, Path("x" * 300)])
def test_what_is_no_path_is_told_in_a_line(path: Any, run: moco_dist.Run) -> None:
    for call in (
        lambda: moco_dist.Run(path),
        lambda: moco_dist.load_encoder(path),
        lambda: moco_dist.embed_folder(run, path),
        lambda: moco_dist.assess(path),
    ):
        with pytest.raises(moco_dist.UserError):
            call()


def test_features_in_a_file_are_found_from_another_working_directory(
    run: moco_dist.Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    embedding = moco_dist.embed_folder(run, images, out="a.npy")
    monkeypatch.chdir("/")
    assert len(embedding.features) == len(embedding.files)
    assert embedding.path == tmp_path / "a.npy"
