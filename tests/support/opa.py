"""A real Open Policy Agent on a Unix socket, and with mutual TLS on a private loopback port."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from nexus_ray.security.policy import Policy, PolicyRequest, facts
from nexus_ray.security.policy_settings import PolicySettings
from nexus_ray.security.rego_engine import read_module
from tests.support.certificates import Authority

_CACHED = Path.home() / ".cache" / "nexus-tests" / "bin" / "opa"
_BATCH = "answers := [answer | some each in input.inputs; answer := data.nexus.authz with input as each]"


def program() -> str:
    """Return the program, or skip; on a build machine its absence is a failure."""
    found = shutil.which("opa") or (str(_CACHED) if _CACHED.exists() else None)
    if found is None:
        told = "there is no OPA here: `tests/support/get_opa` builds it with Go, in some minutes"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(told)
    return str(found)


class Opa:
    """One server; its policy is put into it, or it loads a bundle."""

    def __init__(self, *arguments: str, has_tls: bool = False) -> None:
        self._program = program()
        self.folder = Path(tempfile.mkdtemp(prefix="nexus-opa-"))
        self.socket = self.folder / "opa.sock"
        self._arguments = ["--addr", f"unix://{self.socket}", *arguments]
        self.settings = PolicySettings(engine="opa", opa_address=f"unix://{self.socket}", decision_timeout_s=10)
        self.tls_settings = self.settings
        if has_tls:
            self._with_tls()
        self.process: subprocess.Popen[bytes] | None = None

    def _with_tls(self) -> None:
        authority = Authority(self.folder)
        certificate, key = authority.issue("opa")
        shown, its_key = authority.issue("nexus")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        self._arguments += [
            "--addr", f"https://127.0.0.1:{port}", "--tls-cert-file", str(certificate), "--tls-private-key-file",
            str(key), "--tls-ca-cert-file", str(authority.file), "--authentication", "tls",
        ]  # fmt: skip
        told = {"opa_address": f"https://127.0.0.1:{port}", "opa_ca": authority.file, "opa_certificate": shown,
                "opa_key": its_key, "decision_timeout_s": 10}  # fmt: skip
        self.tls_settings = PolicySettings(engine="opa", **told)

    def start(self, within_s: float = 20.0) -> None:
        """Start it, and return when it answers; fail with what it says where it ends instead."""
        self.socket.unlink(missing_ok=True)
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                [self._program, "run", "--server", "--skip-version-check", "--log-level", "error", *self._arguments],
                stdout=log, stderr=log, start_new_session=True, env={"HOME": str(self.folder), "GOGC": "400"},
            )  # fmt: skip
        ends_at = time.monotonic() + within_s
        while True:
            try:
                self.send("GET", "/health")
                return
            except OSError as error:
                said = self.said()
                assert time.monotonic() < ends_at and self.process.poll() is None, (error, said)
                time.sleep(0.01)

    def said(self) -> str:
        """Return the end of what it wrote."""
        return (self.folder / "log").read_text()[-2000:]

    def send(self, method: str, path: str, body: bytes | None = None) -> Any:
        """Ask it something as its operator does, over the Unix socket."""
        connection = http.client.HTTPConnection("opa", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        with contextlib.closing(connection):
            connection.sock.settimeout(60)
            connection.sock.connect(str(self.socket))
            connection.request(method, path, body)
            answer = connection.getresponse()
            raw = answer.read()
            assert answer.status < 300, raw
            return json.loads(raw) if raw else None

    def put(self, policy: Policy, module: str | None = None) -> None:
        """Give it a policy, and the rules."""
        self.send("PUT", "/v1/policies/authz.rego", (read_module() if module is None else module).encode())
        self.send("PUT", "/v1/data/nexus/policy", json.dumps(policy.document).encode())

    def answers(self, policy: Policy, requests: Sequence[PolicyRequest]) -> list[Any]:
        """Return what the rules say to each of many requests, asked in one."""
        asked = {"query": _BATCH, "input": {"inputs": [facts(request, policy) for request in requests]}}
        found = self.send("POST", "/v1/query", json.dumps(asked).encode())["result"][0]["answers"]
        assert len(found) == len(requests)
        return list(found)

    def stop(self) -> None:
        """Kill it."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait(10)

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """SIGSTOP, and SIGCONT in the end."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def opa() -> Iterator[Opa]:
    """One server for all tests of a process; each puts its own policy into it."""
    server = Opa(has_tls=True)
    try:
        server.start()
        yield server
    finally:
        server.close()
