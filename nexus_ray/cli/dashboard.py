"""`nexus dashboard`: Ray's dashboard in the browser, and its jobs, as far as one's own session may.

Law: it listens on loopback only, for one browser: whoever opened the address that was printed, once. Everybody else on
this machine is refused, and so is a page of another site. The browser never holds the token.
"""

import contextlib
import os
import secrets
import tempfile
import threading
import time
import webbrowser
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote

import typer

from nexus_ray.cli.show import print_json, say

if TYPE_CHECKING:
    from nexus_ray.runtime.client import Connection

_COOKIE = "nexus_dashboard"
_CODE_S = 300.0  # A browser that starts slowly; an address in the history is worth nothing after that.
_SILENCE_S = 60.0
_BODY_BYTES_MAX = 100 * 1024 * 1024  # As the fleet's own default for what goes to Ray.
_THREADS_MAX = 32  # A browser opens six connections to one server.
_CHUNK_BYTES = 64 * 1024
_PASSED_IN = ("Accept", "Accept-Encoding", "Content-Type", "If-None-Match", "If-Modified-Since")
_PASSED_OUT = ("Content-Type", "Content-Encoding", "Content-Length", "Content-Disposition", "ETag", "Last-Modified")
_SAFE = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Ray's page styles itself in line; scripts come from files of its own only, and nothing is asked of other servers.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
}


