"""Word what the page tells of a run: verdict, key figures, config."""

import functools
import shlex
from collections.abc import Iterable
from typing import Any, NamedTuple

from moco_dist.errors import printable, shown
from moco_dist.report import drawings, settings
from moco_dist.report.columns import Curve, is_share
from moco_dist.report.record import RunRecord

_STATES = {
    "running": "It runs",
    "done": "It is done",
    "stopped": "It was stopped",
    "user_error": "It was refused",
    "diverged": "It diverged",
    "crashed": "It crashed",
}


class Tile(NamedTuple):
    """A tile shows a key figure."""

    name: str
    value: str
    note: str = ""


class Cell(NamedTuple):
    """A cell is what the table of several runs shows of a run in a column."""

    text: str
    sort: float | None = None
    """Rows are ordered by this, where it is not None, else by the text."""
    state: bool = False
    """This says whether the cell is the state of a run."""


class RunView:
    """A view of a run has what the templates write.

    Args:
        record: of the run.
        number: of the run on the page.
    """

    def __init__(self, record: RunRecord, number: int) -> None:
        self.record, self.number, self.colour = record, number, number % drawings.COLOURS
        self.name, self.folder = record.name, printable(str(record.folder))
        self.knn_command = f"python -m moco_dist.evaluate {shlex.quote(self.folder)} --knn"
        if record.settings.get("eval.knn_split") == "validation":
            self.knn_command += " --split validation"
        self.status, self.versions = record.status, record.versions
        self.diagnosis, self.not_judged = record.diagnosis, record.not_judged
        self.features, self.pairs_picture = record.features, record.pairs_picture
        self.settings = {key: shown(value) for key, value in record.settings.items()}
        self.cells: list[Cell] = []
        """Cells of the run in the table of several runs."""
        self.link = ""
        """Address of the run's own page, from a page of several runs."""

    @property
    def has_labels(self) -> bool:
        """Tell whether the training images have labels, as far as the last start has recorded that."""
        return not self.record.starts or self.record.starts[-1].get("data", {}).get("classes") != 0

    @property
    def is_evaluated(self) -> bool:
        """Tell whether training has evaluated the run, so that there are held-out images."""
        return "knn_top1" in self.record.curves

    @property
    def is_broken_off(self) -> bool:
        """Tell whether no process goes on with a run that has not ended."""
        return self.status.state == "running" and not self.record.writer

    @property
    def state(self) -> str:
        """Return how the run stands, in a word or two."""
        return "broken off" if self.is_broken_off else (self.status.state or "no status").replace("_", " ")

    @functools.cached_property
    def open_findings(self) -> int:
        """Count the findings that have not ended."""
        return sum(not finding.ended for finding in self.diagnosis.findings) if self.diagnosis else 0

    @property
    def mood(self) -> str:
        """Return the colour of the verdict."""
        if self.is_broken_off or self.status.state in ("crashed", "diverged", "user_error"):
            return "bad"
        if not self.diagnosis:
            return "none"
        return "warn" if self.open_findings else "none" if self.diagnosis.is_by_few else "good"

    @property
    def verdict(self) -> str:
        """Say in a sentence how the run stands, and whether anything is wrong with it."""
        state = _STATES.get(self.status.state or "", "Its status is unknown")
        if self.is_broken_off:
            state = "It was broken off"
        if not self.diagnosis:
            return f"{state}; it cannot be judged."
        if not self.record.rows:
            return f"{state}; there are no rows yet to judge it by."
        if count := self.open_findings:
            return f"{state}, and {count} thing{'s are' if count > 1 else ' is'} wrong with its learning."
        over, rules = len(self.diagnosis.findings), len(self.diagnosis.checked)
        if not rules:
            return f"{state}; there are too few rows yet to judge it by."
        nothing = f"nothing wrong{f' any more: {over} finding(s) are over' if over else ''}"
        length = rules + len(self.diagnosis.unchecked)
        few = f", but only {rules} of {length} rules could judge" if self.diagnosis.is_by_few else ""
        return f"{state}, and its rows show {nothing}{few}."

    @property
    def is_judged(self) -> bool:
        """Tell whether any rule could judge the run."""
        return bool(self.diagnosis and self.diagnosis.checked)

    @property
    def facts(self) -> list[str]:
        """Return what tells the run from others, in a few words each."""
        get = self.settings.get
        total = self.status.total_steps
        steps = f"step {self.record.step:,} of {total:,}" if total else f"step {self.record.step:,}"
        wanted = [get("data.source"), get("model.arch"), f"batch {get('optim.global_batch', '?')}"]
        return [steps, *(fact for fact in wanted if fact and "?" not in fact), self.folder]

    @property
    def tiles(self) -> list[Tile]:
        """Return the key figures."""
        curves = self.record.curves
        made = []
        for name, title in (("knn_top1", "kNN accuracy"), ("linear_top1", "Linear probe")):
            if curve := curves.get(name):
                best = f"best {self.shown(name, curve.high[1])} at step {curve.high[0]:,}"
                made.append(Tile(title, self.shown(name, curve.last), best))
        if loss := curves.get("loss"):
            chance = curves.get("loss_at_chance")
            note = f"{number(chance.last)} at chance" if chance else f"lowest {number(loss.low[1])}"
            made.append(Tile("Loss", number(loss.last), note))
        if top1 := curves.get("top1"):
            among = "among the keys of the queue" if "queue_filled" in curves else ""  # another method has no queue
            made.append(Tile("Pretext top-1", self.shown("top1", top1.last), among))
        if speed := curves.get("images_per_second"):
            made.append(Tile("Images a second", number(speed.median), "median over the rows"))
        return made

    def shown(self, name: str, value: float) -> str:
        """Write a value of a figure, a share in percent."""
        curve = self.record.curves[name]
        return f"{100 * value:.1f} %" if is_share(curve, name) else number(value)

    def speed_facts(self) -> list[tuple[str, str]]:
        """Tell how fast the run is, and how well its data come, in numbers."""
        curves = self.record.curves

        def fact(title: str, name: str, *, worst_is_high: bool) -> Iterable[tuple[str, str]]:
            if curve := curves.get(name):
                step, value = curve.high if worst_is_high else curve.low
                yield title, f"{self.shown(name, curve.median)}, at worst {self.shown(name, value)} at step {step:,}"

        made = [
            *fact("Images a second, median", "images_per_second", worst_is_high=False),
            *fact("Waited for data, median", "data_wait", worst_is_high=True),
            *fact("Standstill for a checkpoint (s), median", "checkpoint_stall", worst_is_high=True),
            *fact("Lag of the slowest rank (s), median", "slowest_lag", worst_is_high=True),
            *fact("GPU memory (GiB), median", "gpu_memory_gib", worst_is_high=True),
        ]
        replaced, failed = curves.get("unreadable"), curves.get("checkpoint_failures")
        # Steps without a row may have had some, too, and a start counts its own failures.
        made.append(("Rows of steps with replaced images", f"{replaced.rows:,}" if replaced else "none"))
        made.append(("Checkpoints of a start that failed, at most", number(failed.high[1]) if failed else "none"))
        return made

    @functools.cached_property
    def _shipped(self) -> tuple[str, dict[str, Any]]:
        return settings.nearest_shipped(self.record.settings)

    @property
    def shipped(self) -> str:
        """Return the name of the shipped config that this one is compared with."""
        return self._shipped[0]

    @functools.cached_property
    def config(self) -> list[tuple[str, str, str, bool]]:
        """Return each key with its value, that of the shipped config, and whether they differ."""
        _, shipped = self._shipped
        texts = {key: shown(value) for key, value in shipped.items()}
        return [
            (key, value, texts.get(key, ""), texts.get(key) != value and not settings.is_of_the_place(key))
            for key, value in self.settings.items()
        ]

    @property
    def changed(self) -> int:
        return sum(differs for *_, differs in self.config)

    @functools.cached_property
    def course(self) -> list[list[drawings.Span]]:
        return drawings.course(self.record)

    @property
    def length(self) -> int:
        return drawings.length(self.record)

    @functools.cached_property
    def dots(self) -> list[drawings.Dots]:
        assert self.features
        return drawings.dots(self.features)

    @functools.cached_property
    def confusion(self) -> drawings.Confusion:
        assert self.features
        return drawings.confusion(self.features)

    @property
    def longest_class(self) -> int:
        assert self.features
        return min(12, max(map(len, self.features.classes)))

    def data(self) -> dict[str, Any]:
        """Return what the scripts need of the run."""
        findings = self.diagnosis.findings if self.diagnosis else []
        return {
            "number": self.number,
            "name": self.name,
            "folder": self.folder,
            "colour": self.colour,
            "epochSteps": self.status.epoch_steps,
            "settings": self.settings,
            "curves": {name: _data_of(curve) for name, curve in self.record.curves.items()},
            "marks": [{"from": f.first_step, "to": f.last_step, "name": f.name} for f in findings],
            "restarts": [start["step"] for start in self.record.starts[1:]],
        }


def number(value: float) -> str:
    """Write a number with four digits, large ones with commas."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _data_of(curve: Curve) -> dict[str, Any]:
    points, smooth = [curve.steps, curve.values], [curve.smooth_steps, curve.smooth_values]
    return {"points": points, "smooth": smooth, "last": curve.last, "low": curve.low, "high": curve.high}
