"""Every event on every kind of cluster, as a table.

python -m tests.slurm_matrix [--proctrack linuxproc|cgroup ...] [--only TEXT] [--keep DIR]

Each run is sent by the launcher to a devcluster, disturbed, and held against a run that was left alone: every step
once, and the losses, kNN figures and last state bit for bit the same. Exit status 1 where one is not.
"""

from __future__ import annotations

import argparse
import getpass
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from slurm.devcluster import Cluster, Misuse, Settings
from tests import jobs
from tests.slurm.events import EVENTS, Event
from tests.slurm.jobs import STEPS, Sent

PROCTRACKS = ("linuxproc", "cgroup")


def run(event: Event, cluster: Cluster, folder: Path) -> list[str]:
    """Do an event to a run. Returns verdict, starts, steps lost, doubled, difference, seconds."""
    began = time.monotonic()
    run_dir = folder / event.name.replace(" ", "_").replace(",", "")
    try:
        sent = Sent(cluster, run_dir, event.settings, *event.options, environment=event.environment)
        event.disturb(sent)
        state = sent.wait()
        found = jobs.compare(run_dir, reference(event, cluster, folder), event.settings.get("optim.steps", STEPS))
        enough = sent.starts() >= event.starts
        verdict = "ok" if state == "COMPLETED" and found.exact and enough else f"NO: {state}"
        figures = [str(sent.starts()), str(len(found.lost)), str(len(found.doubled)), f"{found.difference:g}"]
    except AssertionError as error:
        print(error, file=sys.stderr)
        verdict, figures = "NO: see above", ["-"] * 4
        cluster.call("scancel", f"--user={getpass.getuser()}")
    cluster.wait_idle()
    return [verdict, *figures, f"{time.monotonic() - began:.0f}"]


def reference(event: Event, cluster: Cluster, folder: Path) -> Path:
    """A run of the event's length that was left alone, made once."""
    steps = event.settings.get("optim.steps", STEPS)
    run_dir = folder.parent / f"reference_{steps}"
    if not (run_dir / "summary.json").exists():
        sent = Sent(cluster, run_dir, {"optim.steps": steps})
        assert sent.wait() == "COMPLETED", sent.log()
    return run_dir


def clusters(folder: Path, proctracks: list[str]) -> Iterator[tuple[str, Cluster | Misuse]]:
    """A cluster of each kind; where the machine cannot have one, why."""
    for proctrack in proctracks:
        for preempt_signal in (True, False):
            name = f"{proctrack}{'' if preempt_signal else ', preemption by TERM'}"
            home = folder / f"{proctrack[0]}{int(preempt_signal)}"
            try:
                cluster = Cluster(home, Settings(proctrack=proctrack, preempt_signal=preempt_signal))
            except Misuse as error:
                yield name, error
                continue
            with cluster:
                yield name, cluster


def main() -> int:
    """Print the table. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proctrack", nargs="+", choices=PROCTRACKS, default=list(PROCTRACKS))
    parser.add_argument("--only", default="", help="events whose name has this text")
    parser.add_argument("--keep", type=Path, help="folder for the runs, kept; it must have a short path")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="mx"))
    table = Table("event", "cluster", "verdict", "starts", "steps lost", "doubled", "difference", "seconds", box=None)
    bad = 0
    for name, cluster in clusters(folder, options.proctrack):
        if isinstance(cluster, Misuse):
            table.add_row("-", name, f"not on this machine: {cluster}")
            continue
        usual = cluster.settings.preempt_signal
        for event in EVENTS:
            special = event.cluster.get("preempt_signal") is False
            if options.only in event.name and event.fits(cluster.settings) and (usual or special):
                cells = run(event, cluster, folder / f"runs_{name.replace(', ', '_').replace(' ', '_')}")
                bad += cells[0] != "ok"
                table.add_row(event.name, name, *cells)
                print(f"{event.name}, {name}: {' '.join(cells)}", flush=True)
    Console(width=140).print(table)
    if not options.keep:
        shutil.rmtree(folder)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
