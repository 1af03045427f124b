"""Decisions by an Open Policy Agent: one request to `/v1/data/nexus/authz`, over a Unix socket or mutual TLS.

Law: only an answer that is whole, in time, of our policy's revision and exactly true is a yes; everything else is no,
with a fixed reason, and nothing is raised. A late answer is never taken for another question's: who was not in time is
hung up on. No redirect and no proxy: HTTP is read here, by the few lines that an answer of OPA needs, because that
way one deadline holds for all of an answer, however it trickles in, and no library follows anything.
"""

import contextlib
import os
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from nexus_ray.core.clock import Clock, SystemClock
from nexus_ray.observe.logs import get_logger
from nexus_ray.security.policy import NO_ROLE, REASONS, Decision, Policy, PolicyRequest, facts
from nexus_ray.security.policy_settings import PolicySettings
from nexus_ray.security.rego_engine import is_safe

_HEAD = b"POST /v1/data/nexus/authz HTTP/1.1\r\nHost: opa\r\nContent-Type: application/json\r\nContent-Length: "
_ANSWER_BYTES_MAX = 64 * 1024  # A decision is some 120 bytes.
_HTTPS_PORT = 443
_RESTS_MAX = 4  # Times that the rest is doubled: sixteen times as long at the most.

log = get_logger("security.opa")


class OpaEngine:
    """Decides in an OPA server that holds the same policy. Implements `PolicyEngine`."""

    def __init__(self, policy: Policy, server: "OpaServer") -> None:
        self.policy = policy
        self._server = server

    @property
    def revision(self) -> str:
        """See `PolicyEngine.revision`."""
        return self.policy.revision

    def narrow(self, request: PolicyRequest) -> PolicyRequest:
        """See `PolicyEngine.narrow`."""
        return self.policy.narrow(request)

    def decide(self, request: PolicyRequest) -> Decision:
        """See `PolicyEngine.decide`."""
        narrowed = self.policy.narrow(request)
        # OPA would take it; that both engines say the same to everything is worth more.
        if not is_safe(narrowed):
            return Decision(False, "input_refused", self.revision)
        reason = self._server.ask(orjson.dumps({"input": facts(narrowed, self.policy)}), self.revision)
        return Decision(reason == "granted", reason, self.revision)


