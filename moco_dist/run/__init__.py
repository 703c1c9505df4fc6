"""What a run is on disk: names, status, rows, checkpoints, and who may write; without torch."""