def dashboard(
    browser: Annotated[bool, typer.Option(help="Open the browser, or only print the address.")] = True,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen; any free one if 0.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Open Ray's dashboard in the browser, until Ctrl-C; what it may show and do, your roles say."""
    from nexus_ray.runtime.client import connect

    with connect() as fleet:
        fleet.send("GET", "/ray/api/version", tries_max=1)  # Refused here is better than in the browser.
        with serving(fleet, port) as passage:
            headers = '{"Authorization": "Bearer TOKEN"}'
            jobs = {"RAY_API_SERVER_ADDRESS": f"{fleet.url}/ray", "RAY_JOB_HEADERS": headers}
            if as_json:
                print_json({"url": passage.url, "jobs": jobs})
            else:
                say("Opened once, it is this browser's alone. Ctrl-C ends it.")
                say("For Ray's own command, with TOKEN as in NEXUS_TOKEN: "
                    + " ".join(f"{name}='{value}'" for name, value in jobs.items())
                    + " ray job submit -- …")  # fmt: skip
                typer.echo(passage.url)
            with _shown(passage.url) if browser else contextlib.nullcontext():
                threading.Event().wait()


class Passage:
    """From one browser to the fleet."""

    def __init__(self, fleet: "Connection", port: int) -> None:
        self._fleet = fleet
        self._code = secrets.token_urlsafe(32)
        self._code_until = time.monotonic() + _CODE_S
        self._opening = threading.Lock()
        self._session = secrets.token_urlsafe(32)
        # A browser sends a cookie to every port of a host, but not to another path: only who was let in knows this one.
        self.base = f"/{secrets.token_urlsafe(16)}/"
        self.room = threading.BoundedSemaphore(_THREADS_MAX)
        self.hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
        self.url = f"http://127.0.0.1:{port}/open?code={self._code}"

    def open(self, code: str) -> str | None:
        """Return the cookie for the first who shows the code, in time, and nothing for anybody after."""
        with self._opening:
            is_right = secrets.compare_digest(code.encode(), self._code.encode())
            if not is_right or time.monotonic() > self._code_until:
                return None
            self._code_until = 0.0
        return f"{_COOKIE}={self._session}; Path={self.base}; HttpOnly; SameSite=Strict"

    def knows(self, cookies: str) -> bool:
        """Tell whether a browser is the one that was let in."""
        pairs = (one.strip().partition("=") for one in cookies.split(";"))
        shown = [value for name, _, value in pairs if name == _COOKIE]
        return len(shown) == 1 and secrets.compare_digest(shown[0].encode(), self._session.encode())

    def ask(self, method: str, path: str, **options: Any) -> Any:
        """Send a request to the fleet as the session that this is for; the answer comes as it comes."""
        return self._fleet.http.stream(method, f"/ray/{path}", timeout=_SILENCE_S, **options)


@contextlib.contextmanager
def serving(fleet: "Connection", port: int = 0) -> Iterator[Passage]:
    """Listen on loopback within the block."""
    server = _Server(("127.0.0.1", port), _Seat)
    server.passage = Passage(fleet, server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.passage
    finally:
        server.shutdown()
        server.server_close()
        thread.join(_SILENCE_S)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    passage: Passage

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a browser that goes away in the middle is no news."""


class _Seat(BaseHTTPRequestHandler):
    server: _Server
    timeout = _SILENCE_S
    server_version = "nexus"
    sys_version = ""

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the address of the one request that matters holds the code."""

    def _serve(self) -> None:
        passage = self.server.passage
        host = self.headers.get_all("Host", [])
        if len(host) != 1 or host[0] not in passage.hosts:
            # Another name for this machine is how a foreign page would get its own name to mean this server.
            self._refuse(421, "not the address that `nexus dashboard` printed")
        elif self.command == "GET" and self.path.startswith("/open?code="):
            self._open(self.path.removeprefix("/open?code="))
        elif not self.path.startswith(passage.base) or not passage.knows(self.headers.get("Cookie", "")):
            self._refuse(401, "open the address that `nexus dashboard` printed; it opens once")
        elif not self._is_own(host[0]):
            self._refuse(403, "another site asks")
        elif not passage.room.acquire(blocking=False):
            self._refuse(503, "too many requests at one time")
        else:
            try:
                self._pass_on(self.path.removeprefix(passage.base))
            finally:
                passage.room.release()

    def _is_own(self, host: str) -> bool:
        """Tell whether a request is of this server's own pages, or of somebody who typed its address."""
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return False
        return self.command == "GET" or self.headers.get_all("Origin") == [f"http://{host}"]

    def _open(self, code: str) -> None:
        passage = self.server.passage
        cookie = passage.open(code)
        if cookie is None:
            self._refuse(401, "this address has been opened, or is too old: run `nexus dashboard` again")
            return
        # A page and no redirect: what another page sent here would go on without the cookie, which is Strict.
        page = f'<!doctype html><meta http-equiv="refresh" content="0;url={passage.base}"><title>Nexus</title>'
        self._answer(200, {"Content-Type": "text/html", "Set-Cookie": cookie}, page.encode())

    def _pass_on(self, target: str) -> None:
        import httpx2

        if ".." in unquote(target):
            self._refuse(404, "there is no such path")  # The client would go up it, out of what this is for.
            return
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit() and len(length) < 12):
            self._refuse(411, "a body comes with its length")
            return
        if int(length) > _BODY_BYTES_MAX:
            self._refuse(413, f"a body has at most {_BODY_BYTES_MAX} bytes")
            return
        headers = {name: self.headers[name] for name in _PASSED_IN if name in self.headers}
        headers.setdefault("Accept-Encoding", "identity")
        content = None
        if int(length):
            headers["Content-Length"] = length
            content = self._body(int(length))
        try:
            with self.server.passage.ask(self.command, target, headers=headers, content=content) as found:
                self.close_connection = True
                self.send_response(found.status_code)
                taken = {name: found.headers[name] for name in _PASSED_OUT if name in found.headers}
                for name, value in {**taken, **_SAFE}.items():
                    self.send_header(name, value)
                self.end_headers()
                for chunk in found.iter_raw(_CHUNK_BYTES):
                    self.wfile.write(chunk)
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            if isinstance(error, httpx2.InvalidURL | httpx2.ConnectError | httpx2.ConnectTimeout):
                self._refuse(502, "the fleet cannot be reached")
            # Else the answer may have begun, so it can only end.

    def _body(self, length: int) -> Iterator[bytes]:
        while length:
            chunk = self.rfile.read(min(length, _CHUNK_BYTES))
            if not chunk:
                raise ConnectionError("the browser has gone")
            length -= len(chunk)
            yield chunk

    def _refuse(self, status: int, why: str) -> None:
        self._answer(status, {"Content-Type": "text/plain; charset=utf-8"}, f"{why}\n".encode())

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.close_connection = True
        self.send_response(status)
        for name, value in {**headers, **_SAFE, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def _shown(url: str) -> Iterator[None]:
    """Have the browser open the address, by a file that is ours alone: everybody can read what a command is given."""
    descriptor, name = tempfile.mkstemp(prefix="nexus-", suffix=".html")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f'<!doctype html><meta http-equiv="refresh" content="0;url={url}"><title>Nexus</title>')
        webbrowser.open(Path(name).as_uri())
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
