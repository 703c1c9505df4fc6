"""Run one process that computes features of a folder: from valid options to its exit status."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np

from moco_dist import joint_work
from moco_dist.arguments import writing
from moco_dist.config import Config
from moco_dist.data.decode import Unreadable
from moco_dist.data.store import FileSource
from moco_dist.embed import description, folder
from moco_dist.embed.embedding import Embedding
from moco_dist.embed.options import Options
from moco_dist.embed.stream import Rows, Stream
from moco_dist.embed.write import writer_of
from moco_dist.encoders.load import PretrainedEncoder, load_encoder
from moco_dist.errors import UserError, printable, some_names
from moco_dist.interruption import interruptible
from moco_dist.ranks.collectives import World
from moco_dist.ranks.rank import Rank
from moco_dist.tracking.progress import Progress

_PATIENCE_SECONDS = 3600.0
"""Ranks wait so long for one another, since a chunk of large images takes minutes on a slow CPU."""


def run(options: Options, out: Path, config: Config, rank: Rank) -> int:
    """Write the features to a file, on all ranks. Returns the exit status; raises whatever else goes wrong."""

    def work(world: World) -> None:
        embedding = embed(options, out, config, world)
        tell_unreadable("moco_dist.embed", embedding.unreadable, world)
        world.from_first(lambda: print(f"{len(embedding.files)} features: {printable(str(out))}"))

    return run_command("moco_dist.embed", work, config, rank)


def run_command(command: str, work: Callable[[World], None], config: Config, rank: Rank) -> int:
    """Do the work of a command on all ranks. Returns the exit status; raises whatever else goes wrong."""
    return joint_work.run(command, work, config, rank, _PATIENCE_SECONDS)


def call(options: Options, out: Path | None, config: Config, rank: Rank) -> Embedding:
    """Compute the features for a caller that goes on in this process. Raises whatever goes wrong."""

    def work(world: World) -> Embedding:
        embedding = embed(options, out, config, world)
        tell_unreadable("moco_dist.embed_folder", embedding.unreadable, world)
        return embedding

    with interruptible():
        return joint_work.call(work, config, rank, _PATIENCE_SECONDS)


def embed(options: Options, out: Path | None, config: Config, world: World) -> Embedding:
    """Compute the features of a folder on ranks that have met.

    Args:
        options: of what, and how.
        out: the file that is written; None: they are kept in memory, on every rank.
        config: of the run, or of the process.
        world: the ranks.

    Raises:
        UserError: a mistake of the user's, on all ranks.
    """
    encoder, images = open_both(options, world)
    stream = Stream(
        images,
        encoder,
        world,
        layer=options.features,
        normalise=options.normalise,
        batch=options.batch,
        workers=options.workers(config),
    )
    places = list[np.ndarray]()
    if out is None:
        matrix, count = np.empty((len(images), stream.dim), dtype=np.float32), 0
        for rows in shown(stream, world):
            matrix[count : count + len(rows.places)] = rows.features
            count += len(rows.places)
            places.append(rows.places)
        in_memory = matrix if count == len(images) else matrix[:count].copy()
    else:
        in_memory = None
        _write(out, stream, description.describe(options, encoder, images), images, world, places)
    names = [os.fsdecode(name) for name in images.names[np.concatenate(places)]]
    path = None if out is None else out.absolute()  # the caller may change the working directory before it is read
    return Embedding(names, stream.unreadable, path, in_memory)


def open_both(options: Options, world: World) -> tuple[PretrainedEncoder, FileSource]:
    """Load the encoder onto the device and list the images, on all ranks. Raises UserError, on all of them."""

    def load() -> tuple[PretrainedEncoder, list[str]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            encoder = load_encoder(
                options.path,
                encoder=options.encoder,
                head=options.features == "head",
                step=options.step,
                config=options.config,
                overrides=options.values_of_encoder(),
            )
        return encoder, [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]

    encoder, lines = world.agreed(load)
    for line in lines:
        world.warn(f"moco_dist: {line}")
    for line in encoder.origin.notes:
        world.tell(f"moco_dist: {line}")
    digests = world.gather_objects(encoder.digest)
    if len(set(digests)) > 1:
        fix = "give every node the same files"
        raise UserError.of("RUN_DIR|WEIGHTS", options.path, "the ranks read different weights from it", fix)
    images = folder.on_all_ranks(options.folder, encoder.preprocess, world)
    for remark in images.remarks:
        world.tell(f"moco_dist: {remark}")
    for doubt in world.from_first(lambda: folder.range_doubts(images)):
        world.warn(f"moco_dist: {doubt}")
    return encoder.to(world.device), images


def shown(stream: Stream, world: World) -> Iterator[Rows]:
    """Yield the rows of a stream, and show on rank 0 how many images are done."""
    progress = Progress(len(stream), 0, "features", unit="image", quiet=world.quiet or not world.speaks(met=True))
    done = 0
    try:
        for rows in stream:
            yield rows
            done = min(len(stream), done + stream.round)
            progress.update(done)
    finally:
        progress.close()


def tell_unreadable(command: str, unreadable: list[Unreadable], world: World) -> None:
    """Warn about images that were left out: name the first ones, and say how many there are."""
    if unreadable:
        count = f"{len(unreadable)} image{'s' * (len(unreadable) > 1)}"
        world.warn(f"{command}: {count} cannot be decoded, left out: {some_names(list(map(str, unreadable)))}")


def _write(
    out: Path, stream: Stream, described: dict[str, object], images: FileSource, world: World, places: list[np.ndarray]
) -> None:
    """Write a stream to a file on rank 0, and collect the places of its rows. Raises UserError, on all ranks."""
    writer, put_in_place = writer_of(out, images.names, stream.dim, described), ExitStack()

    def write(action: Callable[[], None]) -> None:
        with writing(out):  # not round the stream, whose errors are none of this file
            world.from_first(action)

    try:
        write(lambda: writer.open(put_in_place))
        for rows in shown(stream, world):
            write(functools.partial(writer.add, rows))
            places.append(rows.places)
        write(writer.finish)
        write(put_in_place.close)
    except BaseException:
        with suppress(OSError):  # what a full disk does not take while the files are closed is not wanted any more
            put_in_place.__exit__(*sys.exc_info())
        raise
