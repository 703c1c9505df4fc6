"""Write an encoder as a model that needs no Python, and compare what it computes with torch."""

from __future__ import annotations

import copy
import io
import json
import warnings
import zipfile
from collections.abc import Callable, Iterable
from typing import IO

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco_dist.encoders.description import Description
from moco_dist.encoders.load import PretrainedEncoder
from moco_dist.errors import UserError
from moco_dist.networks.convolution import Convolution
from moco_dist.networks.resnet import Encoder

TOLERANCE = 1e-4
"""Largest difference of a feature that rounding may make."""
_BATCHES = (1, 3, 8)


def notes_of(description: Description) -> dict[str, str]:
    """Return the description that a model holds beside its weights, each entry as JSON."""
    return {name: json.dumps(value) for name, value in description.fields().items()}


def as_onnx(encoder: PretrainedEncoder, description: Description, *, head: bool) -> tuple[bytes, float]:
    """Write an encoder as a model of ONNX, and compute images of several batches in ONNX Runtime.

    Returns:
        The model, and the largest difference from torch.

    Raises:
        UserError: it computes something else, or is too large.
    """
    import onnxruntime

    from moco_dist.export import onnx_graph

    size = encoder.preprocess.image_size
    if sum(tensor.numel() * 4 for tensor in encoder.network.state_dict().values()) >= 2**31:
        raise UserError.of("--to", "onnx", "a file of ONNX holds 2 GiB at most", "use --to torchscript")
    model = onnx_graph.model(encoder.network, size, notes_of(description), head=head).SerializeToString()
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])

    def compute(images: Tensor) -> Tensor:
        (output,) = session.run([onnx_graph.output_name(head=head)], {onnx_graph.INPUT: images.numpy()})
        return torch.from_numpy(output)

    return model, compare(encoder, compute, [(batch, size) for batch in _BATCHES], to="onnx", head=head)


def as_torchscript(encoder: PretrainedEncoder, description: Description, *, head: bool) -> tuple[bytes, float]:
    """Trace an encoder for TorchScript, and compute images of several batches and sizes. All else as `as_onnx`."""
    size, file = encoder.preprocess.image_size, io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated, which who asks for it knows
        example = torch.zeros(2, encoder.preprocess.channels, size, size)
        traced = torch.jit.trace(_Plain(encoder.network, head=head).eval(), example, check_trace=False)
        names = {f"{name}.json": text for name, text in notes_of(description).items()}
        torch.jit.save(traced, file, _extra_files=names)
        model = _without_source_lines(file)
        loaded = torch.jit.load(io.BytesIO(model))
    sizes = [*((batch, size) for batch in _BATCHES), (2, size + 7), (2, 2 * size)]
    return model, compare(encoder, loaded, sizes, to="torchscript", head=head)


def _without_source_lines(file: IO[bytes]) -> bytes:
    """Return a file of TorchScript without its records of source lines, which name this machine's folders."""
    kept = io.BytesIO()
    with zipfile.ZipFile(file) as whole, zipfile.ZipFile(kept, "w") as without:
        for record in whole.infolist():
            if not record.filename.endswith(".debug_pkl"):
                without.writestr(record, whole.read(record))
    return kept.getvalue()


def compare(
    encoder: PretrainedEncoder,
    compute: Callable[[Tensor], Tensor],
    sizes: Iterable[tuple[int, int]],
    *,
    to: str,
    head: bool,
) -> float:
    """Compute random images by an encoder and by a model of it.

    Args:
        encoder: the encoder, on the CPU.
        compute: the model.
        sizes: of the batches, and of their images in pixels.
        to: format of the model, for the mistake.
        head: whether the model computes the head's output.

    Returns:
        The largest difference.

    Raises:
        UserError: it is above the tolerance, or not finite.
    """
    generator, largest = torch.Generator().manual_seed(0), 0.0
    for batch, size in sizes:
        images = torch.randn(batch, encoder.preprocess.channels, size, size, generator=generator)
        with torch.no_grad():
            expected = encoder.project(images) if head else encoder.features(images)
            output = compute(images)
        difference = float((output - expected).abs().max()) if output.shape == expected.shape else float("inf")
        if not difference <= TOLERANCE:
            rule = f"computes features that are {difference:.2g} from torch's, and {TOLERANCE:g} is allowed"
            raise UserError.of("--to", to, f"the model {rule}", "look whether the run has diverged; nothing is written")
        largest = max(largest, difference)
    return largest


class _Plain(nn.Module):
    """This copy of an encoder is of torch's own modules alone, and does not look at the size of its images."""

    def __init__(self, network: Encoder, *, head: bool) -> None:
        super().__init__()
        self.network, self.head = copy.deepcopy(network), head
        for parent in list(self.network.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, Convolution):
                    setattr(parent, name, _plain(child))

    def forward(self, images: Tensor) -> Tensor:
        """Map [N, C, S, S] to the features [N, D], or the head's output of length 1 [N, dim]."""
        if self.head:
            return F.normalize(self.network(images), dim=1)
        return self.network.features(images)


def _plain(layer: Convolution) -> nn.Conv2d:
    """Return torch's convolution with the weights of ours."""
    settings = {"stride": layer.stride, "padding": layer.padding, "bias": False}
    plain = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, **settings)  # type: ignore[arg-type]
    plain.load_state_dict(layer.state_dict())
    return plain
