"""All rules by name: what each one looks at, and how long it waits until a finding begins or ends."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from moco_dist.errors import shown
from moco_dist.health import learning, queue, representation, speed
from moco_dist.health.course import Course, Row
from moco_dist.health.finding import Judgement


@dataclass(frozen=True)
class Rule:
    """A rule judges a run by some figures of its rows; docs/health.md says where its threshold comes from."""

    name: str
    title: str
    """The name of the fault, for people."""
    judge: Callable[[Course], Judgement | None]
    """Returns None where the run has not come so far, or where the rule does not concern it."""
    figures: tuple[str, ...]
    """Figures without which there is nothing to judge by, such as those of the queue where a method has none."""
    when: Literal["row", "window", "minute", "evaluation"] = "window"
    """The rule judges after each row, each full window, each minute of rows, or each evaluation."""
    begins_after: int = 2
    """Bad judgements in a row after which a finding begins."""
    ends_after: int = 2
    """Good judgements in a row after which it ends."""

    def has_figures(self, course: Course) -> bool:
        """Return whether the rows have the figures that this rule needs."""
        return not self._absent(course)

    def missing(self, course: Course) -> str:
        """Say why the rule was not judged."""
        if absent := self._absent(course):
            if not course.row or (self.when == "evaluation" and not course.evaluation):
                return "no evaluation yet" if course.row else "no rows yet"
            return f"no {absent[0]} in the rows"
        return "the run has not come so far, the rule does not apply, or another finding hides it"

    def _absent(self, course: Course) -> list[str]:
        row = self._row(course)
        return [name for name in self.figures if name not in row]

    def _row(self, course: Course) -> Row:
        """Return a row that has the figures, if any has."""
        match self.when:
            case "evaluation":
                return course.evaluation
            case "window":
                return course.window.last or course.row
            case "minute":
                return course.minute.last or course.row
            case "row":
                return course.row


RULES = (
    Rule("at_chance", "the loss is that of an encoder that sees nothing", learning.at_chance, ("loss_at_chance",)),
    Rule("collapsed", "all images have nearly the same feature", representation.collapsed, ("q_std",)),
    Rule(
        "dimensions_collapsed",
        "the features lie in a few dimensions",
        representation.dimensions_collapsed,
        ("q_std", "q_rank"),
    ),
    Rule(
        "batchnorm_leak",
        "BatchNorm can tell which key is the positive, instead of the images",
        representation.batchnorm_leak,
        ("top1",),
    ),
    Rule(
        "queue_larger_than_data",
        "the queue holds other views of a query's own image as negatives",
        queue.larger_than_data,
        ("queue_filled",),
        when="row",
        begins_after=1,
    ),
    Rule(
        "queue_stale",
        "the key encoder has changed much since the oldest keys of the queue",
        queue.stale,
        ("encoder_distance", "queue_age_steps"),
    ),
    Rule(
        "encoders_apart",
        "the key encoder does not follow the query encoder",
        queue.encoders_apart,
        ("encoder_distance",),
    ),
    Rule(
        "temperature_too_high",
        "the softmax cannot prefer the positive by much",
        learning.temperature_too_high,
        ("entropy", "loss_at_chance", "q_std"),
    ),
    Rule(
        "temperature_too_low",
        "the softmax sees a single key, and is sure of wrong ones",
        learning.temperature_too_low,
        ("entropy", "top1"),
        begins_after=1,
    ),
    Rule("lr_too_high", "the steps are too large", learning.lr_too_high, ("loss_at_chance", "encoder_distance")),
    Rule("lr_too_low", "the encoder hardly changes", learning.lr_too_low, ("encoder_distance", "loss_at_chance")),
    Rule(
        "augmentation_too_weak",
        "the two views of an image are nearly the same",
        representation.augmentation_too_weak,
        ("positive_similarity", "hardest_similarity", "q_std"),
    ),
    Rule(
        "augmentation_too_strong",
        "the two views of an image have too little in common",
        representation.augmentation_too_strong,
        ("positive_similarity", "hardest_similarity", "q_std", "loss_at_chance"),
    ),
    Rule("overflow", "fp16 gradients overflow too often", learning.overflow, ("skipped_steps",)),
    Rule(
        "probe_overfits",
        "the linear probe knows the training images by heart",
        learning.probe_overfits,
        ("linear_top1", "linear_train_top1"),
        when="evaluation",
    ),
    Rule("data_bound", "the ranks wait for batches", speed.data_bound, ("data_wait",), when="minute", begins_after=1),
    Rule(
        "ranks_apart",
        "the ranks do not have the same parameters and queue",
        speed.ranks_apart,
        ("ranks_apart",),
        when="row",
        begins_after=1,
        ends_after=1,
    ),
    Rule(
        "slow_rank",
        "the others wait for one rank",
        speed.slow_rank,
        ("slowest_rank", "slowest_lag"),
        when="minute",
        begins_after=1,
    ),
)
TITLES = {rule.name: rule.title for rule in RULES}
"""The name of each fault, for people, by the name of its rule."""


def told(row: Mapping[str, Any]) -> tuple[str, str]:
    """Word the row of a finding for people: a title, and the evidence with the override to paste."""
    name = str(row["finding"])
    title = f"health: {name} {row['state']} at step {row['step']}"
    override = f"; change {row['key']}={shown(row['value'])}" if "key" in row else ""
    return title, f"{TITLES.get(name, name)}: {row['evidence']}{override}"
