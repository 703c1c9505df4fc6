"""The engine computes a method in parts, on ranks, in a precision, and keeps its state."""
