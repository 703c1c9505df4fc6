"""Cases of the kernel that changes colours, against plain torch.

`TRITON_INTERPRET=1 python -m tests.data.colour_cases` runs them on Triton's kernel, in its interpreter.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch

from moco_dist.data import augment, colour_kernels
from tests.data.made import colour_draws, pixels, recipe

RECIPES = {
    "v1": recipe("v1"),
    "v2": recipe("v2"),
    "gray alone": replace(recipe("v2"), jitter=0.0, grayscale=0.5),
}
CASES = list(itertools.product(RECIPES, [(5, 5), (32, 32), (9, 13), (40, 40)]))
"""A recipe, and height and width; the last has more pixels than a program reads at a time."""


def check(name: str, height: int, width: int) -> None:
    """Compare; the tolerance is of float error, where the place of the hue's edges may decide."""
    images, draws, of = pixels(12, 3, height, width), colour_draws(12), RECIPES[name]
    order, factors = augment._turns(draws, of)
    gray = draws[:, augment._GRAYSCALE] < of.grayscale
    coloured = colour_kernels.colour(images, order, factors, gray, gray_first=of.grayscale_first)
    torch.testing.assert_close(coloured, augment._coloured(images, draws, of, torch.float32), atol=1e-5, rtol=0)


if __name__ == "__main__":
    for name, (height, width) in CASES:
        check(name, height, width)
    print("checked", len(CASES))
