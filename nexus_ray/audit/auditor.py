"""The auditor of one process: makes records of what happens at its doors and brings them to the log.

Law: what changes something is written before it is done and its outcome after it; a refusal is only noted, for refusing
must not cost more than accepting. Equal refusals of a moment become one record that counts them.
"""

import asyncio
import contextlib
import hashlib
import hmac
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from nexus_ray.audit.limits import AuditSettings
from nexus_ray.audit.ports import AuditLog
from nexus_ray.audit.record import Entry, Kind, Retention, check_entry
from nexus_ray.core.clock import Clock
from nexus_ray.core.errors import NexusError, UnavailableError
from nexus_ray.core.identity import Session
from nexus_ray.core.ids import new_id
from nexus_ray.observe import metrics
from nexus_ray.observe.logs import get_logger

log = get_logger("audit.auditor")

_CALL_MAX = 1000  # A transaction of some 40 ms.
_TEXT_CHARACTERS_MAX = 200  # Of what a caller wrote: a goal id that is none may be long.
_MINUTE_S = 60.0
_VIOLATIONS = {"unauthenticated": ("authentication_failed", "medium"), "permission_denied": ("not_allowed", "low")}


@dataclass(slots=True)
class Scene:
    """Where a request comes from, and what joins its records: the first of them gives its operation's id.

    Made where the request arrives.
    """

    source: str = ""
    trace: str = ""
    request: str = ""


@dataclass(frozen=True, slots=True)
class _Waiting:
    entries: Sequence[Entry]
    numbers: "asyncio.Future[list[int]]"

    def answer(self, numbers: list[int]) -> None:
        if not self.numbers.done():  # Its caller may have gone.
            self.numbers.set_result(numbers)

    def fail(self, error: BaseException) -> None:
        if not self.numbers.done():
            told = error if isinstance(error, NexusError) else UnavailableError("the audit log does not answer")
            self.numbers.set_exception(told)


_scene: ContextVar[Scene | None] = ContextVar("nexus_audit_scene", default=None)


def arrive(scene: Scene) -> None:
    """Say where the request comes from that this task serves."""
    # A context variable, not an argument of every function: it does not leave the process that took the request in.
    _scene.set(scene)


def source_of_request() -> str:
    """Return the address that this task's request came from, as it was told; empty where nobody told."""
    scene = _scene.get()
    return scene.source if scene is not None else ""


