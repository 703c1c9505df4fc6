"""The command table, and what its commands import before they know what is wanted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import launcher.commands
from launcher.__main__ import _COMMANDS, main


def test_the_table_has_every_command_under_its_own_name() -> None:
    files = {file.stem for file in Path(launcher.commands.__path__[0]).glob("[a-z]*.py")}
    assert {name: module.__name__ for name, module in _COMMANDS.items()} == {  # type: ignore[attr-defined]
        name: f"launcher.commands.{name}" for name in files
    }


def test_help_tells_each_command_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, module in _COMMANDS.items():
        assert module.__doc__ is not None
        assert lines.count(f"  {name:10} {module.__doc__.splitlines()[0]}") == 2
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])
        assert capsys.readouterr().out.startswith(f"usage: python -m launcher {name} ")


def test_no_command_is_slow_to_import() -> None:
    """All of them together need none of the large packages: `--help` and a mistake are answered at once."""
    large = {"torch", "torchvision", "numpy", "pandas", "sklearn", "matplotlib", "wandb", "submitit", "rich", "tqdm"}
    script = f"import launcher.__main__, sys; print(sorted({large} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"


def test_a_shell_in_a_folder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkout"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert main(["status", str(tmp_path)]) == 2
    line = "launcher: the folder that this shell is in was removed; cd to another one, or to the new one\n"
    assert capsys.readouterr().err == line
