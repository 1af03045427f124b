"""Random calls on both ledgers at once: every answer and everything that can be read must be the same."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nexus_ray.agents.task import AgentState
from nexus_ray.core.errors import NexusError
from nexus_ray.core.identity import AgentId
from nexus_ray.ledger.goal import Claim, EntryKind, GoalQuery, GoalStatus, Note, RequestCancel, Step
from nexus_ray.ledger.limits import LedgerSettings
from nexus_ray.ledger.memory import MemoryLedger
from nexus_ray.ledger.ports import Ledger
from nexus_ray.ledger.sqlite import SqliteLedger
from tests.support.records import a_finish, a_goal

# Small caches, so that what the writer forgot is read again; small limits, so that they are met.
SETTINGS = LedgerSettings(
    goals_cached_max=2, steps_cached_max=3, agents_cached_max=1, body_bytes_max=40, call_writes_max=6, read_rows_max=50
)
IDS = st.sampled_from(["g1", "g2", "g3", "gé", "g'4"])
HOSTS = st.sampled_from(["", "a", "b", "c"])
AGENTS = st.sampled_from([AgentId("t", "1"), AgentId("t", "ü"), AgentId("u", "1")])
BODIES = st.sampled_from([b"1", b'{"a":[1,2]}', b"null", b"x" * 41])
TIMES = st.sampled_from([0.0, 1.5, 1e9])
GOALS = st.builds(
    a_goal,
    goal_id=IDS, type=st.sampled_from(["x", "y"]), payload=BODIES, principal=st.sampled_from(["ann", "bob"]),
    parent=st.sampled_from(["", "g1"]), idempotency_key=st.sampled_from(["", "", "k", "ü'"]), accepted_at=TIMES,
    headers=st.sampled_from([{}, {"a": "ß", "b": '"'}]),
)  # fmt: skip
STATES = st.none() | st.builds(AgentState, AGENTS, st.integers(1, 3), BODIES)
WRITES = st.one_of(
    st.builds(Claim, IDS, TIMES),
    st.builds(Step, IDS, st.sampled_from(["s1", "s2", "s3", ""]), TIMES, BODIES, STATES),
    st.builds(Note, IDS, TIMES, BODIES, st.sampled_from([EntryKind.NOTE, EntryKind.PLANNED])),
    st.builds(a_finish, IDS, st.sampled_from([status for status in GoalStatus if status.is_terminal]), BODIES),
    st.builds(RequestCancel, IDS, TIMES, st.sampled_from(["ann", "bob"])),
)
QUERIES = st.builds(
    GoalQuery,
    status=st.sampled_from(["", *GoalStatus, "none"]), type=st.sampled_from(["", "x"]), limit=st.integers(-1, 5),
    principal=st.sampled_from(["", "bob"]), parent=st.sampled_from(["", "g1", "g2"]), before=st.just("") | IDS,
)  # fmt: skip


class TwinsAgree(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.sqlite"
        self.runner = asyncio.Runner()
        self.twin = MemoryLedger(SETTINGS)
        self.real = self.runner.run(SqliteLedger.open(self.path, SETTINGS))

    def teardown(self) -> None:
        self.runner.run(self.real.close())
        self.runner.close()
        self.folder.cleanup()

    def both(self, call: Callable[[Ledger], Awaitable[Any]]) -> None:
        answers = []
        for ledger in (self.twin, self.real):
            try:
                answers.append(self.runner.run(call(ledger)))  # type: ignore[arg-type]
            except NexusError as error:
                answers.append((type(error), error.message, error.details))
        assert answers[0] == answers[1]

    @rule(goals=st.lists(GOALS, max_size=4), holder=HOSTS)
    def accept(self, goals: list[Any], holder: str) -> None:
        self.both(lambda ledger: ledger.accept(goals, holder))

    @rule(writer=HOSTS, writes=st.lists(WRITES, max_size=7))
    def append(self, writer: str, writes: list[Any]) -> None:
        self.both(lambda ledger: ledger.append(writer, writes))

    @rule(writer=HOSTS, writes=st.lists(st.lists(WRITES, max_size=3), min_size=2, max_size=6))
    def append_together(self, writer: str, writes: list[list[Any]]) -> None:
        async def together(ledger: Ledger) -> list[Any]:
            calls = (ledger.append(writer, some) for some in writes)
            return [str(answer) for answer in await asyncio.gather(*calls, return_exceptions=True)]

        self.both(together)

    @rule(host=st.sampled_from(["a", "b", *"defghijk"]))  # Mostly strangers: a fenced host is silent for ever.
    def fence(self, host: str) -> None:
        self.both(lambda ledger: ledger.fence(host))
        self.both(lambda ledger: ledger.next_epoch())

    @rule()
    def reopen(self) -> None:
        self.runner.run(self.real.close())
        self.real = self.runner.run(SqliteLedger.open(self.path, SETTINGS))

    @rule(query=QUERIES, goal_id=IDS, after=st.integers(-1, 30), limit=st.integers(-1, 10))
    def read(self, query: GoalQuery, goal_id: str, after: int, limit: int) -> None:
        self.both(lambda ledger: ledger.goals(query))
        self.both(lambda ledger: ledger.unfinished(goal_id, limit))
        self.both(lambda ledger: ledger.journal(goal_id, after, limit))
        self.both(lambda ledger: ledger.changes(after, 0, limit))

    @invariant()
    def they_tell_the_same(self) -> None:
        self.both(lambda ledger: ledger.goals(GoalQuery()))
        self.both(lambda ledger: ledger.unfinished("", 50))
        self.both(lambda ledger: ledger.changes(0, 0, 50))
        for goal_id in ("g1", "g2", "g3", "gé", "g'4"):
            self.both(lambda ledger, goal_id=goal_id: ledger.journal(goal_id, 0, 50))  # type: ignore[misc]
        for agent in (AgentId("t", "1"), AgentId("t", "ü"), AgentId("u", "1")):
            self.both(lambda ledger, agent=agent: ledger.agent_state(agent))  # type: ignore[misc]


TestTwinsAgree = TwinsAgree.TestCase
# No shrinking: it would take minutes, and the steps that are printed are few.
TestTwinsAgree.settings = settings(max_examples=20, stateful_step_count=20, derandomize=True, phases=[Phase.generate])