class OpaServer:
    """One kept connection to a server, and what is known of how it does; for any thread, one question at a time."""

    def __init__(self, settings: PolicySettings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()  # Says how long it rests; a deadline is the kernel's, in real time.
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._rests_until = 0.0
        self._failures = 0
        self._failed_by = ""

    def ask(self, body: bytes, revision: str) -> str:
        """Return the reason that the server gives, "granted" for a yes, or a code of ours where it gives none."""
        until = time.monotonic() + self._settings.decision_timeout_s
        # Who comes while another waits may wait as long: it is one server, and it is slow.
        if not self._lock.acquire(timeout=self._settings.decision_timeout_s):
            return "engine_timeout"
        try:
            if self._clock.monotonic() < self._rests_until:
                return self._failed_by
            try:
                reason = _reason(self._exchange(body, until), revision)
            except (OSError, ValueError) as error:
                self.close()
                code = "engine_timeout" if isinstance(error, TimeoutError) else "engine_failed"
                self._rest(code, f"{type(error).__name__}: {error}")
                return code
            self._note(reason)
            return reason
        finally:
            self._lock.release()

    def close(self) -> None:
        """Hang up; the next question connects again."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
        self._socket = None

    def _rest(self, code: str, told: str) -> None:
        rest_s = self._settings.opa_rest_s * 2 ** min(self._failures, _RESTS_MAX)
        if code != self._failed_by:
            log.error("policy.engine_failed", reason=code, error=told[:200], rest_s=rest_s)
        self._failed_by, self._failures = code, self._failures + 1
        self._rests_until = self._clock.monotonic() + rest_s

    def _note(self, reason: str) -> None:
        # An answer of another policy, or none, is an answer: the server does well, and is asked again at once.
        self._failures = 0
        failed_by = "" if reason in REASONS else reason
        if failed_by == self._failed_by:
            return
        if failed_by:
            log.error("policy.engine_failed", reason=reason, error="it has another policy, or none", rest_s=0.0)
        else:
            log.info("policy.engine_recovered", before=self._failed_by)
        self._failed_by = failed_by

    def _exchange(self, body: bytes, until: float) -> bytes:
        request = b"%s%d\r\n\r\n%s" % (_HEAD, len(body), body)
        if self._socket is not None:
            # A kept connection may have ended meanwhile. To ask twice does no harm: a question changes nothing.
            with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
                return self._once(self._socket, request, until)
            self.close()
        self._socket = _connect(self._settings, until)
        return self._once(self._socket, request, until)

    def _once(self, connection: socket.socket, request: bytes, until: float) -> bytes:
        connection.settimeout(_left_s(until))
        connection.sendall(request)
        got = b""
        while (end := got.find(b"\r\n\r\n")) < 0:
            got += _receive(connection, got, until)
        status, *lines = got[:end].decode("latin-1").lower().split("\r\n")
        fields = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        lengths = [value for name, value in fields if name == "content-length"]
        if not status.startswith("http/1.1 200 "):
            raise ValueError(f"it answers {status[:40]!r}")
        if len(lengths) != 1 or not lengths[0].isdecimal() or any(name == "transfer-encoding" for name, _ in fields):
            raise ValueError("it does not say how long its answer is")
        size = end + 4 + int(lengths[0][:9])
        if size > _ANSWER_BYTES_MAX:
            raise ValueError("its answer is too long")
        while len(got) < size:
            got += _receive(connection, got, until)
        if len(got) > size:
            raise ValueError("it answers more than was asked")
        if ("connection", "close") in fields:
            self.close()
        return got[end + 4 :]


def _reason(raw: bytes, revision: str) -> str:
    answer = orjson.loads(raw)
    result = answer.get("result") if isinstance(answer, dict) else None
    if not isinstance(result, dict) or not isinstance(result.get("allow"), bool):
        return "engine_undefined"
    if result.get("revision") != revision:
        return "revision_unknown"
    reason = result.get("reason")
    if result["allow"] is True:
        return "granted" if reason == "granted" else "engine_undefined"
    return reason if isinstance(reason, str) and reason in REASONS - {"granted"} else NO_ROLE


def _left_s(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("no answer in time")
    return left


def _receive(connection: socket.socket, got: bytes, until: float) -> bytes:
    if len(got) > _ANSWER_BYTES_MAX:
        raise ValueError("its answer is too long")
    connection.settimeout(_left_s(until))
    received = connection.recv(_ANSWER_BYTES_MAX)
    if received:
        return received
    if got:
        raise ValueError("its answer ends half-way")
    raise ConnectionResetError("it hung up")


def _connect(settings: PolicySettings, until: float) -> socket.socket:
    parts = urlsplit(settings.opa_address)
    if parts.scheme == "unix":
        return _connect_unix(Path(parts.path), until)
    context = ssl.create_default_context(cafile=str(settings.opa_ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(str(settings.opa_certificate), str(settings.opa_key))
    host = parts.hostname or ""
    made = socket.create_connection((_resolved(host, until), parts.port or _HTTPS_PORT), timeout=_left_s(until))
    try:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.settimeout(_left_s(until))
        return context.wrap_socket(made, server_hostname=host)
    except BaseException:
        made.close()
        raise


def _connect_unix(path: Path, until: float) -> socket.socket:
    # In a folder where anybody may write, whoever comes first is the policy engine.
    if os.stat(path.parent).st_mode & 0o002:
        raise PermissionError(f"others may write in {path.parent}")
    made = socket.socket(socket.AF_UNIX)
    try:
        made.settimeout(_left_s(until))
        made.connect(str(path))
    except BaseException:
        made.close()
        raise
    return made


def _resolved(host: str, until: float) -> str:
    # A resolver knows no deadline and may take half a minute, so it is not this thread that waits for it.
    found: list[Any] = []

    def look() -> None:
        with contextlib.suppress(OSError):
            found.extend(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))

    thread = threading.Thread(target=look, name="resolve opa", daemon=True)
    thread.start()
    thread.join(_left_s(until))
    if thread.is_alive():
        raise TimeoutError("its name does not resolve in time")
    if not found:
        raise OSError("its name does not resolve")
    return str(found[0][4][0])
