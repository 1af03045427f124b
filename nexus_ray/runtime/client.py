"""The fleet as users, notebooks and the command line see it: a synchronous client of the HTTP API.

Law: it never imports ray, every call has an explicit timeout, and only what may be repeated is repeated.
A token that was found in the state folder is sent to that folder's fleet and to nobody else.
It deliberately does not cache: what it returns is what the fleet said just now.
"""

import json
import os
import random
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx2

from nexus_ray.core.clock import Clock, SystemClock
from nexus_ray.core.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NexusError,
    UnauthenticatedError,
    UnavailableError,
)
from nexus_ray.core.ids import new_id
from nexus_ray.runtime.answers import is_problem, jsonable, outcome_error, problem
from nexus_ray.runtime.fleet_file import is_running, read_fleet_file, state_folder, token_for

_TRIES_MAX = 4
_TRIES_MAX_ONCE_UP = 8  # With the pauses some 15 s: a front door that was there before is there again by then.
_PAUSE_BASE_S = 0.2
_PAUSE_MAX_S = 5.0  # A server may ask for more; a person at a terminal would not wait for it.
_TIMEOUT = httpx2.Timeout(15.0, connect=5.0)
_WAIT_CHUNK_S = 20.0  # Under what proxies cut off as idle, and under the server's own limit.
_EVENTS_SILENCE_S = 45.0  # Three times the server's keep-alive interval.
_TERMINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def connect(url: str | None = None, token: str | None = None, state_dir: str | Path | None = None) -> "Connection":
    """Find a fleet and return a connection to it.

    Arguments come first, then the variables `NEXUS_URL` and `NEXUS_TOKEN`, then the state folder: the log-in to that
    fleet, else the operator's token.

    Raises:
        UnavailableError: No fleet is known or up.
        UnauthenticatedError: There is no token for that URL.
        FailedPreconditionError: The token would cross a network in clear, or others can read it.
    """
    url = url or os.environ.get("NEXUS_URL")
    token = token or os.environ.get("NEXUS_TOKEN")
    folder = state_folder(state_dir)
    fleet = read_fleet_file(folder)
    if url is None:
        if fleet is None or not is_running(fleet.pid):
            raise UnavailableError(
                f"no fleet is up (state folder {folder}): start one with `nexus up module:app`, or set NEXUS_URL"
            )
        url = fleet.url
    is_ours = fleet is not None and url.rstrip("/") == fleet.url.rstrip("/")
    if token is None:
        token = token_for(folder, url, is_ours, SystemClock().now())
    return Connection(url, token, ca=fleet.ca if fleet is not None and is_ours else None)


