"""Make a run that goes on where a checkpoint of the authors' code (facebookresearch/moco, v1 and v2) stands.

python -m moco_dist.convert CHECKPOINT RUN_DIR CONFIG [--epoch N] [section.key=value ...]

RUN_DIR gets both encoders, the queue and its cursor, SGD's momentum, and the step after the finished epochs; after
that, python -m moco_dist.train RUN_DIR/config.yaml goes on. The file does not tell all that a run needs, so CONFIG
describes it: what the file does tell must agree. Nothing is written where something does not. docs/weights.md has more.
"""

from __future__ import annotations

from collections.abc import Sequence

from moco_dist.arguments import refused
from moco_dist.convert.request import COMMAND, parse
from moco_dist.errors import UserError


def run(arguments: Sequence[str]) -> int:
    """Convert as the arguments of the command line say. Returns the exit status; raises whatever else goes wrong."""
    try:
        request = parse(arguments, __doc__)
        from moco_dist.convert import process

        process.run(request)
    except UserError as error:
        return refused(COMMAND, error)
    return 0
