"""Runs, training, evaluation and features from Python: what `import moco_dist` offers beside the commands."""
