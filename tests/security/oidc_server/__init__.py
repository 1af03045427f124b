"""A real OpenID Connect provider (npm `oidc-provider`) that tests start on a private loopback port."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any

import httpx2
import pytest

HERE = Path(__file__).parent


class OidcServer:
    """The provider while it runs."""

    def __init__(self, issuer: str) -> None:
        self.issuer = issuer
        self.http = httpx2.Client(base_url=issuer, trust_env=False, timeout=10)

    def post(self, path: str, **form: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.http.post(path, data=form).json()
        return answer

    def robot_token(self, **headers: str) -> str:
        form = {"grant_type": "client_credentials", "scope": "api"}
        answer = self.http.post("/token", data=form, auth=("robot", "robot-secret"), headers=headers)
        return str(answer.json()["access_token"])

    def tell(self, what: str) -> int:
        """Rotate, break or mend its keys, or none of them; returns how often they were fetched."""
        return int(self.http.post(f"/test/{what}").text)

    def follow(self, url: str, login: str = "ann") -> str:
        """Do what a person does in the browser; returns the address that the browser is sent back to, or the page."""
        with httpx2.Client(trust_env=False, timeout=10) as browser:
            answer = browser.get(url)
            for _ in range(20):
                if answer.has_redirect_location:
                    target = str(answer.url.join(answer.headers["location"]))
                    if not target.startswith(self.issuer):
                        return target
                    answer = browser.get(target)
                    continue
                form = re.search(r'<form[^>]*action="([^"]+)".*?</form>', answer.text, re.S)
                if form is None:
                    return answer.text
                named = re.findall(r'name="([^"]+)" value="([^"]*)"', form[0])
                fields = {name: unescape(value) for name, value in named} | {"login": login, "password": "x"}
                answer = browser.post(unescape(form[1]), data=fields)
            raise AssertionError("the provider asks without end")


def install(folder: Path) -> None:
    """Install the provider into a folder, or fail where it must be there (CI), or skip."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        reason = "no node here: `apt install nodejs npm`"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Two processes of tests share the folder.
        for name in ("package.json", "server.mjs"):
            shutil.copy(HERE / name, folder / name)
        if (folder / "node_modules" / ".package-lock.json").exists():  # What npm writes last.
            return
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
        if done.returncode:
            reason = "npm cannot install oidc-provider"
            pytest.fail(f"{reason}: {done.stderr[-500:]}") if os.environ.get("CI") else pytest.skip(reason)


@contextmanager
def running(folder: Path) -> Iterator[OidcServer]:
    install(folder)
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            ["node", "server.mjs"], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout is not None and process.stdin is not None
            line = process.stdout.readline()
            assert line.startswith("issuer "), f"no issuer: {log.seek(0)} {log.read()}"
            server = OidcServer(line.split()[1])
            with server.http:
                yield server
            process.stdin.close()  # It ends with its input.
            process.wait(10)
        finally:
            process.kill()
            process.wait(10)


def claims_of(token: str) -> dict[str, Any]:
    """Return what a token says, believed or not."""
    import base64

    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    return found
