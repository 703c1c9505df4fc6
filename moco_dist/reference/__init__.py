"""Read and write the checkpoints of the authors' code, facebookresearch/moco (2020): both ways, for any encoder."""
