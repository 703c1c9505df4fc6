"""Show a survey and the config that is proposed, as tables on the terminal."""

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.markup import escape
from rich.table import Table

from moco_dist.data.look.proposal import Setting, in_yaml
from moco_dist.data.look.survey import Survey
from moco_dist.errors import printable


def facts(survey: Survey) -> Table:
    """Return the table of what a folder holds."""
    table = Table(title=escape(printable(str(survey.root))), title_justify="left", show_header=False)
    for name, text in _facts(survey):
        table.add_row(name, escape(text))
    return table


def settings_table(settings: Sequence[Setting]) -> Table:
    """Return the table of the proposed config, with the reason for each key."""
    table = Table("key", "value", "reason", title="A config to begin with", title_justify="left")
    for setting in settings:
        table.add_row(setting.key, escape(in_yaml(setting.value)), escape(setting.reason))
    return table


def _facts(survey: Survey) -> Iterator[tuple[str, str]]:
    sampled = "" if survey.read == survey.images else f", of {survey.read} that were read"
    yield "images", f"{survey.images}" + (f", {survey.read} of them read" if sampled else ", all of them read")
    yield "splits", ", ".join(f"{name} {images}" for name, images in survey.splits.items() if name != ".") or "none"
    if survey.classes:
        fewest, most = min(survey.classes.values()), max(survey.classes.values())
        yield "classes", f"{len(survey.classes)}, of {fewest} to {most} training images"
    else:
        yield "classes", "none: no folders for classes, so no kNN and no probe"
    widths, heights = (sorted(image.size[axis] for image in survey.measured) for axis in (0, 1))
    middle = len(widths) // 2
    yield "width", f"{widths[0]} to {widths[-1]} pixels, median {widths[middle]}"
    yield "height", f"{heights[0]} to {heights[-1]} pixels, median {heights[middle]}"
    yield "channels", _shares(Counter(image.channels for image in survey.measured), {1: "gray", 3: "colour"})
    yield "bits a channel", _shares(Counter(image.bits for image in survey.measured), {})
    if survey.extremes:
        low, high = survey.extremes
        yield "values", f"{low:g} to {high:g}, of images with more than 8 bits a channel"
    yield "suffixes", ", ".join(f"{printable(suffix)} {number}" for suffix, number in survey.suffixes.most_common())
    mean, std = survey.pixel_statistics
    yield "pixel mean", f"{_decimals(mean)}, of pixels in [0, 1]"
    yield "pixel deviation", _decimals(std)
    yield "damaged", _damaged(survey) + sampled
    copies = sum(len(names) - 1 for names in survey.duplicates)
    first = f", such as {' = '.join(map(printable, survey.duplicates[0][:3]))}" if copies else ""
    yield "duplicates", f"{copies} files repeat the content of another{first}{sampled}"
    for remark in survey.remarks:
        yield "passed over", remark


def _damaged(survey: Survey) -> str:
    """Tell how many images cannot be decoded, and why the first of them cannot."""
    unfit = len(survey.measured) - len(survey.fitting)
    if not survey.damaged and not unfit:
        return "0"
    refused = (
        ". More than 1 % of a split: the trainer or the evaluation will refuse it until they are mended or removed"
    )
    rule = refused * survey.too_many_damaged
    others = f"; {unfit} of other channels cannot be read with data.channels={survey.channels}" * bool(unfit)
    if not survey.damaged:
        return f"0{others}{rule}"
    shown = "; ".join(map(str, survey.damaged[:5]))
    more = f"; and {len(survey.damaged) - 5} more" if len(survey.damaged) > 5 else ""
    return f"{len(survey.damaged)} cannot be decoded: {shown}{more}{others}{rule}"


def _shares(counts: Counter[int], names: dict[int, str]) -> str:
    """Write how many images have each number, the most frequent ones first."""
    if len(counts) == 1:
        number = next(iter(counts))
        return names.get(number, str(number))
    return ", ".join(f"{names.get(number, number)} {count}" for number, count in counts.most_common())


def _decimals(numbers: Sequence[float]) -> str:
    return "[" + ", ".join(f"{number:.4f}" for number in numbers) + "]"
