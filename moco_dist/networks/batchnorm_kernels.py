"""Normalise all BatchNorm groups of a batch at once on a GPU, with two Triton kernels in each direction.

`_add_up` reads the batch once and adds up two numbers for each group and channel; `_normalise` reads it again and
writes the output or the gradient. In memory the batch is either contiguous or channels_last.

A row is a pixel of an image of a group, so a group has `rows` = images x pixels of them. A program has a tile of ROWS
rows and CHANNELS channels, and takes every `pieces`-th tile of its group; the sums of its pieces meet in `_normalise`,
always in the same order.
"""
# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096
"""Numbers that a program reads at a time."""
PROGRAMS = 1024
"""Programs to cut the work into, so that a GPU of today is full: several for each of its multiprocessors."""


@triton.jit
def _tile(x, row, channel, rows, pixels, channels, DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Return where a tile [ROWS, CHANNELS] of a group lies, which of its numbers exist, and the numbers."""
    exists = (row < rows)[:, None] & (channel < channels)[None, :]
    if CHANNELS_LAST:
        offset = row[:, None] * channels + channel[None, :]
    else:
        offset = (row // pixels * channels * pixels + row % pixels)[:, None] + (channel * pixels)[None, :]
    return offset, exists, tl.load(x + offset, mask=exists, other=0).to(DTYPE)


@triton.jit
def _first_mean(x, row, channel, rows, pixels, channels, DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Return the means of the first tile: near those of the group, so that squares of differences lose no digits."""
    _, _, numbers = _tile(x, row, channel, rows, pixels, channels, DTYPE, CHANNELS_LAST)
    return tl.sum(numbers, 0) / tl.minimum(rows, row.shape[0])


@triton.jit
def _add_up(
    x, dy, kept, sums, rows, pixels, channels,
    BACKWARD: tl.constexpr, CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Add up x - shift and its square; backward, dy and dy (x - mean). sums: [2, pieces, groups, C]."""
    dtype: tl.constexpr = sums.dtype.element_ty
    group, piece, groups, pieces = tl.program_id(0), tl.program_id(2), tl.num_programs(0), tl.num_programs(2)
    channel, row = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, ROWS)
    x += group.to(tl.int64) * rows * channels
    if BACKWARD:
        dy += group.to(tl.int64) * rows * channels
        shift = tl.load(kept + group * channels + channel, mask=channel < channels, other=0)
    else:
        shift = _first_mean(x, row, channel, rows, pixels, channels, dtype, CHANNELS_LAST)
    first = tl.zeros([ROWS, CHANNELS], dtype)
    second = tl.zeros([ROWS, CHANNELS], dtype)
    for start in range(piece * ROWS, rows, pieces * ROWS):
        offset, exists, numbers = _tile(x, start + row, channel, rows, pixels, channels, dtype, CHANNELS_LAST)
        centred = tl.where(exists, numbers - shift[None, :], 0)
        if BACKWARD:
            gradient = tl.load(dy + offset, mask=exists, other=0).to(dtype)
            first += gradient
            second += gradient * centred
        else:
            first += centred
            second += centred * centred
    place = (piece * groups + group) * channels + channel
    tl.store(sums + place, tl.sum(first, 0), mask=channel < channels)
    tl.store(sums + pieces * groups * channels + place, tl.sum(second, 0), mask=channel < channels)


@triton.jit
def _mean_of_pieces(sums, place, inside, size, rows, PIECES: tl.constexpr):
    """Return the mean over the rows of a group, for each channel, of what was added up in pieces."""
    parts = tl.arange(0, PIECES)[:, None] * size + place[None, :]
    return tl.sum(tl.load(sums + parts, mask=inside[None, :], other=0), 0) / rows


@triton.jit
def _normalise(
    x, dy, kept, sums, weight, bias, out, results, rows, pixels, channels,
    EPS: tl.constexpr, PIECES: tl.constexpr,
    BACKWARD: tl.constexpr, CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write the output, or backward the gradient, and what each group adds to the results [2, groups, C]."""
    dtype: tl.constexpr = sums.dtype.element_ty
    group, piece, groups = tl.program_id(0), tl.program_id(2), tl.num_programs(0)
    channel, row = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, ROWS)
    inside = channel < channels
    x += group.to(tl.int64) * rows * channels
    out += group.to(tl.int64) * rows * channels
    place = group * channels + channel
    size = groups * channels
    first = _mean_of_pieces(sums, place, inside, size, rows, PIECES)
    second = _mean_of_pieces(sums + PIECES * size, place, inside, size, rows, PIECES)
    scale = tl.load(weight + channel, mask=inside, other=0).to(dtype)
    if BACKWARD:
        dy += group.to(tl.int64) * rows * channels
        mean = tl.load(kept + place, mask=inside, other=0)
        deviation = tl.load(kept + size + place, mask=inside, other=0)  # 1 / standard deviation
        one, two = second * rows * deviation, first * rows  # of the weight and the bias
        shift = -first * deviation * scale
        slope = -second * deviation * deviation * deviation * scale
    else:
        mean = first + _first_mean(x, row, channel, rows, pixels, channels, dtype, CHANNELS_LAST)
        variance = tl.maximum(second - first * first, 0, propagate_nan=tl.PropagateNan.ALL)
        deviation = 1 / tl.sqrt(variance + EPS)
        one, two = mean, variance * rows / (rows - 1)
        shift = tl.load(bias + channel, mask=inside, other=0).to(dtype)
        slope = deviation * scale
    if piece == 0:
        tl.store(results + place, one, mask=inside)
        tl.store(results + size + place, two, mask=inside)
        if not BACKWARD:
            tl.store(kept + place, mean, mask=inside)
            tl.store(kept + size + place, deviation, mask=inside)
    for start in range(piece * ROWS, rows, PIECES * ROWS):
        offset, exists, numbers = _tile(x, start + row, channel, rows, pixels, channels, dtype, CHANNELS_LAST)
        result = (numbers - mean[None, :]) * slope[None, :] + shift[None, :]
        if BACKWARD:
            gradient = tl.load(dy + offset, mask=exists, other=0).to(dtype)
            result += gradient * (deviation * scale)[None, :]
        tl.store(out + offset, result, mask=exists)


def _launch(
    x: Tensor, dy: Tensor, kept: Tensor, weight: Tensor, bias: Tensor, eps: float, *, backward: bool
) -> tuple[Tensor, Tensor]:
    """Run both kernels; return the output [N, C, H, W] and the results [2, C], added up over the groups."""
    images, channels, height, width = x.shape
    groups = kept.shape[1]
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x, dy = (t.contiguous(memory_format=memory_format) for t in (x, dy))
    rows = images // groups * height * width
    tile_channels = min(64, triton.next_power_of_2(channels)) if channels_last else 1
    tile_rows = min(TILE // tile_channels, triton.next_power_of_2(rows))
    blocks = triton.cdiv(channels, tile_channels)
    wanted = min(max(1, PROGRAMS // (groups * blocks)), 64, triton.cdiv(rows, tile_rows))
    pieces = 1 << (wanted.bit_length() - 1)
    out, sums = torch.empty_like(x), kept.new_empty(2, pieces, groups, channels)
    results = torch.empty_like(kept)
    sizes = (rows, height * width, channels)
    how = {"BACKWARD": backward, "CHANNELS_LAST": channels_last, "ROWS": tile_rows, "CHANNELS": tile_channels}
    grid = (groups, blocks, pieces)
    with torch.cuda.device_of(x):
        _add_up[grid](x, dy, kept, sums, *sizes, **how, num_warps=8)
        _normalise[grid](
            x, dy, kept, sums, weight, bias, out, results, *sizes, EPS=eps, PIECES=pieces, **how, num_warps=8
        )
    return out, results.sum(1)


def forward(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise; see `batchnorm.forward`, of which this is the fast twin."""
    kept = x.new_empty(2, groups, x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    out, sums = _launch(x, x, kept, weight, bias, eps, backward=False)
    return out, kept, sums


def backward(dy: Tensor, x: Tensor, kept: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients; see `batchnorm.backward`, of which this is the fast twin."""
    return _launch(x, dy, kept, weight, weight, 0.0, backward=True)
