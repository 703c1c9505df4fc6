"""The server of a watched page: who gets it, who does not, and how it ends."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from moco_dist.report import command
from moco_dist.report.serve import Pages, Server
from moco_dist.run import lease
from moco_dist.run.paths import RunPaths
from tests.report.conftest import STEPS, a_run


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    run = a_run(tmp_path / "a")
    with Server(Pages(lambda: [run], ""), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.headers), content


def test_the_page_is_served_to_who_knows_the_token(server: Server) -> None:
    code, headers, content = ask(server, f"/{server.token}/")
    assert code == 200 and b"<!DOCTYPE html>" in content and b"data-watched" in content
    assert headers["Content-Type"] == "text/html; charset=utf-8" and headers["Cache-Control"] == "no-store"
    assert server.url == f"http://127.0.0.1:{server.server_port}/{server.token}/" and len(server.token) >= 32
    assert ask(server, f"/{server.token}/", Host=f"localhost:{server.server_port}")[0] == 200


@pytest.mark.parametrize("path", ["/", "/wrong/", "/{token}", "/{token}/../../etc/passwd", "/{token}/x"])
def test_another_path_gets_nothing(server: Server, path: str) -> None:
    code, _, content = ask(server, path.format(token=server.token))
    assert code == 403 and b"html" not in content and server.token.encode() not in content


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", ""])
def test_another_host_gets_nothing(server: Server, host: str) -> None:
    code, _, content = ask(server, f"/{server.token}/", Host=host.format(port=server.server_port))
    assert code == 403 and b"html" not in content


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_only_get_is_answered(server: Server, method: str) -> None:
    code, headers, content = ask(server, f"/{server.token}/", method)
    assert code == 405 and headers["Allow"] == "GET" and b"<html" not in content


def test_an_unchanged_page_is_not_sent_again(server: Server, tmp_path: Path) -> None:
    tag = ask(server, f"/{server.token}/")[1]["ETag"]
    assert ask(server, f"/{server.token}/", If_None_Match=tag)[::2] == (304, b"")
    with RunPaths(tmp_path / "a").metrics.open("a") as file:
        file.write(json.dumps({"step": STEPS + 1, "loss": 0.5}) + "\n")
    code, headers, content = ask(server, f"/{server.token}/", If_None_Match=tag)
    assert code == 200 and headers["ETag"] != tag and b"step 641" in content


def test_a_killed_run_is_told_although_no_file_changes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as alive:
        alive.setattr(lease, "held_by", lambda folder: "process 7 on n1")
        tag = ask(server, f"/{server.token}/")[1]["ETag"]
    code, headers, _ = ask(server, f"/{server.token}/", If_None_Match=tag)
    assert code == 200 and headers["ETag"] != tag


def test_a_run_that_has_gone_is_told_and_the_server_goes_on(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").rename(tmp_path / "b")
    code, _, content = ask(server, f"/{server.token}/")
    assert code == 503 and b"no such folder" in content
    (tmp_path / "b").rename(tmp_path / "a")
    assert ask(server, f"/{server.token}/")[0] == 200


def test_a_port_in_use_is_a_mistake(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run([str(tmp_path / "a"), "--watch", "--port", str(server.server_port)]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"moco_dist.report: --port = {server.server_port}: cannot be listened on") and "\n" in line


def test_ctrl_c_ends_it_in_peace(tmp_path: Path) -> None:
    a_run(tmp_path / "a")
    arguments = [sys.executable, "-m", "moco_dist.report", str(tmp_path / "a"), "--watch"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("serving http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read() == "ended\n"
    assert not RunPaths(tmp_path / "a").report.exists(), "what is watched is left as it is"
