"""Define a request for a search, which names the queries and the file for the picture. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moco_dist.embed import options
from moco_dist.errors import UserError

COUNT, _MOST = 10, 100
"""The number of images that are shown for each query by default, and the largest number."""
PER_LINE = 10
"""Images beside each other in the picture."""
_MOST_LINES = 200
"""Lines of images in the picture, which has no room for more pixels."""


@dataclass(frozen=True)
class Request:
    """A request is for the images of a folder that are nearest to some queries."""

    queries: tuple[Path, ...]
    count: int
    """The number of images that are shown for each query."""
    features: Path | None
    """A file with the features of the folder; None: they are computed."""
    out: Path
    """The file for the picture."""

    def check(self, folder: Path) -> None:
        """Refuse a request that cannot be searched for or drawn. Raises UserError."""
        if not 1 <= self.count <= _MOST:
            raise UserError.of("--count", self.count, f"must be from 1 to {_MOST}", f"drop it for {COUNT}")
        if len(self.queries) * -(-self.count // PER_LINE) > _MOST_LINES:
            rule = f"{len(self.queries)} queries with {self.count} images each do not fit into a picture"
            raise UserError.of("--count", self.count, rule, "search for some of them at a time")
        for query in self.queries:
            if not query.is_file():
                rule = "is not a regular file" if query.exists() else "no such file"
                rule = "is a folder" if query.is_dir() else rule
                raise UserError.of("--query", query, rule, "give the file of an image")
        if self.features is not None:
            options.check_parquet(self.features, "--features-file")
        options.check_result(self.out, folder, (".png",))
