"""What security, tracing and the ledger cost: the same load with one of them off.

Two real hosts in this one process, without Ray: what is left is what Nexus itself does, so the shares are upper bounds
of those on Ray. A share is of CPU time for each goal, which does not move with what else the machine does; the ledger
also costs waiting for the disk, so for it the share of the goals per second stands too. Nothing in the product can be
switched off like this: the variants are made here.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import fleet
from benchmarks.cluster import TASKS, check, measure, work
from benchmarks.sampling import Round, Row, Target, summarise
from nexus_ray.audit.auditor import Auditor
from nexus_ray.audit.record import Entry, Kind
from nexus_ray.config import Settings, load
from nexus_ray.core.clock import SystemClock
from nexus_ray.core.errors import UnavailableError
from nexus_ray.core.identity import Session
from nexus_ray.core.ids import new_id
from nexus_ray.ledger.memory import MemoryLedger
from nexus_ray.ledger.ports import Ledger
from nexus_ray.ledger.sqlite import SqliteLedger
from nexus_ray.runtime.audit_link import here, load_salt, open_audit_file
from nexus_ray.runtime.boot import configure_process
from nexus_ray.runtime.direct import DirectDoor
from nexus_ray.runtime.front import SubmitRequest
from nexus_ray.runtime.items import Item
from nexus_ray.runtime.placement import Member, Membership
from nexus_ray.runtime.process import HostProcess
from nexus_ray.runtime.state import prepare_state
from nexus_ray.security.authn import Authenticator
from nexus_ray.security.authz import Authorizer
from nexus_ray.security.keys import load_or_create_issuer_key
from nexus_ray.security.tokens import issue_token

SECTION = "parts"
_CONCURRENCY = 8
_TRACING_PERCENT_MAX = 5.0


@dataclass(frozen=True, slots=True)
class Variant:
    """What is on. `sampled_roots_per_s` and `sample_ratio` of None are the defaults."""

    name: str
    is_secured: bool = True
    is_durable: bool = True
    is_audited: bool = True
    sampled_roots_per_s: int | None = None
    sample_ratio: float | None = None


EVERYTHING = Variant("everything on")
NO_SECURITY = Variant("security off", is_secured=False)
NO_TRACES = Variant("tracing off", sampled_roots_per_s=0, sample_ratio=0.0)
RATIO_ONLY = Variant("1 % of traces and no more", sampled_roots_per_s=0)
NO_LEDGER = Variant("ledger off", is_durable=False)
NO_AUDIT = Variant("audit off", is_audited=False)
VARIANTS = (EVERYTHING, NO_SECURITY, NO_TRACES, RATIO_ONLY, NO_LEDGER, NO_AUDIT)


def run(folder: Path, is_quick: bool) -> list[Row]:
    # The loop that Ray gives its async actors, and so the hosts; it comes with `ray[serve]`.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_rounds(folder, is_quick))


async def _rounds(folder: Path, is_quick: bool) -> list[Row]:
    rounds, seconds = (2, 0.3) if is_quick else (12, 0.35)
    seen: dict[Variant, list[Round]] = {variant: [] for variant in VARIANTS}
    for number in range(rounds):
        for variant in VARIANTS:
            async with _hosts(folder / f"{new_id('round')}", variant) as one:
                await _warm(one)
                seen[variant].append(await measure(f"{variant.name}, round {number + 1}", one, _CONCURRENCY, seconds))
    return rows(seen)


async def _warm(one: "_Callers") -> None:
    for _ in range(_CONCURRENCY):
        await asyncio.gather(*(one(lane) for lane in range(_CONCURRENCY)))


def rows(seen: dict[Variant, list[Round]]) -> list[Row]:
    made = [
        Row(SECTION, f"{variant.name}, in one process", unit, summarise([getattr(one, name) for one in rounds]))
        for unit, name in (("goals/s", "rate"), ("CPU µs a goal", "cpu_us"))
        for variant, rounds in seen.items()
    ]

    def share(less: Variant, more: Variant, name: str, target: Target | None = None) -> Row:
        # Paired by rank, the least disturbed rounds with each other: two rounds of equal work differ by more, on a
        # machine that does other things too, than what is looked for here.
        ordered = [sorted(getattr(one, name) for one in seen[variant]) for variant in (more, less)]
        pairs = list(zip(*ordered, strict=True))
        if name == "cpu_us":
            percents = [(full / bare - 1) * 100 for full, bare in pairs]
        else:
            percents = [(1 - full / bare) * 100 for full, bare in pairs]
        what = {NO_SECURITY: "security", NO_TRACES: "tracing", NO_LEDGER: "the ledger", NO_AUDIT: "audit"}[less]
        title = f"{what} costs, in {'CPU' if name == 'cpu_us' else 'goals/s'}"
        if more is RATIO_ONLY:
            title += ", sampling 1 % and no more"
        return Row(SECTION, title, "%", summarise(percents), target)

    at_most = Target("at_most", _TRACING_PERCENT_MAX)
    return [
        *made,
        share(NO_SECURITY, EVERYTHING, "cpu_us"),
        share(NO_TRACES, EVERYTHING, "cpu_us", at_most),
        share(NO_TRACES, RATIO_ONLY, "cpu_us", at_most),
        share(NO_LEDGER, EVERYTHING, "cpu_us"),
        share(NO_LEDGER, EVERYTHING, "rate"),
        share(NO_AUDIT, EVERYTHING, "cpu_us"),
        share(NO_AUDIT, EVERYTHING, "rate"),
    ]


def _settings(folder: Path, variant: Variant) -> Settings:
    observe = {"sampled_roots_per_s": variant.sampled_roots_per_s, "sample_ratio": variant.sample_ratio}
    chosen = {name: value for name, value in observe.items() if value is not None}
    return load(state_dir=folder, observe=chosen)


class _Carrier:
    """Carries parcels as function calls. Implements `Carrier`."""

    def __init__(self) -> None:
        self.hosts: dict[str, HostProcess] = {}

    async def carry(self, member: Member, origin: str, epoch: int, items: Sequence[Item]) -> None:
        await asyncio.sleep(0)
        host = self.hosts.get(member.host)
        if host is None:
            raise UnavailableError(f"host {member.host} is gone")
        host.deliver(origin, epoch, items)


class _Everybody(Authenticator):
    """Takes everybody for an operator."""

    async def identify(self, credential: str | None, shown: Any = None) -> Session:
        return Session("none", "everybody", "none", ("operator",), 9e9)


class Anything(Authorizer):
    """Allows everything."""

    def authorize(self, session: Session, action: str, resource: str = "") -> None:
        return None


class NoAuditor(Auditor):
    """Writes nothing down."""

    def entry(self, *_: Any, **__: Any) -> Entry:
        return _NOTHING

    def outcome(self, *_: Any, **__: Any) -> Entry:
        return _NOTHING

    def note(self, entry: Entry) -> None:
        return None

    async def append(self, entries: Sequence[Entry]) -> list[int]:
        return []


_NOTHING = Entry("none", Kind.EVENT, 0.0, "none")


class _OpenDoor(DirectDoor):
    """A door that lets everybody in: for the benchmark only."""

    def __init__(self, process: HostProcess, settings: Settings, auditor: Auditor, authorizer: Authorizer) -> None:
        super().__init__(process, settings, auditor, authorizer)
        self._authenticator = _Everybody.from_folder(settings.state_dir, settings.tokens, process.clock)


class _Callers:
    """Callers that each have one goal under way, at one of the doors."""

    def __init__(self, doors: Sequence[DirectDoor], token: str) -> None:
        self._doors = doors
        self._token = token
        self._request = SubmitRequest("fan_out", work(), 120.0)

    async def __call__(self, lane: int) -> None:
        door = self._doors[lane % len(self._doors)]
        (answer,) = await door.exchange(f"lane-{lane}", self._token, [(1, self._request)], 60.0)
        if answer.outcome is None:
            raise RuntimeError(f"a goal was refused: {answer.error} {answer.message}")
        check(answer.outcome, TASKS)


@contextlib.asynccontextmanager
async def _hosts(folder: Path, variant: Variant) -> AsyncIterator[_Callers]:
    settings = _settings(folder, variant)
    prepare_state(settings)
    configure_process(settings, "parts")
    ledger: Ledger = (
        await SqliteLedger.open(folder / "ledger" / "ledger.sqlite", settings.ledger)
        if variant.is_durable
        else MemoryLedger(settings.ledger)
    )
    carrier = _Carrier()
    for name in ("host-0", "host-1"):
        carrier.hosts[name] = HostProcess(
            host=name, node="here", app=fleet.app, settings=settings, ledger=ledger, carrier=carrier
        )
        carrier.hosts[name].start()
    members = tuple(Member(name, "here", "") for name in carrier.hosts)
    make_door = DirectDoor if variant.is_secured else _OpenDoor
    make_auditor = Auditor if variant.is_audited else NoAuditor
    log = here(functools.partial(open_audit_file, settings))
    auditor = make_auditor(log, settings.audit, SystemClock(), load_salt(settings), "direct")
    authorizer = (Authorizer if variant.is_secured else Anything).from_folder(settings.state_dir)
    doors = [make_door(host, settings, auditor, authorizer) for host in carrier.hosts.values()]
    key = load_or_create_issuer_key(folder)
    token = issue_token(key, settings.tokens, "benchmark", ["operator"], 600.0, time.time())
    try:
        for host in carrier.hosts.values():
            host.set_membership(Membership(1, members))
        yield _Callers(doors, token)
    finally:
        for host in carrier.hosts.values():
            await host.close()
        await auditor.close()
        await ledger.close()
