"""`python -m moco_dist.evaluate` on a small run: figures, what it leaves, mistakes."""

from __future__ import annotations

import ast
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from moco_dist import config as configs
from moco_dist import files
from moco_dist.encoders import description
from moco_dist.engine import checkpoint
from moco_dist.errors import UserError
from moco_dist.evaluate import all_labels, command, features, few, linear, options, process, results, sgd_probe, subject
from moco_dist.networks import weights
from moco_dist.networks.resnet import build_encoder
from moco_dist.ranks import devices
from moco_dist.ranks.collectives import World
from moco_dist.run import features_view, status
from tests.ranks import Ranks

EVERYTHING = ["--knn", "--linear", "--labels", "20", "--draws", "3", "--finetune", "--supervised"]
METHODS = [
    *(("kNN", None), ("linear", None), ("linear", 20), ("fine-tuned", 20), ("semi-supervised", 20)),
    *(("supervised resnet18", 20), ("supervised small net", 20)),
]


@pytest.fixture(scope="module")
def fresh_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make what a run on digits leaves, with an encoder as it began."""
    folder = tmp_path_factory.mktemp("run")
    config = configs.load(None, ["model.width=8"])
    (folder / "config.yaml").write_text(configs.dump(config))
    encoder = build_encoder(config.model, 1, seed=0)
    weights.save_backbone(encoder, folder / "encoder.safetensors")
    (folder / "checkpoints").mkdir()
    checkpoint.write(folder / "checkpoints/step_000000007.pt", {"encoder_q": encoder.state_dict()})
    rows = [{"step": n, "epoch": 0, "loss": 5 - n, "lr": 0.1} for n in range(1, 4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def run_dir(fresh_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fresh_run, tmp_path / "run"))


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FINE_TUNING", "FROM_SCRATCH", "SEMI_SUPERVISED"):
        monkeypatch.setattr(few, name, replace(getattr(few, name), steps=3))
    monkeypatch.setattr(few, "ROUNDS", 2)
    monkeypatch.setattr(linear, "DECAYS", (1e-3, 1e-1))
    monkeypatch.setattr(linear, "_WEAKEST", 1e-3)  # a weaker one takes many times as long to fit


def rows(folder: Path) -> list[dict[str, Any]]:
    content = json.loads((folder / "evaluation.json").read_text())
    return list(content["rows"])


def on_ranks(world: World, run_dir: str, out: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        everything = options.parse([run_dir, "--out", f"{out}/{world.size}", *EVERYTHING])
        process.evaluate(everything, options.load_config(everything), world)


def test_any_number_of_ranks_gives_the_same_figures(run_dir: Path, tmp_path: Path, ranks: Ranks) -> None:
    for size in (1, 2, 4):
        ranks.run(size, on_ranks, str(run_dir), str(tmp_path), timeout_seconds=240)
    one, two, four = ([{**row, "seconds": 0} for row in rows(tmp_path / str(size))] for size in (1, 2, 4))
    assert one == two == four
    assert [(row["method"], row["labels"]) for row in one] == METHODS
    assert [row["draws"] for row in one] == [1, 1, 3, 3, 3, 3, 3]
    for row in one:
        assert row["test_accuracy_mean"] == pytest.approx(np.mean(row["accuracies"]))
        expected = np.std(row["accuracies"], ddof=1) if row["draws"] > 1 else 0
        assert row["test_accuracy_std"] == pytest.approx(expected)
    by_method = {(row["method"], row["labels"]): row["test_accuracy_mean"] for row in one}
    assert by_method["linear", None] > by_method["linear", 20] > 0.3  # random features are no bad ones on digits
    assert len({row["test_accuracy_mean"] for row in one}) == len(one)
    for size in (1, 4):
        cells = (tmp_path / str(size) / "evaluation/cells.jsonl").read_text().splitlines()
        assert len(cells) == 2 + 5 * 3
        for picture in ("accuracies", "confusion", "wrong"):
            with Image.open(tmp_path / str(size) / f"evaluation/{picture}.png") as image:
                image.verify()


def refused_on(world: World, copies: list[str]) -> str:
    """Return the mistake where each rank has files of its own."""
    knn = options.parse([copies[world.rank], "--knn", "--out", copies[0]])
    with pytest.raises(UserError) as mistake:
        process.evaluate(knn, options.load_config(knn), world)
    return str(mistake.value)


@pytest.mark.parametrize("what", ["weights", "config"])
def test_ranks_that_would_give_other_figures_are_refused(
    what: str, run_dir: Path, tmp_path: Path, ranks: Ranks
) -> None:
    """Each would look for other results among those that are computed, and so for other collectives."""
    assert command.run([str(run_dir), "--knn"]) == 0
    other = Path(shutil.copytree(run_dir, tmp_path / "other"))
    if what == "weights":
        encoder = build_encoder(configs.load(None, ["model.width=8"]).model, 1, seed=1)
        weights.save_backbone(encoder, other / "encoder.safetensors")
    else:
        text = (other / "config.yaml").read_text()
        (other / "config.yaml").write_text(text.replace("knn_k: 20", "knn_k: 5"))
    for line in ranks.run(2, refused_on, [str(run_dir), str(other)], timeout_seconds=60):
        assert re.match(r"RUN_DIR\|WEIGHTS = .*: the ranks would give other figures: .*; give every node", line)


@pytest.mark.usefixtures("_short")
def test_what_has_been_computed_is_not_computed_again(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(run_dir), "--labels", "20", "--draws", "2", "--no-semi", "--finetune"]
    assert command.run(arguments) == 0
    first, output = rows(run_dir), capsys.readouterr().out
    assert "fine-tuned" in output and "±" in output and "359 test images" in " ".join(output.split())
    with (run_dir / "evaluation/cells.jsonl").open("a") as file:  # a process that was killed as it wrote
        file.write('\n{"key": {"method": "lin')
    drawn: list[int] = []
    linear = few.FewLabels.linear
    monkeypatch.setattr(few.FewLabels, "linear", lambda self, number: drawn.append(number) or linear(self, number))
    assert command.run([*arguments[:4], "3", *arguments[5:]]) == 0
    assert drawn == [2]
    again = rows(run_dir)
    assert again[0]["accuracies"][:2] == first[0]["accuracies"] and again[0]["draws"] == 3
    assert command.run([str(run_dir), "--knn"]) == 0
    assert [row["method"] for row in rows(run_dir)] == ["linear", "fine-tuned", "kNN"]  # others of these weights stay
    assert command.run([*arguments, "run.seed=1"]) == 0
    assert rows(run_dir)[1]["accuracies"] != first[0]["accuracies"]  # another seed, other draws
    assert (run_dir / "evaluation/curves.png").exists()
    monkeypatch.setattr(subject.Subject, "shares", lambda self, layer: pytest.fail("they were"))  # features
    assert command.run([*arguments, "run.seed=1"]) == 0


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_a_reader_that_has_gone_is_no_error_of_the_results(
    number: int, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run_command` knows an error of standard output, and ends quietly where nobody reads on."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            if text:
                raise OSError(number, os.strerror(number))
            return 0

    monkeypatch.setattr(sys, "stdout", Gone())
    with pytest.raises(OSError, match=os.strerror(number)):
        command.run([str(run_dir), "--knn"])
    assert [row["method"] for row in rows(run_dir)] == ["kNN"]


def cell(draw: int) -> results.Cell:
    return results.Cell(results.Key("linear", 100, draw, "test", "d"), 0.5, 1.0, {"decay": 0.1}, [1, 2])


def test_many_results_and_damaged_lines_hinder_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The results of a large data set take more bytes than a text that is read at once may have."""
    results.Cells(tmp_path).add([cell(0), cell(1)])
    with (tmp_path / "cells.jsonl").open("ab") as file:
        file.write(b'\n{"key": "\xff\n[]\n{"key": {"method": 3}}\n{"key": 3}\n' + b"[" * 100_000)
    monkeypatch.setattr(files.read_text, "__defaults__", ("strict", 100))
    cells = results.Cells(tmp_path)
    assert [cells.get(cell(draw).key) for draw in range(3)] == [cell(0), cell(1), None]
    cells.add([cell(2)])
    assert results.Cells(tmp_path).get(cell(2).key) == cell(2)


