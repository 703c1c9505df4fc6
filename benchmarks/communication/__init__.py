"""Count what the ranks of a step send each other, and model what that costs on large clusters."""
