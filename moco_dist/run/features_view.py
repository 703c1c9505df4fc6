"""Keep what an evaluation leaves of the features to be looked at: a map, the confusions, neighbours with thumbnails."""

import contextlib
import functools
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from moco_dist.files import read_text, write_text

VERSION = 1
"""Version of the file: another one is not read."""


@dataclass(frozen=True)
class Thumbnail:
    """A thumbnail is a small picture of an image."""

    label: int
    picture: str
    """The PNG or JPEG in base64."""
    kind: str
    """`png` or `jpeg`."""


@dataclass(frozen=True)
class Neighbours:
    """The neighbours are the training images whose features are nearest to those of a held-out image."""

    query: Thumbnail
    predicted: int
    """Class that kNN gives the query."""
    images: list[Thumbnail]
    """The nearest first."""
    similarities: list[float]
    """Cosines, one for each image."""


@dataclass(frozen=True)
class FeaturesView:
    """A view shows the features of the held-out images."""

    step: int
    """Steps that the encoder has learnt; 0 where that is not known."""
    split: str
    """The kind of the held-out images: test or validation."""
    images: int
    """Held-out images."""
    classes: list[str]
    """Names of the classes."""
    projection: str
    """The method that made the map: `PCA` or `t-SNE`."""
    points: list[tuple[float, float]]
    """[n] places on the map of some of the held-out images, 0 to 1."""
    labels: list[int]
    """[n] their classes."""
    right: list[int]
    """[n] 1 where kNN classifies the image rightly, else 0."""
    confusions: list[tuple[int, int, int]]
    """True class, class that kNN predicts, number of images, for each pair that occurs."""
    neighbours: list[Neighbours]
    digest: str
    """Digest of what the view is made from, weights and images; empty where training has left it."""

    @property
    def accuracy(self) -> float:
        """Return the share of the held-out images that kNN classifies rightly."""
        return sum(count for true, predicted, count in self.confusions if true == predicted) / max(1, self.images)


def write(file: Path, view: FeaturesView) -> None:
    """Write the view. Raises OSError."""
    write_text(file, json.dumps({"version": VERSION, **asdict(view)}, separators=(",", ":")) + "\n")


def read(file: Path) -> FeaturesView | None:
    """Read the view; None where there is none, or none that can be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):  # pydantic's error is a ValueError
        text = read_text(file)
        content = json.loads(text)
        if isinstance(content, dict) and content.get("version") == VERSION:
            view = _type().validate_json(text, strict=True)
            return view if _is_whole(view) else None
    return None


@functools.cache
def _type() -> TypeAdapter[FeaturesView]:
    return TypeAdapter(FeaturesView)


def _is_whole(view: FeaturesView) -> bool:
    """Tell whether all classes that the view names are there, its numbers make sense, and its lists fit together."""
    pictures = [picture for near in view.neighbours for picture in (near.query, *near.images)]
    used = [*view.labels, *(picture.label for picture in pictures), *(near.predicted for near in view.neighbours)]
    used += [which for true, predicted, _ in view.confusions for which in (true, predicted)]
    fits = len(view.points) == len(view.labels) == len(view.right) and all(
        len(near.images) == len(near.similarities) for near in view.neighbours
    )
    counts = [view.step, view.images, *(count for *_, count in view.confusions)]
    places = [coordinate for point in view.points for coordinate in point]
    similarities = [cosine for near in view.neighbours for cosine in near.similarities]
    fits = fits and all(count in range(2**53) for count in counts) and set(view.right) <= {0, 1}
    fits = fits and all(0 <= place <= 1 for place in places) and all(map(math.isfinite, similarities))
    kinds = {picture.kind for picture in pictures}
    return fits and all(0 <= which < len(view.classes) for which in used) and kinds <= {"png", "jpeg"}
