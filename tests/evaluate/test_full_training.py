"""`python -m moco_dist.evaluate RUN --finetune --labels all` trains networks, and refuses mistakes in one line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from moco_dist import config as configs
from moco_dist.evaluate import command, full_training, options, plots, process, training
from moco_dist.evaluate.classifier import Classifier
from moco_dist.evaluate.subject import open_subject
from moco_dist.networks import weights
from moco_dist.networks.resnet import build_encoder
from moco_dist.ranks.collectives import World
from tests import standin
from tests.ranks import Ranks

ALONE = World(0, 1, 0, torch.device("cpu"))
CONFIG = configs.load(None, ["model.width=8"])
FULL = ["--finetune", "--labels", "all", "--epochs", "1"]
FEW_IMAGES = ["data.source=synthetic", "data.samples=520", "data.channels=1", "data.image_size=8"]
"""Overrides for images of noise, as many as two steps of an epoch need."""
FINE_TUNED, FROM_SCRATCH = "fine-tuned (SimCLR, 1 epoch)", "supervised resnet18 (torchvision, 1 epoch)"
SMALL = "supervised small net (torchvision, 1 epoch)"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Write what a run on digits leaves; training from scratch begins with other weights than its encoder's."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(configs.dump(CONFIG))
    weights.save_backbone(build_encoder(CONFIG.model, 1, seed=5), folder / "encoder.safetensors")
    return folder


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing in this process: the pictures take longer than a short training."""
    monkeypatch.setattr(plots, "save", lambda path, figure: path.touch())


def rows(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "evaluation.json").read_text())["rows"])


def on_ranks(world: World, run_dir: str, out: str) -> None:
    everything = options.parse([run_dir, *FEW_IMAGES, *FULL, "--supervised", "--out", f"{out}/{world.size}"])
    process.evaluate(everything, options.load_config(everything), world)


def test_any_number_of_ranks_gives_the_same_figures(run_dir: Path, tmp_path: Path, ranks: Ranks) -> None:
    before = (run_dir / "encoder.safetensors").read_bytes()
    for size in (1, 2):
        ranks.run(size, on_ranks, str(run_dir), str(tmp_path), timeout_seconds=240)
    one, two = ([{**row, "seconds": 0} for row in rows(tmp_path / str(size))] for size in (1, 2))
    assert one == two
    assert [row["method"] for row in one] == [FINE_TUNED, FROM_SCRATCH, SMALL]
    assert all(row["labels"] is None and row["draws"] == 1 for row in one)
    fine_tuned, from_scratch = one[0]["recipe"], one[1]["recipe"]
    assert (fine_tuned["name"], fine_tuned["epochs"], fine_tuned["flip"]) == ("SimCLR", 1, 0.0)  # no digit is mirrored
    assert "appendix B.5" in fine_tuned["source"]
    assert (from_scratch["name"], from_scratch["batch"], from_scratch["group"]) == ("torchvision", 256, 32)
    assert (run_dir / "encoder.safetensors").read_bytes() == before


def test_a_broken_off_evaluation_goes_on_and_another_recipe_is_computed_anew(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(run_dir), *FEW_IMAGES]
    assert command.run([*arguments, *FULL]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"moco_dist\.evaluate: fine-tuned \(SimCLR, 1 epoch\), epoch 1 of 1, loss \d\.\d+", lines[0]), (
        lines
    )
    assert len(lines) == 2 and FROM_SCRATCH in lines[1]
    begun: list[str] = []
    fresh = build_encoder(CONFIG.model, 1, CONFIG.run.seed)

    def only_begin(classifier: Classifier, *_: object) -> None:
        begun.append("scratch" if torch.equal(classifier.net.conv1.weight, fresh.conv1.weight) else "encoder")
        classifier.eval()

    monkeypatch.setattr(training, "train_", only_begin)
    first, cells = rows(run_dir), run_dir / "evaluation/cells.jsonl"
    lines = cells.read_text().splitlines()
    cells.write_text(lines[0] + "\n" + lines[1][:50])  # killed as it wrote
    assert command.run([*arguments, "--finetune", "--label-fraction", "1.0", "--epochs", "1"]) == 0
    assert begun == ["scratch"] and rows(run_dir)[0] == first[0]
    assert command.run([*arguments, *FULL[:-1], "2"]) == 0
    assert begun[1:] == ["encoder", "scratch"] and rows(run_dir)[-1]["recipe"]["epochs"] == 2
    assert command.run([*arguments, *FULL, "device.precision=bf16"]) == 0
    assert begun[3:] == ["encoder", "scratch"]
    monkeypatch.setitem(full_training.REVISIONS, "fine-tuned", 99)
    assert command.run([*arguments, *FULL]) == 0
    assert begun[5:] == ["encoder"]


