"""`nexus demo`: what it refuses, what it suggests, and the whole of it on a fleet of its own."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from nexus_ray.cli import demo
from nexus_ray.cli.entry import app

WHOLE_S = 180  # A fleet starts in about ten seconds, on a busy machine in a minute.


@pytest.mark.parametrize(("path", "reason"), [("nosuch", "there is no file or folder"), ("empty", "no Python files")])
def test_what_cannot_be_reviewed_is_refused_before_a_fleet_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, reason: str
) -> None:
    monkeypatch.setenv("NEXUS_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "empty").mkdir()

    result = CliRunner().invoke(app, ["demo", str(tmp_path / path)])

    assert result.exit_code == 2
    assert reason in result.stderr and path in result.stderr
    assert not (tmp_path / "state").exists()


def test_a_page_that_has_no_folder_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--html", str(tmp_path / "nosuch" / "page.html")])

    assert result.exit_code == 2
    assert "no folder" in result.stderr


def test_the_questions_need_no_fleet_that_is_not_there() -> None:
    folder = Path("/a b/examples")

    on_disk, up, gone = (
        "\n".join(demo.questions("nexus", "goal-1", folder, kept, has_paths=False)) for kept in ("disk", "up", "gone")
    )

    assert "PYTHONPATH='/a b/examples' nexus up supply_chain:app --detach" in on_disk
    assert on_disk.index("nexus up") < on_disk.index("nexus goal show goal-1 --trace") < on_disk.index("nexus down")
    assert "nexus up" not in up and "nexus goal show goal-1" in up
    assert "goal-1" not in gone and "nexus status" not in gone and "nexus demo ." in gone


def test_every_question_is_a_verb_that_there_is() -> None:
    lines = demo.questions("nexus", "goal-1", Path("examples"), "disk", has_paths=True)

    commands = [shlex.split(line) for line in lines if line.startswith("    ")]
    assert len(commands) == 7
    for words in commands:
        verbs = words[words.index("nexus") + 1 :]
        named = verbs[:2] if verbs[0] in ("goal", "agent") else verbs[:1]
        assert CliRunner().invoke(app, [*named, "--help"]).exit_code == 0, words


def test_the_suggested_command_is_one_that_the_shell_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / ".venv" / "bin" / "nexus"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(program), "demo"])
    monkeypatch.chdir(tmp_path)

    monkeypatch.setenv("PATH", str(program.parent))
    assert demo.nexus_command() == "nexus"
    monkeypatch.setenv("PATH", "")
    assert demo.nexus_command() == ".venv/bin/nexus"
    monkeypatch.chdir("/")
    assert demo.nexus_command() == str(program)[1:]
    monkeypatch.setattr(sys, "argv", ["/x/nexus_ray/cli/__main__.py"])
    assert demo.nexus_command() == f"{sys.executable} -m nexus_ray.cli"


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    names = {name: value for name, value in os.environ.items() if not name.startswith("NEXUS_")}
    return subprocess.Popen(
        [sys.executable, "-m", "nexus_ray.cli", "demo", *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**names, "NEXUS_STATE_DIR": str(folder / "state")},
    )  # fmt: skip


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes of this user that hold the folder's state."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("NEXUS_STATE_DIR") == str(folder / "state"):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.e2e
@pytest.mark.timeout(WHOLE_S)
def test_the_demo_reviews_prints_writes_a_page_and_stops_its_fleet(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.py").write_text("import os\nos.system(x)\n")
    run = start(tmp_path, "mine")

    out, err = run.communicate(timeout=WHOLE_S)

    assert run.returncode == 0, err
    assert "1 reviewed; 1 needs a closer look" in out and "concern" in out
    assert "reading 1 unit" in err and re.search(r"goal show goal-\S+ --trace", err)
    assert not re.search("INFO|WARN|Traceback", err)
    page = (tmp_path / "supply_chain_report.html").read_text()
    assert "a.py:2" in page and "os.system(x)" in page and 'class="band"' in page
    psutil.wait_procs(processes_of(tmp_path), timeout=10)
    assert processes_of(tmp_path) == []


@pytest.mark.e2e
@pytest.mark.timeout(WHOLE_S)
def test_ctrl_c_cancels_the_goal_and_stops_the_fleet(tmp_path: Path) -> None:
    run = start(tmp_path)
    assert run.stderr is not None
    lines = []
    for line in run.stderr:
        lines.append(line)
        if line.startswith("reading"):
            run.send_signal(signal.SIGINT)
            break

    _, rest = run.communicate(timeout=WHOLE_S)

    assert run.returncode == 130, (lines, rest)
    assert "cancelled goal-" in rest and "Traceback" not in rest
    psutil.wait_procs(processes_of(tmp_path), timeout=10)
    assert processes_of(tmp_path) == []
