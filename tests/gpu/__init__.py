"""The checks that only a real GPU can make. `python -m tests.gpu` runs them."""
