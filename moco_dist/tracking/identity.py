"""Fix the run's id at W&B. It needs no wandb: the launcher makes the id when the job is sent."""

import contextlib
import re
import secrets
from pathlib import Path


def fixed_id(folder: Path) -> str:
    """Return the id in `folder/id`, which is made once for all starts of the run. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "id"
    with contextlib.suppress(FileExistsError), file.open("x") as new:
        new.write(secrets.token_hex(4))
    run_id = file.read_text().strip()
    if not re.fullmatch(r"[\w-]+", run_id):  # killed between making the file and writing it
        run_id = secrets.token_hex(4)
        file.write_text(run_id)
    return run_id
