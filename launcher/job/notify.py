"""Tell the user of an event of a job, by a webhook and by a command of the user's.

python -m launcher.job.notify RUN_DIR < EVENT.json

A process of its own does it, within a time limit, and what goes wrong is told in launcher.log alone.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from launcher.cluster import Event, Notify
from launcher.record import Launch

_MOST_SECONDS = 30
"""A webhook or a command has so long."""
_LAST_SECONDS = 5.0
"""A start that ends waits so long for what it has to tell, since SLURM ends all its processes."""

_left_alone: list[subprocess.Popen[str]] = []
"""Processes that nobody waits for, but Python would warn of if nobody held them."""


def tell(launch: Launch, job: str, *events: Event, reason: str = "", last: bool = False) -> None:
    """Tell of the first of some events that the user wants to know of; never raises.

    Args:
        launch: the run's record.
        job: its job.
        events: names of what has happened, the most telling one first.
        reason: why, in one line.
        last: whether the job is about to end, so that this is waited for.
    """
    try:
        submission = launch.submission()
        notify = submission.profile.notify if submission else Notify()
        event = next((event for event in events if event in notify.events), None)
        if event is None or not (notify.command or notify.webhook_variable):
            return
        command = [sys.executable, "-m", "launcher.job.notify", str(launch.run_dir)]
        pipe, no = subprocess.PIPE, subprocess.DEVNULL
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # it inherits this: a job's end is to be told
        try:
            process = subprocess.Popen(command, stdin=pipe, stdout=no, stderr=no, start_new_session=True, text=True)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _left_alone.append(process)
        assert process.stdin is not None
        with process.stdin:
            process.stdin.write(json.dumps(_described(launch, job, event, reason)))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LAST_SECONDS if last else 0)
    except Exception as error:  # whatever it is, the run is worth more
        launch.say(f"nobody was told of {events[0]}: {type(error).__name__}")


def _described(launch: Launch, job: str, event: Event, reason: str) -> dict[str, str | int]:
    """Return what is told of an event."""
    last = launch.status()
    reason = " ".join((reason or last.reason).split())
    what = {"end": f"over ({last.state})", "failure": "failed", "preemption": "preempted", "first_step": "has begun"}
    text = f"{launch.run_dir.name}: {what[event]}, job {job}, step {last.step}" + f": {reason}" * bool(reason)
    return {
        "event": event,
        "text": text,
        "run": launch.run_dir.name,
        "run_dir": str(launch.run_dir),
        "job": job,
        "state": last.state or "",
        "step": last.step,
        "reason": reason,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def main() -> int:
    """Tell of the event on stdin. Returns 0: nothing depends on it."""
    launch, event = Launch(Path(sys.argv[1])), json.load(sys.stdin)
    submission = launch.submission()
    if submission is None:
        return 0
    notify = submission.profile.notify
    for way, fault in (("webhook", _post(notify, event)), ("command", _run(notify, event))):
        if fault:
            launch.say(f"notify.{way}: {fault}; nobody was told of {event['event']} by it")
    return 0


def _post(notify: Notify, event: Mapping[str, object]) -> str:
    """Post an event to the webhook. Returns what went wrong, without the URL; empty where nothing did."""
    if notify.webhook_variable is None:
        return ""
    url = os.environ.get(notify.webhook_variable, "")
    if not url.startswith(("https://", "http://")):
        return f"{notify.webhook_variable} holds no URL here"
    signal.signal(signal.SIGALRM, _give_up)  # the time limit of urllib is for each part of the answer
    signal.alarm(_MOST_SECONDS)
    try:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(url, json.dumps(event).encode(), headers)
        with urllib.request.urlopen(request, timeout=_MOST_SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        return f"answered {error.code}"
    except Exception as error:  # its text may hold the URL
        cause = getattr(error, "reason", error)
        return getattr(cause, "strerror", None) or type(cause).__name__
    finally:
        signal.alarm(0)


def _give_up(*_: object) -> None:
    raise TimeoutError


def _run(notify: Notify, event: Mapping[str, object]) -> str:
    """Run the user's command with an event. Returns what went wrong; empty where nothing did."""
    if not notify.command:
        return ""
    variables = {f"MOCO_DIST_EVENT_{name.upper()}": str(value) for name, value in event.items() if name != "event"}
    environment = {**os.environ, **variables, "MOCO_DIST_EVENT": str(event["event"])}
    pipe, no = subprocess.PIPE, subprocess.DEVNULL
    try:
        command = subprocess.Popen(
            notify.command, env=environment, stdin=pipe, stdout=no, stderr=no, start_new_session=True, text=True
        )
    except OSError as error:
        return f"{notify.command[0]}: {error.strerror}"
    try:
        command.communicate(json.dumps(event), _MOST_SECONDS)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)
        command.wait()
        return f"took longer than {_MOST_SECONDS} s, and was ended"
    return f"exit status {command.returncode}" if command.returncode else ""


if __name__ == "__main__":
    sys.exit(main())
