"""The direct door: goals from inside the cluster, without HTTP; many goals and many outcomes in one Ray call.

Law: the same pipeline as at the front: a token is verified, the session authorized, the payload checked, the goal on
disk before anything is said about it. A client keeps calls parked at the host; each brings new goals and takes home
whatever outcomes are ready.
"""

import asyncio
import contextlib
import functools
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from nexus_ray.audit.auditor import Auditor, Scene, arrive
from nexus_ray.config import Settings
from nexus_ray.core.errors import NexusError, UnavailableError, error_classes
from nexus_ray.core.ids import new_id
from nexus_ray.ledger.goal import Goal, Outcome
from nexus_ray.observe.operation import observe
from nexus_ray.runtime.access import Access
from nexus_ray.runtime.audited import AuditedAuthorizer, accept_audited, strangers_noted
from nexus_ray.runtime.follow import watch_membership
from nexus_ray.runtime.intake import SubmitRequest, build_goal
from nexus_ray.runtime.peer import Peer, host_peer
from nexus_ray.runtime.process import HostProcess
from nexus_ray.runtime.state import fleet_seal
from nexus_ray.runtime.wire import register
from nexus_ray.security.authn import Authenticator
from nexus_ray.security.authz import Authorizer

_EXCHANGES_PARKED_MAX = 2  # One waits at the host while the next brings goals; more would only be parked.
_WAIT_S = 10.0
_AGAIN_AFTER_S = 0.2
_FORGET_AFTER_S = 60.0  # A client that lives asks again within ten seconds; one that died takes no answers home.


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of request `number`: the goal's id and outcome, or why it was refused (`error`, `message`)."""

    number: int
    goal_id: str = ""
    outcome: Outcome | None = None
    error: str = ""
    message: str = ""


register(SubmitRequest, Answer)


@dataclass(slots=True)
class _Caller:
    """A client of the door: what is ready for it, and when it was heard of last, in monotonic seconds."""

    ready: list[Answer] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    heard_at: float = 0.0


class DirectDoor:
    """The host's side; used from one event loop only."""

    def __init__(self, process: HostProcess, settings: Settings, auditor: Auditor, authorizer: Authorizer) -> None:
        self._process = process
        self._auditor = auditor
        self._settings = settings
        self._authenticator = Authenticator.from_folder(
            settings.state_dir, settings.tokens, process.clock, settings.security
        )
        self._authorizer = AuditedAuthorizer(authorizer, auditor)
        self._seal = fleet_seal(settings)
        self._access = Access(process.ledger, self._authorizer, process.clock, settings.revocation)
        self._callers: OrderedDict[str, _Caller] = OrderedDict()  # The one that was heard of last is last.
        self._tasks: set[asyncio.Task[None]] = set()

    async def exchange(
        self, client: str, token: str, requests: Sequence[tuple[int, SubmitRequest]], wait_s: float
    ) -> list[Answer]:
        """Take goals in and return the answers that are ready for this client, waiting for one if there is none."""
        caller = self._heard_of(client)
        if requests:
            task = asyncio.get_running_loop().create_task(self._take_in(client, token, requests), name="take in")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if not caller.ready:
            try:
                async with asyncio.timeout(min(wait_s, _WAIT_S)):
                    await caller.news.wait()
            except TimeoutError:
                return []
        caller.news.clear()
        ready, caller.ready = caller.ready, []
        return ready

    def _heard_of(self, client: str) -> "_Caller":
        caller = self._callers.setdefault(client, _Caller())
        now = caller.heard_at = self._process.clock.monotonic()
        self._callers.move_to_end(client)
        while next(iter(self._callers.values())).heard_at < now - _FORGET_AFTER_S:
            self._callers.popitem(last=False)
        return caller

    async def _take_in(self, client: str, token: str, requests: Sequence[tuple[int, SubmitRequest]]) -> None:
        process = self._process
        arrive(Scene("cluster"))  # Ray, or a socket that only this user's processes reach, brought it.
        goals: list[tuple[int, Goal]] = []
        for number, request in requests:
            try:
                with strangers_noted(self._auditor):
                    session = await self._authenticator.identify(token)
                    await self._access.check(session)
                self._authorizer.authorize(session, "goal:submit", request.type)
                with observe("goal.submit") as operation:
                    goal = build_goal(
                        request, session, process.specs, self._settings.goals, process.clock.now(),
                        operation.traceparent, self._seal,
                    )  # fmt: skip
                goals.append((number, goal))
            except NexusError as error:
                self._answer(client, Answer(number, error=type(error).__name__, message=error.message))
        if not goals:
            return
        try:
            accept = process.coordinator.accept_and_run
            # One token: whoever came with the last goal came with all of them.
            started = await accept_audited(
                self._auditor, session, [goal for _, goal in goals], accept, lambda one: one[0]
            )
        except NexusError as error:
            for number, _ in goals:
                self._answer(client, Answer(number, error=type(error).__name__, message=error.message))
            return
        for (number, goal), (acceptance, future) in zip(goals, started, strict=True):
            if future is None:
                future = asyncio.ensure_future(process.coordinator.wait(acceptance.goal_id, goal.deadline_at))
            future.add_done_callback(functools.partial(self._ended, client, number, acceptance.goal_id))

    def _ended(self, client: str, number: int, goal_id: str, future: "asyncio.Future[Outcome]") -> None:
        if future.cancelled():
            self._answer(client, Answer(number, goal_id, error="UnavailableError", message="the host is stopping"))
        elif (error := future.exception()) is not None:
            self._answer(client, Answer(number, goal_id, error="UnavailableError", message=str(error)))
        else:
            self._answer(client, Answer(number, goal_id, future.result()))

    def _answer(self, client: str, answer: Answer) -> None:
        caller = self._callers.get(client)
        if caller is not None:  # Otherwise it has gone; the outcome is on record.
            caller.ready.append(answer)
            caller.news.set()


