"""A W&B server for tests: as much of the protocol as runs, resuming, alerts and artifacts need, all in memory.

with FakeWandb() as server:
    subprocess.run(..., env={**os.environ, **server.env()})
    server.runs["id"].history
"""

from __future__ import annotations

import gzip
import json
import re
import threading
import time
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
    about: dict[str, Any] = field(default_factory=dict)
    """Tags, notes, group and job type."""
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
    """The server; a context manager.

    `fail[operation] = status` makes a GraphQL operation fail, `fail_all = status` every request, and `delay` is how
    many seconds each answer takes.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.stored: dict[str, bytes] = {}
        """Files and manifests of artifacts."""
        self.views: list[dict[str, Any]] = []
        self.fail: dict[str, int] = {}
        self.alerts: list[dict[str, Any]] = []
        self.artifacts: list[dict[str, Any]] = []
        self.used: list[str] = []
        """Artifacts that a run has as its input, by their names."""
        self.fail_all = 0
        self.delay = 0.0
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
                about = {key: variables.get(key) for key in ("tags", "notes", "groupName", "jobType")}
                run.about |= {key: value for key, value in about.items() if value is not None}
                return {"upsertBucket": {"bucket": run.bucket(), "inserted": inserted}}
            case "CreateRunFiles":
                names = variables["files"]
                files = [{"name": n, "uploadUrl": f"{self.url}/storage/{variables['run']}/{n}"} for n in names]
                return {"createRunFiles": {"runID": "storage", "uploadHeaders": [], "files": files}}
            case "NotifyScriptableRunAlert":
                self.alerts.append(variables)
                return {"notifyScriptableRunAlert": {"success": True}}
            case "UpsertView2":
                self.views.append(variables)
                view = {"id": f"view-{len(self.views)}", "name": variables["name"]}
                return {"upsertView": {"view": view, "inserted": True}}
        return self._artifacts(operation, variables)

    def _artifacts(self, operation: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """The data that answers an operation about artifacts; None for one unknown here."""
        match operation:
            case "ArtifactType":
                return {"project": {"artifact": None}}
            case "OrganizationCoreWeaveOrganizationID":
                return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}
            case "CreateArtifact":
                request = variables["input"]
                identity = f"artifact-{len(self.artifacts)}"
                self.artifacts.append({"id": identity, "state": "PENDING", **request})
                sequence = {"id": "sequence", "latestArtifact": None}
                return {
                    "createArtifact": {"artifact": {"id": identity, "state": "PENDING", "artifactSequence": sequence}}
                }
            case "CreateArtifactManifest" | "UpdateArtifactManifest":
                identity = variables.get("artifactID") or variables["artifactManifestID"]
                file = {"id": "file", "uploadUrl": f"{self.url}/storage/manifests/{identity}", "uploadHeaders": []}
                return {operation[0].lower() + operation[1:]: {"artifactManifest": {"id": identity, "file": file}}}
            case "CreateArtifactFiles":
                return {
                    "createArtifactFiles": {"files": {"edges": [self._artifact_file(v) for v in _specs(variables)]}}
                }
            case "CommitArtifact":
                [artifact] = [one for one in self.artifacts if one["id"] == variables["artifactID"]]
                artifact["state"] = "COMMITTED"
                return {"commitArtifact": {"artifact": {"id": artifact["id"], "digest": artifact.get("digest")}}}
            case "ArtifactByID":
                [artifact] = [one for one in self.artifacts if one["id"] == variables["id"]]
                return {"artifact": _artifact(artifact)}
            case "ClientIDMapping":
                ids = [one["id"] for one in self.artifacts if one.get("clientID") == variables["clientID"]]
                return {"clientIDMapping": {"serverID": ids[0]} if ids else None}
            case "UseArtifact":
                identity = variables["input"]["artifactID"]
                self.used += [one["artifactCollectionName"] for one in self.artifacts if one["id"] == identity]
                return {"useArtifact": {"artifact": {"id": identity}}}
        return None

    def _artifact_file(self, spec: dict[str, Any]) -> dict[str, Any]:
        place = f"{spec['artifactID']}/{spec['name']}"
        node = {"storagePath": place, "uploadUrl": f"{self.url}/storage/{place}", "uploadHeaders": []}
        return {"node": {**node, "uploadMultipartUrls": None, "artifact": {"id": spec["artifactID"]}}}

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


def _artifact(request: dict[str, Any]) -> dict[str, Any]:
    """A committed artifact, as GraphQL's Artifact."""
    project = {"id": "project", "internalId": "1", "name": request["projectName"], "entity": {"name": "lab"}}
    sequence = {"__typename": "ArtifactSequence", "name": request["artifactCollectionName"], "project": project}
    nothing = dict.fromkeys(("description", "historyStep", "commitHash", "updatedAt"))
    return {
        **{"__typename": "Artifact", "id": request["id"], "artifactSequence": sequence, "versionIndex": 0},
        **{"artifactType": {"name": request["artifactTypeName"]}, "metadata": request["metadata"], **nothing},
        **{"ttlDurationSeconds": -2, "ttlIsInherited": True, "tags": [], "state": request["state"], "size": 0},
        **{"digest": request["digest"], "fileCount": 0, "createdAt": "2026-01-01T00:00:00Z", "aliases": []},
    }


def _specs(variables: dict[str, Any]) -> list[dict[str, Any]]:
    specs: list[dict[str, Any]] = variables.get("artifactFiles") or variables["input"]["artifactFiles"]
    return specs


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
        time.sleep(self.fake.delay)
        if self.fake.fail_all:
            return self._reply(self.fake.fail_all, {"error": "injected"})
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
        data = self._body()
        time.sleep(self.fake.delay)
        if self.fake.fail_all:
            return self._reply(self.fake.fail_all, {})
        _, _, owner, name = self.path.split("/", 3)
        if owner in self.fake.runs:
            self.fake.runs[owner].uploads.append(name)
        else:
            self.fake.stored[f"{owner}/{name}"] = data
        return self._reply(200, {})

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
