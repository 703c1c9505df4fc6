"""Write the encoder of a run in the format of another program, proven equal.

python -m moco_dist.export RUN_DIR --to torchvision|timm|detectron2|onnx|torchscript|safetensors|reference|package

torchvision, timm and detectron2 hold the networks that they have themselves. onnx and torchscript hold any encoder, and
need no Python. reference is the authors' checkpoint, with both encoders and the queue. package is a folder for other
people, with a model card. docs/weights.md has more.
"""

from __future__ import annotations

from collections.abc import Sequence

from moco_dist.arguments import refused
from moco_dist.errors import UserError
from moco_dist.export import options as command_line

COMMAND = "moco_dist.export"


def run(arguments: Sequence[str]) -> int:
    """Export as the arguments of the command line say. Returns the exit status."""
    try:
        options = command_line.parse(arguments, __doc__)
        from moco_dist.export import process

        print(f"{COMMAND}: {process.run(options)}")
    except UserError as error:
        return refused(COMMAND, error)
    return 0
