"""Compare two runs: the first step at which their rows part, what differs between them, and the probable cause."""
