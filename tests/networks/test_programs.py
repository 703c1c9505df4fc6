"""An encoder that is loaded from the weights of another program computes what that program's module does."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from moco_dist.config.schema import ModelSection
from moco_dist.errors import UserError
from moco_dist.networks import weights
from moco_dist.networks.resnet import Encoder, build_encoder
from moco_dist.networks.weight_files import WeightFile
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


def lightly_generator(path: Path) -> None:
    """Save the children of lightly's ResNetGenerator, whose ReLU behind the stem is none of them."""
    children = [module for name, module in programs.resnet().named_children() if name not in ("relu", "maxpool", "fc")]
    model: Any = nn.Module()
    model.backbone = nn.Sequential(*children)
    torch.save({"state_dict": model.state_dict()}, path)


def without_pool(path: Path) -> None:
    children = [module for name, module in programs.resnet().named_children() if name not in ("maxpool", "fc")]
    torch.save(nn.Sequential(*children).state_dict(), path)


def sequence_with_prelu(path: Path) -> None:
    children = list(programs.resnet().children())[:-1]
    children[2] = nn.PReLU(64)
    torch.save(nn.Sequential(*children).state_dict(), path)


def with_entry(entry: dict[str, Any], path: Path) -> None:
    programs.timm_folder(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | entry))


def timm_state(arch: str, path: Path) -> None:
    torch.save(timm.create_model(arch).state_dict(), path)


def with_more(more: dict[str, torch.Tensor], path: Path) -> None:
    torch.save({**programs.resnet().state_dict(), **more}, path)


OTHERWISE: dict[str, tuple[Callable[[Path], object], str]] = {
    "lightly's generator": (
        lightly_generator,
        "lightly's ResNetGenerator, which has no ReLU after its first BatchNorm",
    ),
    "no pool": (without_pool, "no pool follows the 7x7 stem"),
    "PReLU": (sequence_with_prelu, r"1 layers do not fit: 2\.weight and its like are not in the model"),
    "GeM": (
        functools.partial(with_more, {"avgpool.p": torch.ones(1)}),
        r"1 layers do not fit: avgpool\.p and its like are not in the model",
    ),
    "bias": (functools.partial(with_more, {"conv1.bias": torch.ones(64)}), r"1 layers do not fit: conv1\.bias"),
    "deep stem": (
        functools.partial(with_more, {"conv2.weight": torch.ones(64, 64, 3, 3)}),
        r"1 layers do not fit: conv2\.weight",
    ),
    "mmpretrain in caffe's style": (
        functools.partial(programs.mmpretrain, style="caffe"),
        "style='caffe': strides are in the first convolution",
    ),
    "timm's resnetblur18, its training": (
        functools.partial(programs.timms, "resnetblur18"),
        "is a resnetblur18, which has layers of a ResNet and computes something else",
    ),
    "timm's resnetblur18, its folder": (
        functools.partial(programs.timm_folder, arch="resnetblur18"),
        "is a resnetblur18",
    ),
    "timm's dilated": (
        functools.partial(programs.timm_folder, output_stride=8),
        r"its config\.json has output_stride=8, which torchvision's ResNets have not",
    ),
    "timm's other pool": (
        functools.partial(with_entry, {"global_pool": "max"}),
        r"its config\.json has global_pool=max, where torchvision's ResNets have avg",
    ),
    "transformers' other stride": (
        functools.partial(with_entry, {"downsample_in_bottleneck": True}),
        r"its config\.json has downsample_in_bottleneck=true, where torchvision's ResNets have False",
    ),
    **{
        f"timm's {arch}": (functools.partial(timm_state, arch), "do not fit: .*no model.arch, stem and width has these")
        for arch in ("seresnet18", "resnet18d", "resnet26", "resnext50_32x4d")
    },
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_networks_that_compute_something_else_are_refused(name: str, tmp_path: Path) -> None:
    make, line = OTHERWISE[name]
    path = tmp_path / "weights"
    make(path)
    with pytest.raises(UserError, match=line) as error:
        load(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    "arch", ["resnet50d", "wide_resnet50_2", "resnet50_gn", "ecaresnet50d", "resnetrs50", "resnet200"]
)
def test_no_other_relative_of_timm_fits(arch: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(arch).state_dict()
        ours = build_encoder(ModelSection(arch="resnet50"), 3, seed=0)
    values = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in theirs.items()}
    with pytest.raises(UserError, match=r"layers do not fit"):
        weights.fitting_layers(ours, WeightFile({}, values), Path("a"), "A")


def test_a_file_in_a_folder_is_read_with_the_config_beside_it(tmp_path: Path) -> None:
    programs.timm_folder(tmp_path / "blur", arch="resnetblur18")
    with pytest.raises(UserError, match="is a resnetblur18"):
        load(tmp_path / "blur" / "model.safetensors")


def test_the_small_stem_of_solo_learn_is_told(tmp_path: Path) -> None:
    """The file looks like others of Lightning, and its features differ from ours at the border alone."""
    saved = programs.solo_learn("small", tmp_path / "weights.ckpt")
    encoder, lines = load(tmp_path / "weights.ckpt", **saved.model)
    assert lines[-1].endswith(
        "if solo-learn made it: its 3x3 stem pads by 2 pixels, ours by 1, so features differ somewhat"
    )
    encoder.conv1.padding = (2, 2)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(encoder.features(images), saved.features(images), rtol=1e-4, atol=1e-4)


def test_lines_say_what_is_taken_renamed_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    programs.lightly_moco(path)
    _, lines = load(path)
    assert [line.removeprefix(f"run.init_from = {path}: ") for line in lines] == [
        "took the encoder's 100 tensors, state_dict.backbone.*",
        "renamed 100 of them (numbered children): state_dict.backbone.0.weight to conv1.weight, "
        "state_dict.backbone.1.weight to bn1.weight, state_dict.backbone.1.bias to bn1.bias and 97 more",
        "left out what is not of the encoder: pytorch-lightning_version, epoch, global_step, "
        "state_dict.projection_head (4), state_dict.backbone_momentum (100), state_dict.projection_head_momentum (4) "
        "and 1 more",
    ]
