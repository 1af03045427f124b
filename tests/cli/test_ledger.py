"""`nexus ledger status` and `migrate` on the embedded ledger; `tests/e2e/test_postgres.py` has them on PostgreSQL."""

import asyncio
from pathlib import Path

import pytest

from nexus_ray.cli.exits import ExitCode
from nexus_ray.ledger.sqlite import SqliteLedger
from tests.cli.support import nexus, printed
from tests.support.records import a_finish, a_goal, a_step


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEXUS_STATE_DIR", str(tmp_path))
    (tmp_path / "ledger").mkdir()
    return tmp_path / "ledger"


def test_the_embedded_ledger_is_looked_at_while_it_is_written(folder: Path) -> None:
    async def look() -> None:
        ledger = await SqliteLedger.open(folder / "ledger.sqlite")
        await ledger.accept([a_goal(), a_goal("goal-2")], "host-a")
        await ledger.append("host-a", [a_step(version=1), a_finish()])

        found = printed(await asyncio.to_thread(nexus, "ledger", "status", "--json"))

        assert (found["adapter"], found["standing"], found["lease_holder"]) == ("sqlite", "current", "")
        assert found["goals"] == {"running": 1, "succeeded": 1}
        assert (found["entries"], found["agents"], found["fenced"]) == (6, 1, 0)
        assert await ledger.next_epoch() == found["epoch"] + 1
        await ledger.close()

    asyncio.run(look())


def test_where_there_is_no_ledger_it_is_said(folder: Path) -> None:
    done = nexus("ledger", "status")

    assert done.exit_code == ExitCode.WRONG_INPUT and "there is no ledger" in done.stderr


def test_a_file_that_is_no_ledger_is_not_taken_for_one(folder: Path) -> None:
    (folder / "ledger.sqlite").write_bytes(b"x" * 8192)

    assert nexus("ledger", "status").exit_code == ExitCode.FAILED


def test_the_embedded_ledger_has_nothing_to_migrate(folder: Path) -> None:
    assert printed(nexus("ledger", "migrate", "--json")) == {"adapter": "sqlite", "before": 0, "after": 0}


def test_a_postgresql_that_is_not_there_is_said_with_the_exit_code_for_trying_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUS_LEDGER__URL", "postgresql://nexus@127.0.0.1:1/ledger")

    for verb in ("status", "migrate"):
        done = nexus("ledger", verb)
        assert done.exit_code == ExitCode.UNAVAILABLE, done.output
        assert "127.0.0.1" in done.stderr and "Traceback" not in done.output
