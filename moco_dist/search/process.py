"""Run one process that searches: from valid options to its exit status."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moco_dist.arguments import writing
from moco_dist.config import Config
from moco_dist.data.decode import Unreadable
from moco_dist.data.store import FileSource
from moco_dist.embed import description, read
from moco_dist.embed.options import Options
from moco_dist.embed.process import open_both, run_command, shown, tell_unreadable
from moco_dist.embed.read import Stored
from moco_dist.embed.stream import Rows, Stream, features_of
from moco_dist.encoders.load import PretrainedEncoder
from moco_dist.errors import UserError, printable
from moco_dist.ranks.collectives import World
from moco_dist.ranks.rank import Rank
from moco_dist.search.nearest import Nearest
from moco_dist.search.request import Request

_SPARE = 1000
"""This many images are kept beyond those to be shown, since names in the folder may be links to the query itself.

Folders in which links repeat the images of rare classes have many.
"""


class Neighbour(NamedTuple):
    """A neighbour is an image of the folder that is near to a query."""

    place: int
    """The place of the image in the folder."""
    similarity: float


def run(options: Options, request: Request, config: Config, rank: Rank) -> int:
    """Search on all ranks. Returns the exit status; raises whatever else goes wrong."""
    return run_command("moco_dist.search", lambda world: search(options, request, config, world), config, rank)


def search(options: Options, request: Request, config: Config, world: World) -> None:
    """Find the images nearest to the queries, print and draw them. Raises UserError, on all ranks."""
    encoder, images = open_both(options, world)
    pixels = world.agreed(lambda: torch.stack([_pixels_of(query, encoder) for query in request.queries]))
    queries = _features_of(pixels, encoder, options, world)
    nearest = Nearest(queries, request.count + _SPARE)
    if request.features is None:
        stream = Stream(images, encoder, world, batch=options.batch, workers=options.workers(config))
        _add_all(nearest, shown(stream, world))
        tell_unreadable("moco_dist.search", stream.unreadable, world)
    else:
        file = request.features
        nearest = world.from_first(lambda: _of_file(nearest, file, options, encoder, images))

    def show() -> None:
        neighbours = [_others(query, nearest, n, images, request.count) for n, query in enumerate(request.queries)]
        _print(request.queries, neighbours, images)
        _draw(request, neighbours, encoder, images)

    world.from_first(show)


def _pixels_of(query: Path, encoder: PretrainedEncoder) -> Tensor:
    """Read a query as the encoder sees it, uint8 [C, S, S]. Raises UserError."""
    try:
        return encoder.preprocess.pixels(query)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise errors of their own kinds
        rule = f"cannot be decoded: {Unreadable.of(query, error).reason}"
        raise UserError.of("--query", query, rule, "give another image") from None


def _features_of(pixels: Tensor, encoder: PretrainedEncoder, options: Options, world: World) -> NDArray[np.float32]:
    """Compute the features of the queries, [Q, D]. Raises UserError where one is not finite."""
    parts = pixels.to(world.device).split(options.batch)
    features = torch.cat([features_of(encoder, part, "backbone", normalise=False) for part in parts]).cpu()
    if not features.isfinite().all():
        fix = "look at the run's loss; take an earlier checkpoint by --step"
        raise UserError.of("RUN_DIR|WEIGHTS", options.path, "the features of a query are not finite", fix)
    return features.numpy()


def _add_all(nearest: Nearest, rows: Iterable[Rows]) -> Nearest:
    for some in rows:
        nearest.add(some)
    return nearest


def _of_file(nearest: Nearest, file: Path, options: Options, encoder: PretrainedEncoder, images: FileSource) -> Nearest:
    """Find the nearest images by the features in a file. Raises UserError for those of another encoder or folder."""
    features = read.open_stored(file)
    _check(features, json.loads(json.dumps(description.describe(options, encoder, images))), options)
    return _add_all(nearest, features.rows(images.names))


def _check(features: Stored, now: dict[str, object], options: Options) -> None:
    """Refuse features of other weights, images or preprocessing. Raises UserError."""
    before = features.about
    fix = f"compute them again: {options.as_command(features.path)}"
    if before.get("features") != "backbone":
        raise UserError.of("--features-file", features.path, "are outputs of the head, not of the backbone", fix)
    if before.get("weights") != now["weights"]:
        rule = f"are of other weights ({_weights_in_words(before)}) than {options.path} ({_weights_in_words(now)})"
        raise UserError.of("--features-file", features.path, rule, fix)
    if before.get("preprocessing") != now["preprocessing"]:
        raise UserError.of("--features-file", features.path, "are of images that were prepared in another way", fix)
    if any(before.get(field) != now[field] for field in ("images", "names", "contents")):
        rule = f"are of other images than {options.folder} has now ({before.get('images')}, now {now['images']})"
        raise UserError.of("--features-file", features.path, rule, fix)


def _weights_in_words(description: dict[str, object]) -> str:
    """Return the first digits of the weights' digest, and the step of a run's."""
    step = "" if description.get("step") is None else f", step {description['step']}"
    return f"{str(description.get('weights'))[:12]}{step}"


def _others(query: Path, nearest: Nearest, number: int, images: FileSource, count: int) -> list[Neighbour]:
    """Return the images nearest to a query, without the file of the query itself."""
    pairs = zip(nearest.places[number].tolist(), nearest.similarities[number].tolist(), strict=True)
    others = (Neighbour(*pair) for pair in pairs if not _is_same(query, images, pair[0]))
    return list(itertools.islice(others, count))


def _is_same(query: Path, images: FileSource, place: int) -> bool:
    """Return whether an image of the folder is the file of the query, be it by a link."""
    file = images.file(place)
    try:
        return isinstance(file, Path) and file.samefile(query)
    except OSError:
        return False


def _name(images: FileSource, place: int) -> str:
    return os.fsdecode(images.names[place])


def _print(queries: Iterable[Path], neighbours: Iterable[list[Neighbour]], images: FileSource) -> None:
    for query, nearest in zip(queries, neighbours, strict=True):
        print(printable(str(query)))
        for number, one in enumerate(nearest, 1):
            print(f"{number:5}  {one.similarity:7.4f}  {printable(_name(images, one.place))}")
        if not nearest:
            print("       no other image in the folder")


def _draw(request: Request, neighbours: list[list[Neighbour]], encoder: PretrainedEncoder, images: FileSource) -> None:
    """Draw the picture. Raises UserError where it cannot be written."""
    from moco_dist.evaluate import plots
    from moco_dist.search import picture

    channels, value_range = encoder.preprocess.channels, encoder.preprocess.value_range
    lines = []
    for query, nearest in zip(request.queries, neighbours, strict=True):
        tiles = [
            picture.Tile(
                picture.read(images.file(place), channels, value_range), f"{similarity:.4f}", _name(images, place)
            )
            for place, similarity in nearest
        ]
        first = picture.Tile(picture.read(query, channels, value_range), "query", query.name)
        lines.append(picture.Line(first, tiles))
    with writing(request.out):
        plots.save(request.out, picture.draw(lines))
    print(f"picture: {printable(str(request.out))}")
