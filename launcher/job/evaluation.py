"""Evaluate a run, as a job of its own."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.job import stage
from launcher.job.start import Start
from launcher.record import Submission, refuse_others
from moco_dist import config as configs
from moco_dist.errors import UserError
from moco_dist.run import status


@dataclass(frozen=True)
class Evaluation:
    """An evaluation is what submitit pickles, and calls once the run is done."""

    run_dir: str
    submission: Submission
    words: tuple[str, ...]
    """Options of python -m moco_dist.evaluate."""
    data_root: str = ""
    """The place of the root in the archive of the data, if there is one."""

    def __call__(self) -> None:
        """Evaluate on the GPUs of this node. Raises SystemExit where that fails; the log tells why."""
        run_dir = Path(self.run_dir)
        refuse_others(run_dir)
        start = Start(run_dir, self.submission, self.data_root)
        with start.launch.evaluation_log.open("ab") as log:
            environment = {**os.environ, **start.environment()}
            try:
                command = self._command(start)
            except UserError as error:
                log.write(f"{error}\n".encode())
                raise SystemExit(status.EXIT_CODES["user_error"]) from None
            done = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode:
            raise SystemExit(done.returncode)

    def _command(self, start: Start) -> list[str]:
        """Return the words of torchrun, which starts a rank for each GPU."""
        ranks = f"--nproc-per-node={start.profile.gpus_per_node}"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", ranks, "-m", "moco_dist.evaluate"]
        staged = []
        if self.submission.stage:
            local_disk = Path(configs.expanded("local_disk", start.profile.local_disk))
            folder = stage.unpack(Path(self.submission.stage), local_disk)
            staged = [f"data.root={configs.literal(folder / self.data_root)}"]
        return [*command, configs.literal(self.run_dir), *self.words, *staged]

    def checkpoint(self) -> Any:
        """Go on after a time limit: what has been evaluated is on disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