@pytest.mark.parametrize("damaged", ["[]", "3", "", '{"a": 1, "rows": 3}', '{"a": 1, "rows": [3, {}]}', "\0\0"])
def test_a_damaged_table_is_replaced(damaged: str, tmp_path: Path) -> None:
    row = results.row([cell(0)])
    (tmp_path / "evaluation.json").write_text(damaged)
    results.write(tmp_path / "evaluation.json", [row], {"a": 1})
    assert [r for r in rows(tmp_path) if r] == [row]


@pytest.mark.usefixtures("_short")
def test_weights_alone_and_a_checkpoint_give_what_the_run_gives(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.run([str(run_dir)]) == 0
    expected = [row["accuracies"] for row in rows(run_dir)]
    assert [row["method"] for row in rows(run_dir)] == ["kNN", "linear"]
    alone = Path(shutil.copy(run_dir / "encoder.safetensors", tmp_path / "alone.safetensors"))
    tensors = {f"module.encoder_q.{name}": tensor for name, tensor in load_file(alone).items()}
    theirs = tmp_path / "theirs" / "moco.pth.tar"
    theirs.parent.mkdir()
    torch.save({"epoch": 200, "state_dict": tensors}, theirs)
    assert command.run([str(alone), "digits", "model.width=8"]) == 0
    assert [row["accuracies"] for row in rows(tmp_path)] == expected
    assert command.run([str(theirs), "digits", "model.width=8", "--knn"]) == 0
    assert [row["accuracies"] for row in rows(theirs.parent)] == expected[:1]
    line = f"moco_dist.evaluate: WEIGHTS = {theirs}: took the encoder's 100 tensors, state_dict.module.encoder_q.*"
    assert line in capsys.readouterr().err
    (run_dir / "encoder.safetensors").unlink()
    assert command.run([str(run_dir), "--out", str(tmp_path / "of checkpoint")]) == 0
    assert [row["accuracies"] for row in rows(tmp_path / "of checkpoint")] == expected
    assert command.run([str(run_dir), "--features", "head"]) == 0
    of_backbone, of_head = rows(run_dir)[:2], rows(run_dir)[2:]  # the backbone's stay, for comparison
    assert [row["accuracies"] for row in of_backbone] == expected
    assert [row["method"] for row in of_head] == ["kNN (head)", "linear (head)"]
    assert [row["accuracies"] for row in of_head] != expected


def test_a_run_that_has_gone_on_is_as_its_last_checkpoint(run_dir: Path) -> None:
    assert command.run([str(run_dir), "--knn"]) == 0
    before = json.loads((run_dir / "evaluation.json").read_text())["weights"]
    other = build_encoder(configs.load(None, ["model.width=8"]).model, 1, seed=1)
    checkpoint.write(run_dir / "checkpoints/step_000000008.pt", {"encoder_q": other.state_dict()})
    for state in ("done", "stopped"):
        status.write(run_dir, state, 8)
        assert command.run([str(run_dir), "--knn"]) == 0
        now = json.loads((run_dir / "evaluation.json").read_text())["weights"]
        assert (now == before) == (state == "done")
    (run_dir / "features_view.json").unlink()
    status.write(run_dir, "diverged", 9)  # after the last checkpoint
    assert command.run([str(run_dir), "--knn"]) == 0
    assert (left := features_view.read(run_dir / "features_view.json")) and left.step == 8


def test_overrides_on_which_figures_depend_are_told_and_folders_are_not(run_dir: Path) -> None:
    words = ["data.source=imagefolder", "data.root=/mine", "data.workers=1", "data.crop_scale=0.3,1", "eval.knn_k=20"]
    config = options.load_config(options.parse([str(run_dir), "--knn", *words, "device.precision=fp16"]))
    overrides = options.overrides_that_count(run_dir, config)
    assert overrides == [words[0], "data.root=FOLDER", "data.crop_scale=[0.3, 1.0]", "device.precision=fp16"]
    again = options.load_config(options.parse([str(run_dir), "--knn", *overrides]))
    assert options.overrides_that_count(run_dir, again) == overrides
    assert options.overrides_that_count(run_dir / "encoder.safetensors", config) == []
    means = f"data.mean={[n / 1000 for n in range(101, 113)]}"  # longer than a line of a message
    many = ["data.source=imagefolder", "data.root=FOLDER", "data.channels=12", means, means.replace("mean", "std")]
    config = options.load_config(options.parse([str(run_dir), "--knn", *many, "data.augmentation=crop_blur"]))
    assert set(many) <= set(options.overrides_that_count(run_dir, config))


def test_weights_that_were_trained_on_other_images_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, file = configs.load(None, ["model.width=8"]), tmp_path / "a.safetensors"
    for overrides, told in (
        ((), ""),
        (("data.image_size=12", "data.enlarge=true"), "data.image_size=12, and is judged with data.image_size=8"),
        (("data.mean=0.5", "data.std=0.25"), "data.mean=[0.5] data.std=[0.25], and is judged with data.mean="),
    ):
        described = description.Description.of(configs.load(None, ["model.width=8", *overrides]), 1)
        weights.save_backbone(build_encoder(config.model, 1, seed=0), file, described.metadata())
        subject.open_subject(file, config, World(0, 1, 0, torch.device("cpu")), "backbone")
        printed = capsys.readouterr().err
        assert f"{file} was trained with {told}" in printed if told else "was trained with" not in printed


def test_the_part_that_is_cut_for_a_validation_counts_where_it_is_what_judges(run_dir: Path) -> None:
    for split, expected in (("validation", ["eval.validation_fraction=0.3"]), ("test", [])):
        chosen = options.parse([str(run_dir), "--knn", "--split", split, "eval.validation_fraction=0.3"])
        assert options.overrides_that_count(run_dir, options.load_config(chosen)) == expected


@pytest.mark.usefixtures("_short")
def test_each_method_is_computed_again_if_what_it_depends_on_has_changed(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def added(
        *arguments: str, methods: Sequence[str] = ("--knn", "--linear", "--labels", "20", "--no-semi")
    ) -> set[str]:
        file = run_dir / "evaluation/cells.jsonl"
        before = file.read_text().splitlines() if file.exists() else []
        assert command.run([str(run_dir), *methods, *arguments]) == 0
        new = [json.loads(line)["key"] for line in file.read_text().splitlines()[len(before) :]]
        return {f"{key['method']}, {key['labels']}" for key in new}

    assert added() == {"kNN, None", "linear, None", "linear, 20"}
    assert added("data.workers=1") == set()
    assert not any("overrides" in row for row in rows(run_dir))
    assert added("eval.knn_k=5") == {"kNN, None"}
    assert [row["overrides"] for row in rows(run_dir)] == 3 * [["eval.knn_k=5"]]
    monkeypatch.setitem(few.REVISIONS, "linear", few.REVISIONS["linear"] + 1)
    assert added() == {"linear, 20"}
    monkeypatch.setitem(all_labels.REVISIONS, "kNN", all_labels.REVISIONS["kNN"] + 1)
    assert added() == {"kNN, None"}
    monkeypatch.setattr(features, "REVISION", features.REVISION + 1)
    assert added() == {"kNN, None", "linear, None", "linear, 20"}
    monkeypatch.setattr(metadata, "version", lambda name: "99" if name == "torch" else version(name))
    assert added(methods=["--knn"]) == {"kNN, None"}


def test_source_text_is_no_part_of_a_key(run_dir: Path, tmp_path: Path) -> None:
    """A copy of the package with a comment at the end of every file finds what the package has computed."""
    arguments = [str(run_dir), "--knn"]
    assert command.run(arguments) == 0
    before = (run_dir / "evaluation/cells.jsonl").read_text()
    package = Path(shutil.copytree(Path(subject.__file__).parents[1], tmp_path / "copy/moco_dist"))
    for file in package.rglob("*.py"):
        file.write_text(file.read_text() + "\n# A remark.\n")
    script = "import moco_dist, sys; from moco_dist.evaluate import command; print(moco_dist.__file__)\n"
    script += "sys.exit(command.run(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, *arguments], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0 and done.stdout.startswith(str(package)), done
    assert (run_dir / "evaluation/cells.jsonl").read_text() == before


HEAVY = "torch", "torchvision", "sklearn", "scipy", "matplotlib", "rich"


def loaded(statements: str, *arguments: str) -> set[str]:
    """The packages of HEAVY that a fresh process has imported after the statements."""
    script = f"import sys\ntry:\n    {statements}\nfinally:\n    print('modules', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=240)
    return set(HEAVY) & set(done.stdout.splitlines()[-1].split())


def test_help_and_mistakes_import_nothing_heavy(run_dir: Path) -> None:
    run = "from moco_dist.evaluate import command; assert command.run(sys.argv[1:]) == 2"
    for arguments in (["--help"], [f"{run_dir}", "--nearest"], [f"{run_dir}", "eval.knn_k=0"], [f"{run_dir}/nothing"]):
        assert loaded(run, *arguments) == set(), arguments


def test_only_pictures_import_matplotlib_and_nothing_needs_scipy_or_rich_before_it_is_used() -> None:
    assert "matplotlib" not in loaded("import moco_dist.evaluate.online, moco_dist.evaluate.process")
    for file in Path(subject.__file__).parent.glob("*.py"):
        at_the_top = [
            node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = " ".join(ast.unparse(node) for node in at_the_top)
        allowed = {"matplotlib"} if file.name in ("plots.py", "style.py") else set()
        assert {name for name in HEAVY[2:] if name in names} == allowed, file


def test_images_that_cannot_be_decoded_are_named_and_a_hundredth_is_too_many(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(run_dir), *folder_of(run_dir / "images", 2), "--knn"]
    for number in range(12, 100):  # 112 images to learn from
        image = run_dir / f"images/train/shade [0]/{number}.png"
        shutil.copyfile(image.with_name("0.png"), image)
    broken = run_dir / "images/train/shade [1]/7.png"
    broken.write_bytes(b"no image")
    assert command.run([*arguments, "data.workers=1"]) == 0
    warning = f"cannot be decoded, replaced by others: {broken}: cannot identify image file"
    assert capsys.readouterr().err == f"moco_dist.evaluate: {warning}\n"
    broken.with_name("8.png").write_bytes(b"no image")
    assert command.run([*arguments, "--out", str(run_dir / "again")]) == 2
    errors = capsys.readouterr().err
    assert re.search(r"data\.root = .*: 2 of 112 images cannot be decoded, .*; .*7\.png: cannot .*; mend", errors)
    for image in broken.parent.parent.glob("*/*.png"):
        image.write_bytes(b"no image")
    assert command.run([*arguments, "--out", str(run_dir / "again"), "data.workers=1"]) == 2  # found in a worker
    errors = capsys.readouterr().err
    assert errors.startswith("moco_dist.evaluate: data.root = ") and errors.count("\n") == 1


@pytest.mark.usefixtures("_short")
def test_the_validation_split_is_cut_from_the_training_images(run_dir: Path) -> None:
    assert command.run([str(run_dir), "--knn", "--split", "validation"]) == 0
    [row] = rows(run_dir)
    assert 0 < row["validation_accuracy_mean"] <= 1 and "test_accuracy_mean" not in row
    results = json.loads((run_dir / "evaluation.json").read_text())
    assert (results["split"], results["held_out"]) == ("validation", 144)


def folder_of(images: Path, classes: int, shade: int = 255) -> list[str]:
    """Arguments for image folders of a few images: of a class, so many columns of three are light, from the left."""
    for split, count in (("train", 12), ("val", 3)):
        for which in range(classes):
            (images / split / f"shade [{which}]").mkdir(parents=True)
            for number in range(count):
                pixels = np.zeros((9, 9), np.uint8)
                pixels[:, : 3 * which] = shade
                Image.fromarray(pixels).save(images / split / f"shade [{which}]" / f"{number}.png")
    return ["data.source=imagefolder", f"data.root={images}", "data.channels=1", "data.image_size=8"]


@pytest.mark.usefixtures("_short")
def test_folders_of_a_few_images_all_told_right(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(run_dir), *folder_of(run_dir / "[images]", 3), "--knn", "--labels", "6"]
    assert command.run(arguments) == 0, capsys.readouterr().err
    assert rows(run_dir)[0]["test_accuracy_mean"] == 1
    assert json.loads((run_dir / "evaluation.json").read_text())["held_out"] == 9
    other = folder_of(run_dir / "others", 3, shade=40)  # other images of the same names
    assert command.run([str(run_dir), *other, "--knn"]) == 0
    assert [row["method"] for row in rows(run_dir)] == ["kNN"]  # rows of other images do not stay
    cells = (run_dir / "evaluation/cells.jsonl").read_bytes()
    assert len(cells.splitlines()) == 4
    (run_dir / "others").rename(run_dir / "moved")
    (run_dir / "moved/train/beside.txt").touch()
    capsys.readouterr()
    assert command.run([str(run_dir), *other, f"data.root={run_dir}/moved", "--knn"]) == 0
    assert (run_dir / "evaluation/cells.jsonl").read_bytes() == cells  # where the images lie is no part of a key
    line = f"moco_dist.evaluate: {run_dir}/moved/train: 1 file with other suffixes passed over (.txt 1)\n"
    assert capsys.readouterr().err == line
    for image in (run_dir / "moved/train/shade [1]").iterdir():
        image.unlink()
    assert command.run([str(run_dir), *other, f"data.root={run_dir}/moved", "--labels", "6"]) == 2
    assert "--labels = 6: class shade [1] has no image to learn from; " in capsys.readouterr().err


def test_the_probe_by_sgd(run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = sgd_probe.ProbeRecipe
    monkeypatch.setattr(
        sgd_probe, "ProbeRecipe", lambda **fields: recipe(**{"epochs": 10, "lr": 3.0, "milestones": (8,), **fields})
    )
    assert command.run([str(run_dir), "--linear", "--solver", "sgd"]) == 0
    [row] = rows(run_dir)
    assert row["method"] == "linear by SGD" and row["test_accuracy_mean"] > 0.2  # a guess has 0.1
    assert "linear probe by SGD, epoch 10 of 10, loss " in capsys.readouterr().err


def unlabelled(run_dir: Path) -> list[str]:
    folder = run_dir.parent / "images"
    folder.mkdir()
    for number in range(130):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(folder / f"{number}.png")
    return [str(run_dir), "data.source=imagefolder", f"data.root={folder}", "data.channels=1"]


def not_finite(run_dir: Path) -> list[str]:
    tensors = load_file(run_dir / "encoder.safetensors")
    tensors["conv1.weight"][0] = torch.nan
    save_file(tensors, run_dir / "encoder.safetensors")
    return [str(run_dir)]


MISTAKES: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "no such path": (lambda r: [f"{r}/nothing"], r"RUN_DIR\|WEIGHTS = .*nothing: no such file or folder"),
    "no run": (lambda r: [str(r.parent)], r"RUN_DIR = .*holds no config\.yaml"),
    "weights alone": (
        lambda r: [str(r / "encoder.safetensors"), "model.width=8"],
        r"WEIGHTS = .*encoder\.safetensors: weights do not say which images they are judged by; add a CONFIG",
    ),
    "two configs": (lambda r: [str(r), "digits.yaml"], r"argument = digits\.yaml: a run directory has its config"),
    "other weights": (
        lambda r: [str(r / "encoder.safetensors"), "digits"],
        r"WEIGHTS = .*: \d+ of \d+ layers do not fit: conv1\.weight is \[8, 1, 3, 3\] where the model has \[16, "
        r".*; set model\.",
    ),
    "no weights": (lambda r: [str(r / "metrics.jsonl"), "digits"], r"WEIGHTS = .*cannot be read as weights"),
    "no head": (
        lambda r: [str(r / "encoder.safetensors"), "digits", "--features", "head", "model.width=8"],
        "have no head",
    ),
    "no labels": (
        unlabelled,
        r"data\.root = .*images: no labels; give a folder with train/ and val/ of class folders$",
    ),
    "NaN": (not_finite, r"conv1\.weight holds NaN, infinity or a variance below 0; "),
    "fewer labels than classes": (lambda r: [str(r), "--labels", "9"], "--labels = 9: there are 10 classes"),
    "more labels than images": (
        lambda r: [str(r), "--labels", "1430"],
        r"--labels = 1430: class 8 has 139 images, and 143 of each are asked for; use at most --labels 1390",
    ),
    "one class": (
        lambda r: [str(r), *folder_of(r / "images", 1)],
        r"data\.root = .*images: all images are of one class",
    ),
    "sgd on a few": (
        lambda r: [str(r), *folder_of(r / "images", 2), "--linear", "--solver", "sgd"],
        "--solver = sgd: the training set has 24 images, less than one batch of 256; use --solver lbfgs",
    ),
    "overrides of a checkpoint": (
        lambda r: [str(r), "--features", "head", "model.width=16"],
        r"RUN_DIR = .*: does not fit the config: .*drop the overrides of model",
    ),
    "fraction": (lambda r: [str(r), "--label-fraction", "1.5"], r"--label-fraction = 1\.5: must be above 0"),
    "a small fraction": (
        lambda r: [str(r), "--label-fraction", "0.005"],
        r"--label-fraction = 0\.005: is 7 of 1438 images, and there are 10 classes; use 0\.007 or more",
    ),
    "split": (lambda r: [str(r), "eval.knn_split=validation"], r"eval\.knn_split = validation: .*use --split test or"),
    "draws": (lambda r: [str(r), "--labels", "20", "--draws", "0"], "--draws = 0: must be 1 or more"),
    "draws of all images": (
        lambda r: [str(r), "--labels", "1438", "--draws", "3"],
        r"--draws = 3: there is nothing to draw where all images are labelled; drop it, or use fewer labels",
    ),
    "few labels without labels": (
        lambda r: [str(r), "--finetune"],
        r"--finetune = true: learns from labels; add --labels N, --labels all or",
    ),
    "draws without labels": (lambda r: [str(r), "--draws", "3"], r"--draws = 3: is about few labels; add --labels N"),
    "a solver of nothing": (
        lambda r: [str(r), "--knn", "--solver", "sgd"],
        "--solver = sgd: is about the linear probe on all labels; add --linear",
    ),
    "a layer of nothing": (
        lambda r: [str(r), "--labels", "20", "--features", "head"],
        "--features = head: is about kNN and the linear probe on all labels; add --knn or --linear",
    ),
    "option": (
        lambda r: [str(r), "--nearest"],
        r"unrecognized arguments: --nearest; see python -m",
    ),
    "fraction of unequal classes": (
        lambda r: [str(r), "--label-fraction", "0.99"],
        r"--label-fraction = 0\.99: is 1424 of 1438 images, equally many of 10 classes, of which one has 139; "
        r"use --labels 1390 or less instead",
    ),
    "both": (lambda r: [str(r), "--labels", "20", "--label-fraction", "0.1"], "--label-fraction: not allowed with"),
    "out is a file": (lambda r: [str(r), "--out", f"{r}/metrics.jsonl"], r"--out = .*cannot be written: Not a dir"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(name: str, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = MISTAKES[name]
    assert command.run(arguments(run_dir)) == 2
    error = capsys.readouterr().err
    assert error.startswith("moco_dist.evaluate: ") and error.count("\n") == 1
    assert re.search(message, error), error
    assert not (run_dir / "evaluation.json").exists()


def test_a_graph_too_large_for_the_machine_is_not_begun(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(devices, "memory", lambda device: 2 * 4 * 1438 * (64 + 16 * 16))  # what it needs, and no more
    assert command.run([str(run_dir), "--labels", "20"]) == 2
    assert "--labels = 20: the graph of 1438 images needs 0.0 GiB a rank; add --no-semi" in capsys.readouterr().err


def test_under_torchrun_as_a_user_starts_it(run_dir: Path) -> None:
    result = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *("-m", "moco_dist.evaluate", str(run_dir), "--knn", "--label-fraction", "0.02", "--no-semi"),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("kNN") == 1
    assert [(r["method"], r["labels"]) for r in rows(run_dir)] == [("kNN", None), ("linear", 29)]
