"""Check a job before it is sent: shapes, site, data, disk, memory, time. Takes seconds, needs no torch."""

import argparse

from launcher.checks import preflight
from launcher.options import add_job_options, submission_of
from moco_dist import config as configs
from moco_dist.run.directory import load_config


def arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's options."""
    add_job_options(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns 2 where there is an error, else 0."""
    submission = submission_of(options).model_copy(update={"stage": options.stage})  # shown as it was typed
    findings = preflight.check(load_config(*configs.parse_arguments(options.words)), submission)
    for finding in findings:
        print(f"{finding.level}: {finding.text}")
    errors = sum(finding.level == "error" for finding in findings)
    print(f"{errors} error{'s' * (errors != 1)}: it would not be sent" if errors else "ok: it can be sent")
    return 2 if errors else 0
