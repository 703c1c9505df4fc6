"""The process that calls Trackio: `moco_dist/tracking/trackio.py` starts it, and sends it a JSON object a line.

The first line is about the run; the further ones are rows, or findings, which Trackio calls alerts. The end of the pipe
is the end of the run, or of its process.
"""

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moco_dist.tracking.trackio import READY


def main() -> int:
    """Show what comes on stdin. Returns the exit status: 1 where Trackio lacks something at the end."""
    about, answers = json.loads(sys.stdin.readline()), sys.stdout
    with contextlib.redirect_stdout(sys.stderr), _alone():
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        if about["begins"]:  # rows of a start that died ahead of its first checkpoint are gone from metrics.jsonl, too
            SQLiteStorage.delete_run(about["project"], about["name"])
        shown = _Shown(about["project"], about["name"])
        run = trackio.init(
            project=about["project"],
            name=about["name"],
            group=about["group"],
            config=about["config"],
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        print(READY, file=answers, flush=True)
        for message in map(json.loads, sys.stdin):
            kind = _kind(message)
            if int(message["step"]) <= shown.last[kind]:
                continue
            if kind == "finding":
                run.alert(message["title"], message["text"], step=message["step"])
            else:
                run.log(message["figures"], step=message["step"])
            shown.expected[kind] = message["step"]
        run.finish()
        if missing := shown.missing():
            print(f"Trackio lacks {missing}", file=sys.stderr)
            return 1
    return 0


class _Shown:
    """This object reads from Trackio's records of a run the last step of each kind of message.

    A start that was killed leaves rows of later steps than the next one begins at. Those are equal to the ones that
    come again, which are therefore left out.
    """

    def __init__(self, project: str, name: str) -> None:
        self._project, self._name = project, name
        self.last = self._read()
        self.expected = dict(self.last)

    def missing(self) -> str:
        """Say what was logged and is not there, in words; empty for nothing. Trackio itself warns and goes on."""
        there = self._read()
        late = [f"the last {kind} (step {step})" for kind, step in self.expected.items() if there[kind] < step]
        return " and ".join(late)

    def _read(self) -> dict[str, int]:
        from trackio.sqlite_storage import SQLiteStorage

        last = {"training": 0, "evaluation": 0, "finding": 0}
        for log in SQLiteStorage.get_logs(self._project, self._name):
            kind = _kind({"figures": log})
            last[kind] = max(last[kind], int(log["step"]))
        for alert in SQLiteStorage.get_alerts(self._project, run_name=self._name):
            last["finding"] = max(last["finding"], int(alert["step"] or 0))
        return last


def _kind(message: dict[str, Any]) -> str:
    """Return the kind of a message: only training rows have a loss."""
    if "figures" not in message:
        return "finding"
    return "training" if "learning/loss" in message["figures"] else "evaluation"


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Wait until the process of an earlier start, which may outlive its trainer by a moment, has written all."""
    with (Path(os.environ["TRACKIO_DIR"]) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
