"""`up`, `down`, `status`, `agent list`, `version` and `--help`, as far as no Ray is needed."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nexus_ray.cli.entry import app
from nexus_ray.runtime.state import StateLock
from tests.cli.conftest import Fleet, as_json, as_problem
from tests.cli.support import free_port, nexus, printed, start_nexus

READY = {"ready": True, "keys": True, "ledger": True, "hosts": True}
HOST = {"host": "host-0", "node": "here", "epoch": 1, "goals": 0, "agents": {"reader": 2}, "process": 7}


def put_app(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with apps, as the working directory, and ports that are free."""
    put_app(tmp_path, "good_fleet", "import nexus_ray\napp = nexus_ray.App('good')\n")
    put_app(tmp_path, "torn_fleet", "import not_there_at_all\n")
    put_app(tmp_path, "empty_fleet", "other = 1\n")
    put_app(tmp_path, "named_fleet", "import nexus_ray\nservice = nexus_ray.App('named')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("NEXUS_RUNTIME__DASHBOARD_PORT", str(free_port()))
    monkeypatch.setenv("NEXUS_RUNTIME__HTTP_PORT", str(free_port()))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("good_fleet:app", "--host", "0.0.0.0"), "without TLS"),
        (("good_fleet:app", "--tls-cert", "c.pem"), "both --tls-cert and --tls-key"),
        (("good_fleet:app", "--tls-cert", "c.pem", "--tls-key", "k.pem"), "no TLS file c.pem"),
        (("good_fleet:app", "--tls", "--tls-cert", "c.pem", "--tls-key", "k.pem"), "does not go with"),
        (("good_fleet:app", "--config", "nowhere.toml"), "no settings file nowhere.toml"),
        (("good_fleet",), "module:attribute"),
        ((":app",), "module:attribute"),
        (("nowhere_fleet:app",), "does not import: ModuleNotFoundError"),
        (("torn_fleet:app",), "No module named 'not_there_at_all'"),
        (("empty_fleet:app",), "app = nexus.App('name')"),
        (("named_fleet:app",), "it has service"),
        (("good_fleet:app", "--port", "0"), "--port"),
        (("good_fleet:app", "--port", "70000"), "--port"),
    ],
)
def test_what_cannot_come_up_is_refused_with_what_to_do(place: Path, arguments: tuple[str, ...], told: str) -> None:
    result = nexus("up", *arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert not (place / "state" / "fleet.json").exists()


@pytest.mark.parametrize("which", ["http", "dashboard"])
def test_a_taken_port_is_refused_with_the_flag_that_chooses_another(
    place: Path, fleet: Fleet, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    taken = fleet.url.rpartition(":")[2]
    monkeypatch.setenv(f"NEXUS_RUNTIME__{'DASHBOARD' if which == 'dashboard' else 'HTTP'}_PORT", taken)

    result = nexus("up", "good_fleet:app")

    assert result.exit_code == 2
    assert taken in result.stderr and "taken" in result.stderr
    assert ("--port" if which == "http" else "NEXUS_RUNTIME__DASHBOARD_PORT") in result.stderr


def test_a_dashboard_that_is_not_started_needs_no_port(
    place: Path, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUS_RUNTIME__DASHBOARD_PORT", fleet.url.rpartition(":")[2])
    monkeypatch.setenv("NEXUS_RUNTIME__DASHBOARD", "false")

    # The next thing that is wrong is told, so the port was not.
    assert "does not import" in nexus("up", "nowhere_fleet:app").stderr


@pytest.mark.parametrize("host", ["192.0.2.1"])
def test_an_address_that_is_not_this_machines_is_not_called_a_taken_port(place: Path, host: str) -> None:
    for name in ("c.pem", "k.pem"):
        (place / name).write_text("")

    result = nexus("up", "good_fleet:app", "--host", host, "--tls-cert", "c.pem", "--tls-key", "k.pem")

    assert result.exit_code == 2
    assert f"cannot listen on {host}" in result.stderr and "taken" not in result.stderr


def test_a_misspelt_setting_is_refused_with_the_one_that_was_meant(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUS_RUNTIME__HTTP_PROT", "1")

    result = nexus("up", "good_fleet:app")

    assert result.exit_code == 2
    assert "did you mean NEXUS_RUNTIME__HTTP_PORT?" in result.stderr


def test_a_second_fleet_on_a_state_folder_is_refused_by_the_lock(place: Path, state: Path) -> None:
    first = StateLock(state)

    process = start_nexus("up", "good_fleet:app")
    _, stderr = process.communicate(timeout=60)
    first.release()

    assert process.returncode == 2
    assert "a fleet is up already" in stderr and "NEXUS_STATE_DIR" in stderr


def test_a_fleet_that_is_up_is_not_started_again(place: Path, is_up: Callable[..., None], fleet: Fleet) -> None:
    is_up()

    result = nexus("up", "good_fleet:app")

    assert result.exit_code == 2
    assert fleet.url in result.stderr and "nexus down" in result.stderr


def test_in_the_background_too_the_reason_is_told_and_where_the_log_is(place: Path, state: Path) -> None:
    result = nexus("up", "torn_fleet:app", "--detach")

    assert result.exit_code == 2
    assert "not_there_at_all" in result.stderr and str(state / "up.log") in result.stderr
    assert (state / "up.log").stat().st_mode & 0o777 == 0o600


def test_a_fleet_tells_its_state_to_people_and_to_scripts(fleet: Fleet, is_up: Callable[..., None]) -> None:
    is_up(dashboard_url="http://127.0.0.1:1")
    fleet.on("GET /ready", as_json(READY))
    fleet.on("GET /v1/hosts", as_json({"hosts": [HOST]}))

    people, script = nexus("status"), nexus("status", "--json")

    assert (people.exit_code, script.exit_code) == (0, 0)
    assert fleet.url in people.stdout and "host-0" in people.stdout
    told = printed(script)
    assert (told["ready"], told["app"], told["hosts"]) == (True, "my:app", [HOST])


def test_a_fleet_that_is_not_ready_says_which_part_and_ends_with_not_up(
    fleet: Fleet, is_up: Callable[..., None]
) -> None:
    is_up()
    fleet.on("GET /ready", as_json({**READY, "ready": False, "ledger": False}, 503))
    fleet.on("GET /v1/hosts", as_problem("permission_denied", "not allowed", 403))

    people, script = nexus("status"), nexus("status", "--json")

    assert (people.exit_code, script.exit_code) == (4, 4)
    assert "not allowed" in people.stderr
    assert printed(script)["ready"] is False and printed(script)["parts"]["ledger"] is False


@pytest.mark.parametrize("verb", [("status",), ("status", "--json"), ("down",), ("down", "--json"), ("agent", "list")])
def test_without_a_fleet_nothing_is_up(verb: tuple[str, ...]) -> None:
    result = nexus(*verb)

    assert (result.exit_code, result.stdout) == (4, "")
    assert "no fleet is up" in result.stderr


@pytest.mark.parametrize("as_script", [False, True])
def test_down_ends_the_process_of_the_fleet_and_no_other(
    state: Path, is_up: Callable[..., None], as_script: bool
) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        is_up(pid=process.pid)
        # A child that has ended stays a zombie until it is waited for, and is down all the same.
        result = nexus("down", *(["--json"] if as_script else []))

        assert result.exit_code == 0
        assert process.wait(10) != 0 and other.poll() is None
        if as_script:
            assert printed(result)["app"] == "my:app" and printed(result)["down"] is True
        else:
            assert "my:app is down" in result.stderr
    finally:
        for child in (process, other):
            child.kill()
            child.wait(10)


def test_down_leaves_a_process_alone_that_took_over_the_number(state: Path, is_up: Callable[..., None]) -> None:
    younger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        is_up(pid=younger.pid, started_at=1.0)

        result = nexus("down")

        assert result.exit_code == 4
        assert younger.poll() is None
        assert not (state / "fleet.json").exists()
    finally:
        younger.kill()
        younger.wait(10)


def test_agents_are_listed_for_people_and_for_scripts(fleet: Fleet, is_up: Callable[..., None]) -> None:
    is_up()
    agent = {"agent": "reader/a", "type": "reader", "key": "a", "host": "host-0", "running": 1, "waiting": 0}
    fleet.on("GET /v1/agents", as_json({"agents": [agent]}), as_json({"agents": [agent]}), as_json({"agents": []}))

    assert "reader/a" in nexus("agent", "list").stdout
    assert printed(nexus("agent", "list", "--json")) == {"agents": [agent]}
    none = nexus("agent", "list")
    assert (none.exit_code, none.stdout) == (0, "") and "no agent is active" in none.stderr


def test_an_agent_is_shown_for_people_and_for_scripts(fleet: Fleet, is_up: Callable[..., None]) -> None:
    is_up()
    state = {"version": 12, "schema_version": 2, "bytes": 9, "body": {"sum": 7}}
    record = {"agent": "account/a b", "is_durable": True, "state": state, "quarantine": "its upgrade raised"}
    empty = {"agent": "account/c", "is_durable": True, "state": None, "quarantine": None}
    fleet.on("GET /v1/agents/account", as_json(record), as_json(record), as_json(empty))

    shown = nexus("agent", "show", "account/a b").stdout

    assert "12" in shown and '{"sum": 7}' in shown and "its upgrade raised" in shown
    assert printed(nexus("agent", "show", "account/a b", "--json")) == record
    assert "none yet" in nexus("agent", "show", "account/c").stdout
    wrong = nexus("agent", "show", "account")
    assert wrong.exit_code == 2 and "an agent key is" in wrong.stderr


def test_the_environment_for_rays_own_commands_names_secrets_and_holds_none(state: Path) -> None:
    people, script = nexus("env"), nexus("env", "--json")

    told = printed(script)
    assert told["RAY_AUTH_MODE"] == "token"
    assert people.stdout.splitlines() == [f"export {name}={shlex.quote(value)}" for name, value in told.items()]
    secret = (state / "ray_token").read_text()
    assert len(secret) >= 32 and secret not in people.stdout + script.stdout
    assert (state / "ray_token").stat().st_mode & 0o777 == 0o600


def test_versions_are_told() -> None:
    assert set(printed(nexus("version", "--json"))) == {"nexus", "ray", "python"}
    assert "nexus" in nexus("version").stdout


@pytest.mark.parametrize("arguments", [("fly",), ("goal",), ("up",), ("goal", "submit"), ("status", "--loud")])
def test_wrong_usage_is_wrong_input(arguments: tuple[str, ...]) -> None:
    assert nexus(*arguments).exit_code == 2


# Not pydantic: typer itself loads it where it is installed.
HEAVY = ("ray", "fastapi", "starlette", "uvicorn", "httpx2", "cryptography", "sqlite3", "rich.console")


@pytest.mark.parametrize("arguments", [["--help"], ["goal", "--help"], ["up", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import json, sys\n"
        f"sys.argv = ['nexus', *{arguments!r}]\n"
        "from nexus_ray.cli.entry import run\n"
        "try:\n    run()\n"
        f"except SystemExit as end:\n    print(json.dumps([end.code, [m for m in {HEAVY!r} if m in sys.modules]]))\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]
    assert "Usage: nexus" in done.stdout


def json_options() -> list[str]:
    """Return every verb, and tell which of them print but not as JSON."""
    import typer

    found = []

    def walk(command: object, path: str) -> None:
        inner = getattr(command, "commands", None)
        if inner:
            for name, below in inner.items():
                walk(below, f"{path} {name}".strip())
        else:
            options = [option for parameter in command.params for option in parameter.opts]  # type: ignore[attr-defined]
            found.append(path + ("" if "--json" in options else " (no --json)"))

    walk(typer.main.get_command(app), "")
    return found


def test_every_verb_speaks_json() -> None:
    assert [verb for verb in json_options() if "(no --json)" in verb] == []
    assert len(json_options()) >= 12
