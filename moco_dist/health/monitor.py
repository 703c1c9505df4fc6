"""The monitor folds the rows of a run into findings, one row after the other: in training, and for a file of rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from moco_dist import config as configs
from moco_dist.errors import printable
from moco_dist.health import notes, progress, rules
from moco_dist.health.course import FEW_ROWS, SECONDS, SPEED_FIGURES, Course, Facts, Row, Window, numbers_of
from moco_dist.health.finding import Finding, Judgement, Value
from moco_dist.run.provenance import Start
from moco_dist.run.rows import finding_row, is_evaluation, is_finding, is_training
from moco_dist.run.status import Status

_RULES = {
    when: [rule for rule in rules.RULES if rule.when == when] for when in ("row", "window", "minute", "evaluation")
}


@dataclass
class _Standing:
    """A standing says how a rule stands after the rows so far."""

    finding: Finding | None = None
    """The fault that holds now; None where there is none."""
    streak: int = 0
    """Judgements in a row that speak against what holds now."""
    judged: bool = False
    """True once there was anything to judge by."""
    in_books: bool = False
    """True while the rows tell of the finding, and not yet of its end."""
    ended: list[Finding] = field(default_factory=list)
    """Faults that held earlier, and hold no more."""

    def end(self, step: int) -> None:
        """Let the finding end at a step."""
        assert self.finding is not None
        self.ended.append(replace(self.finding, last_step=step, ended=True))
        self.finding = None


@dataclass(frozen=True)
class Diagnosis:
    """A diagnosis is what the rows of a run tell."""

    findings: list[Finding]
    """All findings in the order in which they began, also those that have ended."""
    notes: list[Finding]
    checked: list[str]
    """Rules that were judged, by name, in the order of the documents."""
    unchecked: dict[str, str]
    """Rules that were not judged, and why."""
    learned: str
    """A sentence on the course of loss and accuracies; empty where there are no rows."""
    last_step: int

    @property
    def healthy(self) -> bool:
        """Return whether nothing was wrong from the first row to the last."""
        return not self.findings

    @property
    def is_by_few(self) -> bool:
        """Return whether most rules could not judge, so that their silence says little."""
        return len(self.checked) < len(self.unchecked)

    @property
    def fine(self) -> list[str]:
        """Return the rules that were judged, and never found anything wrong."""
        bad = {finding.name for finding in self.findings}
        return [name for name in self.checked if name not in bad]


class Monitor:
    """The monitor takes the rows of a run in their order; a row takes a fixed time.

    Args:
        facts: what is known of the run beside its rows.
    """

    def __init__(self, facts: Facts) -> None:
        self.course = Course(facts)
        self._standings = {rule.name: _Standing() for rule in rules.RULES}
        self._window, self._minute = Window(), Window()
        self._notes = notes.Notes(facts)
        self._is_training = False  # `events` sets it, which training alone calls

    def push(self, row: Row) -> None:
        """Take a row of any kind; what is no whole row is passed over.

        A row of a finding says what was told in training, and counts before all else. Figures that are no numbers are
        left out.
        """
        if type(row.get("step")) is not int or type(row.get("epoch", 0)) is not int:
            return
        if is_finding(row):
            self._take_over(row)
            return
        row = {"epoch": 0, **row} if "epoch" not in row else row
        figures = numbers_of(row)
        if is_training(figures):
            self._push_training(figures)
        elif is_evaluation(figures) and not is_training(row):
            self._push_evaluation(figures)

    def push_divergence(self, step: int, reason: str) -> None:
        """Take note that the loss was no number any more at a step, of which there is no row."""
        standing = self._standings["lr_too_high"]
        standing.judged = True
        if not standing.finding:
            standing.finding = Finding("lr_too_high", "optim.lr", self.course.facts.lower_lr, step, step, reason)

    def events(self) -> Iterator[Row]:
        """Yield the rows of findings that have begun or ended, which the books do not have yet; each once."""
        self._is_training = True
        step, epoch = self.course.step, int(self.course.last.get("epoch", 0))
        for name, standing in self._standings.items():
            if (standing.finding is not None) == standing.in_books:
                continue
            standing.in_books = not standing.in_books
            finding = standing.finding or standing.ended[-1]
            state: Literal["begins", "ends"] = "begins" if standing.in_books else "ends"
            yield finding_row(step, epoch, name, state, finding.key, finding.value, finding.evidence)

    def diagnosis(self) -> Diagnosis:
        """Return what the rows so far tell."""
        findings: list[Finding] = []
        for standing in self._standings.values():
            findings += standing.ended
            if standing.finding:
                last_step = max(standing.finding.first_step, self.course.step)  # a run diverges after its last row
                findings.append(replace(standing.finding, last_step=last_step))
        checked = [name for name, standing in self._standings.items() if standing.judged]
        unchecked = {rule.name: rule.missing(self.course) for rule in rules.RULES if rule.name not in checked}
        findings.sort(key=lambda finding: finding.first_step)
        of_notes, course = self._notes.findings(self.course), self.course
        return Diagnosis(findings, of_notes, checked, unchecked, progress.learned(course), course.step)

    def _push_training(self, row: Row) -> None:
        course = self.course
        before = int(course.row.get("step", 0))
        speed = row.get("images_per_second")
        steps = max(0, int(row["step"]) - before)
        batch = course.facts.config.optim.global_batch
        seconds = steps * batch / speed if isinstance(speed, float | int) and speed > 0 else 0.0
        course.row = course.last = row
        course.rows += 1
        self._notes.push(row)
        self._window.push(row, steps, seconds)
        self._minute.push(row, steps, seconds, SPEED_FIGURES)
        self._judge("row")
        if self._window.is_full:
            course.window, self._window = self._window, Window()
            self._judge("window")
            course.remember_window()
        if self._minute.rows >= FEW_ROWS and self._minute.seconds >= SECONDS:
            course.minute, self._minute = self._minute, Window()
            self._judge("minute")

    def _push_evaluation(self, row: Row) -> None:
        self.course.remember_evaluation(row)
        self._judge("evaluation")

    def _judge(self, when: str) -> None:
        for rule in _RULES[when]:
            if rule.has_figures(self.course):
                judgement = rule.judge(self.course)
                if judgement is not None:
                    self._note(rule, judgement)

    def _note(self, rule: rules.Rule, judgement: Judgement) -> None:
        """Let a finding begin or end, where enough judgements in a row say so."""
        standing = self._standings[rule.name]
        standing.judged = True
        if judgement.bad == (standing.finding is not None):
            standing.streak = 0
            return
        standing.streak += 1
        if standing.streak < (rule.begins_after if judgement.bad else rule.ends_after):
            return
        if standing.in_books and not self._is_training:  # the books have a row where it ended
            return
        standing.streak = 0
        step = self.course.step
        if judgement.bad:
            assert judgement.proposal is not None
            standing.finding = Finding(rule.name, *judgement.proposal, step, step, judgement.evidence)
        else:
            standing.end(step)

    def _take_over(self, row: Row) -> None:
        """Let a finding stand as the books have it: training knew the machine, and may have been of another version."""
        name, step = printable(str(row["finding"])), int(row["step"])
        standing = self._standings.setdefault(name, _Standing())
        standing.in_books = row.get("state") == "begins"
        if standing.in_books:
            evidence = printable(str(row.get("evidence", "")))
            standing.finding = Finding(name, *_proposal(row), step, step, evidence)
            standing.judged, standing.streak = True, 0
        elif standing.finding:
            standing.end(step)


def _proposal(row: Row) -> tuple[str | None, Value | None]:
    """Return the key and the value that the row of a finding proposes; None twice where it proposes nothing."""
    key, value = row.get("key"), row.get("value")
    if not isinstance(key, str) or isinstance(value, bool) or not isinstance(value, Value):
        return None, None
    if isinstance(value, float) and not math.isfinite(value):
        return None, None
    return printable(key), printable(value) if isinstance(value, str) else value


def diagnose(
    rows: Iterable[Row],
    config: Mapping[str, Any],
    *,
    images: int | None = None,
    status: Status | None = None,
    starts: Sequence[Start] = (),
) -> Diagnosis:
    """Judge the rows of a run.

    Args:
        rows: of metrics.jsonl, in their order.
        config: of the run, a tree of sections.
        images: training images; None: those of the last start, else as many as the status allows.
        status: of the run, whose `epoch_steps` bounds the images; one that has diverged has a finding for that.
        starts: of the run, whose last one tells images and ranks; none: a run of an earlier version.

    Raises:
        UserError: a mistake in the config.
    """
    parsed, start = configs.parse(config), starts[-1] if starts else {}
    if images is None:
        images = _count(start.get("data", {}).get("images"))
    if images is None and status and status.epoch_steps:  # less than a batch is left over of an epoch
        images = (status.epoch_steps + 1) * parsed.optim.global_batch - 1
    ranks, groups = _count(start.get("ranks")), parsed.moco.bn_groups
    if ranks and groups is None:
        groups = ranks * parsed.optim.accumulate
    monitor = Monitor(Facts(parsed, images, bn_groups=groups))
    for row in rows:
        monitor.push(row)
    if status and status.state == "diverged":
        monitor.push_divergence(status.step, status.reason)
    return monitor.diagnosis()


def _count(value: Any) -> int | None:
    """Return what a start has recorded as a number of things; None where it is none."""
    return value if type(value) is int and value > 0 else None
