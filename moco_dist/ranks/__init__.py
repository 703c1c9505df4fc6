"""The ranks of a run and the device of each: this package alone calls torch.distributed."""
