"""Name the parts of a run that a caller chooses: the encoder, the layer, and the step. No torch."""

from __future__ import annotations

import argparse
from typing import Literal

Which = Literal["query", "key"]
"""`query` is the encoder that is trained, and `key` the one that follows it."""
Layer = Literal["backbone", "head"]
"""`backbone` means the features of the backbone, and `head` the output of MoCo's head."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose an encoder of a run, which arrive as `encoder` and `step`."""
    text = "query: the encoder that is trained; key: the one that follows it (query)"
    parser.add_argument("--encoder", choices=("query", "key"), default="query", help=text)
    text = "the checkpoint of this step (the final encoder, or the last checkpoint of a run that goes on)"
    parser.add_argument("--step", type=int, metavar="N", help=text)
