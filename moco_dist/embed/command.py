"""Compute the features of all images of a folder, and write them to a file with the images' names.

python -m moco_dist.embed RUN_DIR FOLDER --out features.npy [--normalise] [...] [section.key=value ...]
python -m moco_dist.embed WEIGHTS FOLDER --out features.parquet [CONFIG.yaml] [data.image_size=...]
torchrun --nproc_per_node=4 -m moco_dist.embed RUN_DIR FOLDER --out features.npy

features.npy is a matrix [n, D] of float32, and features.files.json beside it names its rows; a Parquet file has the
columns file and features. Images that cannot be decoded are left out, and counted. Ranks share the work.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from moco_dist.arguments import parser_of, path_of, refused_once
from moco_dist.embed import options as command_line
from moco_dist.errors import UserError
from moco_dist.ranks.rank import Rank


def run(arguments: Sequence[str]) -> int:
    """Compute the features that the command line asks for. Returns the exit status."""
    rank = Rank(0, 1, 0)  # who tells that the environment is wrong
    try:
        rank = Rank.from_environment(arguments)
        parsed = parser().parse_intermixed_args(arguments)
        options = command_line.of_arguments(parsed, features=parsed.features, normalise=parsed.normalise)
        config = options.load_config()
        command_line.check_out_of_features(parsed.out, options.folder)
    except UserError as error:
        return refused_once("moco_dist.embed", error, rank)
    from torch.distributed.elastic.multiprocessing.errors import record

    from moco_dist.embed import process

    return record(process.run)(options, parsed.out, config, rank) or 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = parser_of("moco_dist.embed", __doc__)
    command_line.add_arguments(made)
    text = "features.npy or features.parquet"
    made.add_argument("--out", type=path_of("--out"), metavar="FILE", required=True, help=text)
    layers, text = ("backbone", "head"), "of the backbone, or MoCo's head of a run (backbone)"
    made.add_argument("--features", choices=layers, default="backbone", help=text)
    made.add_argument("--normalise", action="store_true", help="divide each feature by its length")
    return made
