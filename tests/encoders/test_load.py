"""The module that `load_encoder` returns computes the features that the evaluation of the run uses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PurePath

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from moco_dist.config.schema import ModelSection
from moco_dist.data import sources
from moco_dist.data.augment import Augment, Recipe
from moco_dist.encoders import description
from moco_dist.encoders.load import load_encoder
from moco_dist.encoders.preprocessing import Preprocessing
from moco_dist.engine import checkpoint
from moco_dist.errors import UserError
from moco_dist.networks import weights
from moco_dist.networks.resnet import build_encoder
from moco_dist.networks.weight_files import WeightFile
from moco_dist.run.checkpoints import CheckpointIndex
from moco_dist.run.paths import RunPaths
from moco_dist.train import run as train

SMALL = [
    "optim.steps=4",
    "checkpoint.every_steps=2",
    "optim.global_batch=32",
    "moco.queue_size=64",
    "track.wandb=disabled",
]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    assert train([f"run.dir={folder}", "track.wandb=disabled", "model.width=8", "eval.knn_every=0", *SMALL]) == 0
    return folder


def test_features_are_those_of_the_evaluation(run_dir: Path) -> None:
    encoder = load_encoder(run_dir)
    config = encoder.origin.config
    assert config is not None and encoder.origin.step == 4
    source = sources.open_source(config, "test")
    pixels, _ = source.centred(np.arange(8), config.data.image_size)
    plain = Augment(Recipe.of(config.data), *source.pixel_statistics).plain(pixels)
    images = torch.stack([encoder.preprocess(image) for image in pixels])
    assert torch.equal(images, plain)
    with torch.no_grad():
        features = encoder.features(images)  # [8, D]
        network = build_encoder(config.model, 1, 0)
        state = torch.load(CheckpointIndex(RunPaths(run_dir).checkpoints).path(4), weights_only=True)
        network.load_state_dict(state["encoder_q"])
        assert torch.equal(features, network.eval().features(plain))
        assert features.shape == (8, encoder.feature_dim) and torch.equal(encoder(images), features)


def test_weights_of_ours_tell_of_their_images_wherever_they_lie(run_dir: Path, tmp_path: Path) -> None:
    moved = tmp_path / "weights.bin"
    moved.write_bytes(RunPaths(run_dir).encoder.read_bytes())
    alone, of_run = load_encoder(moved), load_encoder(run_dir)
    assert alone.preprocess == of_run.preprocess == Preprocessing(8, 8, (0.3053,), (0.3760,))
    assert alone.model == of_run.model and alone.digest == of_run.digest and alone.origin.step == 4


def test_weights_tell_which_encoder_they_are(run_dir: Path, tmp_path: Path) -> None:
    key = load_encoder(run_dir, encoder="key")
    described = description.Description(key.model, key.preprocess, {"encoder": "key", "step": 4})
    weights.save_backbone(key.network, tmp_path / "key.safetensors", described.metadata())
    assert load_encoder(tmp_path / "key.safetensors").origin.which == "key"
    assert load_encoder(RunPaths(run_dir).encoder).origin.which == "query"


def test_an_override_of_nothing_takes_back_what_weights_tell(run_dir: Path, tmp_path: Path) -> None:
    alone = load_encoder(run_dir)
    deep = Preprocessing(8, 8, (0.3,), (0.4,), (0.0, 4095.0))
    metadata = description.Description(alone.model, deep).metadata()
    weights.save_backbone(alone.network, tmp_path / "a.safetensors", metadata)
    read = [
        load_encoder(tmp_path / "a.safetensors", overrides=over).preprocess for over in ([], ["data.image_size=16"])
    ]
    assert read == [deep, Preprocessing(16, 16, (0.3,), (0.4,), (0.0, 4095.0))]
    nothing = ["data.mean=null", "data.std=null", "data.value_range=null"]
    read = [load_encoder(tmp_path / "a.safetensors", overrides=over).preprocess for over in (nothing[:2], nothing[2:])]
    assert read == [Preprocessing(8, 8, (0.449,), (0.226,), (0.0, 4095.0)), Preprocessing(8, 8, (0.3,), (0.4,))]


def test_a_checkpoint_tells_of_its_images_wherever_it_lies(run_dir: Path, tmp_path: Path) -> None:
    moved = shutil.copy(CheckpointIndex(RunPaths(run_dir).checkpoints).path(2), tmp_path / "weights.pth")
    alone, of_run = load_encoder(moved), load_encoder(run_dir, step=2)
    assert alone.preprocess == of_run.preprocess and alone.model == of_run.model
    assert alone.digest == of_run.digest and alone.origin.step == 2


def test_the_encoders_of_checkpoints_differ_and_have_heads(run_dir: Path) -> None:
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    final, head, key, before = (
        load_encoder(run_dir),
        load_encoder(run_dir, head=True),
        load_encoder(run_dir, encoder="key"),
        load_encoder(run_dir, step=2),
    )
    with torch.no_grad():
        assert torch.equal(final.features(images), head.features(images))
        assert torch.allclose(head.project(images).norm(dim=1), torch.ones(4))
        assert not torch.allclose(key.features(images), final.features(images), atol=1e-6)
        assert not torch.allclose(before.features(images), final.features(images), atol=1e-6)
    assert not final.has_head
    with pytest.raises(ValueError, match="has no head"):
        final.project(images)


def test_it_learns_as_any_module(run_dir: Path) -> None:
    """The running statistics follow the images, which those of the engine would not."""
    encoder = load_encoder(run_dir).train()
    before = encoder.network.bn1.running_mean.clone()
    encoder.features(torch.randn(8, 1, 8, 8)).sum().backward()
    assert not torch.equal(encoder.network.bn1.running_mean, before)
    assert encoder.network.conv1.weight.grad is not None


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_weights_from_elsewhere_are_described_by_their_shapes(stem: str, tmp_path: Path) -> None:
    model = ModelSection.model_validate({"stem": stem, "arch": "resnet34", "width": 16})
    network = build_encoder(model, 3, seed=3)
    torch.save({"state_dict": {f"backbone.{n}": t for n, t in network.state_dict().items()}}, tmp_path / "a.ckpt")
    with pytest.warns(UserWarning, match=r"does not describe its images: \d+ pixels and ImageNet's statistics"):
        encoder = load_encoder(tmp_path / "a.ckpt")
    assert (encoder.model.arch, encoder.model.stem, encoder.model.width) == ("resnet34", stem, 16)
    assert encoder.preprocess == Preprocessing.general(224 if stem == "imagenet" else 32, 3)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(encoder(images), network.eval().features(images))

    changed = load_encoder(tmp_path / "a.ckpt", overrides=["data.image_size=56", "data.mean=0,0,0", "data.std=1,1,1"])
    assert (changed.preprocess.image_size, changed.preprocess.resize) == (56, 64)
    assert changed.preprocess.mean == (0, 0, 0)


def test_the_preprocessing_of_a_folder_of_timms_is_read(tmp_path: Path) -> None:
    network = build_encoder(ModelSection(arch="resnet18", stem="imagenet", width=64), 3, seed=0)
    save_file(weights.backbone_of(network), tmp_path / "model.safetensors")
    pretrained = {"input_size": [3, 176, 176], "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "crop_pct": 0.95}
    config = {"architecture": "resnet18.a1_in1k", "pretrained_cfg": pretrained}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_encoder(tmp_path).preprocess == Preprocessing(176, 185, (0.5,) * 3, (0.2,) * 3)
    resizing = {"interpolation": "bicubic", "crop_mode": "squash"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": {**pretrained, **resizing}}))
    with pytest.warns(UserWarning, match="images that are resized with interpolation=bicubic, crop_mode=squash; here"):
        assert load_encoder(tmp_path).preprocess.image_size == 176
    resizing = {"interpolation": "bilinear", "crop_mode": "center"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": {**pretrained, **resizing}}))
    assert load_encoder(tmp_path).preprocess.image_size == 176
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnetblur18"}))
    with pytest.raises(UserError, match="is a resnetblur18, which has layers of a ResNet and computes something else"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"encoder": "key"}, "encoder = key: is in a run alone"),
        ({"encoder": "encoder_k"}, "encoder = encoder_k: is not known; use query or key"),
        ({"head": True}, "head = true: is in a run alone"),
        ({"step": 3}, "step = 3: is in a run alone"),
        ({"overrides": ["model.arch=resnet50"]}, "overrides = model.arch: weights without a config have none"),
        ({"overrides": ["data.mean=1,2"]}, r"data\.mean = .*must have 1 numbers, one a channel"),
        (
            {"config": "cifar10", "overrides": ["data.root=."]},
            "layers do not fit: .*set model.width=8, and give images of 1 channel",
        ),
    ],
)
def test_what_does_not_fit_weights_is_refused(options: dict[str, object], line: str, run_dir: Path) -> None:
    with pytest.raises(UserError, match=line) as error:
        load_encoder(RunPaths(run_dir).encoder, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"step": 3}, "has no checkpoint of step 3, but of 2, 4; take one"),
        ({"config": "digits"}, "config = digits: a run directory has its config"),
        ({"overrides": ["model.width=16"]}, r"layers do not fit"),
        ({"overrides": ["model.width=16"], "encoder": "key"}, "does not fit the config"),
    ],
)
def test_what_does_not_fit_a_run_is_refused(options: dict[str, object], line: str, run_dir: Path) -> None:
    with pytest.raises(UserError, match=line):
        load_encoder(run_dir, **options)  # type: ignore[arg-type]


def test_damaged_descriptions_are_passed_over(run_dir: Path, tmp_path: Path) -> None:
    file = RunPaths(run_dir).encoder
    with safe_open(file, "pt") as tensors:
        content = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        described = json.loads(tensors.metadata()["moco_dist"])
    damaged = [
        "",
        "[]",
        "{",
        json.dumps({**described, "model": {"arch": "vgg"}}),
        json.dumps({**described, "preprocessing": {**described["preprocessing"], "image_size": -1}}),
        json.dumps({**described, "preprocessing": {**described["preprocessing"], "std": [0.0]}}),
        json.dumps({**described, "preprocessing": {**described["preprocessing"], "mean": [1e999]}}),
        json.dumps({**described, "preprocessing": {**described["preprocessing"], "value_range": [3, 3]}}),
        json.dumps({**described, "preprocessing": {**described["preprocessing"], "value_range": [0, 1e999]}}),
        json.dumps({**described, "preprocessing": [8]}),
        *(json.dumps({**described, "model": {**described["model"], key: 2**50}}) for key in ("dim", "width")),
    ]
    for text in damaged:
        save_file(content, tmp_path / "a.safetensors", metadata={"moco_dist": text})
        with pytest.warns(UserWarning, match="does not describe its images"):
            assert load_encoder(tmp_path / "a.safetensors").preprocess.image_size == 32


def test_a_picture_is_prepared_in_any_form(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", pixels)
    prepare = Preprocessing.general(28, 3)
    tensor = torch.from_numpy(pixels)
    forms = [
        str(tmp_path / "a.png"),
        PurePath(tmp_path / "a.png"),
        tmp_path / "a.npy",
        Image.fromarray(pixels),
        pixels,
        tensor,
        tensor.permute(2, 0, 1),
    ]
    prepared = [prepare(form) for form in forms]
    assert prepared[0].shape == (3, 28, 28) and prepared[0].dtype == torch.float32
    assert all(torch.equal(prepared[0], other) for other in prepared[1:])
    gray = Preprocessing.general(28, 1)
    assert torch.equal(gray(Image.fromarray(pixels)), gray(Image.fromarray(pixels).convert("L")))
    turned = Image.fromarray(pixels)
    exif = turned.getexif()
    exif[274] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert torch.equal(prepare(tmp_path / "turned.jpg"), prepare(Image.open(tmp_path / "turned.jpg")))
    for bad in (np.zeros(3, np.uint8), np.zeros((4, 4, 2), np.uint8), np.full((4, 4), "a"), np.full((4, 4), 2.0)):
        with pytest.raises(ValueError, match=r"shape|real numbers|values from"):
            prepare(bad)


def test_an_image_without_pixels_is_refused_and_bfloat16_is_taken(run_dir: Path) -> None:
    prepare = load_encoder(run_dir).preprocess
    for shape in ((0, 8), (8, 0, 1), (1, 0, 0)):
        with pytest.raises(ValueError, match="an image has the shape"):
            prepare(np.zeros(shape, np.uint8))
    pixels = torch.full((1, 8, 8), 0.5)
    assert torch.equal(prepare(pixels.bfloat16()), prepare(pixels))


def test_a_checkpoint_of_another_revision_tells_nothing_of_its_images(run_dir: Path, tmp_path: Path) -> None:
    state = checkpoint.load(CheckpointIndex(RunPaths(run_dir).checkpoints).path(4))
    config = state["config"]
    data, model = ({**config[name]} for name in ("data", "model"))
    for other in ({"data": {**data, "colour": "no key"}}, {"colours": {1: 2}}, {"model": {**model, "width": 2**50}}):
        torch.save({**state, "config": {**config, **other}}, tmp_path / "a.pt")
        with pytest.warns(UserWarning, match="does not describe its images"):
            assert load_encoder(tmp_path / "a.pt").preprocess.image_size == 32


def test_what_is_assumed_of_images_of_other_channels_is_told(tmp_path: Path) -> None:
    network = build_encoder(ModelSection(arch="resnet18", stem="small", width=8), 4, seed=0)
    torch.save(network.state_dict(), tmp_path / "a.pt")
    with pytest.warns(UserWarning, match=r"32 pixels and means of 0\.5 are assumed"):
        assert load_encoder(tmp_path / "a.pt").preprocess.mean == (0.5,) * 4


@pytest.mark.parametrize(
    "other",
    [{"input_size": [3, 176, 160]}, {"input_size": [1, 176, 176]}, {"mean": None}, {"crop_pct": 0}, {"crop_pct": "a"}],
    ids=str,
)
def test_a_preprocessing_of_timms_that_is_none_is_passed_over(other: dict[str, object]) -> None:
    pretrained = {"input_size": [3, 176, 176], "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "crop_pct": 0.95}
    described = [
        description.of_folder(WeightFile({}, {}, config={"pretrained_cfg": content}), 3)
        for content in (pretrained, {**pretrained, **other}, 3)
    ]
    assert described == [Preprocessing(176, 185, (0.5,) * 3, (0.2,) * 3), None, None]


def test_it_is_described_where_it_is_printed(run_dir: Path) -> None:
    text = f"resnet18, small stem, 64 features, of {run_dir}, step 4"
    assert text in repr(load_encoder(run_dir))
    assert text not in repr(load_encoder(RunPaths(run_dir).encoder.parent, step=2))
