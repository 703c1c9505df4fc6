"""A W&B server for tests: as much of the protocol as online runs, resuming and images need, all in memory.

with FakeWandb() as server:
    subprocess.run(..., env={**os.environ, **server.env()})
    server.runs["id"].history
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789abcdef" * 2 + "01234567"


@dataclass
class Run:
    """A run as the server has it."""

    name: str
    project: str
    display_name: str = ""
    config_json: str = "{}"
    summary_json: str = "{}"
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)
    preempting: bool = False
    exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for _, line in sorted(self.lines.get("wandb-history.jsonl", {}).items())]

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads(self.summary_json))

    @property
    def config(self) -> dict[str, Any]:
        return {key: entry["value"] for key, entry in json.loads(self.config_json).items()}

    def bucket(self) -> dict[str, Any]:
        """The run as GraphQL's Bucket, with what resuming asks for."""
        count = {kind: len(self.lines.get(file, {})) for kind, file in _COUNTED.items()}
        telemetry = json.loads(self.config_json).get("_wandb", {}).get("value", {}).get("t", {})
        return {
            **{"id": f"storage-{self.name}", "name": self.name, "displayName": self.display_name or self.name},
            **{"config": self.config_json, "summaryMetrics": self.summary_json, "tags": [], "notes": "", "group": None},
            **{"description": "", "sweepName": None, "historyTail": "[]", "eventsTail": "[]"},
            **{f"{kind}LineCount": lines for kind, lines in count.items()},
            "wandbConfig": json.dumps({"t": telemetry}),
            "project": {"id": "project", "name": self.project, "entity": {"id": "entity", "name": "lab"}},
        }


_COUNTED = {"history": "wandb-history.jsonl", "events": "wandb-events.jsonl", "log": "output.log"}


class FakeWandb:
    """The server; a context manager. `fail[operation] = status` makes a GraphQL operation fail."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.views: list[dict[str, Any]] = []
        self.fail: dict[str, int] = {}
        self.stop_runs = False
        self.lock = threading.Lock()
        self._http = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": self}))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> FakeWandb:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go()

    def go(self) -> None:
        """Vanish as a host does that dies: no new connections, the open ones cut."""
        self._http.shutdown()
        self._http.server_close()
        self._http.cut()

    def env(self) -> dict[str, str]:
        """Variables that send wandb here."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_ENTITY": "lab", "NO_PROXY": "127.0.0.1"}

    def graphql(self, operation: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """The data that answers an operation; None for one unknown here."""
        run = self.runs.get(
            next((str(variables[k]) for k in ("name", "run", "runName", "runId") if k in variables), "")
        )
        match operation:
            case "Viewer":
                teams = {"edges": [{"node": {"name": "lab"}}]}
                return {"viewer": {"id": "1", "entity": "lab", "username": "lab", "flags": "{}", "teams": teams}}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "RunResumeStatus":
                model = {"id": "project", "name": variables.get("project"), "entity": {"id": "entity", "name": "lab"}}
                return {"model": {**model, "bucket": run.bucket()} if run else None}
            case "UpsertBucket":
                inserted = run is None
                run = run or self.runs.setdefault(variables["name"], Run(variables["name"], variables["project"]))
                run.display_name = variables.get("displayName") or run.display_name
                run.config_json = variables.get("config") or run.config_json
                run.summary_json = variables.get("summaryMetrics") or run.summary_json
                return {"upsertBucket": {"bucket": run.bucket(), "inserted": inserted}}
            case "CreateRunFiles":
                names = variables["files"]
                files = [{"name": n, "uploadUrl": f"{self.url}/storage/{variables['run']}/{n}"} for n in names]
                return {"createRunFiles": {"runID": "storage", "uploadHeaders": [], "files": files}}
            case "UpsertView2":
                self.views.append(variables)
                view = {"id": f"view-{len(self.views)}", "name": variables["name"]}
                return {"upsertView": {"view": view, "inserted": True}}
        return None

    def file_stream(self, run: Run, body: dict[str, Any]) -> None:
        """Take lines of history, the summary, and the end of the run."""
        for name, chunk in (body.get("files") or {}).items():
            if name == "wandb-summary.json":
                run.summary_json = chunk["content"][-1]
                continue
            lines = run.lines.setdefault(name, {})
            lines.update(enumerate(chunk["content"], start=chunk["offset"]))
        run.preempting |= bool(body.get("preempting"))
        if body.get("complete"):
            run.exit_code = body.get("exitcode")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connections: list[Any] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """wandb-core resets idle connections: nothing to tell."""

    def cut(self) -> None:
        for connection in self.connections:
            try:
                connection.shutdown(2)
            except OSError:
                continue


class _Handler(BaseHTTPRequestHandler):
    fake: FakeWandb
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Quiet."""

    def do_POST(self) -> None:
        data = self._body()
        if self.path.startswith("/graphql"):
            query = json.loads(data)
            operation = query.get("operationName") or re.findall(r"(?:query|mutation)\s+(\w+)", query["query"])[0]
            if operation in self.fake.fail:
                return self._reply(self.fake.fail[operation], {"error": "injected"})
            with self.fake.lock:
                answer = self.fake.graphql(operation, query.get("variables") or {})
            errors = [] if answer else [{"message": f"fake_wandb knows no {operation}"}]
            return self._reply(200, {"data": answer, **({"errors": errors} if errors else {})})
        if stream := re.match(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            with self.fake.lock:
                self.fake.file_stream(self.fake.runs[stream[1]], json.loads(data))
            return self._reply(200, {"exitcode": None, "limits": {}, "stopped": self.fake.stop_runs})
        return self._reply(404 if "otel" not in self.path else 200, {})

    def do_PUT(self) -> None:
        self._body()
        _, _, run, name = self.path.split("/", 3)
        self.fake.runs[run].uploads.append(name)
        self._reply(200, {})

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def _reply(self, status: int, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
