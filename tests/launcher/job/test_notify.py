"""Who is told of an event of a job: by a webhook and a command that are there, are slow, or are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from launcher import cluster
from launcher.checks import notices
from launcher.cluster import Notify, Profile
from launcher.job import notify
from launcher.record import Launch
from moco_dist.errors import UserError
from tests.launcher.made import make_run

EVENTS = ("end", "failure", "preemption", "first_step")


class Webhook:
    """A server that keeps what is posted to it, and answers with `code`."""

    def __init__(self) -> None:
        self.posted: list[dict[str, Any]] = []
        self.code = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(outer.code)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/hush"


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    made = Webhook()
    monkeypatch.setenv("MY_HOOK", made.url)
    yield made
    made.server.shutdown()
    made.server.server_close()


def make(tmp_path: Path, **keys: Any) -> Launch:
    """A run that has crashed, with these keys of `notify`."""
    profile = Profile(notify=Notify.model_validate({"events": EVENTS, **keys}))
    return make_run(tmp_path / "run", state="crashed", step=7, reason="rank 1: it's\nbroken", starts=1, profile=profile)


def deliver(launch: Launch, event: dict[str, Any]) -> None:
    """Do in a process of its own what `tell` starts."""
    command = [sys.executable, "-m", "launcher.job.notify", str(launch.run_dir)]
    done = subprocess.run(command, input=json.dumps(event), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def said(launch: Launch) -> list[str]:
    file = launch.logs / "launcher.log"
    return [line.partition(" ")[2] for line in file.read_text().splitlines()] if file.exists() else []


def test_webhook_and_command_get_the_event(tmp_path: Path, webhook: Webhook) -> None:
    program = tmp_path / "a program"
    lines = f'cat > {tmp_path}/stdin; echo "$1 $MOCO_DIST_EVENT $MOCO_DIST_EVENT_STEP" > {tmp_path}/words'
    program.write_text(f"#!/bin/sh\n{lines}\n")
    program.chmod(0o755)
    launch = make(tmp_path, command=[str(program), "$(touch evil)"], webhook_variable="MY_HOOK")
    notify.tell(launch, "12", "failure", "end", last=True)
    [event] = webhook.posted
    assert event == json.loads((tmp_path / "stdin").read_text())
    assert (tmp_path / "words").read_text() == "$(touch evil) failure 7\n"
    expected = {"event": "failure", "job": "12", "state": "crashed", "step": 7, "reason": "rank 1: it's broken"}
    assert expected.items() <= event.items()
    assert event["text"] == "run: failed, job 12, step 7: rank 1: it's broken"
    assert event["run_dir"] == str(launch.run_dir) and not said(launch)


def test_only_the_events_that_are_asked_for_are_told_each_once(tmp_path: Path, webhook: Webhook) -> None:
    launch = make(tmp_path, events=["end", "first_step"], webhook_variable="MY_HOOK")
    notify.tell(launch, "12", "failure", "end", last=True)
    notify.tell(launch, "12", "preemption", "failure", last=True)
    assert [event["event"] for event in webhook.posted] == ["end"]


def test_what_goes_wrong_is_in_the_log_without_the_url(
    tmp_path: Path, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = make(tmp_path, command=["/no/such program"], webhook_variable="MY_HOOK")
    webhook.code = 403
    deliver(launch, {"event": "end"})
    monkeypatch.setenv("MY_HOOK", "http://127.0.0.1:1/hush")
    deliver(launch, {"event": "end"})
    monkeypatch.setenv("MY_HOOK", "hush")
    deliver(launch, {"event": "end"})
    monkeypatch.delenv("MY_HOOK")
    deliver(launch, {"event": "end"})
    ways = [line.removesuffix("; nobody was told of end by it") for line in said(launch)]
    assert [line for line in ways if "command" not in line] == [
        "notify.webhook: answered 403",
        "notify.webhook: Connection refused",
        "notify.webhook: MY_HOOK holds no URL here",
        "notify.webhook: MY_HOOK holds no URL here",
    ]
    assert ways.count("notify.command: /no/such program: No such file or directory") == 4
    assert "hush" not in (launch.logs / "launcher.log").read_text()


def test_a_command_that_hangs_is_ended_and_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hang").write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nsleep 600\n")
    (tmp_path / "hang").chmod(0o755)
    launch = make(tmp_path, command=[str(tmp_path / "hang")])
    monkeypatch.setattr(notify, "_MOST_SECONDS", 0.2)
    fault = notify._run(launch.submission().profile.notify, {"event": "end"})  # type: ignore[union-attr]
    assert fault == "took longer than 0.2 s, and was ended"
    monkeypatch.setattr(notify, "_LAST_SECONDS", 0.0)
    (tmp_path / "pid").unlink(missing_ok=True)
    notify.tell(launch, "12", "end", last=True)  # returns, though the command runs
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.05)
    os.killpg(int((tmp_path / "pid").read_text()), 9)
    notify._left_alone.pop().wait(timeout=60)


def test_a_run_is_never_stopped_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = make(tmp_path, command=["true"])
    monkeypatch.setattr(sys, "executable", "/no/python")
    notify.tell(launch, "12", "end", last=True)
    assert said(launch) == ["nobody was told of end: FileNotFoundError"]
    launch.job_file.write_text("{")
    notify.tell(launch, "12", "end", last=True)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("notify: {events: start, mail: a@b}", "notify.events.0 = start: must be 'end', 'failure', 'preemption' or"),
        ("notify: {webhook: 'https://x/hush'}", "notify.webhook: a webhook's URL is a secret, and has no place in a f"),
        ("notify: {webhook_variable: 'https://x/hush'}", "notify.webhook_variable: a webhook's URL is a secret, and "),
        ("notify: {command: [post, 'http://x/hush']}", "notify.command: a webhook's URL is a secret, and has no place"),
        ("notify: {mail: a b}", "notify.mail = a b: must be one word without quotes"),
    ],
)
def test_a_mistake_is_one_line_and_shows_no_url(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "mine.yaml").write_text(text + "\n")
    with pytest.raises(UserError) as error:
        cluster.load(str(tmp_path / "mine.yaml"))
    assert str(error.value).startswith(line) and "hush" not in str(error.value)


def test_preflight_says_who_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def texts(**keys: Any) -> list[str]:
        return [finding.text for finding in notices.check(Profile(notify=Notify.model_validate(keys)))]

    monkeypatch.delenv("MY_HOOK", raising=False)
    assert not list(notices.check(Profile())) and not texts(mail="a@b", command=["true"])
    assert texts(events=["end"], webhook_variable="RANK")[0].startswith("notify.webhook_variable = RANK: is set by the")
    unset = "notify.webhook_variable = MY_HOOK: is not set in this shell, and the job gets it from here; export MY_HOOK"
    assert texts(webhook_variable="MY_HOOK") == [f"{unset}=URL"]
    assert texts(command=["no-such"])[0].startswith("notify.command = no-such: is no program here; give its path")
    assert texts(events=["preemption"])[0].startswith("notify.events = [preemption]: tells nobody; add command")
