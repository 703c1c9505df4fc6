"""Encoders, their BatchNorm in groups, and their weights in files."""
