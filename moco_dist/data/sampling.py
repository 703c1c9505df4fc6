"""Look at some images of a folder ahead of a run: what its pixels are scaled from, and their statistics."""

from collections.abc import Iterator, Sequence

import numpy as np

from moco_dist.config.section import Interval
from moco_dist.data import decode
from moco_dist.data.pixel_statistics import PixelStatistics
from moco_dist.data.store import FileSource
from moco_dist.errors import UserError, printable

_RANGE_IMAGES = 9
"""Images whose range of values is looked at."""
_STATISTICS_IMAGES = 128
"""Images that pixel statistics are measured on."""
_LEVEL = 1 / 255


def range_notes(sources: Sequence[FileSource]) -> Iterator[str]:
    """Look at the values of images of more than 8 bits a channel, and yield a line where their range is doubtful.

    Args:
        sources: the images, which are scaled from one range of values.

    Raises:
        UserError: an image has values beyond those that it would be scaled from.
    """
    ranges: list[Interval] = []  # of each image's values
    value_range = sources[0].value_range if sources else None
    least, most = value_range or (0.0, 0.0)
    for file in (file for source in sources for file in source.sample(_RANGE_IMAGES)):
        try:
            values = decode.deep_values(file, sources[0].channels)
            if values is not None:
                decode.decode(file, sources[0].channels, value_range)  # refuses what it would refuse later
                ranges.append(decode.extremes(values))
                least, most = value_range or decode.full_range(values)
        except decode.RangeError as error:
            value = list(value_range) if value_range else None
            fix = "mend it" if value else "give data.value_range=[LOW,HIGH], what is black and what is white"
            raise UserError.of("data.value_range", value, f"{printable(str(file))} {error}", fix) from None
        except MemoryError:
            raise
        except Exception:  # it is told when it is met
            continue
    if not ranges:
        return
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    what = f"data.value_range = [{least:g}, {most:g}]: images of more than 8 bits a channel hold {low:g} to {high:g}"
    fix = "if that is black to white, give data.value_range=[LOW,HIGH]"
    if high - low < (most - least) / 8:
        yield f"{what}, under an eighth of it; {fix}"
    elif low < least or high > most:
        yield f"{what}, and what is beyond is cut off; {fix}"


def statistics(source: FileSource) -> PixelStatistics:
    """Measure the pixel statistics on some images, the same on all ranks.

    Raises:
        UserError: none of them can be read.
    """
    sums, pixels = np.zeros((2, source.channels), dtype=np.int64), 0
    unreadable = []
    for file in source.sample(_STATISTICS_IMAGES):
        try:
            planes = decode.decode(file, source.channels, source.value_range)
        except MemoryError:
            raise
        except Exception as error:  # it is told when it is met
            unreadable.append(decode.Unreadable.of(file, error))
            continue
        values = np.concatenate([np.atleast_3d(np.asarray(plane)) for plane in planes], axis=2).astype(np.int64)
        sums += [values.sum((0, 1)), (values**2).sum((0, 1))]
        pixels += values.shape[0] * values.shape[1]
    if not pixels:
        rule = f"no image could be read of {len(unreadable)}; {unreadable[0]}"
        raise UserError.of("data.channels", source.channels, rule, "mend the files or data.channels")
    first, second = sums / pixels * np.array([[_LEVEL], [_LEVEL**2]])
    std = np.sqrt(np.maximum(second - first**2, _LEVEL**2))  # a channel of one value is divided by a level
    return PixelStatistics(tuple(first.round(4).tolist()), tuple(std.round(4).tolist()))
