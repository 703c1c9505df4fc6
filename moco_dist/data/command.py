"""Look at a folder of images, or pack it into shards.

python -m moco_dist.data look FOLDER [--all] [--gpus N] [--write my.yaml]    what it holds, and a config that fits
python -m moco_dist.data pack FOLDER OUT [--shard-mib N]                     pack it into tar shards, for data.root=OUT
python -m moco_dist.data verify OUT                                          compare shards with their digests
"""

import argparse
import sys
from collections.abc import Sequence

from moco_dist.arguments import parser_of, path_of, refused
from moco_dist.errors import UserError


def run(arguments: Sequence[str]) -> int:
    """Do what the command line says. Returns the exit status."""
    try:
        options = _parser().parse_args(arguments)
        options.command(options)
    except UserError as error:
        return refused("moco_dist.data", error)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("moco_dist.data", __doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    look = commands.add_parser("look", help="show what a folder holds, and a config to begin with")
    look.set_defaults(command=_look)
    look.add_argument("folder", type=path_of("FOLDER"), metavar="FOLDER", help="of images or shards, as data.root")
    look.add_argument("--all", action="store_true", help="read every file, not a sample")
    look.add_argument("--sample", type=_positive, default=10_000, metavar="N", help="files to read at most (10000)")
    look.add_argument("--gpus", type=_positive, default=1, metavar="N", help="GPUs, or ranks, that will train (1)")
    look.add_argument(
        "--write", type=path_of("--write"), metavar="my.yaml", help="save the proposed config; a new file"
    )
    pack = commands.add_parser("pack", help="pack a folder of images into tar shards in WebDataset's layout")
    pack.set_defaults(command=_pack)
    pack.add_argument(
        "folder", type=path_of("FOLDER"), metavar="FOLDER", help="a folder of images, as data.root names it"
    )
    pack.add_argument("out", type=path_of("OUT"), metavar="OUT", help="the folder of shards: a new one, or empty")
    pack.add_argument("--shard-mib", type=_positive, default=1024, metavar="N", help="size of a shard in MiB (1024)")
    verify = commands.add_parser("verify", help="read shards to their ends, and compare them with their digests")
    verify.set_defaults(command=_verify)
    verify.add_argument("out", type=path_of("OUT"), metavar="OUT", help="a folder of shards")
    return parser


def _look(options: argparse.Namespace) -> None:
    from moco_dist.data.look import command  # imported for the command that needs it, as below

    command.run(options)


def _pack(options: argparse.Namespace) -> None:
    from moco_dist.data.pack import pack

    for remark in pack(options.folder, options.out, options.shard_mib):
        print(remark, file=sys.stderr)
    print(f"to train from the shards: data.root={options.out}, with the other keys as they are for {options.folder}")


def _verify(options: argparse.Namespace) -> None:
    from moco_dist.data.pack import verify

    shards, images = verify(options.out)
    print(f"{shards} shards with {images} images are as they were packed")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0")
    return int(text)
