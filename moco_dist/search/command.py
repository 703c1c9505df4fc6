"""Find the images of a folder whose features are nearest to those of a query, and draw them.

python -m moco_dist.search RUN_DIR FOLDER --query IMAGE [--query IMAGE ...] [--count 10] [--out nearest.png]
python -m moco_dist.search RUN_DIR FOLDER --query IMAGE --features-file features.npy
python -m moco_dist.search WEIGHTS FOLDER --query IMAGE [CONFIG.yaml] [data.image_size=...]

The similarity is the cosine of backbone features, 1 for equal images. The query itself, where it lies in the folder, is
left out; copies of it are shown. Features that python -m moco_dist.embed has written are not computed again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from moco_dist.arguments import parser_of, path_of, refused_once
from moco_dist.embed import options as command_line
from moco_dist.errors import UserError
from moco_dist.ranks.rank import Rank
from moco_dist.search.request import COUNT, Request


def run(arguments: Sequence[str]) -> int:
    """Search as the command line asks. Returns the exit status."""
    rank = Rank(0, 1, 0)  # who tells that the environment is wrong
    try:
        rank = Rank.from_environment(arguments)
        parsed = _parser().parse_intermixed_args(arguments)
        options = command_line.of_arguments(parsed)
        config = options.load_config()
        request = Request(tuple(parsed.query), parsed.count, parsed.features, parsed.out)
        request.check(options.folder)
    except UserError as error:
        return refused_once("moco_dist.search", error, rank)
    from torch.distributed.elastic.multiprocessing.errors import record

    from moco_dist.search import process

    return record(process.run)(options, request, config, rank) or 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("moco_dist.search", __doc__)
    command_line.add_arguments(parser)
    text = "an image to which the nearest ones are wanted; may stand several times"
    parser.add_argument("--query", type=path_of("--query"), metavar="IMAGE", action="append", required=True, help=text)
    text = f"images that are shown of each query ({COUNT})"
    parser.add_argument("--count", type=int, default=COUNT, metavar="N", help=text)
    text = "features of FOLDER that python -m moco_dist.embed has written"
    parser.add_argument("--features-file", dest="features", type=path_of("--features-file"), metavar="FILE", help=text)
    text = "the picture (nearest.png)"
    parser.add_argument("--out", type=path_of("--out"), default=Path("nearest.png"), metavar="PICTURE.png", help=text)
    return parser
