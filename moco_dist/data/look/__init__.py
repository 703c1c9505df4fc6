"""Look at a folder of images before a run: what it holds, what is wrong with it, and which config fits it."""
