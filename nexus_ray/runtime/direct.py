"""The direct door: goals from inside the cluster, without HTTP; many goals and many outcomes in one Ray call.

Law: the same pipeline as at the front: a token is verified, the session authorized, the payload checked, the goal on
disk before anything is said about it. A client keeps calls parked at the host; each brings new goals and takes home
whatever outcomes are ready.
"""

import asyncio
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from nexus_ray.config import Settings
from nexus_ray.core.errors import NexusError, UnavailableError, error_classes
from nexus_ray.core.ids import new_id
from nexus_ray.goals.goal import Goal, Outcome
from nexus_ray.observe.operation import observe
from nexus_ray.runtime.follow import watch_membership
from nexus_ray.runtime.front import SubmitRequest, build_goal
from nexus_ray.runtime.names import NAMESPACE
from nexus_ray.runtime.process import HostProcess
from nexus_ray.runtime.ray_errors import translate
from nexus_ray.security.authn import Authenticator
from nexus_ray.security.authz import Authorizer

_EXCHANGES_PARKED_MAX = 2  # One waits at the host while the next brings goals; more would only be parked.
_WAIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of request `number`: the goal's id and outcome, or why it was refused (`error`, `message`)."""

    number: int
    goal_id: str = ""
    outcome: Outcome | None = None
    error: str = ""
    message: str = ""


class DirectDoor:
    """The host's side; used from one event loop only."""

    def __init__(self, process: HostProcess, settings: Settings) -> None:
        self._process = process
        self._settings = settings
        self._authenticator = Authenticator.from_folder(settings.state_dir, settings.tokens, process.clock)
        self._authorizer = Authorizer.from_folder(settings.state_dir)
        self._ready: dict[str, list[Answer]] = {}
        self._news: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def exchange(
        self, client: str, token: str, requests: Sequence[tuple[int, SubmitRequest]], wait_s: float
    ) -> list[Answer]:
        """Take goals in and return the answers that are ready for this client, waiting for one if there is none."""
        news = self._news.setdefault(client, asyncio.Event())
        if requests:
            task = asyncio.get_running_loop().create_task(self._take_in(client, token, requests), name="take in")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if not self._ready.get(client):
            try:
                async with asyncio.timeout(wait_s):
                    await news.wait()
            except TimeoutError:
                return []
        news.clear()
        return self._ready.pop(client, [])

    async def _take_in(self, client: str, token: str, requests: Sequence[tuple[int, SubmitRequest]]) -> None:
        process = self._process
        goals: list[tuple[int, Goal]] = []
        for number, request in requests:
            try:
                session = self._authenticator.authenticate(token)
                self._authorizer.authorize(session, "goal:submit", request.type)
                with observe("goal.submit") as operation:
                    goal = build_goal(
                        request, session, process.specs, self._settings.goals, process.clock.now(),
                        operation.traceparent,
                    )  # fmt: skip
                goals.append((number, goal))
            except NexusError as error:
                self._answer(client, Answer(number, error=type(error).__name__, message=error.message))
        if not goals:
            return
        try:
            started = await process.coordinator.accept_and_run([goal for _, goal in goals])
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
        self._ready.setdefault(client, []).append(answer)
        self._news[client].set()


class DirectClient:
    """The caller's side, in a driver or task of the same Ray cluster; used from one event loop only."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._client = new_id("client")
        self._hosts: list[Any] = []
        self._numbers = 0
        self._turn = 0
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._outgoing: dict[int, list[tuple[int, SubmitRequest]]] = {}
        self._parked: dict[int, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self) -> None:
        """Look up the hosts."""
        membership = await watch_membership(0, _WAIT_S)
        try:
            self._hosts = [ray.get_actor(member.host, namespace=NAMESPACE) for member in membership.members]
        except Exception as error:
            raise translate(error, "the fleet") from None
        if not self._hosts:
            raise UnavailableError("the fleet has no hosts")

    async def run(self, type_name: str, payload: bytes, timeout_s: float | None = None) -> Outcome:
        """Submit a goal and return its outcome.

        Raises:
            NexusError: It was refused, or its outcome cannot be had here.
        """
        self._numbers += 1
        number = self._numbers
        self._turn = (self._turn + 1) % len(self._hosts)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self._outgoing.setdefault(self._turn, []).append((number, SubmitRequest(type_name, payload, timeout_s)))
        self._kick(self._turn)
        answer = await future
        if answer.outcome is None:
            raise error_classes().get(answer.error, NexusError)(answer.message)
        return answer.outcome

    def _kick(self, host: int) -> None:
        if self._parked.get(host, 0) < _EXCHANGES_PARKED_MAX:
            self._parked[host] = self._parked.get(host, 0) + 1
            task = asyncio.get_running_loop().create_task(self._exchange(host), name="exchange")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _exchange(self, host: int) -> None:
        await asyncio.sleep(0)  # Lets everybody who is about to submit do so: one call carries them all.
        mine: set[int] = set()
        try:
            while self._waiting:
                requests = self._outgoing.pop(host, [])
                mine.update(number for number, _ in requests)
                if not requests and self._parked[host] > 1:
                    return  # The other call is parked there already.
                answers = await self._hosts[host].exchange.remote(self._client, self._token, requests, _WAIT_S)
                for answer in answers:
                    future = self._waiting.pop(answer.number, None)
                    if future is not None and not future.done():
                        future.set_result(answer)
        except Exception as error:
            translated = translate(error, "the host")
            for number in mine:
                future = self._waiting.pop(number, None)
                if future is not None and not future.done():
                    future.set_exception(translated)
        finally:
            self._parked[host] -= 1
