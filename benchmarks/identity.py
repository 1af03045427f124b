"""What it costs to know who asks, to decide and to write it down: each call alone, and all of it in a request.

The application is called as its server calls it, without a socket, and the ledger's process stands beside it as in a
fleet; there is no Ray. What is compared is measured in turn, round by round.
"""

import asyncio
import contextlib
import functools
import itertools
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import fleet
from benchmarks.parts import Anything, NoAuditor
from benchmarks.sampling import Row, Target, summarise
from nexus_ray.api.app import build_app
from nexus_ray.audit.auditor import Auditor
from nexus_ray.config import Settings, load
from nexus_ray.core.clock import SystemClock
from nexus_ray.core.context import CallContext, ContextSeal
from nexus_ray.core.deadline import Deadline
from nexus_ray.core.errors import NexusError
from nexus_ray.core.identity import Session
from nexus_ray.core.ids import new_id
from nexus_ray.goals.spec import Specs
from nexus_ray.ledger.goal import Goal, GoalQuery, GoalRecord
from nexus_ray.runtime.audit_link import here, load_salt, open_audit_file, open_audit_log
from nexus_ray.runtime.boot import configure_process, settle_down
from nexus_ray.runtime.front import FrontDoor
from nexus_ray.runtime.ledger_actor import LedgerActor, RayLedger
from nexus_ray.runtime.state import fleet_seal, prepare_state
from nexus_ray.security.authn import Authenticator
from nexus_ray.security.authz import Authorizer, load_policy
from nexus_ray.security.keys import load_or_create_issuer_key
from nexus_ray.security.policy import Policy, parse_policy
from nexus_ray.security.rego_engine import RegoEngine
from nexus_ray.security.throttle import ThrottleSettings
from nexus_ray.security.tokens import issue_token

SECTION = "identity"
ADDED_MS_MAX = 0.35
REMEMBERED_US_MAX, DECIDED_US_MAX = 20.0, 500.0
APPEND_US_MAX = 100.0
_AT_ONCE = 64  # Callers that each have one record to write: a busy front door.
_OPERATOR = Session("s", "benchmark", "nexus-local", ("operator",), 9e9)
_NOBODY = Session("n", "nobody", "nexus-local", ("unknown",), 9e9)
_BOUND = Session("b", "corp:somebody", "nexus-local", ("engineering",), 9e9)
_Call = Callable[[], object]


def run(folder: Path, is_quick: bool) -> list[Row]:
    settings = load(state_dir=folder)
    prepare_state(settings)
    configure_process(settings, "identity")
    settle_down()
    rounds, calls = (2, 5) if is_quick else (40, 25)
    made = [*tokens(settings, rounds, calls), *decisions(settings, rounds, calls), *contexts(rounds, calls)]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # The loop that Ray gives its async actors.
        made += runner.run(appends(settings, 5 if is_quick else 60))
        with _ledger_process(settings):
            made += runner.run(requests(settings, 2 if is_quick else 15, 10 if is_quick else 40))
    return made


