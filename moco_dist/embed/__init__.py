"""Compute the features of all images of a folder, from Python and by `python -m moco_dist.embed`."""