def test_fine_tuning_begins_as_the_encoder_and_leaves_it_alone(run_dir: Path) -> None:
    parsed = options.parse([str(run_dir), *FULL])
    subject = open_subject(run_dir, options.load_config(parsed), ALONE, "backbone")
    full = full_training.FullTraining(subject)
    held = {name: tensor.clone() for name, tensor in subject.encoder.state_dict().items()}
    classifier, fresh = full._fine_tuned(), full._supervised()
    assert all(torch.equal(held[name], tensor) for name, tensor in classifier.net.state_dict().items())
    theirs = build_encoder(CONFIG.model, 1, CONFIG.run.seed).state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in fresh.net.state_dict().items())
    assert not torch.equal(held["conv1.weight"], theirs["conv1.weight"])
    outcome = full._learn("it", classifier, training.FINE_TUNING.fitted(1438, 1, 0.0, epochs=5))
    assert all(torch.equal(held[name], tensor) for name, tensor in subject.encoder.state_dict().items())
    moved = [name for name, tensor in classifier.net.named_parameters() if not torch.equal(held[name], tensor)]
    assert moved == [name for name in dict(classifier.net.named_parameters()) if not name.startswith("fc.")]
    assert subject.accuracy(outcome.predicted) > 0.3  # of ten classes
    assert not torch.equal(classifier.net.bn1.running_mean, held["bn1.running_mean"])


def test_weights_from_elsewhere_are_trained_on_images_of_the_fast_decoder(run_dir: Path) -> None:
    parsed = options.parse([str(run_dir / "encoder.safetensors"), "digits", "model.width=8", *FULL])
    config = options.load_config(parsed)
    assert config.data.decode == "auto"
    assert open_subject(parsed.path, config, ALONE, "backbone").config.data.decode == "cpu"


def test_the_table_names_the_recipe_and_a_length_that_is_not_its_own(run_dir: Path) -> None:
    def names(*arguments: str) -> list[str]:
        parsed = options.parse([str(run_dir), "--finetune", "--labels", "all", *arguments])
        subject = open_subject(run_dir, options.load_config(parsed), ALONE, "backbone")
        return [method.name for method in full_training.FullTraining(subject).methods(parsed)]

    assert names() == ["fine-tuned (SimCLR)", "supervised resnet18 (torchvision)"]
    assert names("--epochs", "30") == ["fine-tuned (SimCLR)", "supervised resnet18 (torchvision, 30 epochs)"]


def test_weights_from_elsewhere(run_dir: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copy(run_dir / "encoder.safetensors", tmp_path / "alone.safetensors"))
    assert command.run([str(run_dir), *FEW_IMAGES, *FULL]) == 0
    assert command.run([str(alone), "digits", "model.width=8", *FEW_IMAGES, *FULL]) == 0
    assert [row["accuracies"] for row in rows(tmp_path)] == [row["accuracies"] for row in rows(run_dir)]


