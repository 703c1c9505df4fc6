"""Serve the page of runs that go on, to a browser of this machine alone.

Only who knows the token in the address gets the page, and the server answers nothing but GET under its own names: a
page of another site that a browser is tricked into asking from here (DNS rebinding) is refused.
"""

import hashlib
import multiprocessing
import secrets
import sys
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from moco_dist.errors import UserError, reason
from moco_dist.report import page, record
from moco_dist.run import lease
from moco_dist.run.paths import RunPaths

HOST = "127.0.0.1"

Signature = tuple[tuple[str, int, int] | tuple[str, str], ...]


class Pages:
    """This object makes the page anew when a file of the runs has changed. It is safe to call from several threads.

    Args:
        folders: lists the run directories.
        title: of a page with several runs.
    """

    def __init__(self, folders: Callable[[], Sequence[Path]], title: str) -> None:
        self._folders, self._title = folders, title
        self._lock = threading.Lock()
        self._made: tuple[Signature, bytes, str] | None = None

    def now(self) -> tuple[bytes, str]:
        """Return the page and its tag, which changes with it. Raises UserError, OSError."""
        with self._lock:
            folders = self._folders()
            signature = _signature(folders)
            if self._made is None or self._made[0] != signature:
                text = page.page_of(record.read_all(folders), title=self._title, watched=True).encode()
                self._made = signature, text, f'"{hashlib.sha256(repr(signature).encode()).hexdigest()[:32]}"'
            return self._made[1:]


def _signature(folders: Sequence[Path]) -> Signature:
    """Return who writes each run, since a killed process changes no file, and sizes and times of the page's files."""
    entries: list[tuple[str, int, int] | tuple[str, str]] = []
    for folder in folders:
        entries.append((str(folder), lease.held_by(folder)))
        for file in RunPaths(folder).of_the_report():
            try:
                state = file.stat()
                entries.append((str(file), state.st_size, state.st_mtime_ns))
            except OSError:
                entries.append((str(file), -1, 0))
    return tuple(entries)


class Server(ThreadingHTTPServer):
    """This server answers with one page.

    Args:
        pages: what is served.
        port: to listen on; 0 takes a free one.

    Raises:
        UserError: the port cannot be used.
    """

    daemon_threads = True

    def __init__(self, pages: Pages, port: int) -> None:
        self.pages, self.token = pages, secrets.token_urlsafe(24)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            rule = f"cannot be listened on: {error.strerror}"
            raise UserError.of("--port", port, rule, "choose another, or drop it for a free one") from None
        self.names = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a browser that has gone before its answer was whole; tell all else in a line."""
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError | TimeoutError):
            print(f"moco_dist.report: {reason(error)}", file=sys.stderr, flush=True)

    @property
    def url(self) -> str:
        """Return the address of the page, with the token."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"


class _Handler(BaseHTTPRequestHandler):
    """Answer a request: the page, or a line that says why not."""

    server: Server
    timeout = 30
    server_version, sys_version = "moco-dist", ""

    def do_GET(self) -> None:
        if self.headers.get("Host") not in self.server.names:
            return self._tell(HTTPStatus.FORBIDDEN, "this server answers to its own name alone")
        if not secrets.compare_digest(self.path.encode("utf-8", "replace"), f"/{self.server.token}/".encode()):
            return self._tell(HTTPStatus.FORBIDDEN, "the token in the address is wrong; take the one that was printed")
        try:
            content, tag = self.server.pages.now()
        except (UserError, OSError) as error:
            return self._tell(HTTPStatus.SERVICE_UNAVAILABLE, reason(error))
        if self.headers.get("If-None-Match") == tag:
            return self._send(HTTPStatus.NOT_MODIFIED, b"", "text/html; charset=utf-8", tag)
        return self._send(HTTPStatus.OK, content, "text/html; charset=utf-8", tag)

    def _refuse(self) -> None:
        self.close_connection = True
        self._tell(HTTPStatus.METHOD_NOT_ALLOWED, "only GET is answered")

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse  # noqa: N815

    def _tell(self, code: HTTPStatus, line: str) -> None:
        self._send(code, f"{line}\n".encode(), "text/plain; charset=utf-8", "")

    def _send(self, code: HTTPStatus, content: bytes, kind: str, tag: str) -> None:
        self.send_response(code)
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": "no-store"}
        headers |= {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"}
        headers |= {"Cross-Origin-Resource-Policy": "same-origin"}
        for name, value in headers.items():
            self.send_header(name, value)
        if tag:
            self.send_header("ETag", tag)
        if code == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Say nothing: every few seconds a page asks for new rows, and the address holds the token."""


def serve(folders: Callable[[], Sequence[Path]], title: str, port: int) -> int:
    """Serve the page of runs until Ctrl-C. Returns the exit status.

    Args:
        folders: lists the run directories.
        title: of a page with several runs.
        port: to listen on; 0 takes a free one.

    Raises:
        UserError: the port cannot be used, or a folder holds no run.
    """
    pages = Pages(folders, title)
    pages.now()
    with Server(pages, port) as server:
        try:
            print(f"serving {server.url} until Ctrl-C", flush=True)
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended", file=sys.stderr)
        finally:
            for worker in multiprocessing.active_children():  # of a page in the making, which is not waited for
                worker.kill()
    return 0
