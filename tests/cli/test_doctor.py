import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nexus_ray.cli import doctor
from nexus_ray.security.keys import load_or_create_issuer_key
from tests.cli.conftest import Fleet, as_json, as_problem
from tests.cli.support import free_port, nexus, printed

GIB = 1 << 30


def levels() -> dict[str, str]:
    return {check.name: check.level for check in doctor.examine()}


@pytest.mark.parametrize(("version", "level"), [((3, 10, 9), "fail"), ((3, 11, 0), "ok"), ((3, 13, 1), "ok"),
                                                ((3, 14, 0), "fail")])  # fmt: skip
def test_python_is_one_that_is_tested_with(version: tuple[int, ...], level: str) -> None:
    check = doctor.check_python(version)

    assert check.level == level
    assert bool(check.todo) == (level == "fail")


@pytest.mark.parametrize(("version", "level"), [(doctor.RAY_VERSION, "ok"), ("2.59.0", "fail"), (None, "fail")])
def test_ray_is_the_one_that_is_tested_with(version: str | None, level: str) -> None:
    check = doctor.check_ray(version)

    assert check.level == level
    assert ("pip install" in check.todo) == (level == "fail")


@pytest.mark.parametrize(("free", "level"), [(GIB // 2, "fail"), (GIB, "warn"), (2 * GIB, "ok")])
def test_memory_is_enough_little_or_too_little(free: int, level: str) -> None:
    assert doctor.check_memory(free).level == level


def test_settings_load_or_the_wrong_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_settings().level == "ok"

    monkeypatch.setenv("NEXUS_RUNTIME__HTTP_PROT", "1")

    assert doctor.check_settings().level == "fail"
    assert "NEXUS_RUNTIME__HTTP_PORT" in doctor.check_settings().found


def test_the_policy_loads_and_is_decided_by(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_policy(state).level == "ok"
    state.mkdir(mode=0o700)
    (state / "roles.toml").write_text('[roles]\nlead = ["goal:explode"]\n')
    refused = doctor.check_policy(state)
    assert (refused.level, "goal:explode" in refused.found) == ("fail", True)
    (state / "roles.toml").write_text('[roles]\nlead = ["goal:read"]\n')
    assert doctor.check_policy(state).level == "ok"

    settings = {"engine": "opa", "opa_address": f"unix://{state}/opa.sock"}
    monkeypatch.setenv("NEXUS_SECURITY__POLICY", json.dumps(settings))

    gone = doctor.check_policy(state)
    assert (gone.level, gone.found) == ("fail", f"unix://{state}/opa.sock does not decide: engine_failed")


def test_a_port_is_free_or_taken_or_the_fleets_own(fleet: Fleet) -> None:
    taken = int(fleet.url.rpartition(":")[2])

    assert doctor.check_port("http port", free_port(), "--port", False).level == "ok"
    refused = doctor.check_port("http port", taken, "--port", False)
    assert (refused.level, "--port" in refused.todo) == ("fail", True)
    assert doctor.check_port("http port", taken, "--port", True).level == "ok"


@pytest.mark.parametrize(("now", "level"), [(0.0, "fail"), (1_800_000_000.0, "ok"), (5_000_000_000.0, "fail")])
def test_the_clock_shows_a_year_that_can_be(now: float, level: str) -> None:
    assert doctor.check_clock(now, 1.0, 2.0).level == level


def test_a_monotonic_clock_does_not_go_back() -> None:
    assert doctor.check_clock(1_800_000_000.0, 2.0, 1.0).level == "fail"


def test_secrets_are_nobody_elses_to_read(state: Path) -> None:
    assert [check.level for check in doctor.check_modes(state)] == ["ok"]
    state.mkdir(mode=0o700)
    for name in ("token", "ray_token", "issuer.key", "fleet.json"):
        (state / name).write_text("x")
        (state / name).chmod(0o600)
    assert {check.level for check in doctor.check_modes(state)} == {"ok"}

    (state / "token").chmod(0o640)
    state.chmod(0o755)

    found = {check.name: check for check in doctor.check_modes(state)}
    assert (found["token"].level, found["state folder"].level, found["issuer.key"].level) == ("fail", "fail", "ok")
    assert found["token"].todo == f"chmod 600 {state / 'token'}"


def test_keys_can_be_read_or_are_not_there_yet(state: Path) -> None:
    assert doctor.check_keys(state).level == "ok"
    state.mkdir(mode=0o700)
    load_or_create_issuer_key(state)
    assert doctor.check_keys(state).level == "ok"

    (state / "jwks.json").write_text("{}")

    assert doctor.check_keys(state).level == "fail"


def test_a_fleet_that_is_up_answers_with_all_of_its_parts(
    fleet: Fleet, is_up: Callable[..., None], state: Path
) -> None:
    assert doctor.check_fleet(state).level == "ok"
    is_up()
    parts = {"ready": True, "keys": True, "ledger": True, "hosts": True}
    fleet.on("GET /ready", as_json(parts), as_json({**parts, "ready": False, "hosts": False}, 503), as_problem(
        "unauthenticated", "authentication failed", 401))  # fmt: skip

    assert [doctor.check_fleet(state).level for _ in range(3)] == ["ok", "fail", "fail"]


def test_space_is_looked_at_where_the_state_folder_will_be(tmp_path: Path) -> None:
    assert str(tmp_path) in doctor.check_disk(tmp_path / "not" / "there" / "yet").found


def test_a_fault_ends_with_1_and_is_told_to_people_and_scripts(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUS_RUNTIME__HTTP_PORT", fleet.url.rpartition(":")[2])

    people, script = nexus("doctor"), nexus("doctor", "--json")

    assert (people.exit_code, script.exit_code) == (1, 1)
    assert "choose with --port" in people.stdout
    (check,) = [check for check in printed(script)["checks"] if check["name"] == "http port"]
    assert (check["level"], bool(check["todo"])) == ("fail", True)


def test_without_a_fault_it_ends_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP", "DASHBOARD"):
        monkeypatch.setenv(f"NEXUS_RUNTIME__{name}_PORT", str(free_port()))
    # What this machine has to spare is not what this is about.
    monkeypatch.setattr(doctor, "_MEMORY_BYTES_MIN", 0)
    monkeypatch.setattr(doctor, "_DISK_BYTES_MIN", 0)

    result = nexus("doctor", "--json")

    assert {check["level"] for check in printed(result)["checks"]} <= {"ok", "warn"}
    assert result.exit_code == 0


def test_what_cannot_be_found_out_is_said_and_breaks_nothing(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state.mkdir(mode=0o700)
    (state / "fleet.json").write_text("{")
    monkeypatch.setattr(os, "getuid", lambda: 2**31)

    found = levels()

    assert found["fleet"] == found["ports"] == "warn"
    assert found["state folder"] == "fail"
