"""Running `nexus` as a person or a script does, in this process or in one of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from nexus_ray.cli.entry import app


def nexus(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, arguments, input=stdin)


def printed(result: Result) -> Any:
    """Return what was printed as JSON on stdout, and nothing but that."""
    return json.loads(result.stdout)


def start_nexus(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "nexus_ray.cli", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **environment}, preexec_fn=obey_ctrl_c,
    )  # fmt: skip


def obey_ctrl_c() -> None:
    """For a child: a shell that runs the tests in the background has had SIGINT ignored, which is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
