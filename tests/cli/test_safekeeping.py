"""`nexus ledger verify|backup|restore|export` from the command line: a drill on another folder."""

import asyncio
import json
import sqlite3
from pathlib import Path

import pytest

from nexus_ray.ledger.sqlite import SqliteLedger
from tests.cli.support import nexus, printed
from tests.support.records import a_finish, a_goal, a_step


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder with a ledger of two goals."""
    folder = tmp_path / "state"
    (folder / "ledger").mkdir(parents=True)
    monkeypatch.setenv("NEXUS_STATE_DIR", str(folder))

    async def fill() -> None:
        ledger = await SqliteLedger.open(folder / "ledger" / "ledger.sqlite")
        await ledger.accept([a_goal("goal-1"), a_goal("goal-2")], "host-a")
        await ledger.append("host-a", [a_step("s", "goal-1", version=1), a_finish("goal-1")])
        await ledger.close()

    asyncio.run(fill())
    return folder


def test_a_drill_backup_verify_restore_into_another_folder(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "monday.backup"

    made = nexus("ledger", "backup", str(file))
    again = nexus("ledger", "backup", str(file))
    looked = nexus("ledger", "verify", "--backup", str(file), "--json")
    monkeypatch.setenv("NEXUS_STATE_DIR", str(tmp_path / "other"))
    restored = nexus("ledger", "restore", str(file), "--json")
    twice = nexus("ledger", "restore", str(file))
    verified = nexus("ledger", "verify", "--json")

    assert made.exit_code == 0 and "2 goals, 6 entries, 1 agents' states" in made.stderr
    assert (again.exit_code, twice.exit_code) == (2, 2) and "already" in again.stderr and "already" in twice.stderr
    assert printed(looked) == {"sound": True, "goals": 2, "entries": 6, "states": 1, "faults": []}
    assert printed(restored)["goals"] == 2 and printed(verified)["sound"] is True
    assert (tmp_path / "other" / "ledger" / "ledger.sqlite").stat().st_mode & 0o777 == 0o600


def test_a_damaged_ledger_fails_the_check_and_says_what_to_do(state: Path, tmp_path: Path) -> None:
    with sqlite3.connect(state / "ledger" / "ledger.sqlite") as other:
        other.execute("UPDATE journal SET body = x'32' WHERE kind = 'finished'")
    other.close()

    found = nexus("ledger", "verify")
    refused = nexus("ledger", "backup", str(tmp_path / "file"))

    assert found.exit_code == 1 and "entry 6 of goal goal-1" in found.stderr and "restore" in found.stderr
    assert printed(nexus("ledger", "verify", "--json"))["sound"] is False
    assert refused.exit_code == 1 and not (tmp_path / "file").exists()


def test_an_export_is_lines_of_json_of_all_or_of_one_goal(state: Path) -> None:
    everything = [json.loads(line) for line in nexus("ledger", "export").stdout.splitlines()]
    one = [json.loads(line) for line in nexus("ledger", "export", "--goal", "goal-2").stdout.splitlines()]

    assert [*everything[0], *everything[-1]] == ["nexus_ledger", "adapter", "seq", "epoch", "end"]
    assert [line["goals"]["id"] for line in everything if "goals" in line] == ["goal-1", "goal-2"]
    assert len(one) == 3 and one[0]["goals"]["id"] == "goal-2"
    assert [line["journal"]["kind"] for line in one[1:]] == ["accepted", "claimed"]


@pytest.mark.parametrize("verb", [["verify"], ["export"], ["backup", "file"], ["restore", "nosuch"]])
def test_where_there_is_nothing_it_is_said(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEXUS_STATE_DIR", str(tmp_path / "empty"))

    result = nexus("ledger", *verb)

    assert result.exit_code == 2 and "there is no" in result.stderr
    assert not (tmp_path / "file").exists()