class Connection:
    """A fleet that answers over HTTP. May be shared by threads; close it, or use it in a `with`."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        ca: str | None = None,
        clock: Clock | None = None,
        pause: Callable[[float], None] = time.sleep,
        jitter: random.Random | None = None,
    ) -> None:
        parsed = httpx2.URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise InvalidArgumentError(f"{url!r} is not a fleet's address: write http://127.0.0.1:8600 or https://…")
        if not token.isascii() or not token.isprintable() or not token:
            raise UnauthenticatedError("the token is malformed: it is one line of printable characters")
        is_loopback = parsed.host in _LOOPBACK
        if parsed.scheme == "http" and not is_loopback:
            raise FailedPreconditionError(f"refusing to send a token to {url} in clear: use https://")
        self.url = url.rstrip("/")
        self._clock = clock or SystemClock()
        self._pause = pause
        self._jitter = jitter or random.Random()
        self._was_up = False
        self.http = httpx2.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=_TIMEOUT,
            verify=ssl.create_default_context(cafile=ca) if parsed.scheme == "https" else True,
            # A proxy of the environment has no business between this machine and itself.
            trust_env=not is_loopback,
        )

    def submit(
        self,
        type: str,
        payload: Any,
        timeout_s: float | None = None,
        idempotency_key: str | None = None,
        wait_s: float | None = None,
    ) -> "GoalHandle":
        """Submit a goal; when this returns, the fleet has it on disk.

        Args:
            type: The goal type.
            payload: Anything that JSON can say, or a pydantic model.
            timeout_s: How long the goal may take; the goal type's own default where not given.
            idempotency_key: Submitting again under the same key gives the same goal; one is made where not given.
            wait_s: Let the fleet hold the answer back this long, in case the goal ends soon.

        Raises:
            NexusError: Refused, or not reachable; with the same key it is safe to try again.
        """
        body: dict[str, Any] = {"type": type, "payload": jsonable(payload)}
        if timeout_s is not None:
            body["timeout_s"] = timeout_s
        headers = {"Idempotency-Key": idempotency_key or new_id("key")}
        wait_s = min(wait_s or 0.0, _WAIT_CHUNK_S)
        if wait_s > 0:
            headers["Prefer"] = f"wait={wait_s:g}"
        record = self._json("POST", "/v1/goals", json=body, headers=headers, timeout=_waiting(wait_s))
        return GoalHandle(self, str(record["id"]), record)

    def goal(self, id: str) -> "GoalHandle":
        """Return a handle on a goal.

        Raises:
            NotFoundError: There is no such goal.
        """
        return GoalHandle(self, id, self._goal(id))

    def goals(self, status: str | None = None, type: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
        """Return goals, newest first."""
        query = {"status": status, "type": type, "limit": limit}
        given = {name: value for name, value in query.items() if value is not None}
        return list(self._json("GET", "/v1/goals", params=given)["goals"])

    def questions(self) -> list[dict[str, Any]]:
        """Return what goals ask of people and nobody has answered, oldest first; 1,000 at the most."""
        return list(self._json("GET", "/v1/questions", params={"limit": 1000})["questions"])

    def answer(self, id: str, key: str, approved: bool, comment: str = "") -> dict[str, Any]:
        """Answer a question of a goal; the first answer stands, and the same one again changes nothing."""
        body = {"approved": approved, "comment": comment}
        return dict(self._json("POST", f"{_path(id)}/questions/{quote(key, safe='')}", json=body))

    def agents(self) -> list[dict[str, Any]]:
        """Return the agents that are active now."""
        return list(self._json("GET", "/v1/agents")["agents"])

    def agent(self, agent: str) -> dict[str, Any]:
        """Return what an agent, `TYPE/KEY`, has on record.

        Raises:
            NotFoundError: There is no such agent type.
        """
        type_name, _, key = agent.partition("/")
        return dict(self._json("GET", f"/v1/agents/{quote(type_name, safe='')}", params={"key": key}))

    def hosts(self) -> list[dict[str, Any]]:
        """Return the agent hosts, and how busy each is."""
        return list(self._json("GET", "/v1/hosts")["hosts"])

    def drain(self, target: str, undo: bool = False) -> list[str]:
        """Have a host, or all of a machine's, finish what they have and take no more; return the hosts."""
        return list(self._json("DELETE" if undo else "POST", f"/v1/hosts/{quote(target, safe='')}/drain")["hosts"])

    def goal_types(self) -> list[dict[str, Any]]:
        """Return what can be submitted, with JSON schemas."""
        return list(self._json("GET", "/v1/goal-types")["goal_types"])

    def ready(self) -> dict[str, Any]:
        """Return which parts of the fleet answer."""
        response = self.send("GET", "/ready", tries_max=1, accepts=(503,))
        parts = response.json()
        return dict(parts) if isinstance(parts, dict) else {}

    def is_healthy(self) -> bool:
        """Tell whether the front door answers at all; asks once."""
        try:
            self.send("GET", "/health", tries_max=1)
        except NexusError:
            return False
        return True

    def metrics(self) -> str:
        """Return the metrics as Prometheus text."""
        return self.send("GET", "/metrics").text

    def close(self) -> None:
        """Close the sockets."""
        self.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _goal(self, goal_id: str, wait_s: float = 0.0) -> dict[str, Any]:
        params = {"wait": f"{wait_s:g}"} if wait_s > 0 else {}
        record: dict[str, Any] = self._json("GET", _path(goal_id), params=params, timeout=_waiting(wait_s))
        return record

    def _json(self, method: str, path: str, **options: Any) -> Any:
        response = self.send(method, path, **options)
        try:
            return response.json()
        except ValueError:
            raise UnavailableError(f"{self.url} does not speak as a fleet does: is another service there?") from None

    def send(
        self,
        method: str,
        path: str,
        *,
        tries_max: int | None = None,
        is_repeatable: bool = True,
        accepts: tuple[int, ...] = (),
        **options: Any,
    ) -> httpx2.Response:
        """Send one request, repeated within bounds where nothing was answered or the answer was "not now"."""
        for attempt in range(1, _TRIES_MAX_ONCE_UP + 1):
            asked_s: float | None = None
            try:
                response = self.http.request(method, path, **options)
            except httpx2.TransportError as error:
                # What was sent may have been done: only a request that never arrived is repeated without a key.
                can_repeat = is_repeatable or isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
                failure: NexusError = self._unreachable(error)
                tries = tries_max or self.outage_tries
            else:
                self._was_up = True
                if response.is_success or response.status_code in accepts:
                    return response
                failure = problem(response)
                asked_s = failure.details.get("retry_after_s")
                # Other words than the fleet's: what stands before it lost a replica, and the request with it.
                is_lost = response.status_code >= 500 and not is_problem(response)
                can_repeat = response.status_code == 503 or (is_lost and is_repeatable)
                tries = tries_max or (self.outage_tries if is_lost else _TRIES_MAX)
            if not can_repeat or attempt >= tries:
                raise failure
            self._rest(attempt, asked_s)
        raise AssertionError("unreachable")

    @property
    def outage_tries(self) -> int:
        """How often something is tried that does not get through: more often where it did before."""
        return _TRIES_MAX_ONCE_UP if self._was_up else _TRIES_MAX

    def _rest(self, attempt: int, asked_s: float | None = None) -> None:
        if asked_s is None:
            asked_s = _PAUSE_BASE_S * 2 ** (attempt - 1)
        # Jitter: without it every client of a restarted fleet comes back in the same millisecond.
        self._pause(min(asked_s, _PAUSE_MAX_S) * self._jitter.uniform(1.0, 1.25))

    def _unreachable(self, error: Exception) -> NexusError:
        if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
            return UnavailableError(f"{self.url} took too long to answer; try again, or see `nexus status`")
        hint = "is it up? `nexus status` tells, `nexus up module:app` starts one"
        return UnavailableError(f"cannot reach a fleet at {self.url}: {hint}", error_type=type(error).__name__)


