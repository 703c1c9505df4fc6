"""Write the weights of encoders to files and read them back."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from moco_dist.errors import UserError
from moco_dist.files import replacing
from moco_dist.networks.resnet import Encoder


def save_backbone(encoder: Encoder, path: Path) -> None:
    """Write the encoder without its head, in torchvision's parameter names, as safetensors."""
    backbone = {
        name: tensor.detach().float().cpu().contiguous() if tensor.is_floating_point() else tensor.cpu()
        for name, tensor in encoder.state_dict().items()
        if not name.startswith("fc.")
    }
    with replacing(path) as file:
        file.write(save(backbone, metadata={"format": "pt"}))


def load_backbone_(encoder: Encoder, path: Path, key: str = "run.init_from") -> None:
    """Load all but the head, in place, from safetensors or a .pt of torchvision's names.

    Args:
        encoder: the one to load into.
        path: of the file.
        key: what named the file, for the mistake.

    Raises:
        UserError: no such file, not weights, or layers that do not fit.
    """
    try:
        tensors: dict[str, Tensor] = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError.of(key, path, f"cannot be read as weights: {reason}", "give a .safetensors or .pt") from None
    own = {n: t for n, t in encoder.state_dict().items() if not n.startswith("fc.") and "num_batches" not in n}
    wrong = [n for n, t in own.items() if n not in tensors or tensors[n].shape != t.shape]
    if wrong:
        layers = ", ".join(
            f"{n} {list(tensors[n].shape) if n in tensors else 'missing'} for {list(own[n].shape)}" for n in wrong[:3]
        )
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        rule = f"{len(wrong)} of {len(own)} layers do not fit: {layers}{more}"
        raise UserError.of(key, path, rule, "set model.arch, stem and width to those of the weights")
    encoder.load_state_dict({n: tensors[n] for n in own}, strict=False)
