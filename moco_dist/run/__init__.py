"""A run on disk is names, status, rows, checkpoints, and a lease that says who may write; torch is not needed."""
