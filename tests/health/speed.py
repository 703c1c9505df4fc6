"""Measure how long it takes to judge a run of 100,000 rows: `python -m tests.health.speed`."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from moco_dist import health
from moco_dist.health import reading
from tests.health.made import IMAGES, config_of, rows, write_run

STEPS = 100_000


def main() -> None:
    made, config = rows(STEPS), config_of()
    began = time.process_time()
    health.diagnose(made, config.model_dump(mode="json"), images=IMAGES)
    print(f"judged {len(made)} rows in {time.process_time() - began:.2f} s of CPU time")
    with tempfile.TemporaryDirectory() as folder:
        run_dir = write_run(Path(folder) / "run", made, {"state": "done", "step": STEPS}, config)
        began = time.process_time()
        reading.read(run_dir)
        print(f"read and judged them in {time.process_time() - began:.2f} s of CPU time")


if __name__ == "__main__":
    main()
