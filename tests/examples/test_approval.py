"""The order of the example: asked for, paid once, and undone where it cannot be shipped."""

import asyncio
from pathlib import Path
from typing import Any

import approval
import orjson
import pytest

from nexus_ray.core.identity import AgentId
from nexus_ray.goals.questions import answer_question
from nexus_ray.ledger.goal import GoalStatus
from tests.support.in_process import SESSION, in_process_fleet


@pytest.fixture(autouse=True)
def bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(approval, "BANK", tmp_path / "bank")
    return tmp_path / "bank"


async def place(count: int, *, approved: bool | None = None) -> tuple[Any, Any]:
    """Place an order, answer its question if it has one, and return its outcome and the shelf's state."""
    async with in_process_fleet(approval.app) as fleet:
        goal = fleet.goal("order", {"count": count, "customer": "ada"})
        await fleet.ledger.accept([goal])
        await fleet.poke([goal])
        if approved is not None:
            async with asyncio.timeout(10):
                while not await fleet.ledger.questions(0, 1):
                    await asyncio.sleep(0.001)
            record = await fleet.ledger.goal(goal.id)
            assert record is not None
            await answer_question(
                fleet.ledger, record, SESSION, "main", approved=approved, comment="hm", now=goal.accepted_at
            )
            await fleet.poke([goal])
        outcome = await fleet.outcome(goal)
        return outcome, await fleet.ledger.agent_state(AgentId("shelf", "pump"))


async def test_a_small_order_asks_nobody_and_is_paid_once(bank: Path) -> None:
    outcome, _ = await place(4)

    assert orjson.loads(outcome.result) == ["4 set aside", "receipt for 1000", "4 pump on their way"]
    assert bank.read_text().count("\n") == 1


async def test_a_large_order_waits_for_a_person(bank: Path) -> None:
    approved, _ = await place(40, approved=True)
    refused, _ = await place(40, approved=False)

    assert orjson.loads(approved.result)[-1] == "40 pump on their way"
    assert orjson.loads(refused.result) == ["refused by tester: hm"]
    assert bank.read_text().count("\n") == 1


async def test_an_order_that_cannot_be_shipped_is_paid_back_and_freed(bank: Path) -> None:
    outcome, shelf = await place(400, approved=True)

    assert outcome.status is GoalStatus.FAILED and "compensated: refund/ada, shelf/pump" in outcome.failure.message
    assert [line.split(" ", 1)[1] for line in bank.read_text().splitlines()] == ["ada pays 100000", "ada gets 100000"]
    assert orjson.loads(shelf.body) == {"reserved": {"ada": 0}}