def in_turn(ways: dict[str, _Call], rounds: int, calls: int) -> dict[str, list[float]]:
    """Return, for each way, microseconds a call: one figure a round, the rounds of all ways in turn."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            for _ in range(calls):
                way()
            if number:  # The first is a warm-up.
                taken[name].append((time.perf_counter() - started) / calls * 1e6)
    return taken


def _rows(taken: dict[str, list[float]], us_max: float | None = None) -> list[Row]:
    target = None if us_max is None else Target("at_most", us_max)
    return [Row(SECTION, name, "µs", summarise(samples), target) for name, samples in taken.items()]


def _refused(call: _Call) -> _Call:
    def refused() -> None:
        try:
            call()
        except NexusError:
            return
        raise RuntimeError("what should have been refused was not")

    return refused


def tokens(settings: Settings, rounds: int, calls: int) -> list[Row]:
    """Authenticate: a token that was seen before, new ones, and new ones that are refused."""
    clock = SystemClock()
    key, stranger = load_or_create_issuer_key(settings.state_dir), load_or_create_issuer_key(_made(settings, "other"))
    authenticator = Authenticator.from_folder(settings.state_dir, settings.tokens, clock)
    now = clock.now()

    def issue(expires_in_s: float = 600.0) -> str:
        return issue_token(key, settings.tokens, "benchmark", ["operator"], 600.0, now - 600.0 + expires_in_s)

    def each(made: Iterable[str]) -> _Call:
        following = iter(made)
        return lambda: authenticator.authenticate(next(following))

    count = (rounds + 1) * calls
    seen, over = issue(), issue(-60.0)
    forged = [f"{token[:-8]}AAAAAAAA" for token in (issue() for _ in range(count))]
    strangers = (
        issue_token(stranger, settings.tokens, "benchmark", ["operator"], 600.0, now) for _ in range(count)
    )  # fmt: skip
    accepted, expired = "a new token", "an expired token, refused"
    taken = in_turn({
        "a token that was seen before": lambda: authenticator.authenticate(seen),
        accepted: each([issue() for _ in range(count)]),
        expired: _refused(each([issue(-60.0) for _ in range(count)])),
        "an expired token that was seen before, refused": _refused(lambda: authenticator.authenticate(over)),
        "a token with another's signature, refused": _refused(each(forged)),
        "a token by a key that is not ours, refused": _refused(each(list(strangers))),
    }, rounds, calls)  # fmt: skip
    shares = [(refusal / yes - 1) * 100 for refusal, yes in zip(taken[expired], taken[accepted], strict=True)]
    dearer = Row(SECTION, "an expired token is dearer to refuse than a new one to accept by", "%", summarise(shares),
                 Target("at_most", 0.0))  # fmt: skip
    return [*_rows({f"authenticate: {name}": samples for name, samples in taken.items()}), dearer]


def decisions(settings: Settings, rounds: int, calls: int) -> list[Row]:
    """Authorize: what is remembered, and what the engine is asked for; with the default roles, and with bindings."""
    plain, bound = load_policy(settings.state_dir), _policy_with_bindings()
    numbers = itertools.count()

    def made(policy: Policy) -> Authorizer:
        return Authorizer({}, engine=RegoEngine(policy))

    remembering, deciding, binding = made(plain), made(plain), made(bound)

    def ask(authorizer: Authorizer, session: Session) -> _Call:
        def call() -> None:
            # A decision is remembered for its session: another one has to be decided.
            one = Session(f"s{next(numbers)}", session.principal, session.issuer, session.roles, 9e9)
            authorizer.authorize(one, "goal:submit", "fan_out")

        return call

    remembered = in_turn({
        "authorize: remembered, allowed": lambda: remembering.authorize(_OPERATOR, "goal:submit", "fan_out"),
        "authorize: remembered, denied": _refused(lambda: remembering.authorize(_NOBODY, "goal:submit", "fan_out")),
    }, rounds, calls)  # fmt: skip
    decided = in_turn({
        "authorize: decided by the default roles, allowed": ask(deciding, _OPERATOR),
        "authorize: decided by the default roles, denied": _refused(ask(deciding, _NOBODY)),
        "authorize: decided over 50 bindings, allowed by a role": ask(binding, _OPERATOR),
        "authorize: decided over 50 bindings, allowed by a binding": ask(binding, _BOUND),
        "authorize: decided over 50 bindings, denied": _refused(ask(binding, _NOBODY)),
    }, rounds, calls)  # fmt: skip
    return [*_rows(remembered, REMEMBERED_US_MAX), *_rows(decided, DECIDED_US_MAX)]


def _policy_with_bindings() -> Policy:
    """Return a policy that looks at everything: resources, tenants, hours, sources, groups and principals."""
    people: list[dict[str, Any]] = [
        {"role": "submitter", "principals": [f"person-{number}"]} for number in range(45)
    ]  # fmt: skip
    return parse_policy({
        "tenants": ["main", "acme"],
        "roles": {
            "operator": ["goal:*", "host:*"],
            "submitter": ["goal:submit fan_*", "goal:submit report"],
            "night": {"grants": ["goal:cancel"], "hours": ["22:00-06:00"], "sources": ["10.0.0.0/8"]},
        },
        "bindings": [
            *people,
            {"role": "night", "groups": ["watch"], "tenants": ["acme"]},
            {"role": "night", "principals": ["ops:*", "ci:*"]},
            {"role": "submitter", "principals": ["guest:*"], "tenants": ["acme"]},
            {"role": "night", "groups": ["engineering"]},
            {"role": "submitter", "principals": ["corp:*"]},
        ],
    })  # fmt: skip


def contexts(rounds: int, calls: int) -> list[Row]:
    """Seal the context of a goal, and open it where the goal runs: once for each goal."""
    seal = ContextSeal(b"k" * 32)
    numbers = itertools.count()
    headers = CallContext(_OPERATOR, Deadline(8e9)).to_headers()
    sealed = [seal.sealed(headers, f"goal-{number}") for number in range((rounds + 1) * calls)]
    return _rows(in_turn({
        "seal a context": lambda: seal.sealed(headers, "goal-0"),
        "open a context": lambda: seal.opened(sealed[number := next(numbers)], f"goal-{number}", 1.0),
        "open a context once more": lambda: seal.opened(sealed[0], "goal-0", 1.0),
    }, rounds, calls))  # fmt: skip


async def appends(settings: Settings, rounds: int) -> list[Row]:
    """Write records, each synced to disk before its caller goes on: many callers at once, and one alone."""
    auditor = _auditor(settings)
    wall: dict[int, list[float]] = {_AT_ONCE: [], 1: []}
    cpu: dict[int, list[float]] = {_AT_ONCE: [], 1: []}
    for number in range(rounds + 1):
        for count in wall:
            goals = [new_id("goal") for _ in range(count)]
            started, cpu_started = time.perf_counter(), time.process_time()
            entries = [auditor.entry(_OPERATOR, "goal:submit", "fan_out", goal=goal) for goal in goals]
            await asyncio.gather(*(auditor.append([entry]) for entry in entries))
            if number:
                wall[count].append((time.perf_counter() - started) / count * 1e6)
                cpu[count].append((time.process_time() - cpu_started) / count * 1e6)
    await auditor.close()
    many = f"a record written to disk, {_AT_ONCE} callers at once"
    return [
        Row(SECTION, many, "µs", summarise(wall[_AT_ONCE]), Target("at_most", APPEND_US_MAX)),
        Row(SECTION, f"{many}, CPU", "µs", summarise(cpu[_AT_ONCE])),
        Row(SECTION, "a record written to disk, one caller", "µs", summarise(wall[1])),
        Row(SECTION, "a record written to disk, one caller, CPU", "µs", summarise(cpu[1])),
    ]


async def requests(settings: Settings, rounds: int, calls: int) -> list[Row]:
    """The same requests through two front doors over one ledger: the real one, and one that lets everybody do all."""
    clock, ledger = SystemClock(), RayLedger(settings)
    made = [
        kind(open_audit_log(settings, "gateway"), settings.audit, clock, load_salt(settings), "gateway")
        for kind in (Auditor, NoAuditor)
    ]
    secured, opened = _front(settings, ledger, made[0]), _front(settings, ledger, made[1], is_open=True)
    key = load_or_create_issuer_key(settings.state_dir)
    token = issue_token(key, settings.tokens, "benchmark", ["operator"], 600.0, clock.now())
    late = issue_token(key, settings.tokens, "benchmark", ["operator"], 60.0, clock.now() - 600.0)
    body = b'{"type": "fan_out", "payload": {"text": "x", "tasks": 0}}'
    apps = [build_app(front, settings.runtime) for front in (secured, opened)]
    submits = [functools.partial(_request, app, "POST", "/v1/goals", token, body, 202) for app in apps]
    await submits[0]()
    path = f"/v1/goals/{(await ledger.goals(GoalQuery(limit=1)))[0].goal.id}"
    reads = [functools.partial(_request, app, "GET", path, token, b"", 200) for app in apps]
    # Nobody is told to wait here: another refusal than the one that is measured.
    patient = build_app(secured, settings.runtime, throttle=ThrottleSettings(
        name_failures_max=10**9, source_failures_max=10**9
    ))  # fmt: skip
    ways: dict[str, Callable[[], Awaitable[None]]] = {
        "a goal submitted": submits[0], "a goal submitted, open to all": submits[1],
        "a goal read": reads[0], "a goal read, open to all": reads[1],
        "a goal read with an expired token, refused": functools.partial(_request, patient, "GET", path, late, b"", 401),
    }  # fmt: skip
    medians: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            taken = []
            for _ in range(calls):
                started = time.perf_counter()
                await way()
                taken.append((time.perf_counter() - started) * 1e3)
            if number:
                medians[name].append(summarise(taken).p50)
    await secured.close()
    await opened.close()
    await ledger.close()
    added = [
        Row(SECTION, f"authenticate, authorize and audit add to {name}, p50", "ms",
            summarise(_differences(medians[name], medians[f"{name}, open to all"])), Target("at_most", ADDED_MS_MAX))
        for name in ("a goal submitted", "a goal read")
    ]  # fmt: skip
    return [*(Row(SECTION, f"{name}, p50", "ms", summarise(taken)) for name, taken in medians.items()), *added]


def _differences(more: Sequence[float], less: Sequence[float]) -> list[float]:
    return [one - other for one, other in zip(more, less, strict=True)]


async def _request(app: Any, method: str, path: str, token: str, body: bytes, status: int) -> None:
    """Call the application as its server does; anything but the answer that is expected ends the run."""
    headers = [(b"host", b"127.0.0.1"), (b"authorization", b"Bearer " + token.encode())]
    headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))] if body else []
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers,
        "client": ("127.0.0.1", 50_000), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    told: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            told.append(message["status"])

    await app(scope, receive, send)
    if told != [status]:
        raise RuntimeError(f"{method} {path} was answered {told}")


class _Unmoved:
    """Hosts that are told of goals and run none: what is measured is the door. Implements `Fleet`."""

    async def poke(self, goals: Sequence[Goal]) -> None:
        return None

    async def poke_cancel(self, record: GoalRecord, by: str) -> None:
        return None

    async def agents(self, limit: int, tenant: str = "") -> list[dict[str, Any]]:
        return []

    async def hosts(self) -> list[dict[str, Any]]:
        return []

    async def drain(self, target: str, is_undone: bool) -> list[str]:
        return []


class _OpenFront(FrontDoor):
    """Takes everybody for an operator."""

    async def identify(self, credential: str | None, shown: Any = None) -> Session:
        return _OPERATOR


@contextlib.contextmanager
def _ledger_process(settings: Settings) -> Iterator[None]:
    """Have the ledger and the audit log in a process of their own, as a fleet has them."""
    command = [sys.executable, "-m", "benchmarks.identity", str(settings.state_dir)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        if process.stdout is None or process.stdout.readline() != b"ready\n":
            raise RuntimeError("the ledger's process does not start")
        yield
    finally:
        process.communicate()  # It ends with its input.


async def serve_ledger(folder: Path) -> None:
    actor = LedgerActor(load(state_dir=folder))
    await actor._open_audit()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await actor.stop()


def _front(settings: Settings, ledger: RayLedger, auditor: Auditor, is_open: bool = False) -> FrontDoor:
    clock = SystemClock()
    return (_OpenFront if is_open else FrontDoor)(
        specs=Specs(fleet.app.agents, fleet.app.goals),
        ledger=ledger,
        fleet=_Unmoved(),
        authenticator=Authenticator.from_folder(settings.state_dir, settings.tokens, clock, settings.security),
        authorizer=(Anything if is_open else Authorizer).from_folder(settings.state_dir),
        clock=clock,
        settings=settings.goals,
        trace_folder=None,
        auditor=auditor,
        seal=fleet_seal(settings),
    )


def _auditor(settings: Settings) -> Auditor:
    log = here(functools.partial(open_audit_file, settings))
    return Auditor(log, settings.audit, SystemClock(), load_salt(settings), "gateway")


def _made(settings: Settings, name: str) -> Path:
    folder = settings.state_dir / name
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as ledger_runner:
        ledger_runner.run(serve_ledger(Path(sys.argv[1])))
