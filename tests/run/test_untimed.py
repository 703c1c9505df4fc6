"""The watchdog lets a process take its time where it says so, and ends it where it hangs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import time, torch
from moco_dist.data.loader import make_loader
from moco_dist.ranks import watchdog
class NoBatch(torch.utils.data.Dataset):
    def __getitem__(self, step):
        time.sleep(1000)
watchdog.start(0, 2.0, lambda hang: print("last words", flush=True))
with watchdog.untimed():
    time.sleep(2.5)
print("has taken its time", flush=True)
for _ in make_loader(NoBatch(), range(1), 1, torch.device("cpu")):
    pass
"""


def test_what_is_not_timed_may_take_longer() -> None:
    process = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=60)
    assert process.returncode == 1
    assert process.stdout.splitlines() == ["has taken its time", "last words"]
    assert "rank 0 waits for a batch of the data loader: no step for" in process.stderr
    # The data worker is gone too: it would keep the pipes open beyond the time limit.


ORPHAN = """
import os, sys, time
from moco_dist.ranks import watchdog
os.environ["TORCHELASTIC_RUN_ID"] = "a job"
watchdog.start(0, float(sys.argv[1]), lambda hang: 1 / 0)
if sys.argv[2] == "gone":
    os.getppid = lambda: 1
time.sleep(10)
"""


@pytest.mark.parametrize(("timeout_seconds", "agent"), [("600", "gone"), ("1", "there")])
def test_it_ends_a_process_whose_errors_nobody_reads(timeout_seconds: str, agent: str) -> None:
    """A pipe without a reader, or a last word that fails, must not leave a rank that trains on for nobody."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as nobody:
        process = subprocess.Popen([sys.executable, "-c", ORPHAN, timeout_seconds, agent], stderr=nobody)
    assert process.wait(30) == 1
