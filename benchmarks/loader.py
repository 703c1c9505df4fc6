"""Measure what a pair of views costs a core: our loader beside the MoCo authors' pipeline, and where the time goes.

python -m benchmarks.loader [--json PATH] [--rounds N] [--images N]

Both make pairs of 224x224 views of the same JPEG files, two photographs of scikit-learn's at 500x375 and 78 kB. The
authors' structure is PIL's and torchvision's: a sample is decoded, and for each view come RandomResizedCrop,
ColorJitter, RandomGrayscale, blur, flip, ToTensor, Normalize. Ours decodes and crops; colours, blur and flip are done
in batches on the device, and are listed apart. The time is that of the process on one core, in rounds in which all take
turns; the figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks.baselines.authors import augmentation
from benchmarks.runs import RESULTS
from moco_dist import config as configs
from moco_dist import files, packages
from moco_dist.data import augment, photographs, sources
from moco_dist.data.crops import CROP_DRAWS, placers_of
from moco_dist.data.pixel_statistics import PIXEL_STATISTICS
from moco_dist.randomness import Stream, uniform
from moco_dist.ranks.machine import cpu_model

SIDES, BYTES, SIZE = (500, 375), 78_000, 224
CONFIG = Path("configs/imagenet_v2.yaml")
PACKAGES = ("torch", "torchvision", "pillow", "simplejpeg", "opencv-python-headless")


def main(arguments: Sequence[str]) -> int:
    """Measure, write, and print the ratio."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loader", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=RESULTS / "loader.json", metavar="PATH")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="rounds, of which the median counts (9)")
    parser.add_argument("--images", type=int, default=40, metavar="N", help="images of a round (40)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photographs(Path(folder), options.images)
        rounds = [round_of(Path(folder), paths) for _ in range(options.rounds + 1)][1:]  # the first one warms up
        distances = list(distances_from_pillow(Path(folder), paths))
    authors, ours = ([sum(of_round[who].values()) for of_round in rounds] for who in ("authors", "ours"))
    ratios = [one / other for one, other in zip(authors, ours, strict=True)]
    results = {
        "command": "python -m benchmarks.loader",
        "machine": {"processor": cpu_model(), "packages": list(packages.versions(*PACKAGES))},
        "rounds": options.rounds,
        "milliseconds": {
            group: {name: round(statistics.median(r[group][name] for r in rounds), 3) for name in rounds[0][group]}
            for group in rounds[0]
        },
        "ratio": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
        "gray_levels": distances,
    }
    files.write_text(options.json, json.dumps(results, indent=1) + "\n")
    print(f"the authors' pipeline takes {results['ratio']['median']:.2f} times as long; written: {options.json}")
    return 0


def write_photographs(folder: Path, count: int) -> list[Path]:
    """Write the photographs in turn as JPEGs of the size that ImageNet's have on average."""
    contents = []
    for pixels in load_sample_images().images:
        image = Image.fromarray(pixels).resize(SIDES, Image.Resampling.BICUBIC)
        contents.append(min((jpeg(image, quality) for quality in range(60, 99)), key=lambda c: abs(len(c) - BYTES)))
    paths = [folder / "train" / f"{number:03}.jpg" for number in range(count)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        path.write_bytes(contents[number % len(contents)])
    return paths


def jpeg(image: Image.Image, quality: int) -> bytes:
    """Encode an image."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def round_of(folder: Path, paths: Sequence[Path]) -> dict[str, dict[str, float]]:
    """Measure everything once. Returns milliseconds an image of each part, in groups of parts."""
    return {
        "authors": authors(paths),
        "ours": {"all": of_loader(folder, paths, "cpu")},
        "ours with data.decode=pillow": {"all": of_loader(folder, paths, "pillow")},
        "parts of ours": parts_of_ours(paths),
        "decoders": {name: taken(decoder, contents_of(paths)) for name, decoder in decoders().items()},
    }


def taken(function: Callable[[Any], object], values: Sequence[Any]) -> float:
    """Return the milliseconds of a core that a function takes for a value."""
    begin = time.process_time()
    for value in values:
        function(value)
    return 1000 * (time.process_time() - begin) / len(values)


def contents_of(paths: Sequence[Path]) -> list[bytes]:
    """Read the files."""
    return [path.read_bytes() for path in paths]


def authors(paths: Sequence[Path]) -> dict[str, float]:
    """Make pairs of views in the structure of the authors' code, and return the time of each of its parts."""
    names = ("crop and resize", "colours", "grayscale", "blur", "flip", "to a tensor", "normalise")
    steps = dict(
        zip(names, augmentation(configs.load(CONFIG, [f"data.root={paths[0].parent}"])).transforms, strict=True)
    )
    seconds = dict.fromkeys(("read and decode", *steps), 0.0)
    for path in paths:
        begin = time.process_time()
        with path.open("rb") as file:
            image = Image.open(file).convert("RGB")
        end = time.process_time()
        seconds["read and decode"] += end - begin
        for _ in range(2):
            view: Any = image
            for name, step in steps.items():
                begin, view = end, step(view)
                end = time.process_time()
                seconds[name] += end - begin
    return {name: 1000 * of_step / len(paths) for name, of_step in seconds.items()}


def draws_of(count: int, numbers: int) -> np.ndarray:
    """Draw the uniform numbers of pairs of views, [2, count, numbers]."""
    return uniform(0, Stream.VIEW, 0, 2 * np.arange(count) + np.arange(2)[:, None], numbers)


def of_loader(folder: Path, paths: Sequence[Path], decode: str) -> float:
    """Make a batch of pairs as a data worker does, and return the milliseconds of an image."""
    config = configs.load(CONFIG, [f"data.root={folder}", f"data.decode={decode}"])
    source = sources.open_source(config, "train")
    make = functools.partial(source.crops, draws=draws_of(len(paths), CROP_DRAWS), data=config.data)
    return taken(make, [np.arange(len(paths))]) / len(paths)


def parts_of_ours(paths: Sequence[Path]) -> dict[str, float]:
    """Return the time of each part of a pair in our loader; what the device does is done by a core here."""
    heads = [head for path in paths if (head := photographs.Photograph.of(path))]
    draws = draws_of(len(paths), CROP_DRAWS)
    boxes = [place(*SIDES[::-1]) for place in placers_of(draws, (0.2, 1.0), (3 / 4, 4 / 3))]
    images = list(zip((head.pixels(3, 1) for head in heads), boxes, strict=True))
    pairs = [[photographs.resized(pixels, box, SIZE) for box in of_image] for pixels, of_image in images]
    batch = torch.empty(2, len(paths), SIZE, SIZE, 3, dtype=torch.uint8)
    augmentation = augment.Augment(augment.Recipe.of(configs.Config().data), *PIXEL_STATISTICS["colour"])
    colours = torch.from_numpy(draws_of(len(paths), augment.COLOUR_DRAWS))
    read = taken(Path.read_bytes, paths)
    return {
        "read": read,
        "head": taken(photographs.Photograph.of, paths) - read,
        "decode": taken(lambda head: head.pixels(3, 1), heads),
        "resize": taken(lambda image: [photographs.resized(image[0], box, SIZE) for box in image[1]], images),
        "copy": taken(lambda pair: [batch[view, 0].copy_(crop) for view, crop in enumerate(pair)], pairs),
        "device": taken(lambda view: augmentation(batch[view].movedim(3, 1), colours[view]), [0, 1]) * 2 / len(paths),
    }


def decoders() -> dict[str, Callable[[bytes], Any]]:
    """Return the decoders of JPEGs that are installed here, by name; each returns [H, W, 3]."""

    def by_torchvision(content: bytes) -> Any:
        encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return decode_jpeg(encoded, mode=ImageReadMode.RGB).movedim(0, 2)

    of_all: dict[str, Callable[[bytes], Any]] = {
        "Pillow": lambda content: np.asarray(Image.open(io.BytesIO(content)).convert("RGB")),
        "torchvision.io": by_torchvision,
    }
    if packages.installed("simplejpeg"):
        import simplejpeg

        of_all["simplejpeg"] = simplejpeg.decode_jpeg
        of_all["simplejpeg, fastdct and fastupsample"] = functools.partial(
            simplejpeg.decode_jpeg, fastdct=True, fastupsample=True
        )
    if packages.installed("cv2"):
        import cv2

        of_all["OpenCV"] = lambda content: cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    return of_all


def distances_from_pillow(folder: Path, paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield how far the pixels of each decoder and of our views are from Pillow's."""
    for name, decoder in decoders().items():
        pairs = [(np.asarray(decoder(c)), np.asarray(Image.open(io.BytesIO(c)))) for c in contents_of(paths[:2])]
        yield distance(name, pairs)
    yield distance(f"views of {SIZE} pixels", views_both_ways(folder, len(paths)))
    large = folder / "large"
    large.mkdir()
    for number, pixels in enumerate(load_sample_images().images):
        (large / f"{number}.jpg").write_bytes(jpeg(Image.fromarray(pixels), 90))
    reduced = ["data.image_size=64", "data.crop_scale=0.4,1.0"]
    yield distance("views of 64 pixels of 640x427, decoded at half the scale", views_both_ways(large, 2, *reduced))


def views_both_ways(folder: Path, count: int, *overrides: str) -> list[tuple[Any, Any]]:
    """Make 40 pairs of views with data.decode=cpu and with data.decode=pillow."""
    views = []
    for decode in ("cpu", "pillow"):
        words = [f"data.root={folder}", f"data.decode={decode}", *overrides]
        data = configs.load(Path("configs/imagenet_v2.yaml"), words).data
        source = sources.open_source(configs.Config(data=data), "train")
        views.append(source.crops(np.arange(40) % count, draws_of(40, CROP_DRAWS), data)[0].flatten(0, 1).numpy())
    return list(zip(*views, strict=True))


def distance(name: str, pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    """Return the mean and the most of the differences of pairs of images, and the most of their means."""
    differences = [np.abs(one.astype(int) - other) for one, other in pairs]
    means = [float(difference.mean()) for difference in differences]
    most = max(int(difference.max()) for difference in differences)
    return {"of": name, "mean": statistics.mean(means), "most of an image": max(means), "most of a pixel": most}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
