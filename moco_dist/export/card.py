"""Write the model card of a package: what the encoder is, how it was trained, and what was measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from moco_dist.encoders.load import PretrainedEncoder
from moco_dist.errors import masked, printable, shown
from moco_dist.export import usage
from moco_dist.export.facts import Facts

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&$])")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SOURCES = {"digits": "scikit-learn's digits", "mnist": "MNIST", "cifar10": "CIFAR-10", "synthetic": "synthetic images"}
_RECIPE = {
    "data": ("augmentation", "image_size", "crop_scale", "rotation_degrees", "shear_degrees", "elastic_pixels"),
    "moco": ("queue_size", "momentum", "temperature", "symmetric", "bn_groups"),
    "optim": ("global_batch", "lr", "schedule", "warmup_epochs", "weight_decay", "sgd_momentum"),
    "device": ("precision",),
}
"""Keys of the config that the card has; training.yaml has all."""


def escaped(text: object) -> str:
    """Write a text of the run on one line of Markdown, in which it is nothing but text."""
    return _SPECIAL.sub(r"\\\1", masked(printable(" ".join(str(text).split()))))


def write(facts: Facts, encoder: PretrainedEncoder, which: str) -> str:
    """Write the card in Markdown.

    Args:
        facts: what is known of the weights.
        encoder: the one in the package.
        which: query or key.
    """
    model, channels = encoder.model, encoder.preprocess.channels
    timm = usage.fits_timm(model, channels)
    version, root = "v2" if model.mlp else "v1", " data.root=FOLDER" if facts.config.data.root else ""
    blocks = [
        "---\nlicense: unknown\n"
        + "library_name: timm\n" * timm
        + "pipeline_tag: image-feature-extraction\ntags:\n- self-supervised\n- moco\n---",
        f"# {escaped(facts.config.run.name)}",
        f"A {model.arch} that turns an image into {encoder.feature_dim} features. It was trained without labels, by "
        f"Momentum Contrast (MoCo {version}), and is the {which} encoder without its head.",
        "## Load it",
        "In torchvision, within this folder:",
        _code(usage.in_torchvision(model, channels)),
        _of_images(encoder),
        _code(usage.preprocessing_in_torchvision(encoder.preprocess)),
        *(("In timm:", _code(usage.in_timm())) if timm else ()),
        f"`model(images)` then gives features, [N, {encoder.feature_dim}]. `moco_dist.load_encoder` loads the folder "
        "with its preprocessing, where moco-dist is installed.",
        "## Training",
        _table(("", ""), _training(facts)),
        "The same recipe again, where moco-dist is installed:",
        _code(f"python -m moco_dist.train training.yaml run.name=NAME{root}", "sh"),
        "## Figures",
        *_figures(facts),
        "## Limitations",
        "\n".join(f"- {line}" for line in _limitations(facts, encoder)),
        "## Licence",
        "Not stated. Who publishes these weights names a licence here, and in the first lines of this file, that the "
        "terms of the training images allow.",
    ]
    return "\n\n".join(blocks) + "\n"


def _code(text: str, language: str = "python") -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def _table(heading: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heading, ("---",) * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _of_images(encoder: PretrainedEncoder) -> str:
    """Say which images the encoder takes."""
    prepare, channels = encoder.preprocess, encoder.preprocess.channels
    kinds = {1: "upright PIL images, which become gray", 3: "upright PIL images in RGB"}
    kind = kinds.get(channels, f"tensors [{channels}, H, W] of pixels in 0 to 1")
    scaled = ""
    if prepare.value_range:
        low, high = prepare.value_range
        scaled = f" Values of more than 8 bits are first scaled to 8, so that {low:g} is black and {high:g} white."
    return f"It takes squares of {prepare.image_size} pixels.{scaled} These lines make them from {kind}:"


def _training(facts: Facts) -> Iterator[tuple[str, str]]:
    """Yield a row of the card's table for each known fact about the training."""
    config = facts.config
    yield "images", _images(facts)
    if _DIGEST.fullmatch(str(digest := facts.data.get("digest"))):
        yield "digest of names or pixels, and labels", f"sha256 {digest}"
    for section, names in _RECIPE.items():
        values = config.model_dump(mode="json")[section]
        yield section, escaped(", ".join(f"{name}={shown(values[name])}" for name in names))
    total = f" of {facts.total_steps}" if facts.total_steps else ""
    if facts.step:
        yield "steps", f"{facts.step}{total}"
    if facts.epochs:
        yield "epochs", f"{facts.epochs:.4g}"
    if facts.converted:
        steps, sha256 = facts.converted
        of_file = f", whose checkpoint has the sha256 {sha256}" if _DIGEST.fullmatch(sha256) else ""
        yield "begun elsewhere", f"steps 1 to {steps} were taken by another program{of_file}"
    if config.run.init_from:
        yield "began from the weights", escaped(Path(config.run.init_from).name)
    if facts.hours is not None:
        yield "hours", f"{facts.hours:.2g}, by the speed that the rows tell"
    if facts.hardware:
        yield "hardware", "; ".join(map(escaped, facts.hardware))
    if facts.revision:
        yield "revision of moco-dist", escaped(facts.revision)
    if facts.versions:
        yield "versions", escaped(", ".join(f"{name} {version}" for name, version in facts.versions.items()))


