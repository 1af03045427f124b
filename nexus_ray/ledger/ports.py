"""The ledger port: the durable record of goals, steps and agent state. Its contract suite is written from this text.

Adapters stand beside it: `memory` (the twin) and `sqlite` (the embedded default).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from nexus_ray.agents.task import AgentState
from nexus_ray.core.identity import AgentId
from nexus_ray.ledger.goal import Entry, Goal, GoalQuery, GoalRecord, Write
from nexus_ray.ledger.marks import Mark


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Which goal stands for a request: the new one, or the one that its idempotency key named before."""

    goal_id: str
    is_new: bool


def answer_key(step_key: str) -> str:
    """Return the key under which the answer to a question is recorded, or the end of an effect."""
    return f"{step_key}="


class Ledger(Protocol):
    """What every ledger promises.

    Durable: when `accept` or `append` returns, what it wrote survives SIGKILL and a power cut; when it raises, it
    wrote nothing of that call, or says `UnavailableError` and the same call may be repeated: every write is
    idempotent. A call is one transaction. Calls of one writer are carried out in the order they were made.

    Errors, all methods: `UnavailableError` when it cannot write or read now (disk full, starting, gone),
    `DataLossError` when a record cannot be read back.
    """

    async def accept(self, goals: Sequence[Goal], holder: str = "") -> list[Acceptance]:
        """Accept goals, each with its journal entry `accepted`; answers in the order of `goals`.

        An id that is already there is answered as it stands (`is_new` False). A goal whose principal used the same
        `idempotency_key` for the same type and payload is answered with the earlier goal's id.
        With `holder`, the goals are claimed in the same transaction (and a `claimed` entry is journalled).

        Raises:
            AlreadyExistsError: An idempotency key was used for another type or payload; nothing of the call is kept.
            FencedError: `holder` was fenced.
        """
        ...

    async def append(self, writer: str, writes: Sequence[Write]) -> list[bool]:
        """Carry out writes in order, in one transaction; for each, whether it took effect.

        `Claim`: false if another unfenced host holds the goal, or the goal is unknown or terminal; true again for
        the one who holds it. `Step`: false if the key stands already, or the goal is unknown or terminal, or its
        `state.version` is not the stored version plus one (0 where none is stored); then the state is not kept
        either. `Note`: false if the goal is unknown or terminal. `Release` and `Finish`: false unless `writer` holds
        the goal and it is not terminal. `RequestCancel`: false if the goal is unknown or terminal; the first one
        stands, later ones are true and change nothing; any writer may, `""` included.

        Args:
            writer: The host that writes, or `""` for the front door, which holds nothing.
            writes: What to write, in order.

        Raises:
            FencedError: `writer` was fenced; nothing of the call is kept.
        """
        ...

    async def goal(self, goal_id: str) -> GoalRecord | None:
        """Return a goal and where it stands, or None."""
        ...

    async def goals(self, query: GoalQuery) -> list[GoalRecord]:
        """Return a page of goals, newest first (ids sort by time); `query.limit` at the most."""
        ...

    async def unfinished(self, after: str, limit: int) -> list[GoalRecord]:
        """Return goals that are not terminal in the order of their ids, those after `after`, `limit` at the most."""
        ...

    async def journal(self, goal_id: str, after_seq: int, limit: int) -> list[Entry]:
        """Return a goal's entries with `seq` above `after_seq`, in order, `limit` at the most."""
        ...

    async def entry(self, goal_id: str, step_key: str) -> Entry | None:
        """Return what was recorded under a key, or None."""
        ...

    async def questions(self, after_seq: int, limit: int, tenant: str = "") -> list[Entry]:
        """Return entries of kind `asked` above `after_seq` that nobody has answered, of goals that are not terminal.

        Of all tenants, or of one.
        In order, `limit` at the most. An answer to the question `KEY` is recorded under `answer_key(KEY)`.
        """
        ...

    async def changes(self, after_seq: int, wait_s: float, limit: int) -> tuple[int, list[str]]:
        """Return the newest `seq` seen, and the distinct ids of goals with entries above `after_seq`.

        Looks at `limit` entries at the most; the returned seq says how far. Waits up to `wait_s` seconds when there
        is nothing. `after_seq` -1 answers at once with the newest seq and no ids: where to start from.
        """
        ...

    async def agent_state(self, agent: AgentId) -> AgentState | None:
        """Return the last committed state of an agent, or None."""
        ...

    async def put_mark(self, mark: Mark, only_new: bool = False) -> bool:
        """Write a mark, in the place of what stood under its kind and name; give it the next version.

        With `only_new`, false and nothing is written where one stands that is not over at `mark.at`.
        """
        ...

    async def marks(self, kinds: Sequence[str], after_version: int, limit: int) -> list[Mark]:
        """Return marks of these kinds with a version above `after_version`, in its order, `limit` at the most.

        Also those that are over: whoever follows learns from them what holds no more.
        """
        ...

    async def fence(self, host: str) -> None:
        """Refuse every later write of `host`, for ever, and let others claim what it held."""
        ...

    async def next_epoch(self) -> int:
        """Return the number after the last one drawn, over restarts too; the first is 1.

        Whoever draws two that do not follow each other knows that somebody else drew between them.
        """
        ...

    async def close(self) -> None:
        """Finish what was begun and let go of files; idempotent."""
        ...
