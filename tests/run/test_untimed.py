"""The watchdog lets a process take its time where it says so, and ends it where it hangs."""

from __future__ import annotations

import subprocess
import sys

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