def _images(facts: Facts) -> str:
    """Say which images the encoder learned from."""
    data = facts.config.data
    folder = escaped(Path(data.root or "").name)
    source = _SOURCES.get(data.source) or f"a folder of images{f', {folder}' * bool(folder)}"
    count = facts.data.get("images")
    numbers = f": {count} images" if type(count) is int and count else ""
    return f"{source}{numbers}{f' of {facts.classes} classes' * bool(numbers and facts.classes)}"


def _figures(facts: Facts) -> Iterator[str]:
    """Yield the lines about accuracies that were measured with these weights."""
    if not facts.measured:
        yield "None was measured with these weights."
        return
    rows = (
        (
            escaped(one.name),
            str(one.labels or "all"),
            f"{100 * one.accuracy:.2f}" + (f" ± {100 * one.spread:.2f}" if one.draws > 1 else "") + " %",
            escaped(one.images),
            f"`{one.command}`",
        )
        for one in facts.measured
    )
    yield _table(("method", "labels", "accuracy", "on", "command"), rows)
    yield "Accuracy is the share of held-out images that are named right; RUN_DIR is the directory of the run."


def _limitations(facts: Facts, encoder: PretrainedEncoder) -> Iterator[str]:
    """Yield the limits that the figures and the training show, a sentence each."""
    prepare = encoder.preprocess
    channels = {1: "gray ", 3: "colour "}.get(prepare.channels, f"{prepare.channels}-channel ")
    yield f"It was trained on {channels}images of {prepare.image_size} pixels alone, and tried on no others."
    if of_encoder := [one for one in facts.measured if not one.name.startswith("supervised")]:
        best = max(of_encoder, key=lambda one: one.accuracy)
        guess = (
            f"; a guess among {facts.classes} classes is right in {100 / facts.classes:.3g} %" if facts.classes else ""
        )
        wrong = 100 * (1 - best.accuracy)
        yield f"At best ({escaped(best.name)}), {wrong:.2f} % of the held-out images are named wrong{guess}."
        yield "All figures are of held-out images of the same data set; no other was tried."
    else:
        yield "Its quality is unknown: nothing was measured."
    probe = next((one.accuracy for one in facts.measured if one.name.startswith("linear probe")), None)
    if facts.train_top1 is not None and probe is not None and facts.train_top1 > probe:
        gap = 100 * (facts.train_top1 - probe)
        yield f"The linear probe names {gap:.2f} percentage points more of its own training images right."
    if facts.total_steps and facts.step < facts.total_steps:
        yield f"The training had not ended: these weights are of step {facts.step} of {facts.total_steps}."
    if not facts.data:
        yield "The directory of the run does not tell how many images it learned from."
    yield from (f"The rows of the run show something wrong: {escaped(finding)}" for finding in facts.findings)
