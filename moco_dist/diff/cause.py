"""Name the most probable cause for which the rows of two runs part."""

from collections.abc import Iterable, Mapping, Sequence

from moco_dist.diff.differences import Difference
from moco_dist.diff.side import Side
from moco_dist.errors import shown
from moco_dist.run.comparison import Drift

_ROUNDING = 1e-4
"""A first difference of a loss, relative to it, up to which rounding errors can explain it. Float32 has 6e-8, and
a step adds up thousands of numbers."""

_OF_LR = {f"optim.{name}" for name in ("lr", "schedule", "milestones", "decay", "warmup_epochs", "epochs", "steps")}
"""Keys that act through the learning rate alone, which rows have."""
_OF_LENGTH = {"optim.epochs", "optim.steps"}
"""Keys by which the last evaluation of a run, which takes all images, comes at another step."""
_FROM_STEP_2 = {"optim.sgd_momentum", "optim.weight_decay", "moco.momentum"}
"""Keys that first show in the loss of step 2, since the loss of step 1 is computed before any update."""


def probable_causes(
    differences: Sequence[Difference],
    drifts: Mapping[str, Drift],
    first: Drift,
    one: Side,
    other: Side,
    *,
    evaluation: bool = False,
) -> list[str]:
    """Return in words what can have made the rows part, the most probable first; empty where nothing is known.

    Args:
        differences: what the runs record differently.
        drifts: the figures of training rows that differ, by name.
        first: drift of the figure that parts them.
        one: a run.
        other: the other run.
        evaluation: whether that is a figure of evaluations, and all training rows are equal.
    """
    lr = drifts.get("lr")
    lr_differs = lr is not None and lr.first_step <= first.first_step
    recorded = [difference for difference in differences if difference.recorded]
    curve = _sorted(d for d in recorded if d.effect == "curve" and _acts(d, first.first_step, lr_differs=lr_differs))
    code = [_words(d) for d in curve if d.section == "code"]  # other code is not always other numbers
    causes = [_words(d) for d in curve if d.section != "code"]
    bits = [f"{_words(d)}, which changes last bits" for d in _sorted(d for d in recorded if d.effect == "bits")]
    small = abs(first.first[0] - first.first[1]) <= _ROUNDING * max(map(abs, first.first))
    if evaluation:
        is_last = first.first_step in (one.last_step, other.last_step)
        causes = [_words(d) for d in recorded if _acts_in_evaluation(d, is_last=is_last)] + causes
    causes += [*bits, *code] if small else [*code, *bits]
    if one.on_gpu and other.on_gpu and str(one.value("device.deterministic")).lower() != "true":
        causes.append("device.deterministic is off, so that a GPU does not repeat its last bits")
    return list(dict.fromkeys(causes))


def _sorted(differences: Iterable[Difference]) -> list[Difference]:
    """Sort differences by how surely they move a number."""
    order = ("seed", "data", "config", "ranks", "hardware", "versions", "code", "evaluation")
    return sorted(differences, key=lambda d: order.index(d.section))


def _acts(difference: Difference, step: int, *, lr_differs: bool) -> bool:
    """Return whether a difference can show in the loss of a step."""
    if difference.name in _OF_LR:
        return step > 1 and lr_differs
    return step > 1 or difference.name not in _FROM_STEP_2


def _acts_in_evaluation(difference: Difference, *, is_last: bool) -> bool:
    """Return whether a difference can show in the figures of an evaluation, after equal steps.

    Args:
        difference: of two runs.
        is_last: whether the evaluation is the last one of a run.
    """
    if difference.name in _OF_LENGTH:
        return is_last
    return difference.effect == "evaluation" and difference.name != "eval.knn_every"


def _words(difference: Difference) -> str:
    if difference.section == "code":
        return "the code differs"
    return f"{difference.name} differs ({shown(difference.one)} and {shown(difference.other)})"
