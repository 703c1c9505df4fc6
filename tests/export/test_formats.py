"""Other programs compute the same features with an exported encoder."""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moco_dist.config.schema import ModelSection
from moco_dist.encoders.description import Description
from moco_dist.encoders.load import load_encoder
from moco_dist.errors import UserError
from moco_dist.export import graphs, onnx_graph, state_dicts
from moco_dist.export.command import run
from moco_dist.networks import batchnorm, layouts, weight_files
from moco_dist.networks.resnet import Encoder, build_encoder
from moco_dist.reference import read as reference
from tests.jobs import ROOT


def export(run_dir: Path, to: str, *options: str) -> Path:
    """Export an encoder to the default place of a format."""
    assert run([str(run_dir), "--to", to, *options]) == 0
    (out,) = (run_dir / "export").glob(f"{to}*")
    return out


def images_of(batch: int, channels: int, size: int) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(batch))


def far_from_its_beginning(arch: str, **model: Any) -> Encoder:
    """Build an encoder all of whose numbers count: statistics, scales and shifts are random."""
    network = build_encoder(ModelSection.model_validate({"arch": arch, "stem": "imagenet", **model}), 3, seed=1)
    generator = torch.Generator().manual_seed(1)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                assert tensor is not None
                tensor.data.uniform_(0.2, 0.6, generator=generator)
    batchnorm.make_plain_(network)
    return network.eval()


@torch.no_grad()
def test_torchvision_loads_all_but_fc(standard: Path) -> None:
    from torchvision import models

    file = export(standard, "torchvision")
    model = models.resnet18()
    missing, unexpected = model.load_state_dict(torch.load(file, weights_only=True), strict=False)
    assert missing == ["fc.weight", "fc.bias"] and unexpected == []
    model.fc = nn.Identity()
    images, encoder = images_of(3, 3, 32), load_encoder(standard)
    assert torch.allclose(model.eval()(images), encoder.features(images), atol=1e-5)
    with pytest.warns(UserWarning, match="does not describe its images"):
        assert load_encoder(file).digest == encoder.digest


@torch.no_grad()
def test_timm_loads_every_layer(standard: Path) -> None:
    timm = pytest.importorskip("timm")
    file = export(standard, "timm")
    model = timm.create_model("resnet18", num_classes=0, checkpoint_path=str(file)).eval()  # which is strict
    images, encoder = images_of(3, 3, 32), load_encoder(standard)
    assert torch.allclose(model(images), encoder.features(images), atol=1e-5)
    assert load_encoder(file).digest == encoder.digest and load_encoder(file).preprocess == encoder.preprocess


@torch.no_grad()
def test_our_own_format_is_that_of_the_run(narrow: Path) -> None:
    file = export(narrow, "safetensors")
    files = [weight_files.read(path, "PATH") for path in (file, narrow / "encoder.safetensors")]
    assert files[0].metadata == files[1].metadata and files[0].values.keys() == files[1].values.keys()
    assert all(torch.equal(tensor, files[1].values[name]) for name, tensor in files[0].values.items())  # type: ignore[arg-type]
    assert int(files[0].values["bn1.num_batches_tracked"]) > 0  # type: ignore[call-overload]
    key = load_encoder(narrow, encoder="key")
    assert load_encoder(export(narrow, "safetensors", "--encoder", "key")).digest == key.digest
    before = load_encoder(export(narrow, "safetensors", "--step", "2"))
    assert before.digest == load_encoder(narrow, step=2).digest and before.origin.step == 2


@torch.no_grad()
@pytest.mark.parametrize("to", ["torchvision", "timm"])
def test_a_bottleneck_computes_the_same_elsewhere(to: str) -> None:
    network = far_from_its_beginning("resnet50")
    content = torch.load(io.BytesIO(state_dicts.as_torchvision(network)), weights_only=True)
    if to == "timm":
        model = pytest.importorskip("timm").create_model("resnet50", num_classes=0)
    else:
        from torchvision import models

        model = models.resnet50()
        model.fc = nn.Identity()
    model.load_state_dict(content)
    images = images_of(2, 3, 40)
    assert torch.allclose(model.eval()(images), network.features(images), rtol=1e-4, atol=1e-5)


