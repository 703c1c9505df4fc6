"""Read what a run directory records of how its numbers came about."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from moco_dist import config as configs
from moco_dist.errors import UserError
from moco_dist.files import read_object, read_text
from moco_dist.run import code, comparison, evaluation_table, provenance
from moco_dist.run.paths import RunPaths
from moco_dist.run.rows import Row, read_rows

NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Side:
    """A side is one of two runs that are compared."""

    folder: Path
    config: Mapping[str, Any]
    """Values by `section.name`, as they are read from YAML: text, lists of it, or None."""
    headline: str
    """The comment above the config: the versions and the git revision of the last start."""
    training: Mapping[int, Row]
    """Training rows by step."""
    evaluations: Mapping[int, Row]
    """Rows of evaluations by step."""
    starts: tuple[provenance.Start, ...]
    """The machine and software of each start; empty in a run of an earlier revision."""

    def value(self, key: str) -> Any:
        """Return the value of a key; of one that came after the run, the default."""
        return self.config.get(key, configs.earlier_values().get(key))

    @property
    def last_step(self) -> int:
        """Return the step of the last training row."""
        return max(self.training)

    @cached_property
    def ranks(self) -> str:
        """Return the number of ranks at each start, in words."""

        def words(start: provenance.Start) -> str:
            nodes = len(start["hosts"])
            return f"{start['ranks']} on {nodes} nodes" if nodes > 1 else str(start["ranks"])

        summary = RunPaths(self.folder).summary
        return over_starts(self.starts, words) or str(read_object(summary).get("ranks", NOT_RECORDED))

    @cached_property
    def hardware(self) -> str:
        """Return the devices and CPUs of each start, in words."""

        def words(start: provenance.Start) -> str:
            on_cpu = {} if start["device"] == "cpu" else start["devices"]
            return ", ".join(f"{count} x {name}" for name, count in {**on_cpu, **start["cpus"]}.items())

        return over_starts(self.starts, words) or NOT_RECORDED

    @cached_property
    def data(self) -> str:
        """Return the identity of the training images, in words."""
        text = over_starts(self.starts, lambda start: "{images} images, sha256 {digest}".format(**start["data"]))
        return text or NOT_RECORDED

    @cached_property
    def git(self) -> str:
        """Return the git revision of each start, with `-dirty` where files had been changed."""
        return over_starts(self.starts, lambda start: start["code"]["git"]) or self._headline[1] or NOT_RECORDED

    @cached_property
    def code(self) -> str:
        """Return the digest of the trainer's files at each start."""
        return over_starts(self.starts, lambda start: f"sha256 {start['code']['sha256']}") or NOT_RECORDED

    @cached_property
    def versions(self) -> dict[str, str]:
        """Return the versions of packages by name."""
        names = dict.fromkeys(name for start in self.starts for name in start.get("versions", {}))
        return {name: self._version(name) for name in names} or self._headline[0]

    def _version(self, name: str) -> str:
        return over_starts(self.starts, lambda start: start["versions"].get(name, NOT_RECORDED))

    @property
    def on_gpu(self) -> bool | None:
        """Return whether any start ran on a GPU; None where it was not recorded."""
        return any(start.get("device") != "cpu" for start in self.starts) if self.starts else None

    @property
    def exact(self) -> bool | None:
        """Return whether all starts added in an order that no number of ranks changes; None: it was not recorded."""
        return all(start.get("exact") for start in self.starts) if self.starts else None

    @cached_property
    def final_figures(self) -> dict[str, float]:
        """Return the accuracies of the evaluation after training, by method and labels."""
        figures = {}
        for row in evaluation_table.read(self.folder):
            for name, value in row.items():
                if name.endswith("_accuracy_mean") and isinstance(value, float | int):
                    figures[f"{row.get('method')}, {row.get('labels') or 'all'} labels, {name[:-5]}"] = value
        return figures

    @cached_property
    def _headline(self) -> tuple[dict[str, str], str]:
        return code.read_headline(self.headline)


def read(folder: Path) -> Side:
    """Read a run directory. Raises UserError where it holds no run, or none that has begun."""
    paths = RunPaths(folder)
    fix = "give the directory of a run"
    try:
        headline = read_text(paths.config, errors="replace", most_bytes=configs.MOST_BYTES).partition("\n")[0]
        tree, rows = configs.read_tree(paths.config), list(read_rows(paths.metrics))
    except OSError as error:
        name = Path(error.filename or paths.config).name
        rule = f"holds no {name}" if folder.is_dir() else "no such folder"
        rule = rule if isinstance(error, FileNotFoundError) else f"{name}: {error.strerror or error}"
        raise UserError.of("RUN_DIR", folder, rule, fix) from None
    training = comparison.training_rows(rows)
    if not training:
        raise UserError.of("RUN_DIR", folder, "holds no row of a training step yet", "wait for its first one")
    starts = tuple(provenance.read(folder))
    return Side(folder, configs.flat(tree), headline, training, comparison.evaluation_rows(rows), starts)


def over_starts(starts: tuple[provenance.Start, ...], words: Callable[[provenance.Start], Any]) -> str:
    """Write what was so at each start, once while it did not change: `2, from step 300 4`; "" for no start."""
    parts: list[tuple[int, str]] = []
    for start in starts:
        try:
            text = str(words(start))
        except (KeyError, TypeError, AttributeError):
            text = NOT_RECORDED
        parts = [(step, before) for step, before in parts if step < start["step"]]  # the steps were taken again
        if not parts or parts[-1][1] != text:
            parts.append((start["step"], text))
    return ", ".join(f"from step {step + 1} {text}" if number else text for number, (step, text) in enumerate(parts))
