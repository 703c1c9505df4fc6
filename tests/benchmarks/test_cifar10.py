"""The full CIFAR-10 runs of the benchmark: in pieces, to the end, on a few small images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import cifar10, performance, runs
from benchmarks.runs import DOCS
from moco_dist import train
from moco_dist.evaluate import command

TINY = ["data.image_size=8", "model.width=8", "moco.queue_size=32", "moco.bn_groups=2", "optim.global_batch=16"]
TINY += [
    "optim.steps=2",
    "eval.knn_every=0",
    "eval.knn_k=5",
    "device.type=cpu",
    "run.max_minutes=0.0001",
]  # a piece is a step


@pytest.fixture
def root(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 8, 8, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        path = tmp_path / "images" / ("train" if number < 32 else "test") / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "images"


def in_this_process(ranks: int, module: str, *arguments: str) -> None:
    assert ranks == 1
    if {"moco_dist.train": train.run, "moco_dist.evaluate": command.run}[module](list(arguments)):
        raise SystemExit("not ended well")


def test_the_full_runs_in_pieces(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (runs, cifar10):
        monkeypatch.setattr(module, "torchrun", in_this_process)
    page = shutil.copy(DOCS / "cifar10.md", tmp_path / "cifar10.md")
    places = ["--out", f"{tmp_path}/out", "--results", f"{tmp_path}/results", "--page", str(page)]
    command_line = ["--root", str(root), "--full", "--minutes", "8", *places, *TINY]
    codes = []
    while not codes or codes[-1] == 75:
        codes.append(cifar10.main(command_line))
        if len(codes) == 1:
            assert "asymmetric: stopped at step 1 of 2; the same command goes on" in capsys.readouterr().out
    assert codes == [75] * 4 + [0]  # a run that is stopped after its last step is not done yet
    rows = json.loads((tmp_path / "results" / "cifar10_full.json").read_text())["rows"]
    assert [(row["loss"], row["steps"], row["copies"]) for row in rows] == [
        ("one direction", 2, True),
        ("both directions", 2, True),
    ]
    table = page.read_text().partition("<!-- table: python -m benchmarks.cifar10 --full -->")[2]
    for row, authors in zip(rows, ("82.6", "85.3"), strict=True):
        assert f"| {100 * row['test_accuracy_mean']:.2f} | {authors} |" in table
    assert "JPEG copies" in table.partition("<!-- end of table -->")[0]
    text = performance.page(tmp_path / "results")
    assert "| one direction | 1 | 2 |" in text and "--full` | not run" not in text
    assert cifar10.main(command_line) == 0  # nothing is left to do


def test_what_was_not_run_is_told() -> None:
    assert cifar10.full_table([]).count("not run") == 6
    assert cifar10.full_table([]) in (DOCS / "cifar10.md").read_text()


@pytest.mark.parametrize(
    ("options", "told"),
    [(["optim.steps=3"], "give --results and --page"), (["--full", "--minutes", "2"], "must be more than 2")],
)
def test_mistakes(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cifar10.main(["--root", "nowhere", *options])
    assert ended.value.code == 2 and told in capsys.readouterr().err
