"""Leave a view of the features to be looked at: a map, the confusions of kNN, and neighbours with thumbnails."""

import base64
import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from moco_dist.data.pixel_statistics import shown_channels
from moco_dist.data.store import Source
from moco_dist.errors import printable, reason
from moco_dist.evaluate.features import Features
from moco_dist.evaluate.knn import Classified
from moco_dist.evaluate.labels import Indices
from moco_dist.ranks.collectives import World
from moco_dist.run import features_view
from moco_dist.run.features_view import FeaturesView, Neighbours, Thumbnail

log = logging.getLogger(__name__)

_POINTS, _QUERIES, _NEIGHBOURS = 1500, 16, 6
"""Images on the map, images whose neighbours are shown, and neighbours of each, at most."""
_SIDE = 48
"""Side of a thumbnail in pixels, at most."""
_BLOCK = 16384
"""Features of the bank that are compared at a time: bounds the memory of their double precision."""

Projection = Literal["PCA", "t-SNE"]


@dataclass(frozen=True)
class Images:
    """These are the images that a view shows."""

    held_out: Source
    """The images that were classified."""
    train: Source
    """The images with whose features the held-out ones are compared."""
    size: int
    """Side at which both are encoded, in pixels."""
    split: str
    """The split of the held-out images: test or validation."""


def leave(
    file: Path,
    classified: Classified,
    bank: Features,
    images: Images,
    world: World,
    *,
    step: int = 0,
    projection: Projection = "PCA",
    digest: str = "",
    may_fail: bool = False,
) -> None:
    """Write a view of the features; all ranks call it.

    Args:
        file: what is written, by rank 0.
        classified: the held-out images, classified by kNN; the same on all ranks.
        bank: this rank's share of the features of the training images.
        images: where the pictures come from.
        world: the ranks.
        step: steps that the encoder has learnt; 0 where that is not known.
        projection: how the map is made. t-SNE takes seconds, PCA milliseconds.
        digest: of what the view is made from, weights and images.
        may_fail: whether a view that cannot be made is a warning alone, as in training, which it must not stop.

    Raises:
        OSError: the file cannot be written; on all ranks.
    """
    queries = _chosen(classified)
    nearest = _nearest(classified.queries.rows[queries.to(classified.queries.rows.device)], bank, world)

    def write() -> None:
        try:
            features_view.write(file, _view(classified, queries, nearest, images, step, projection, digest))
        except Exception as error:
            if not may_fail:
                raise
            log.warning("%s: not written (%s); training goes on", file, reason(error))

    world.from_first(write)


