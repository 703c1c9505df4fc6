"""Load the encoder of a run, write it in a format, and say how it is loaded."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from torch import Tensor

from moco_dist import files
from moco_dist.arguments import writing
from moco_dist.encoders.description import Description
from moco_dist.encoders.load import PretrainedEncoder, load_encoder
from moco_dist.errors import printable
from moco_dist.export import chosen_weights, graphs, package, state_dicts
from moco_dist.export.chosen_weights import Weights
from moco_dist.export.options import Options
from moco_dist.networks import weight_files, weights
from moco_dist.reference import write as reference
from moco_dist.run.paths import RunPaths


def run(options: Options) -> str:
    """Export as the options say. Returns the line that names the file and how it is loaded. Raises UserError."""
    chosen = chosen_weights.choose(options)
    step = chosen.step
    if options.to == "reference":
        return _reference(options, chosen)
    encoder = load_encoder(options.run_dir, encoder=options.encoder, head=options.head, step=chosen.checkpoint)
    if chosen.checkpoint is None:
        _take_counts_(encoder, options.run_dir)
    description = describe(encoder, step, options)
    what = f"the {options.encoder} encoder of step {step}{' with its head' if options.head else ''}"
    if options.to == "package":
        with writing(options.out):
            loads = package.write(options, encoder, description, step)
    else:
        content, loads = _content(encoder, description, options)
        _write(options, content)
    return f"{printable(str(options.out))}: {what}; {loads}"


def _take_counts_(encoder: PretrainedEncoder, run_dir: Path) -> None:
    """Take BatchNorm's counts of batches out of the run's own weights, so that all of these leave as they are.

    Nothing is computed by them, so that `load_encoder` leaves them out.
    """
    values = weight_files.read(RunPaths(run_dir).encoder, "RUN_DIR").values
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor) and value.ndim == 0}
    counts = {name: tensor for name, tensor in tensors.items() if name.endswith("num_batches_tracked")}
    encoder.network.load_state_dict(counts, strict=False)


def describe(encoder: PretrainedEncoder, step: int, options: Options) -> Description:
    """Describe the encoder that is exported, as its run does."""
    origin = {"name": options.config.run.name, "step": step}
    which = {} if options.encoder == "query" else {"encoder": options.encoder}
    return Description(encoder.model, encoder.preprocess, {**origin, **which})


def _content(encoder: PretrainedEncoder, description: Description, options: Options) -> tuple[bytes, str]:
    """Return the content of a format's file, and the call that loads it. Raises UserError."""
    arch, file, network = encoder.model.arch, repr(str(options.out)), encoder.network
    match options.to:
        case "safetensors":
            return weights.as_safetensors(network, description.metadata()), f"moco_dist.load_encoder({file}) loads it"
        case "torchvision":
            loads = f"torchvision.models.{arch}().load_state_dict(torch.load({file}, weights_only=True), strict=False)"
            return state_dicts.as_torchvision(network), f"{loads} loads all but its fc"
        case "timm":
            loads = f"timm.create_model({arch!r}, num_classes=0, checkpoint_path={file}) loads it"
            return weights.as_safetensors(network, description.metadata()), loads
        case "detectron2":
            loads = "detectron2 loads it as MODEL.WEIGHTS, with MODEL.RESNETS.STRIDE_IN_1X1 False and INPUT.FORMAT RGB"
            return state_dicts.as_detectron2(network), f"{loads} (docs/detection.md)"
        case "onnx":
            model, difference = graphs.as_onnx(encoder, description, head=options.head)
            loads = f"onnxruntime.InferenceSession({file}) loads it"
        case "torchscript":
            model, difference = graphs.as_torchscript(encoder, description, head=options.head)
            loads = f"torch.jit.load({file}) loads it"
        case _:
            raise AssertionError(options.to)
    return model, f"{loads}; largest difference from torch {difference:.2g}"


def _reference(options: Options, chosen: Weights) -> str:
    """Write a checkpoint of the authors' layout. Returns the line that names the file. Raises UserError."""
    content = reference.of_run(chosen.state)
    _write(options, state_dicts.saved(content))
    loads = f"main_moco.py --resume {quote(printable(str(options.out)))} of the authors' code goes on from it"
    if reasons := reference.remarks(chosen.state):
        loads = f"moco_dist.convert reads it; the authors' {', and '.join(reasons)}"
    what = f"both encoders, queue and optimizer of step {chosen.step}, after {content['epoch']} epochs"
    return f"{printable(str(options.out))}: {what}; {loads}"


def _write(options: Options, content: bytes) -> None:
    """Write a file whole, or leave the one that is there. Raises UserError."""
    with writing(options.out):
        options.make_place()
        with files.replacing(options.out) as file:
            file.write(content)
