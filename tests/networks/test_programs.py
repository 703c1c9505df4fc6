"""Weights of other programs: the encoder that is loaded computes what the program's own module does."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from moco_dist.config.schema import ModelSection
from moco_dist.networks import weights
from moco_dist.networks.resnet import Encoder, build_encoder
from tests.networks import programs
from tests.networks.programs import Saved

PROGRAMS: dict[str, Callable[[Path], Saved]] = {
    "authors' MoCo v1": functools.partial(programs.authors_moco, 1),
    "authors' MoCo v2": functools.partial(programs.authors_moco, 2),
    "authors' MoCo v3": programs.authors_moco_v3,
    "authors' CIFAR-10 demo": programs.authors_cifar,
    "lightly's examples": programs.lightly_moco,
    "lightly's benchmarks": programs.lightly_benchmark,
    "solo-learn": functools.partial(programs.solo_learn, "imagenet"),
    "mmselfsup": programs.mmselfsup,
    "mmpretrain": programs.mmpretrain,
    "torchvision's resnet18": functools.partial(programs.torchvisions, "resnet18"),
    "torchvision's resnet34": functools.partial(programs.torchvisions, "resnet34"),
    "torchvision's resnet50": functools.partial(programs.torchvisions, "resnet50"),
    "timm's training": functools.partial(programs.timms, "resnet18"),
    "timm's folder": programs.timm_folder,
    "timm's resnet50": functools.partial(programs.timm_folder, arch="resnet50"),
    "transformers' resnet-18": functools.partial(programs.transformers, False),
    "transformers' resnet-50": functools.partial(programs.transformers, True),
    "transformers, in parts": functools.partial(programs.transformers, False, parts=3),
    "shortcuts": programs.with_shortcuts,
    "compiled": functools.partial(programs.compiled, stages=False),
    "compiled stages": functools.partial(programs.compiled, stages=True),
}


def load(path: Path, **model: Any) -> tuple[Encoder, list[str]]:
    options = {"arch": "resnet18", "stem": "imagenet", "width": 64, **model}
    encoder = copy.deepcopy(blank(*options.values()))
    return encoder.eval(), weights.load_backbone_(encoder, path)


@functools.cache
def blank(arch: Any, stem: Any, width: int) -> Encoder:
    return build_encoder(ModelSection(arch=arch, stem=stem, width=width), 3, seed=5)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_features_are_those_of_the_program(name: str, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    saved = PROGRAMS[name](path)
    encoder, lines = load(path, **saved.model)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs, ours = saved.features(images), encoder.features(images)
    assert theirs.std() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    assert f", {saved.prefix}*" in lines[0] or (not saved.prefix and "no prefix" in lines[0])


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_timm_has_our_layers(arch: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(arch).state_dict()
        ours = build_encoder(ModelSection(arch=arch), 3, seed=0).state_dict()  # type: ignore[arg-type]
    assert {n: t.shape for n, t in theirs.items() if n[:3] != "fc."} == {
        n: t.shape for n, t in ours.items() if n[:3] != "fc."
    }