def from_detectron2(name: str) -> str:
    """Translate detectron2's name of a layer into torchvision's."""
    if name.startswith("stem."):
        return name.replace("stem.conv1.norm.", "bn1.").replace("stem.conv1.", "conv1.")
    match = re.fullmatch(r"res([2-5])\.(\d+)\.(conv[123]|shortcut)\.(norm\.)?(\w+)", name)
    assert match, name
    stage, block, layer, norm, end = match.groups()
    if layer == "shortcut":
        return f"layer{int(stage) - 1}.{block}.downsample.{1 if norm else 0}.{end}"
    return f"layer{int(stage) - 1}.{block}.{f'bn{layer[-1]}' if norm else layer}.{end}"


class Recording(pickle.Unpickler):
    """This unpickler records all functions and classes that a pickle names."""

    names: set[str]

    def find_class(self, module: str, name: str) -> Any:
        self.names.add(f"{module}.{name}")
        return super().find_class(module, name)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_detectron2s_names_are_inverted_exactly(arch: str, tmp_path: Path) -> None:
    network = far_from_its_beginning(arch)
    (tmp_path / "a.pkl").write_bytes(state_dicts.as_detectron2(network))
    with (tmp_path / "a.pkl").open("rb") as file:
        unpickler = Recording(file, encoding="latin1")
        unpickler.names = set()
        content = unpickler.load()
    assert unpickler.names == {"numpy.ndarray"}  # which numpy 1 and 2 both have
    assert content["matching_heuristics"] is True and content["__author__"] == "moco-dist"
    theirs = {from_detectron2(name): array for name, array in content["model"].items()}
    ours = {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    assert theirs.keys() == {name for name in ours if not name.startswith("fc.")}
    for name, array in theirs.items():
        assert array.dtype == np.float32 and array.flags.writeable
        assert torch.equal(torch.from_numpy(array), ours[name].detach())
    expected = {"stem.conv1.weight", "stem.conv1.norm.running_var", "res3.0.shortcut.weight", "res5.1.conv2.norm.bias"}
    assert expected <= content["model"].keys()


def test_detectron2s_file_is_that_of_the_run(standard: Path) -> None:
    model = pickle.loads(export(standard, "detectron2").read_bytes())["model"]
    conv1 = torch.load(standard / "checkpoints" / "step_000000002.pt", weights_only=True)["encoder_q"]["conv1.weight"]
    assert torch.equal(torch.from_numpy(model["stem.conv1.weight"]), conv1)


@torch.no_grad()
@pytest.mark.parametrize("options", [[], ["--head"], ["--encoder", "key"], ["--step", "2", "--head"]], ids=" ".join)
def test_onnx_runtime_computes_any_batch(options: list[str], narrow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    file = export(narrow, "onnx", *options)
    assert re.search(r"; largest difference from torch \d\S*\n$", capsys.readouterr().out)
    which, head = ("key" if "key" in options else "query"), "--head" in options
    encoder = load_encoder(narrow, encoder=which, head=head, step=2 if "2" in options else None)  # type: ignore[arg-type]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = "projection" if head else "features"
    for batch in (1, 3, 17):
        images = images_of(batch, 1, 8)
        (output,) = session.run([name], {"images": images.numpy()})
        expected = encoder.project(images) if head else encoder.features(images)
        assert np.abs(output - expected.numpy()).max() < 1e-5 and output.shape == expected.shape
    model = onnx.load(file)
    properties = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert properties["preprocessing"]["image_size"] == 8 and properties["model"]["width"] == 8
    assert properties["run"]["step"] == encoder.origin.step
    assert properties["run"].get("encoder", "query") == which
    assert [entry.version for entry in model.opset_import] == [17] and model.producer_name == "moco-dist"


@torch.no_grad()
@pytest.mark.parametrize("arch", ["resnet34", "resnet50"])
@pytest.mark.parametrize("mlp", [True, False])
def test_onnx_holds_every_network(arch: str, mlp: bool) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    network = far_from_its_beginning(arch, width=16, mlp=mlp)
    model = onnx_graph.model(network, 40, {}, head=True).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    images = images_of(2, 3, 40)
    (output,) = session.run(None, {"images": images.numpy()})
    assert np.abs(output - nn.functional.normalize(network(images), dim=1).numpy()).max() < 1e-5


def test_a_model_that_computes_something_else_is_not_left(
    narrow: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    true_weight = onnx_graph._Graph.weight

    def wrong(graph: Any, name: str, tensor: Tensor) -> str:
        return true_weight(graph, name, tensor + 0.01 * (name == "layer3.0.bn1.bias"))

    monkeypatch.setattr(onnx_graph._Graph, "weight", wrong)
    assert run([str(narrow), "--to", "onnx"]) == 2
    error = capsys.readouterr().err
    assert "computes features that are 0.0" in error and "0.0001 is allowed" in error and error.count("\n") == 1
    assert not (narrow / "export").exists()


def test_numbers_that_are_none_are_never_equal(narrow: Path) -> None:
    encoder = load_encoder(narrow)
    with pytest.raises(UserError, match="computes features that are nan"):
        graphs.compare(encoder, lambda images: encoder(images) * float("nan"), [(1, 8)], to="onnx", head=False)
    with pytest.raises(UserError, match="computes features that are inf"):
        graphs.compare(encoder, lambda images: encoder(images)[:1], [(3, 8)], to="onnx", head=False)


@torch.no_grad()
@pytest.mark.parametrize("head", [True, False])
def test_torchscript_computes_any_batch_and_size(head: bool, narrow: Path) -> None:
    file, notes = export(narrow, "torchscript", *["--head"] * head), {"preprocessing.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.load(file, _extra_files=notes)
    assert json.loads(notes["preprocessing.json"])["image_size"] == 8
    encoder = load_encoder(narrow, head=head)
    for batch, size in ((1, 8), (5, 8), (2, 9), (3, 40)):
        images = images_of(batch, 1, size)
        expected = encoder.project(images) if head else encoder.features(images)
        assert torch.allclose(model(images), expected, atol=1e-5)


def test_no_folder_of_this_machine_leaves_with_an_encoder(narrow: Path) -> None:
    folders = [str(folder).encode() for folder in (ROOT, Path(torch.__file__).parent, narrow)]
    for file in [export(narrow, to) for to in ("safetensors", "onnx", "torchscript")]:
        contents = [file.read_bytes()]
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                contents += map(archive.read, archive.namelist())
        assert not any(folder in content for folder in folders for content in contents), file.name


def test_the_authors_layout_holds_both_encoders_and_the_queue(
    standard: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = reference.read(torch.load(export(standard, "reference"), weights_only=True))
    assert "moco_dist.convert reads it; the authors' main_moco.py has no symmetric loss\n" in capsys.readouterr().out
    state = torch.load(standard / "checkpoints" / "step_000000002.pt", weights_only=True)
    assert torch.equal(content.queue, state["queue"]) and content.cursor == state["cursor"] and content.epoch == 1
    for encoder in ("encoder_q", "encoder_k"):
        assert torch.equal(getattr(content, encoder)["layer4.1.conv2.weight"], state[encoder]["layer4.1.conv2.weight"])
    assert content.arch == "resnet18" and content.optimizer is not None


def test_detectron2_has_no_name_for_the_head() -> None:
    with pytest.raises(AssertionError, match="is no layer of a backbone"):
        layouts.to_detectron2("fc.weight")


def test_an_encoder_that_onnx_cannot_hold_is_refused(narrow: Path) -> None:
    encoder = load_encoder(narrow)
    encoder.network.fc = nn.Linear(2**15, 2**14, device="meta")  # 2 GiB of weights, which take no memory
    with pytest.raises(UserError, match="--to = onnx: a file of ONNX holds 2 GiB at most; use --to torchscript"):
        graphs.as_onnx(encoder, Description(encoder.model, encoder.preprocess, {}), head=True)
