"""Spread few labels over the unlabelled images, along the graph of nearest features.

Label propagation (Zhou et al. 2004, "Learning with local and global consistency") on a graph of features, and the
certainty of what it says (Iscen et al. 2019, "Label propagation for deep semi-supervised learning", section 3.2).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moco_dist.evaluate.labels import Fold, Indices
from moco_dist.ranks.collectives import World

Graph = Any
"""A graph of images: a scipy.sparse.csr_matrix [n, n]. scipy is imported where it computes, and has no types."""

POWER = 3
ALPHA = 0.99
"""Power of similarities, and what of a label comes over the edges: section 4.1 there."""
NEIGHBOURS = (10, 20, 50)
"""Numbers of an image's neighbours to choose from: 50 there, and fewer are less to compute."""
BALANCE, MOST_BALANCE = 5, 2.0
"""Power of a class's share by which its scores are divided, and the most that this may change them."""
SETTINGS = (POWER, ALPHA, NEIGHBOURS, BALANCE, MOST_BALANCE)

_ROWS, _COLUMNS = 1024, 16384
"""Similarities computed at a time. Fixed, so that no number depends on which rank computes it."""

_ITERATIONS = 200


class Spread(NamedTuple):
    """A spread holds the classes that propagation gives to all images."""

    plain: Indices
    """[n] classes as they come out; of the labelled images, their own."""
    balanced: Indices
    """[n] classes, kept from differing much in size."""
    certainty: NDArray[np.float32]
    """[n] from 0, all classes alike, to 1."""

    def classes(self, balanced: bool) -> Indices:
        """Return the balanced classes or the plain ones, [n]."""
        return self.balanced if balanced else self.plain


class Choice(NamedTuple):
    """A choice holds the settings that labels are spread with."""

    neighbours: int
    balanced: bool


@torch.no_grad()
def nearest(features: Tensor, k: int, world: World) -> tuple[Tensor, Tensor]:
    """Find the most similar other images of each image. Rows are shared out to the ranks.

    Args:
        features: [n, D] normalised, the same on all ranks.
        k: how many, below n.
        world: the ranks.

    Returns:
        Indices [n, k] and cosines [n, k], on the CPU, the same on all ranks.
    """

    def of_rows(first: int) -> tuple[Tensor, Tensor]:
        rows = features[first : first + _ROWS]
        best, where = rows.new_empty(len(rows), 0), torch.empty(len(rows), 0, dtype=torch.long, device=rows.device)
        for begin in range(0, len(features), _COLUMNS):
            cosine = rows @ features[begin : begin + _COLUMNS].T  # [rows, columns]
            itself = torch.arange(first - begin, first - begin + len(rows), device=rows.device)
            inside = (itself >= 0) & (itself < cosine.shape[1])
            cosine[inside, itself[inside]] = -torch.inf
            top, index = cosine.topk(min(k, cosine.shape[1]), dim=1)
            best, index = torch.cat([best, top], dim=1), torch.cat([where, index + begin], dim=1)
            best, order = best.topk(min(k, best.shape[1]), dim=1)
            where = index.gather(1, order)
        return where.cpu(), best.cpu()

    blocks = world.share_out(range(0, len(features), _ROWS), of_rows)
    return torch.cat([where for where, _ in blocks]), torch.cat([best for _, best in blocks])


def graph(indices: Tensor, cosines: Tensor) -> Graph:
    """Make the normalised graph `D^-1/2 (A + A^T) D^-1/2` of `max(cosine, 0)^POWER` (section 3.2, equations 9 and 10).

    Args:
        indices: [n, k] neighbours of each image.
        cosines: [n, k]

    Returns:
        [n, n]
    """
    from scipy import sparse

    count, k = indices.shape
    weights = cosines.double().clamp(min=0).pow(POWER).flatten().numpy()
    directed = sparse.csr_matrix((weights, indices.flatten().numpy(), np.arange(0, count * k + 1, k)), (count, count))
    affinity = directed + directed.T
    degree = np.asarray(affinity.sum(1)).ravel()
    scale = sparse.diags_array(1 / np.sqrt(np.maximum(degree, np.finfo(np.float64).tiny)))
    return sparse.csr_matrix(scale @ affinity @ scale)


def spread(edges: Graph, labelled: Indices, labels: Indices, classes: int) -> Spread:
    """Spread the labels: solve `(I - ALPHA S) Z = Y` by conjugate gradients (equations 4 to 6).

    A row of Z says how near each class is to an image; the largest decides. An island of images that no edge of weight
    joins to a label of their class (a 7 with a bar, where no labelled 7 has one) goes to another class, which then has
    too many. So where classes are of about equal size, a class's scores are divided by a power of its share, as in the
    class mass normalisation of Zhu et al. 2003 (section 4), within limits. That moves uncertain images alone.

    Args:
        edges: [n, n] of `graph`.
        labelled: [m] which images have labels.
        labels: [m] their classes.
        classes: number of classes.
    """
    from scipy import sparse
    from scipy.sparse.linalg import cg

    count = edges.shape[0]
    system = sparse.eye_array(count, format="csr") - ALPHA * edges
    scores = np.empty((count, classes))
    for which in range(classes):
        begin = np.zeros(count)
        begin[labelled[labels == which]] = 1
        scores[:, which], _ = cg(system, begin, rtol=1e-6, maxiter=_ITERATIONS)
    scores = np.maximum(scores, 0) + 1e-12
    shares = scores / scores.sum(1, keepdims=True)  # [n, classes]
    certainty = 1 + (shares * np.log(shares)).sum(1) / np.log(classes)  # equation 7
    counts = np.bincount(shares.argmax(1), minlength=classes)
    balance = (count / classes / np.maximum(counts, 1)) ** BALANCE  # [classes]
    plain, balanced = shares.argmax(1), (shares * balance.clip(1 / MOST_BALANCE, MOST_BALANCE)).argmax(1)
    plain[labelled], balanced[labelled], certainty[labelled] = labels, labels, 1
    return Spread(plain, balanced, certainty.clip(0, 1).astype(np.float32))


def choose(
    graphs: Mapping[int, Graph], labelled: Indices, labels: Indices, classes: int, folds: Sequence[Fold]
) -> Choice:
    """Choose balanced guesses and few neighbours, unless the labels speak against it.

    Cross-validation: parts of the labels are hidden and guessed from the rest. One label more or less is chance, so the
    choice is the first that is worse than the best by no more than a standard error of the difference (Breiman et al.
    1984, section 3.4.3).

    Args:
        graphs: [n, n] each, by the neighbours of an image.
        labelled: [m] which images have labels.
        labels: [m] their classes.
        classes: number of classes.
        folds: pairs of what to keep and what to hide, indices into the labelled.
    """
    right: dict[Choice, list[bool]] = {Choice(k, balanced): [] for balanced in (True, False) for k in sorted(graphs)}
    for k, edges in graphs.items():
        for kept, hidden in folds:
            guess = spread(edges, labelled[kept], labels[kept], classes)
            for balanced in (True, False):
                right[Choice(k, balanced)] += (guess.classes(balanced)[labelled[hidden]] == labels[hidden]).tolist()
    best = max(right.values(), key=sum)

    def as_good(of: Sequence[bool]) -> bool:
        differ = sum(a != b for a, b in zip(of, best, strict=True))
        return sum(best) - sum(of) <= math.sqrt(differ)

    return next(choice for choice, of in right.items() if as_good(of))
