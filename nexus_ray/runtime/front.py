"""The pipeline that every request from outside goes through: identify, authorize, admit, accept durably, answer.

Law: built once, here; the HTTP routes and the in-cluster client both come this way, and there is no other.
Everything refuses unless it is allowed. It knows neither HTTP nor Ray.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nexus_ray.audit.auditor import Auditor
from nexus_ray.audit.record import Retention
from nexus_ray.core.clock import Clock
from nexus_ray.core.context import ContextSeal
from nexus_ray.core.errors import (
    FailedPreconditionError,
    NexusError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from nexus_ray.core.identity import MAIN_TENANT, AgentId, Session
from nexus_ray.goals.feed import ChangeFeed, News
from nexus_ray.goals.limits import CoordinatorSettings
from nexus_ray.goals.questions import Approval, Question, answer_question, question_of
from nexus_ray.goals.spec import Specs
from nexus_ray.ledger.goal import Entry, EntryKind, Goal, GoalQuery, GoalRecord, RequestCancel
from nexus_ray.ledger.ports import Acceptance, Ledger
from nexus_ray.observe import metrics
from nexus_ray.observe.operation import flush, observe
from nexus_ray.observe.traces import read_trace, trace_id_of
from nexus_ray.runtime.access import Access
from nexus_ray.runtime.agent_record import agent_record
from nexus_ray.runtime.audit_desk import AuditDesk
from nexus_ray.runtime.audited import AuditedAuthorizer, accept_audited, strangers_noted
from nexus_ray.runtime.fleet_port import Fleet
from nexus_ray.runtime.intake import Intake, SubmitRequest, Verdict, build_goal
from nexus_ray.runtime.ray_desk import RayDesk
from nexus_ray.security.authn import Authenticator
from nexus_ray.security.authz import Authorizer
from nexus_ray.security.dpop import Shown
from nexus_ray.security.exchange import Exchange
from nexus_ray.security.revocation import RevocationSettings
from nexus_ray.security.token_exchange import TokenExchange

_FOLLOW_PAGE_ENTRIES = 1000
_SPANS_LATE_S = 0.5
_BUILT_AT_ONCE = 50  # Some 3 ms.
_READ_AT_ONCE = 100
_GATHER_NEWS_S = 0.02  # A goal has three pieces of news within moments, and its end is the last.
_LOOK_AGAIN_S = 5.0  # News can be lost with a ledger process; a look now and then makes up for it.


class FrontDoor:
    """Answers requests from outside; used from one event loop only."""

    def __init__(
        self,
        *,
        specs: Specs,
        ledger: Ledger,
        fleet: Fleet,
        authenticator: Authenticator,
        authorizer: Authorizer,
        clock: Clock,
        settings: CoordinatorSettings,
        trace_folder: Path | None,
        auditor: Auditor,
        revocation: RevocationSettings | None = None,
        seal: ContextSeal | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        self._specs = specs
        self._ledger = ledger
        self._fleet = fleet
        self._authenticator = authenticator
        self._authorizer = AuditedAuthorizer(authorizer, auditor)
        self._auditor = auditor
        self._clock = clock
        self._settings = settings
        self._seal = seal
        self._trace_folder = trace_folder
        self._feed = ChangeFeed(ledger)
        self._intake = Intake(ledger, fleet)
        self.access = Access(ledger, self._authorizer, clock, revocation)
        self.exchange = exchange
        self.token_exchange: TokenExchange | None = None  # It identifies by this door.
        self.audit = AuditDesk(auditor, self._authorizer, self.goal, clock)
        self.ray_desk = RayDesk(auditor, self._authorizer)

    async def identify(self, credential: str | None, shown: Shown | None = None) -> Session:
        """Return who is calling; `shown` tells how the credential came.

        Raises:
            UnauthenticatedError: Nobody that we know, or somebody who may come in no more.
            UnavailableError: Who may still come in is not known.
        """
        with strangers_noted(self._auditor):
            session = await self._authenticator.identify(credential, shown or Shown())
            await self.access.check(session)
            return session

    async def submit(self, session: Session, request: SubmitRequest, traceparent: str = "") -> tuple[Acceptance, Goal]:
        """Accept a goal: when this returns, it is on disk. The goal returned is what was asked for.

        Raises:
            PermissionDeniedError, NotFoundError, InvalidArgumentError: Refused; nothing was accepted.
            AlreadyExistsError: The idempotency key was used for something else.
            UnavailableError: The ledger cannot write now.
        """
        self._authorizer.authorize(session, "goal:submit", request.type)
        with observe(
            "goal.submit", traceparent=traceparent, log=True, attributes={"goal.type": request.type}
        ) as operation:
            now = self._clock.now()
            goal = build_goal(request, session, self._specs, self._settings, now, operation.traceparent, self._seal)
            operation.set({"goal.id": goal.id})
            (verdict,) = await self._accept(session, [goal])
            if isinstance(verdict, NexusError):
                raise verdict
            return verdict, goal

    async def submit_batch(
        self, session: Session, requests: Sequence[SubmitRequest], traceparent: str = ""
    ) -> list[Verdict]:
        """Accept goals together, each refused for itself; returns in order what became of each.

        Raises:
            PermissionDeniedError: None of them is allowed.
            UnavailableError: The ledger cannot write now, or nothing decides; nothing was accepted.
        """
        with observe("goal.submit_batch", traceparent=traceparent, log=True) as operation:
            built: list[Goal | NexusError] = []
            for request in requests:
                built.append(self._built(session, request, traceparent))
                if len(built) % _BUILT_AT_ONCE == 0:
                    await asyncio.sleep(0)  # Others want the event loop too.
            if {*map(type, built)} in ({PermissionDeniedError}, {UnavailableError}) and not isinstance(built[0], Goal):
                raise built[0]
            goals = [goal for goal in built if isinstance(goal, Goal)]
            judged = await self._accept(session, goals)
            accepted = sum(isinstance(verdict, Acceptance) for verdict in judged)
            if judged and not accepted and isinstance(judged[0], UnavailableError):
                raise judged[0]
            operation.set({"nexus.goals": accepted, "nexus.refused": len(requests) - accepted})
            following = iter(judged)
            return [next(following) if isinstance(one, Goal) else one for one in built]

    async def _accept(self, session: Session, goals: Sequence[Goal]) -> list[Verdict]:
        return await accept_audited(self._auditor, session, goals, self._intake.accept, lambda verdict: verdict)

    def _built(self, session: Session, request: SubmitRequest, traceparent: str) -> Goal | NexusError:
        try:
            self._authorizer.authorize(session, "goal:submit", request.type)
            with observe("goal.submit", traceparent=traceparent, attributes={"goal.type": request.type}) as operation:
                now = self._clock.now()
                trace = operation.traceparent
                return build_goal(request, session, self._specs, self._settings, now, trace, self._seal)
        except NexusError as error:
            return error

    async def outcomes(self, session: Session, goal_ids: Sequence[str], wait_s: float) -> AsyncIterator[GoalRecord]:
        """Yield goals as they end, each once, until all have or `wait_s` seconds have passed."""
        for goal_id in goal_ids:
            self._authorizer.authorize(session, "goal:read", goal_id)
        ends_at = self._clock.now() + wait_s
        pending = set(goal_ids)
        async with self._listen(*pending) as news:
            looked_for = pending.copy()
            while True:
                await self.access.check(session)
                for record in await self._records(looked_for):
                    if record.outcome is not None and session.sees(record.goal.tenant):
                        pending.discard(record.goal.id)
                        yield record
                remaining_s = ends_at - self._clock.now()
                if not pending or remaining_s <= 0:
                    return
                await news.come(min(remaining_s, _LOOK_AGAIN_S))
                await asyncio.sleep(_GATHER_NEWS_S if news.goals else 0)
                looked_for = pending & news.goals if news.goals else pending.copy()
                news.clear()

    async def cancel(self, session: Session, goal_id: str) -> GoalRecord:
        """Ask for a goal to be cancelled.

        Raises:
            NotFoundError: There is no such goal.
            FailedPreconditionError: It has ended already.
        """
        self._authorizer.authorize(session, "goal:cancel", goal_id)
        with observe("goal.cancel", attributes={"goal.id": goal_id}):
            record = await self._record(session, goal_id)
            async with self._auditor.change(session, "goal:cancel", record.goal.type, goal=goal_id):
                wanted = RequestCancel(goal_id, self._clock.now(), session.principal)
                (is_asked,) = await self._ledger.append("", [wanted])
                record = await self._record(session, goal_id)
                if not is_asked:
                    told = f"goal {goal_id} has ended: {record.status}"
                    raise FailedPreconditionError(told, status=record.status.value)
            await self._fleet.poke_cancel(record, session.principal)
            return record

    async def questions(self, session: Session, after_seq: int, limit: int) -> list[tuple[int, Question]]:
        """Return what goals ask of people and nobody has answered, oldest first, each with its `seq`."""
        self._authorizer.authorize(session, "goal:read")
        entries = await self._ledger.questions(after_seq, limit, _of(session))
        return [(entry.seq, question_of(entry)) for entry in entries]

    async def answer(
        self, session: Session, goal_id: str, key: str, approved: bool, comment: str
    ) -> tuple[Question, Approval]:
        """Answer a question of a goal; see `answer_question` for what is refused."""
        self._authorizer.authorize(session, "goal:answer", goal_id)
        with observe("goal.answer", attributes={"goal.id": goal_id}):
            record = await self._record(session, goal_id)
            facts = {"question": key[:200], "approved": approved}
            async with self._auditor.change(session, "goal:answer", record.goal.type, goal=goal_id, facts=facts):
                now = self._clock.now()
                answered = await answer_question(self._ledger, record, session, key, approved, comment, now)
            await self._fleet.poke([record.goal])
            return answered

    def check_may_read(self, session: Session, goal_id: str) -> None:
        """Refuse who may not read a goal."""
        self._authorizer.authorize(session, "goal:read", goal_id)

    async def goal(self, session: Session, goal_id: str) -> GoalRecord:
        """Return a goal and where it stands.

        Raises:
            NotFoundError: There is no such goal.
        """
        self._authorizer.authorize(session, "goal:read", goal_id)
        return await self._record(session, goal_id)

    async def goals(self, session: Session, query: GoalQuery) -> list[GoalRecord]:
        """Return a page of goals, newest first."""
        self._authorizer.authorize(session, "goal:read")
        return await self._ledger.goals(replace(query, tenant=_of(session)))

    async def journal(self, session: Session, goal_id: str, after_seq: int, limit: int) -> list[Entry]:
        """Return a goal's entries after `after_seq`."""
        self._authorizer.authorize(session, "goal:read", goal_id)
        await self._record(session, goal_id)
        return await self._ledger.journal(goal_id, after_seq, limit)

    async def wait(self, session: Session, goal_id: str, wait_s: float) -> GoalRecord:
        """Return the goal as soon as it has ended, or as it stands after `wait_s` seconds."""
        self._authorizer.authorize(session, "goal:read", goal_id)
        ends_at = self._clock.now() + wait_s
        async with self._listen(goal_id) as news:
            while True:
                news.clear()
                await self.access.check(session)
                record = await self._record(session, goal_id)
                remaining_s = ends_at - self._clock.now()
                if record.outcome is not None or remaining_s <= 0:
                    return record
                await news.come(min(remaining_s, _LOOK_AGAIN_S))

    async def follow(self, session: Session, goal_id: str, after_seq: int) -> AsyncIterator[Entry]:
        """Yield a goal's entries after `after_seq` as they come; end after `finished`.

        Raises:
            NotFoundError: There is no such goal.
        """
        self._authorizer.authorize(session, "goal:read", goal_id)
        await self._record(session, goal_id)
        async with self._listen(goal_id) as news:
            while True:
                news.clear()
                await self.access.check(session)
                entries = await self._ledger.journal(goal_id, after_seq, _FOLLOW_PAGE_ENTRIES)
                for entry in entries:
                    yield entry
                    after_seq = entry.seq
                    if entry.kind is EntryKind.FINISHED:
                        return
                if not entries:
                    record = await self._record(session, goal_id)
                    if record.outcome is not None and not await self._ledger.journal(goal_id, after_seq, 1):
                        return  # The reader has seen the end before.
                    await news.come(_LOOK_AGAIN_S)

    async def trace(self, session: Session, goal_id: str) -> list[dict[str, Any]]:
        """Return the spans of a goal, oldest first; empty where it was not sampled."""
        self._authorizer.authorize(session, "trace:read", goal_id)
        record = await self._record(session, goal_id)
        if self._trace_folder is None:
            return []
        await asyncio.to_thread(flush)  # A collector that does not answer would hold up everybody here.
        if record.outcome is not None:
            # The other processes write their spans a few times a second: let a goal that has just ended be whole.
            age_s = self._clock.now() - record.outcome.finished_at
            await asyncio.sleep(min(max(0.0, _SPANS_LATE_S - age_s), _SPANS_LATE_S))
        trace_id = trace_id_of(record.goal.headers.get("traceparent", ""))
        spans = await asyncio.to_thread(read_trace, self._trace_folder, trace_id)
        return [span.to_json() for span in spans]

    async def agents(self, session: Session, limit: int) -> list[dict[str, Any]]:
        """Return active agents."""
        self._authorizer.authorize(session, "agent:read")
        found = await self._fleet.agents(limit, _of(session))
        return [agent for agent in found if session.sees(agent.pop("tenant"))]

    async def agent(self, session: Session, agent: AgentId) -> dict[str, Any]:
        """Return what an agent has on record.

        Raises:
            NotFoundError: There is no such agent type. Every key of a type exists.
        """
        self._authorizer.authorize(session, "agent:read", str(agent))
        return await agent_record(self._specs, self._ledger, agent, session.home)

    async def hosts(self, session: Session) -> list[dict[str, Any]]:
        """Return the hosts."""
        self._authorizer.authorize(session, "host:read")
        return await self._fleet.hosts()

    async def drain(self, session: Session, target: str, *, is_undone: bool = False) -> list[str]:
        """Drain a host, or all of a machine's, or undo that; return the hosts.

        Raises:
            NotFoundError: There is no such host or machine.
            FailedPreconditionError: Nobody would be left.
        """
        self._authorizer.authorize(session, "host:drain", target)
        if not session.sees(MAIN_TENANT):  # The hosts are everybody's.
            raise PermissionDeniedError("not allowed", action="host:drain", reason="hosts_are_of_all_tenants")
        with observe("host.drain", log=True, attributes={"nexus.target": target, "nexus.is_undone": is_undone}):
            of, facts = Retention.ADMINISTRATION, {"is_undone": is_undone}
            async with self._auditor.change(session, "host:drain", target, retention=of, facts=facts):
                return await self._fleet.drain(target, is_undone)

    async def goal_types(self, session: Session) -> list[dict[str, Any]]:
        """Return what can be submitted, with JSON schemas."""
        self._authorizer.authorize(session, "goal_type:read")
        return [
            {
                "type": spec.type,
                "summary": spec.summary,
                "payload_schema": spec.payload.json_schema(),
                "result_schema": spec.result.json_schema(),
                "timeout_s": spec.timeout_s or self._settings.timeout_default_s,
            }
            for spec in self._specs.goals.values()
        ]

    async def metrics(self, session: Session) -> bytes:
        """Return the metrics of every process of this node, as Prometheus text."""
        self._authorizer.authorize(session, "metrics:read")
        return await asyncio.to_thread(metrics.exposition)

    async def ready(self) -> dict[str, bool]:
        """Tell of each part whether it answers: hosts, ledger, keys."""
        parts = {"keys": self._authenticator.is_ready, "ledger": False, "hosts": False}
        with contextlib.suppress(NexusError):
            await self._ledger.goals(GoalQuery(limit=1))
            parts["ledger"] = True
        with contextlib.suppress(NexusError):
            parts["hosts"] = bool(await self._fleet.hosts())
        return parts

    async def close(self) -> None:
        """Take no more goals, and stop listening for changes."""
        await self._intake.close()
        await self._feed.close()
        await self.access.close()
        if self.exchange:
            self.exchange.close()
        await self._auditor.close()

    @contextlib.asynccontextmanager
    async def _listen(self, *goal_ids: str) -> AsyncIterator[News]:
        """Give an event for news of goals, and of who may still come in."""
        async with self._feed.listen(*goal_ids) as news:
            with self.access.revocations.waking(news):
                yield news

    async def _record(self, session: Session, goal_id: str) -> GoalRecord:
        record = await self._ledger.goal(goal_id)
        if record is None or not session.sees(record.goal.tenant):  # Another tenant's is as if it were not there.
            raise NotFoundError(f"there is no goal {goal_id[:80]!r}")
        return record

    async def _records(self, goal_ids: Iterable[str]) -> list[GoalRecord]:
        wanted, found = list(goal_ids), []
        for at in range(0, len(wanted), _READ_AT_ONCE):
            found += await asyncio.gather(*map(self._ledger.goal, wanted[at : at + _READ_AT_ONCE]))
        return [record for record in found if record is not None]


def _of(session: Session) -> str:
    """Return whose goals a caller sees: those of one tenant, or all."""
    return "" if session.sees_all else session.tenant
