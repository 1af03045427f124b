"""Durable state over time: reactivation, upgrades, and what cannot be read."""

from typing import Any

import pytest
from pydantic import BaseModel

import nexus_ray as nexus
from nexus_ray.agents.task import AgentState
from nexus_ray.core.errors import UnavailableError
from nexus_ray.core.identity import AgentId
from nexus_ray.ledger.goal import EntryKind, Step
from nexus_ray.ledger.memory import MemoryLedger
from tests.support.records import a_goal
from tests.support.runners import bench

REACTIVATIONS = 1000


@pytest.fixture
def app() -> nexus.App:
    return nexus.App("states")


class Total(BaseModel):
    n: int = 0


class Totals(BaseModel):
    sum: int = 0
    count: int = 0


def counter(app: nexus.App) -> None:
    @app.agent
    class Counter(nexus.Agent):
        state: Total

        async def handle(self, payload: int) -> int:
            self.state.n += payload
            return self.state.n


def upgraded(app: nexus.App) -> None:
    @app.agent("counter")
    class Counter(nexus.Agent):
        state: Totals
        state_version = 2

        @classmethod
        def upgrade(cls, state: Any, version: int) -> Any:
            assert version == 1
            return {"sum": state["n"], "count": 1}

        async def handle(self, payload: int) -> list[int]:
            if payload:
                self.state.sum += payload
                self.state.count += 1
            return [self.state.sum, self.state.count]


async def ledger_with(body: bytes, schema: int = 1) -> MemoryLedger:
    """A ledger in which counter/k has a state that was written as it is."""
    ledger = MemoryLedger()
    await ledger.accept([a_goal("goal-0")], "host-0")
    state = AgentState(AgentId("counter", "k"), 1, body, schema)
    assert await ledger.append("host-0", [Step("goal-0", "s", 1.0, b"{}", state, EntryKind.STEP)]) == [True]
    return ledger


async def test_a_thousand_reactivations_keep_the_state(app: nexus.App) -> None:
    counter(app)

    async with bench(app) as host:
        for n in range(1, REACTIVATIONS + 1):
            assert await host.value("counter/k", 1) == n
            await host.runner.passivate(idle_only=False)
            assert host.runner.counts() == {}
        state = await host.state("counter/k")

    assert state is not None and (state.version, state.body) == (REACTIVATIONS, b'{"n":1000}')


async def test_a_state_of_an_older_version_is_upgraded_and_written_with_the_next_change(app: nexus.App) -> None:
    upgraded(app)
    ledger = await ledger_with(b'{"n":7}')

    async with bench(app, ledger=ledger) as host:
        assert await host.value("counter/k", 0) == [7, 1]
        unchanged = await host.state("counter/k")
        assert await host.value("counter/k", 3) == [10, 2]
        changed = await host.state("counter/k")

    assert unchanged is not None and (unchanged.version, unchanged.schema, unchanged.body) == (1, 1, b'{"n":7}')
    assert changed is not None and (changed.version, changed.schema) == (2, 2)
    assert changed.body == b'{"sum":10,"count":2}'


@pytest.mark.parametrize(
    ("body", "schema", "why"),
    [
        (b'{"m":7}', 1, "KeyError"),
        (b"not json", 1, "JSONDecodeError"),
        (b'{"sum":"many"}', 2, "sum"),
        (b'{"sum":1}', 3, "newer version"),
    ],
)
async def test_a_state_that_cannot_be_read_is_quarantined_and_nothing_else_stops(
    app: nexus.App, body: bytes, schema: int, why: str
) -> None:
    upgraded(app)
    ledger = await ledger_with(body, schema)

    async with bench(app, ledger=ledger) as host:
        for _ in range(2):
            refused = await host.ask("counter/k", 1)
            assert refused.failure is not None and refused.failure.code == "data_loss"
            assert why in refused.failure.message and "nexus agent show counter/k" in refused.failure.message
            assert refused.failure.attempts == 1
        assert await host.value("counter/other", 5) == [5, 1]
        state = await host.state("counter/k")

    assert state is not None and (state.version, state.schema, state.body) == (1, schema, body)


class Absent(MemoryLedger):
    """A ledger that cannot be read from until it is `back`."""

    back = False

    async def agent_state(self, agent: AgentId) -> AgentState | None:
        if not self.back:
            raise UnavailableError("the ledger is starting")
        return await super().agent_state(agent)


async def test_a_task_whose_agent_cannot_be_loaded_has_not_failed_and_may_be_asked_again(app: nexus.App) -> None:
    counter(app)
    ledger = Absent()
    async with bench(app, ledger=ledger) as host:
        with pytest.raises(UnavailableError):
            await host.ask("counter/k", 1)
        assert not any(entry.kind is EntryKind.STEP for entry in await ledger.journal("goal-1", 0, 10))

        ledger.back = True

        assert await host.value("counter/k", 1) == 1


def test_a_new_version_without_an_upgrade_is_refused(app: nexus.App) -> None:
    with pytest.raises(TypeError, match="define upgrade"):

        @app.agent
        class Counter(nexus.Agent):
            state: Total
            state_version = 2

            async def handle(self, payload: int) -> int:
                return payload


@pytest.mark.parametrize("version", [0, -1, True, "2", 2**31])
def test_a_state_version_is_a_whole_number_from_one_on(app: nexus.App, version: Any) -> None:
    with pytest.raises(TypeError, match="state_version"):
        app.agent(type("Counter", (nexus.Agent,), {"state_version": version, "handle": lambda self, payload: 1}))
