"""Programs in place of SLURM's: they say what was recorded on a site, and keep what they are given."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import pytest

from launcher.checks import site

PARTITION = "PartitionName=main AllowAccounts=ALL AllowQos=ALL Default=YES MaxTime=UNLIMITED State=UP PreemptMode=OFF"
NODES = "".join(f"main|127.0.0.{n}|idle|gpu:8(S:0-1)|64|512000|(null)\n" for n in (11, 12))

_TELLS = """#!{python} -S
import json, os, sys
with open({log!r}, "a") as log:
    given = {{"words": sys.argv[1:], "environment": {{name: os.environ.get(name) for name in {variables!r}}}}}
    log.write(json.dumps(given) + "\\n")
"""


class Programs:
    """A folder of programs, ahead of all others on PATH.

    Args:
        folder: to make it in.
        monkeypatch: for PATH.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._bin, self._logs = folder / "bin", folder / "given"
        self.sent = folder / "sent"
        """The folder in which sbatch leaves the scripts that it is given: 12.sh, 13.sh ..."""
        for place in (self._bin, self._logs, self.sent):
            place.mkdir(parents=True)
        monkeypatch.setenv("PATH", f"{self._bin}{os.pathsep}{os.environ['PATH']}")
        self.says("scontrol", {"show partition": PARTITION, "show config": "JobRequeue = 1\n"})
        self.says("sinfo", {"--all": NODES})
        self.says("squeue", {})
        self.says("sacct", {})
        site.read.cache_clear()
        sent = shlex.quote(str(self.sent))
        lines = ['case "$*" in *--help) exit 0 ;; esac', f"n=$((12 + $(ls {sent} | wc -l)))"]
        self.runs("sbatch", "\n".join([*lines, f'cp "$1" {sent}/$n.sh', 'echo "Submitted batch job $n"']))

    def runs(self, name: str, lines: str) -> None:
        """Make a program of lines for the shell."""
        (self._bin / name).write_text(f"#!/bin/sh\n{lines}\n")
        (self._bin / name).chmod(0o755)

    def says(self, name: str, answers: dict[str, str]) -> None:
        """Make a program that answers to its first words, and to others with nothing."""
        cases = [f"{shlex.quote(words)}*) printf %s {shlex.quote(answer)} ;;" for words, answer in answers.items()]
        self.runs(name, "\n".join(['case "$*" in', *cases, "esac"]))

    def keeps(self, name: str, *variables: str, code: int = 0) -> Path:
        """Make a program that keeps its arguments and some variables, for `given`. Returns its path."""
        log = str(self._logs / name)
        text = _TELLS.format(python=sys.executable, log=log, variables=variables)
        (self._bin / name).write_text(f"{text}sys.exit({code})\n")
        (self._bin / name).chmod(0o755)
        return self._bin / name

    def given(self, name: str) -> list[tuple[list[str], dict[str, str | None]]]:
        """Arguments and variables of each call so far."""
        log = self._logs / name
        rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [(row["words"], row["environment"]) for row in rows]
