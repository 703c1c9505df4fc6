"""moco-dist: distributed Momentum Contrast that gives the same curve on any number of GPUs."""

__version__ = "0.1.0"
