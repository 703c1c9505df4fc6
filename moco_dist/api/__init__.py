"""Train, evaluate, compute features and look at runs from Python: `import moco_dist` has the names of this package."""