class GoalHandle:
    """One goal of a fleet."""

    def __init__(self, connection: Connection, id: str, record: dict[str, Any]) -> None:
        self._connection = connection
        self._last = record
        self.id = id

    def __repr__(self) -> str:
        return f"<goal {self.id} {self._last.get('status')}>"

    @property
    def record(self) -> dict[str, Any]:
        """The goal as it stands now; asks the fleet until it has ended."""
        if self._last.get("status") not in _TERMINAL:
            self._last = self._connection._goal(self.id)
        return self._last

    @property
    def status(self) -> str:
        """Where the goal stands now."""
        return str(self.record["status"])

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the goal has ended; False where `timeout_s` passed before."""
        clock = self._connection._clock
        ends_at = None if timeout_s is None else clock.monotonic() + timeout_s
        while self._last.get("status") not in _TERMINAL:
            asked_at = clock.monotonic()
            left_s = _WAIT_CHUNK_S if ends_at is None else ends_at - asked_at
            if left_s <= 0:
                return False
            wait_s = min(left_s, _WAIT_CHUNK_S)
            self._last = self._connection._goal(self.id, wait_s)
            if self._last.get("status") not in _TERMINAL and clock.monotonic() - asked_at < wait_s / 2:
                # The fleet did not hold the answer back: do not ask in a circle.
                self._connection._pause(min(wait_s, _PAUSE_BASE_S))
        return True

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the goal and return its result.

        Raises:
            TaskFailedError: The goal failed; where it failed by an error of Nexus, that error instead.
            CancelledByCallerError: It was cancelled.
            DeadlineExceededError: It expired, or `timeout_s` passed; in the second case the goal goes on.
        """
        if not self.wait(timeout_s):
            raise DeadlineExceededError(f"goal {self.id} has not ended after {timeout_s:g} s; it goes on", goal=self.id)
        if self._last["status"] == "succeeded":
            return self._last.get("result")
        raise outcome_error(self._last)

    def events(self, after: int = 0) -> Iterator[dict[str, Any]]:
        """Yield what happens to the goal as `{seq, at, kind, step, body}`, each once, until it has ended.

        A broken stream is taken up again where it broke; it is given up after a few breaks with nothing new between.

        Raises:
            UnavailableError: The stream could not be taken up again.
        """
        breaks = 0
        while True:
            seen = after
            failure: NexusError | None = None
            try:
                for event in self._stream(after):
                    after = event["seq"]
                    yield event
                    if event["kind"] == "finished":
                        return
            except httpx2.TransportError as error:
                failure = self._connection._unreachable(error)
            except UnavailableError as error:
                failure = error
            breaks = 0 if after > seen else breaks + 1
            if failure is None and after == seen and self.status in _TERMINAL:
                return  # Everything was read before this call.
            if breaks >= self._connection.outage_tries:
                raise failure or UnavailableError(f"the events of {self.id} end before the goal does; try again")
            self._connection._rest(max(1, breaks))

    def cancel(self) -> None:
        """Ask for the goal to be cancelled.

        Raises:
            FailedPreconditionError: It has ended already.
        """
        self._connection.send("POST", f"{_path(self.id)}/cancel", is_repeatable=False)

    def trace(self) -> list[dict[str, Any]]:
        """Return the goal's spans, oldest first; empty where it was not sampled."""
        return list(self._connection._json("GET", f"{_path(self.id)}/trace")["spans"])

    def _stream(self, after: int) -> Iterator[dict[str, Any]]:
        headers = {"Last-Event-ID": str(after)} if after else {}
        timeout = httpx2.Timeout(_EVENTS_SILENCE_S, connect=5.0)
        with self._connection.http.sse(f"{_path(self.id)}/events", headers=headers, timeout=timeout) as source:
            if not source.response.is_success:
                source.response.read()
                raise problem(source.response)
            for message in source:
                if not message.data:
                    continue
                event = {"at": None, "step": "", "body": None, **json.loads(message.data)}
                event["seq"] = int(event.get("seq") or message.id)
                event.setdefault("kind", message.event)
                if event["seq"] > after:  # A server may repeat what it is not sure to have sent.
                    yield event


def _path(goal_id: str) -> str:
    return f"/v1/goals/{quote(goal_id, safe='')}"


def _waiting(wait_s: float) -> httpx2.Timeout:
    return httpx2.Timeout(15.0 + wait_s, connect=5.0)

