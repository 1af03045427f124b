"""Marks and tenants: what every ledger promises of them, and what becomes of a ledger from before there were any."""

import sqlite3
from pathlib import Path

from nexus_ray.ledger.archive import backup, restore
from nexus_ray.ledger.goal import EntryKind, GoalQuery, Step
from nexus_ray.ledger.limits import LedgerSettings
from nexus_ray.ledger.marks import FORGET_AFTER_S, Mark
from nexus_ray.ledger.ports import Acceptance, Ledger, answer_key
from nexus_ray.ledger.sqlite import SqliteLedger
from nexus_ray.ledger.tables import reading, writing
from tests.support.records import a_goal

# As schema 3 differs from 2, backwards.
_TO_SCHEMA_2 = """
DROP TABLE marks; DROP INDEX goals_tenant; DROP INDEX goals_idempotency; ALTER TABLE goals DROP COLUMN tenant;
CREATE UNIQUE INDEX goals_idempotency ON goals(principal, idempotency_key) WHERE idempotency_key != '';
UPDATE meta SET value = 2 WHERE name = 'schema_version';
"""


async def test_marks_are_read_in_the_order_in_which_they_changed(ledger: Ledger) -> None:
    first = Mark("identity", "main/ada", 1.0, 9e9, b'{"by":"eve"}')

    assert await ledger.put_mark(first)
    assert await ledger.put_mark(Mark("session", "s1", 2.0, 50.0))
    assert await ledger.put_mark(Mark("other", "x", 2.0, 50.0))
    seen = await ledger.marks(["identity", "session"], 0, 10)
    assert await ledger.put_mark(first._replace(at=3.0, until=3.0))

    assert [mark._replace(version=0) for mark in seen] == [first, Mark("session", "s1", 2.0, 50.0)]
    later = await ledger.marks(["identity", "session"], seen[-1].version, 10)
    assert [(mark.name, mark.until) for mark in later] == [("main/ada", 3.0)]
    assert await ledger.marks(["identity", "session"], later[-1].version, 10) == []
    assert [mark.name for mark in await ledger.marks(["identity", "session"], 0, 1)] == ["s1"]


async def test_a_mark_that_must_be_new_is_refused_until_the_one_that_stands_is_over(ledger: Ledger) -> None:
    assert await ledger.put_mark(Mark("once", "assertion", 1.0, 10.0), only_new=True)

    assert not await ledger.put_mark(Mark("once", "assertion", 9.0, 99.0), only_new=True)
    assert await ledger.put_mark(Mark("once", "another", 9.0, 99.0), only_new=True)
    assert await ledger.put_mark(Mark("once", "assertion", 10.0, 99.0), only_new=True)

    assert [(mark.name, mark.at) for mark in await ledger.marks(["once"], 0, 10)] == [
        ("another", 9.0), ("assertion", 10.0),
    ]  # fmt: skip


async def test_a_mark_that_is_long_over_is_forgotten_and_versions_go_on(ledger: Ledger) -> None:
    await ledger.put_mark(Mark("once", "old", 1.0, 2.0))
    before = (await ledger.marks(["once"], 0, 10))[-1].version

    await ledger.put_mark(Mark("once", "a", 3.0 + FORGET_AFTER_S, 9e9))
    await ledger.put_mark(Mark("once", "b", 3.0 + FORGET_AFTER_S, 9e9))

    after = await ledger.marks(["once"], before, 10)
    assert [mark.name for mark in after] == ["a", "b"]
    assert before < after[0].version < after[1].version


async def test_an_idempotency_key_belongs_to_its_tenant_and_pages_are_of_one(ledger: Ledger) -> None:
    first = a_goal("goal-1", idempotency_key="k", tenant="acme")

    accepted = await ledger.accept([first, a_goal("goal-2", idempotency_key="k")])
    again = await ledger.accept([a_goal("goal-3", idempotency_key="k", tenant="acme")])

    assert accepted == [Acceptance("goal-1", True), Acceptance("goal-2", True)]
    assert again == [Acceptance("goal-1", False)]
    assert [record.goal for record in await ledger.goals(GoalQuery(tenant="acme"))] == [first]
    assert [record.goal.id for record in await ledger.goals(GoalQuery(tenant="main"))] == ["goal-2"]
    assert [record.goal.id for record in await ledger.goals(GoalQuery())] == ["goal-2", "goal-1"]


async def test_questions_are_those_of_a_tenant_where_one_is_named(ledger: Ledger) -> None:
    await ledger.accept([a_goal("goal-1", tenant="acme"), a_goal("goal-2")])
    for goal_id in ("goal-1", "goal-2"):
        await ledger.append("host", [Step(goal_id, "question:q", 1.0, b"{}", kind=EntryKind.ASKED)])

    assert [entry.goal_id for entry in await ledger.questions(0, 10, "acme")] == ["goal-1"]
    assert [entry.goal_id for entry in await ledger.questions(0, 10)] == ["goal-1", "goal-2"]
    assert await ledger.entry("goal-1", answer_key("question:q")) is None


async def test_a_ledger_from_before_there_were_tenants_is_brought_up_and_is_the_main_ones(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = await SqliteLedger.open(path)
    await ledger.accept([a_goal(idempotency_key="k")])
    await ledger.close()
    with sqlite3.connect(path) as other:
        other.executescript(_TO_SCHEMA_2)
    other.close()

    ledger = await SqliteLedger.open(path)

    assert await ledger.accept([a_goal("goal-2", idempotency_key="k")]) == [Acceptance("goal-1", False)]
    (record,) = await ledger.goals(GoalQuery(tenant="main"))
    assert record.goal == a_goal(idempotency_key="k")
    assert await ledger.put_mark(Mark("once", "x", 1.0, 2.0))
    await ledger.close()


async def test_marks_and_tenants_are_in_a_backup_and_their_versions_go_on(tmp_path: Path) -> None:
    settings = LedgerSettings()
    ledger = await SqliteLedger.open(tmp_path / "one.sqlite")
    await ledger.accept([a_goal(tenant="acme")])
    await ledger.put_mark(Mark("identity", "acme/ada", 1.0, 9e9))
    await ledger.close()

    with reading(settings, tmp_path / "one.sqlite") as tables:
        backup(tables, tmp_path / "backup")
    with writing(settings, tmp_path / "two.sqlite") as tables:
        restore(tmp_path / "backup", tables)

    ledger = await SqliteLedger.open(tmp_path / "two.sqlite")
    await ledger.put_mark(Mark("identity", "acme/bob", 2.0, 9e9))
    names = [mark.name for mark in await ledger.marks(["identity"], 0, 10)]
    record = await ledger.goal("goal-1")
    await ledger.close()
    assert names == ["acme/ada", "acme/bob"]
    assert record is not None and record.goal.tenant == "acme"