def _chosen(classified: Classified) -> Tensor:
    """Choose the images whose neighbours are shown: some of each class, and some that are classified wrongly."""
    labels, right = classified.queries.labels.numpy(), classified.right.numpy()
    order = np.argsort(labels, kind="stable")
    some = order[np.linspace(0, len(order) - 1, min(len(order), 2 * _QUERIES // 3)).astype(int)]
    wrong = np.flatnonzero(~right)
    count = min(len(wrong), _QUERIES - len(some))
    mistaken = wrong[np.linspace(0, len(wrong) - 1, count).astype(int)] if count else wrong[:0]
    return torch.from_numpy(np.unique(np.concatenate([some, mistaken])))


def _nearest(rows: Tensor, bank: Features, world: World) -> list[list[tuple[float, int, int]]]:
    """Find the images of the bank that are nearest to some features [q, D], over all ranks.

    Returns:
        For each, the cosine, the index and the label of its neighbours, the nearest first; the same on all ranks.
    """
    cosines = torch.cat([rows.double() @ block.double().T for block in bank.rows.split(_BLOCK)], dim=1)  # [q, n]
    top = cosines.topk(min(_NEIGHBOURS, cosines.shape[1]), dim=1)
    places = top.indices.cpu()
    values, indices, labels = top.values.cpu().tolist(), bank.indices[places].tolist(), bank.labels[places].tolist()
    mine = [list(zip(*of_query, strict=True)) for of_query in zip(values, indices, labels, strict=True)]
    everyone = world.gather_objects(mine)
    merged = [[near for of_rank in of_query for near in of_rank] for of_query in zip(*everyone, strict=True)]
    return [sorted(near, key=lambda one: (-one[0], one[1]))[:_NEIGHBOURS] for near in merged]


def _view(
    classified: Classified,
    queries: Tensor,
    nearest: list[list[tuple[float, int, int]]],
    images: Images,
    step: int,
    projection: Projection,
    digest: str,
) -> FeaturesView:
    features, predicted = classified.queries, classified.predicted.cpu()
    of_bank = np.array([index for near in nearest for _, index, _ in near], dtype=np.int64)
    thumbs = iter(_thumbnails(images.train, of_bank, images.size))
    of_queries = _thumbnails(images.held_out, features.indices[queries].numpy(), images.size)
    neighbours = [
        Neighbours(
            query=picture,
            predicted=int(predicted[query]),
            images=[next(thumbs) for _ in near],
            similarities=[round(cosine, 4) for cosine, _, _ in near],
        )
        for query, picture, near in zip(queries.tolist(), of_queries, nearest, strict=True)
    ]
    shown = torch.linspace(0, len(predicted) - 1, min(len(predicted), _POINTS)).long()
    pairs, counts = torch.stack([features.labels, predicted]).unique(dim=1, return_counts=True)  # [2, p], [p]
    places = _map(features.rows.cpu()[shown].double().numpy(), projection)
    names = images.train.classes or tuple(map(str, range(1 + max(int(pairs.max()), int(features.labels.max())))))
    return FeaturesView(
        step=step,
        split=images.split,
        images=len(predicted),
        classes=[printable(name) for name in names],
        projection=projection,
        points=[(round(x, 4), round(y, 4)) for x, y in places.tolist()],
        labels=features.labels[shown].tolist(),
        right=classified.right[shown].int().tolist(),
        confusions=[(*pair, count) for pair, count in zip(pairs.T.tolist(), counts.tolist(), strict=True)],
        neighbours=neighbours,
        digest=digest,
    )


def _map(rows: NDArray[np.float64], projection: Projection) -> NDArray[np.float64]:
    """Project features [n, D] to places [n, 2] in the unit square."""
    centred = rows - rows.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)  # of rising eigenvalues
    axes = vectors[:, :-3:-1]  # [D, 2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])])  # either sign is a solution
    places = centred @ axes
    if projection == "t-SNE" and len(rows) > 10:
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(rows) - 1) / 3)
        start = places / max(places[:, 0].std(), 1e-12) * 1e-4
        places = TSNE(perplexity=perplexity, init=start, random_state=0).fit_transform(centred).astype(np.float64)
    low, high = places.min(axis=0), places.max(axis=0)
    side = max(float((high - low).max()), 1e-12)
    in_square: NDArray[np.float64] = (places - (low + high) / 2) / side + 0.5
    return in_square


def _thumbnails(source: Source, indices: Indices, size: int) -> list[Thumbnail]:
    """Draw small pictures of images of a source."""
    assert source.labels is not None
    pixels = source.centred(indices, size)[0].cpu().numpy()  # [n, C, S, S]
    pixels = pixels[:, : shown_channels(pixels.shape[1])].transpose(0, 2, 3, 1)
    return [_thumbnail(image, int(label)) for image, label in zip(pixels, source.labels[indices], strict=True)]


def _thumbnail(pixels: NDArray[np.uint8], label: int) -> Thumbnail:
    """Encode an image [S, S, 1 or 3]: tiny ones without loss, photographs as JPEG, which is a third as large."""
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((_SIDE, _SIDE))
    kind = "png" if max(pixels.shape[:2]) <= _SIDE else "jpeg"
    content = io.BytesIO()
    image.save(content, format=kind, **({"quality": 80} if kind == "jpeg" else {"optimize": True}))
    return Thumbnail(label, base64.b64encode(content.getvalue()).decode(), kind)