class Auditor:
    """Brings records to a log; used from one event loop only."""

    def __init__(self, audit_log: AuditLog, settings: AuditSettings, clock: Clock, salt: bytes, door: str) -> None:
        """`salt` is what names are hashed with where that is wanted; `door` is where this process lets people in."""
        self.log = audit_log
        self._settings = settings
        self._clock = clock
        self._salt = salt
        self._door = door
        self._name = new_id("op")
        self._operations = 0
        self._noted: list[Entry] = []
        self._waiting: deque[_Waiting] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._refusals: dict[tuple[str, ...], tuple[Entry, int]] = {}
        self._overflow = 0
        self._strangers = self._strangers_over = 0  # Of this minute.
        self._minute_ends_at = 0.0
        self._flushing: asyncio.Task[None] | None = None
        self.answer_s_max = settings.answer_s_max
        """Longest that a record is on its way."""
        self.is_well = True
        """Whether the last append went well; what cannot be written down is not begun."""

    def entry(
        self, session: Session | None, action: str, resource: str = "", *, kind: Kind = Kind.EVENT,
        retention: Retention = Retention.CHANGE, operation: str = "", goal: str = "", trace: str = "",
        decision: str = "allow", outcome: str = "", reason: str = "", facts: Mapping[str, Any] | None = None,
    ) -> Entry:  # fmt: skip
        """Make an entry of what this task's request does."""
        scene = _scene.get() or Scene()
        if not operation:
            # Not an id of its own each: of one process, they are as good as numbered, and that is much cheaper.
            self._operations += 1
            operation = f"{self._name}.{self._operations:x}"
        scene.request = scene.request or operation
        facts = facts or {}
        if session is not None and session.actor:
            facts = {**facts, "actor": self.principal(session.actor)}
        return Entry(
            operation, kind, self._clock.now(), action, retention,
            principal=self.principal(session.principal) if session else "",
            tenant=session.tenant if session else "", session=session.id if session else "",
            source=self._masked(scene.source, self._settings.hash_sources), resource=resource[:_TEXT_CHARACTERS_MAX],
            decision=decision, outcome=outcome, reason=reason, trace=trace or scene.trace, goal=goal,
            request=scene.request, facts=facts,
        )  # fmt: skip

    def principal(self, name: str) -> str:
        """Return how somebody is called in the log."""
        return self._masked(name, self._settings.hash_principals)

    async def append(self, entries: Sequence[Entry]) -> list[int]:
        """Write entries; they are on disk when this returns. What was noted goes with them.

        Raises:
            InvalidArgumentError: One of them cannot be kept.
            UnavailableError: They could not be written in time; nobody knows.
        """
        for entry in entries:
            check_entry(entry)
        if len(self._waiting) >= self._settings.waiting_max:
            raise UnavailableError("too many audit records wait to be written", retry_after_s=1.0)
        waiting = _Waiting(entries, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._writing is None or self._writing.done():
            # One call is under way at a time; what comes meanwhile goes into the next.
            self._writing = asyncio.get_running_loop().create_task(self._write(), name="audit")
        return await waiting.numbers

    async def _write(self) -> None:
        while self._waiting:
            noted, self._noted = self._noted, []
            together: list[_Waiting] = []
            count = len(noted)
            while self._waiting and (not together or count + len(self._waiting[0].entries) <= _CALL_MAX):
                together.append(self._waiting.popleft())
                count += len(together[-1].entries)
            try:
                async with asyncio.timeout(self._settings.answer_s_max):
                    numbers = await self.log.append([*noted, *(entry for one in together for entry in one.entries)])
            except BaseException as error:
                self.is_well = False
                self._noted = [*noted, *self._noted]  # Given twice, an entry stands once.
                if isinstance(error, TimeoutError):
                    # Nor would the next call be answered: who waits is told now, so nobody waits for two.
                    together += self._waiting
                    self._waiting.clear()
                for one in together:
                    one.fail(error)
                if not isinstance(error, Exception):
                    raise
                continue
            self.is_well = True
            at = len(noted)
            for one in together:
                one.answer(numbers[at : at + len(one.entries)])
                at += len(one.entries)

    def note(self, entry: Entry) -> None:
        """Have an entry written soon; nobody waits for it."""
        check_entry(entry)
        if len(self._noted) >= self._settings.waiting_max:
            log.error("audit.note_lost", action=entry.action, operation=entry.operation)
            return
        self._noted.append(entry)
        self._flush_soon()

    def refused(self, session: Session | None, action: str, resource: str, error: NexusError) -> None:
        """Note that somebody was refused."""
        violation, severity = _VIOLATIONS.get(error.code, ("other", "low"))
        metrics.count(
            "nexus_security_violations_total", violation_type=violation, severity=severity, source=self._door
        )
        scene = _scene.get() or Scene()
        reason = str(error.details.get("reason", ""))
        name = (session.principal if session else "", scene.source, action, resource, error.code, reason)
        known = self._refusals.get(name)
        if known is not None:
            self._refusals[name] = known[0], known[1] + 1
        elif session is None and not self._has_room_for_stranger():
            self._strangers_over += 1
        elif len(self._refusals) < self._settings.refusals_max:
            refusal = self.entry(
                session, action, resource, retention=Retention.ACCESS, decision="deny", outcome=error.code,
                reason=reason[:_TEXT_CHARACTERS_MAX],
            )  # fmt: skip
            self._refusals[name] = refusal, 1
        else:
            self._overflow += 1
        self._flush_soon()

    @contextlib.asynccontextmanager
    async def change(
        self, session: Session, action: str, resource: str = "", *, goal: str = "", trace: str = "",
        retention: Retention = Retention.CHANGE, facts: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[None]:  # fmt: skip
        """Stand around an operation: its intent is on disk before it begins, its outcome before it is acknowledged."""
        intent = self.entry(
            session, action, resource, kind=Kind.INTENT, goal=goal, trace=trace, retention=retention, facts=facts
        )
        await self.append([intent])
        try:
            yield
        except BaseException as error:
            # A caller that has gone took nothing back: what became of it nobody here knows.
            self.note(self.outcome(intent, error.code if isinstance(error, NexusError) else "unknown"))
            raise
        await self.append([self.outcome(intent, "ok")])

    def outcome(self, intent: Entry, outcome: str, **changes: Any) -> Entry:
        """Return how an operation ended: all that its intent says, and that."""
        return replace(intent, kind=Kind.OUTCOME, at=self._clock.now(), outcome=outcome, **changes)

    async def flush(self, *, is_last: bool = False) -> None:
        """Write down what was noted; of strangers over the limit only when their minute is over, unless `is_last`."""
        refusals, self._refusals = self._refusals, {}
        overflow, self._overflow = self._overflow, 0
        entries = [
            replace(entry, facts={**entry.facts, "count": count}) if count > 1 else entry
            for entry, count in refusals.values()
        ]
        if self._strangers_over and (is_last or self._clock.monotonic() >= self._minute_ends_at):
            overflow, self._strangers_over = overflow + self._strangers_over, 0
        if overflow:
            entries.append(self.entry(
                None, "audit:overflow", retention=Retention.ACCESS, decision="deny", facts={"count": overflow}
            ))  # fmt: skip
        self._noted += entries
        if self._noted:
            await self.append([])

    async def close(self) -> None:
        """Write down what was noted, as far as that can be done now."""
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.wait({self._flushing})
        with contextlib.suppress(NexusError):
            await self.flush(is_last=True)
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait({self._writing})
        await self.log.close()

    def _flush_soon(self) -> None:
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.get_running_loop().create_task(self._flush_later(), name="audit flush")

    async def _flush_later(self) -> None:
        while True:
            await asyncio.sleep(self._settings.flush_s)
            try:
                await self.flush()
            except NexusError as error:
                log.error("audit.flush_failed", error=error.message, waiting=len(self._noted))
            if not self._noted and not self._refusals and not self._overflow and not self._strangers_over:
                return

    def _has_room_for_stranger(self) -> bool:
        now = self._clock.monotonic()
        if now >= self._minute_ends_at:
            self._strangers, self._minute_ends_at = 0, now + _MINUTE_S
        self._strangers += 1
        return self._strangers <= self._settings.strangers_a_minute_max

    def _masked(self, text: str, is_hashed: bool) -> str:
        if not text or not is_hashed:
            return text[:_TEXT_CHARACTERS_MAX]
        return f"hmac-{hmac.digest(self._salt, text.encode(), hashlib.sha256)[:16].hex()}"
