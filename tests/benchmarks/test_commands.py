"""The benchmarks as commands: they say what they are, and refuse what they do not know, without a traceback."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest

import benchmarks
from benchmarks import performance
from benchmarks.runs import DOCS, RESULTS

ROOT = Path(benchmarks.__file__).parent
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for path in ROOT.rglob("*.py")
    if 'if __name__ == "__main__"' in path.read_text()
)


def test_these_are_commands() -> None:
    assert {"benchmarks.checkpoint", "benchmarks.communication.__main__", "benchmarks.startup"} <= {*COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(command).main(["--help"])
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: ") and err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_that_is_none(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(command).main(["--no-such-option"])
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("command", ["checkpoint", "evaluation", "memory", "tracking"])
@pytest.mark.parametrize("argument", ["optim.lr=fast", "no_such.yaml", "optim.learning_rate=1"])
def test_a_mistake_in_the_config_is_one_line(command: str, argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{command}").main([argument])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert re.match(rf"benchmarks\.{command}: ", err) and err.count("\n") == 1


def test_the_page_is_that_of_the_results() -> None:
    """`python -m benchmarks.performance` has been called since a result changed."""
    assert (DOCS / "performance.md").read_text() == performance.page(RESULTS)


def test_results_without_a_section_have_a_table_or_are_told(tmp_path: Path) -> None:
    results = {
        "command": "python -m x",
        "machine": {"cores": 2},
        "rows": [{"what": "a", "s": 1}, {"what": "b", "n": 2}],
    }
    (tmp_path / "steps_of_a_day.json").write_text(json.dumps(results))
    page = performance.page(tmp_path)
    assert (
        "## Steps of a day\n\n    python -m x\n\ncores 2.\n\n| what | s | n |\n|---|---:|---:|\n| a | 1 |  |\n" in page
    )
    assert "not run" in page
    (tmp_path / "steps_of_a_day.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"steps_of_a_day\.json: has no command"):
        performance.page(tmp_path)
