"""The commands of docs/weights.md about foreign weights run, and its lists are those of the code."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
import torch

from moco_dist.evaluate import command, plots, process
from moco_dist.networks import layouts, torch_files, variants
from moco_dist.train import run as train
from tests.networks.test_weights import OTHER, STATE, encoder

PAGE = (Path(__file__).parents[2] / "docs" / "weights.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("\n## In\n")[2].partition("\n## ")[0]
IMAGES = "cifar10 data.root=FOLDER"
QUICK = ["model.width=8", "optim.steps=1", "eval.knn_every=0", "track.wandb=disabled"]


def words(module: str) -> list[str]:
    """Return the arguments of the page's command of a module."""
    match = re.search(rf"^    python -m moco_dist\.{module} (.*?) +#", SECTION, re.MULTILINE)
    assert match and IMAGES in match[1]
    return match[1].replace(IMAGES, "digits").split()


@pytest.mark.parametrize("module", ["train", "evaluate"])
def test_the_commands_run(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "save", lambda path, figure: None)  # which takes longer than the evaluation
    monkeypatch.setattr(process, "leave_view", lambda *_: None)
    weights = tmp_path / "theirs.pth"
    state = {f"module.encoder_q.{name}": tensor for name, tensor in encoder(1, channels=1).state_dict().items()}
    torch.save({"state_dict": state}, weights)
    arguments = [word.replace("WEIGHTS", str(weights)) for word in words(module)]
    if module == "train":
        assert train([*arguments, *QUICK, f"run.dir={tmp_path / 'run'}"]) == 0
    else:
        assert command.run([*arguments, "model.width=8", "--knn"]) == 0
    assert "took the encoder's 100 tensors, state_dict.module.encoder_q.*" in capsys.readouterr().err


def test_one_of_several_encoders_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = argparse.Namespace(arch="resnet18", lr=0.1)  # which DINO, timm and torchvision's training save too
    torch.save({"student": STATE, "teacher": OTHER, "epoch": 3, "args": options}, "dino.pth")
    code = re.search(r"((?:^    .*\n|^\n)+)or, where they are in one dict", SECTION, re.MULTILINE)
    assert code
    exec(re.sub("^    ", "", code[1], flags=re.MULTILINE))
    assert torch.load("student.pth", weights_only=True).keys() == STATE.keys()


def test_the_lists_are_those_of_the_code() -> None:
    assert all(name in SECTION for name in ("encoder_k", "momentum", "target"))
    assert {*layouts._FOLLOWERS} == {"encoder_k", "momentum", "target", "key_encoder", "key_backbone"}
    for name in ("resnetblur18", "resnetblur50", "resnetaa50"):
        assert name in SECTION and variants._SAME_LAYERS.fullmatch(name)
    assert {"omegaconf", "mmengine"} <= torch_files._HARMLESS
