"""A tiny HTTP server that stands for a fleet: the client's retries and streams need real sockets."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

Answer = tuple[int, dict[str, str], bytes]


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    return status, {"Content-Type": "application/json", **headers}, json.dumps(value).encode()


def as_problem(code: str, detail: str, status: int, **headers: str) -> Answer:
    body = {"code": code, "title": code, "status": status, "detail": detail}
    return status, {"Content-Type": "application/problem+json", **headers}, json.dumps(body).encode()


def as_events(*events: dict[str, Any], cut: bytes = b"") -> Answer:
    lines = [f"id: {e['seq']}\nevent: {e['kind']}\ndata: {json.dumps(e)}\n\n" for e in events]
    return 200, {"Content-Type": "text/event-stream"}, ": ping\n\n".join(lines).encode() + cut


def goal(status: str = "succeeded", **fields: Any) -> dict[str, Any]:
    return {"id": "goal-1", "type": "audit", "status": status, "principal": "me", "accepted_at": 1.0, **fields}


class Fleet:
    """Answers from scripts by method and path; the last answer of a script stays. `None` hangs up."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.scripts: dict[str, list[Answer | None]] = {}
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.held = threading.Event()  # What is answered with a header `Hold` stays open until this is set.

    def on(self, route: str, *answers: Answer | None) -> None:
        self.scripts[route] = list(answers)

    def asked(self, route: str) -> list[dict[str, str]]:
        return [headers for seen, headers, _ in self.requests if seen == route]


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    class Seat(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            route = f"{self.command} {self.path.partition('?')[0]}"
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            found.requests.append((route, dict(self.headers.items()), body))
            script = found.scripts.get(route) or [as_problem("not_found", f"no route {route}", 404)]
            scripted = script.pop(0) if len(script) > 1 else script[0]
            self.close_connection = True
            if scripted is None:
                return
            status, headers, content = scripted
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Connection", "close")
            if headers.get("Content-Type") != "text/event-stream":
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            if "Hold" in headers:
                self.wfile.flush()
                found.held.wait(30)

        do_GET = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Seat)
    server.daemon_threads = True
    found = Fleet(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005})
    thread.start()
    yield found
    found.held.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("NEXUS_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "state"
    monkeypatch.setenv("NEXUS_STATE_DIR", str(folder))
    return folder


@pytest.fixture
def is_up(state: Path, fleet: Fleet) -> Callable[..., None]:
    """Write what `nexus up` leaves behind; the fleet's process is the test's own."""

    def write(**fields: Any) -> None:
        state.mkdir(mode=0o700, exist_ok=True)
        told = {"pid": os.getpid(), "url": fleet.url, "app": "my:app", "started_at": time.time(), **fields}
        (state / "fleet.json").write_text(json.dumps(told))
        (state / "token").write_text("secret-token")
        (state / "token").chmod(0o600)

    return write