def folders(images: Path, count: int) -> list[str]:
    """Make two classes of so many images each, dark and light, and return the arguments for them."""
    for split in ("train", "val"):
        for name, shade in (("dark", 0), ("light", 200)):
            (images / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("L", (9, 9), shade + number % 50).save(images / split / name / f"{number}.png")
    return ["data.source=imagefolder", f"data.root={images}", "data.channels=1", "data.image_size=8"]


def test_few_images_are_one_group(run_dir: Path) -> None:
    arguments = folders(run_dir.parent / "images", 8)
    assert command.run([str(run_dir), *arguments, *FULL[:-1], "3"]) == 0
    assert [(row["recipe"]["batch"], row["recipe"]["group"]) for row in rows(run_dir)] == [(16, 16)] * 2


def test_images_that_cannot_be_decoded_are_named_and_a_hundredth_is_too_many(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = run_dir.parent / "images"
    arguments = [
        str(run_dir),
        *folders(images, 60),
        "--finetune",
        "--labels",
        "all",
        "--epochs",
        "4",
        "data.cache=none",
    ]
    (images / "train/dark/3.png").write_bytes(b"no image")
    assert command.run(arguments) == 0
    printed = capsys.readouterr().err
    assert printed.count("cannot be decoded, replaced by others: ") == 1 and "dark/3.png" in printed
    for number in range(4, 40):
        (images / f"train/dark/{number}.png").write_bytes(b"no image")
    assert command.run([*arguments, "--out", str(run_dir.parent)]) == 2
    printed = capsys.readouterr().err
    assert re.search(r"data\.root = .*: \d+ of 120 images cannot be decoded, more than 1 %", printed)


def test_a_training_that_diverges_is_told(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training.TrainingRecipe, "learning_rate", lambda self, step, epoch_steps: 1e30)
    assert command.run([str(run_dir), *FULL]) == 2
    printed = capsys.readouterr().err
    assert (
        printed.count("\n") == 1
        and "--labels = all: fine-tuned (SimCLR, 1 epoch) has diverged by epoch 1 of 1; try" in printed
    )
    assert not (run_dir / "evaluation.json").exists()


MISTAKES: dict[str, tuple[list[str], str]] = {
    "nothing to train": (["--labels", "all"], r"--labels = all: says .*; add --finetune or --supervised, or use --lin"),
    "draws": ([*FULL, "--draws", "2"], r"--draws = 2: there is nothing to draw where all images are labelled; drop it"),
    "draws of a fraction": (
        ["--label-fraction", "1.0", "--finetune", "--draws", "3"],
        r"--draws = 3: there is nothing",
    ),
    "no epochs": ([*FULL[:-1], "0"], r"--epochs = 0: must be 1 or more"),
    "too many epochs": ([*FULL[:-1], str(10**23)], r"--epochs = 1000+: must be 1 or more, and at most 1000000"),
    "no number of epochs": ([*FULL[:-1], "two"], r"argument --epochs: invalid int value: 'two'"),
    "epochs of few labels": (["--labels", "20", "--epochs", "3"], r"--epochs = 3: is about training on all labels"),
    "epochs alone": (["--epochs", "3"], r"--epochs = 3: is about training on all labels; add --labels all"),
    "no number of labels": (["--labels", "every"], r"--labels = every: must be a number of images, or all; use"),
    "both": ([*FULL, "--label-fraction", "0.1"], r"--label-fraction: not allowed with argument --labels"),
    "no labels": (["--supervised"], r"--supervised = true: learns from labels; add --labels N, --labels all or"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(name: str, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = MISTAKES[name]
    assert command.run([str(run_dir), *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("moco_dist.evaluate: ") and printed.count("\n") == 1
    assert re.search(message, printed), printed


def on_few_images(world: World, run_dir: str, images: list[str]) -> str:
    parsed = options.parse([run_dir, *images, *FULL])
    try:
        process.evaluate(parsed, options.load_config(parsed), world)
    except process.UserError as mistake:
        return str(mistake)
    return ""


def test_too_few_images_for_the_ranks_are_a_mistake_on_all_of_them(run_dir: Path, ranks: Ranks) -> None:
    images = folders(run_dir.parent / "images", 20)
    lines = ranks.run(2, on_few_images, str(run_dir), images)
    rule = "40 images are less than a BatchNorm group of 32 for each of 2 ranks"
    assert lines == [f"--labels = all: {rule}; use at most --nproc_per_node=1"] * 2


@pytest.mark.standin
def test_a_device_gives_the_cpus_figures(run_dir: Path, tmp_path: Path) -> None:
    arguments = [str(run_dir), *FULL, "--supervised", "device.compile=false"]
    with standin.present():
        assert command.run([*arguments, "--out", str(tmp_path / "there"), "device.type=cuda"]) == 0
    assert command.run([*arguments, "--out", str(tmp_path / "here"), "device.type=cpu"]) == 0
    there, here = ([row["test_accuracy_mean"] for row in rows(tmp_path / folder)] for folder in ("there", "here"))
    assert len(there) == 3 and there == pytest.approx(here, abs=0.03)  # the groups are computed at once, or one by one
