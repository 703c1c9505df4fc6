"""This package has the encoders, their BatchNorm in groups, and their weights in files."""
