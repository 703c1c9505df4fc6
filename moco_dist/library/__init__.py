"""The library is what `import moco_dist` offers beside the commands: runs, training and evaluation as calls."""
