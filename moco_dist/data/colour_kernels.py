"""Change the colours of a batch on a GPU with one Triton kernel, where plain torch would start three hundred.

A program has an image, of which it reads PIXELS pixels at a time: once for its mean gray where the contrast needs it,
and once to write the result. The formulas are those of `operations`, whose fast twin this is.
"""
# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS = 1024
"""Pixels that a program reads at a time."""
_PARAMETERS = tl.constexpr(10)
"""Numbers for an image: an operation and a factor for each of four turns, whether to turn gray, the contrast's turn."""


@triton.jit
def _luma(red, green, blue):
    return red * 0.2989 + green * 0.587 + blue * 0.114


@triton.jit
def _clip(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _of_hue(high, chroma, k):
    """Return a channel from HSV, k sextants from its origin."""
    k = k - 6 * tl.floor(k / 6)
    return high - chroma * _clip(tl.minimum(k, 4 - k))


@triton.jit
def _turn(red, green, blue, operation, factor, mean):
    """Do one operation: brightness 0, contrast 1, saturation 2, hue 3, none 4."""
    if operation == 3:
        high = tl.maximum(red, tl.maximum(green, blue))
        chroma = high - tl.minimum(red, tl.minimum(green, blue))
        divisor = tl.where(chroma == 0, 1.0, chroma)
        of_blue = tl.where(high == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
        sextant = tl.where(high == red, (green - blue) / divisor, of_blue) + 6 * factor
        red = _of_hue(high, chroma, sextant + 5)
        green = _of_hue(high, chroma, sextant + 3)
        blue = _of_hue(high, chroma, sextant + 1)
    elif operation < 3:
        gray = tl.where(operation == 2, _luma(red, green, blue), 0.0)
        other = (gray + tl.where(operation == 1, mean, 0.0)) * (1 - factor)
        red = _clip(red * factor + other)
        green = _clip(green * factor + other)
        blue = _clip(blue * factor + other)
    return red, green, blue


@triton.jit
def _read(images, pixel, pixels, is_gray):
    """Read some pixels in 0 to 1, in gray if so wished."""
    red = tl.load(images + pixel, mask=pixel < pixels, other=0).to(tl.float32) / 255
    green = tl.load(images + pixels + pixel, mask=pixel < pixels, other=0).to(tl.float32) / 255
    blue = tl.load(images + 2 * pixels + pixel, mask=pixel < pixels, other=0).to(tl.float32) / 255
    if is_gray:
        red = _luma(red, green, blue)
        green = red
        blue = red
    return red, green, blue


@triton.jit
def _colour(images, parameters, out, pixels, GRAY_FIRST: tl.constexpr, PIXELS: tl.constexpr):
    """Change one image, uint8 [3, pixels], into float32 [3, pixels]."""
    image = tl.program_id(0).to(tl.int64)
    images += image * 3 * pixels
    out += image * 3 * pixels
    parameters += image * _PARAMETERS
    is_gray = tl.load(parameters + 8) > 0
    of_contrast = tl.load(parameters + 9)
    mean = 0.0
    if of_contrast < 4:
        sums = tl.zeros([PIXELS], tl.float32)
        for start in range(0, pixels, PIXELS):
            pixel = start + tl.arange(0, PIXELS)
            red, green, blue = _read(images, pixel, pixels, GRAY_FIRST and is_gray)
            for turn in range(4):
                operation = tl.where(turn < of_contrast, tl.load(parameters + turn), 4.0)
                red, green, blue = _turn(red, green, blue, operation, tl.load(parameters + 4 + turn), 0.0)
            sums += tl.where(pixel < pixels, _luma(red, green, blue), 0.0)
        mean = tl.sum(sums, 0) / pixels
    for start in range(0, pixels, PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        red, green, blue = _read(images, pixel, pixels, GRAY_FIRST and is_gray)
        for turn in range(4):
            operation, factor = tl.load(parameters + turn), tl.load(parameters + 4 + turn)
            red, green, blue = _turn(red, green, blue, operation, factor, mean)
        if not GRAY_FIRST and is_gray:
            red = _luma(red, green, blue)
            green = red
            blue = red
        tl.store(out + pixel, red, mask=pixel < pixels)
        tl.store(out + pixels + pixel, green, mask=pixel < pixels)
        tl.store(out + 2 * pixels + pixel, blue, mask=pixel < pixels)


def colour(images: Tensor, order: Tensor, factors: Tensor, gray: Tensor, *, gray_first: bool) -> Tensor:
    """Jitter the colours of a batch and turn some of its images gray; nothing waits for the GPU.

    Args:
        images: uint8 [B, 3, H, W], on the GPU.
        order: [B, 4] the operation of each turn, brightness 0, contrast 1, saturation 2, hue 3 or none 4; on the CPU.
        factors: [B, 4] of each operation, on the CPU.
        gray: bool [B] which images turn gray, on the CPU.
        gray_first: before the jitter, not after it.

    Returns:
        float32 [B, 3, H, W] in 0 to 1.
    """
    of_turns = torch.cat([factors, factors.new_zeros(len(factors), 1)], 1).gather(1, order)
    of_contrast = torch.where((order == 1).any(1), (order == 1).int().argmax(1), 4)
    parameters = torch.cat([order, of_turns, gray[:, None], of_contrast[:, None]], 1).float()
    images, pixels = images.contiguous(), images.shape[2] * images.shape[3]
    out = torch.empty_like(images, dtype=torch.float32)
    with torch.cuda.device_of(images):
        _colour[(len(images),)](
            images,
            parameters.to(images.device, non_blocking=True),
            out,
            pixels,
            GRAY_FIRST=gray_first,
            PIXELS=min(PIXELS, triton.next_power_of_2(pixels)),
        )
    return out
