"""Show where every thread of every rank of a running job is, without stopping it."""

import argparse
import json

from launcher.options import add_run
from launcher.views import inside
from moco_dist.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's options."""
    add_run(parser)
    parser.add_argument("--rank", type=int, metavar="R", help="this rank alone")
    parser.add_argument("--json", action="store_true", help="a list of objects: rank, pid, host, stacks")


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit status: 1 where a rank does not answer."""
    rows = sorted(inside.rows(inside.running(options.run_dir), "stacks"), key=lambda row: row["rank"])
    ranks = [row["rank"] for row in rows]
    if options.rank is not None:
        rows = [row for row in rows if row["rank"] == options.rank]
        if not rows:
            rule = f"no such rank runs now; there are {', '.join(map(str, ranks)) or 'none yet'}"
            raise UserError.of("--rank", options.rank, rule, "name one of them")
    if options.json:
        print(json.dumps(rows, indent=1))
    for row in [] if options.json else rows:
        print(f"rank {row['rank']} on {row['host']}, process {row['pid']}:")
        print(row["stacks"] or "does not answer: it has just begun, or is ending\n", flush=True)
    if not rows and not options.json:
        print("no rank runs yet: the job has just started, or is ending")
    return 0 if rows and all(row["stacks"] for row in rows) else 1
