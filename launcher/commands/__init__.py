"""The commands that a user types, one module each: python -m launcher NAME."""