class DirectClient:
    """The caller's side, in a driver or task of the same Ray cluster; used from one event loop only.

    A goal whose host is lost is submitted again under the same idempotency key, so it is one goal all the same.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        # As whom we speak to each host. After a call was lost it is somebody new: what still waits at the host in the
        # old name would take answers home to nobody.
        self._names: defaultdict[str, str] = defaultdict(lambda: new_id("client"))
        self._prefix = new_id("key")
        self._hosts: list[Peer] = []
        self._epoch = 0
        self._turn = 0
        self._numbers = 0
        self._waiting: dict[int, tuple[str, asyncio.Future[Answer]]] = {}
        self._outgoing: dict[str, list[tuple[int, SubmitRequest]]] = {}
        self._parked: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self) -> None:
        """Look up the hosts.

        Raises:
            UnavailableError: There are none, or the directory does not answer.
        """
        membership = await watch_membership(0, _WAIT_S)
        if membership.epoch != self._epoch:
            self._epoch = membership.epoch
            for peer in self._hosts:
                peer.close()
            self._names.clear()
            self._hosts = [host_peer(member) for member in membership.members if member.weight > 0]
        if not self._hosts:
            raise UnavailableError("the fleet has no hosts")

    async def close(self) -> None:
        """Hang up; goals under way go on."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for peer in self._hosts:
            peer.close()

    async def run(self, type_name: str, payload: bytes, timeout_s: float = 3600.0) -> Outcome:
        """Submit a goal and return its outcome, whatever becomes of hosts meanwhile.

        Args:
            type_name: The goal type.
            payload: JSON.
            timeout_s: How long the goal may take.

        Raises:
            NexusError: It was refused, or its outcome cannot be had here in time.
        """
        self._turn += 1
        request = SubmitRequest(type_name, payload, timeout_s, f"{self._prefix}-{self._turn}")
        turn = self._turn
        ends_at = time.monotonic() + timeout_s
        while True:
            try:
                return await self._run_once(turn, request)
            except UnavailableError:
                if time.monotonic() + _AGAIN_AFTER_S >= ends_at:
                    raise
            turn += 1
            await asyncio.sleep(_AGAIN_AFTER_S)
            with contextlib.suppress(UnavailableError):
                await self.connect()

    async def _run_once(self, turn: int, request: SubmitRequest) -> Outcome:
        if not self._hosts:
            raise UnavailableError("the fleet has no hosts")
        peer = self._hosts[turn % len(self._hosts)]
        self._numbers += 1
        number = self._numbers
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (peer.name, future)
        self._outgoing.setdefault(peer.name, []).append((number, request))
        if self._parked[peer.name] < _EXCHANGES_PARKED_MAX:
            self._parked[peer.name] += 1
            task = asyncio.get_running_loop().create_task(self._exchange(peer), name="exchange")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        answer = await future
        if answer.outcome is None:
            raise error_classes().get(answer.error, NexusError)(answer.message)
        return answer.outcome

    async def _exchange(self, peer: Peer) -> None:
        await asyncio.sleep(0)  # Lets everybody who is about to submit do so: one call carries them all.
        host = peer.name
        try:
            while any(waiting_for == host for waiting_for, _ in self._waiting.values()):
                requests = self._outgoing.pop(host, [])
                if not requests and self._parked[host] > 1:
                    return  # The other call is parked there already.
                answers = await peer.call("exchange", self._names[host], self._token, requests, _WAIT_S)
                for answer in answers:
                    self._settle(answer.number, answer)
        except NexusError as error:
            self._names.pop(host, None)
            self._outgoing.pop(host, None)
            for number in [number for number, (waiting_for, _) in self._waiting.items() if waiting_for == host]:
                self._settle(number, error)
        finally:
            self._parked[host] -= 1

    def _settle(self, number: int, answer: Answer | NexusError) -> None:
        _, future = self._waiting.pop(number, ("", None))
        if future is None or future.done():
            return
        if isinstance(answer, NexusError):
            future.set_exception(answer)
        else:
            future.set_result(answer)
