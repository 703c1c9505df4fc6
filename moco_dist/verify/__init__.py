"""Replay recorded steps of a run on this machine, and say whether they come out equal to the bit."""
