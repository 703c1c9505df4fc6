"""The watchdog lets a process take its time where it says so, and ends it where it hangs."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import time
from moco_dist.ranks import watchdog
watchdog.start(0, 2.0, lambda hang: print("last words", flush=True))
with watchdog.untimed():
    time.sleep(2.5)
print("has taken its time", flush=True)
time.sleep(30)
"""


def test_what_is_not_timed_may_take_longer() -> None:
    process = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=20)
    assert process.returncode == 1
    assert process.stdout.splitlines() == ["has taken its time", "last words"]
    assert "rank 0 hangs by itself" in process.stderr
