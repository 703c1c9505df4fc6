"""Measure how good the features of an encoder are: during training, and by `python -m moco_dist.evaluate` after it."""
