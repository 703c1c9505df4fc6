"""This package has the ranks of a run and the device of each; it alone calls torch.distributed."""
