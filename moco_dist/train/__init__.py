"""The trainer has its command line, the life of its process, and the one visible loop."""

from moco_dist.train.command import run

__all__ = ["run"]
