"""The same schedule against another system, as far as it has such parts; judged by the same account.

A job asks six of eight agents, each of which counts and leaves a line outside, as Nexus' counters and noters do.
"""

import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.chaos.account import Account, Evidence, settle
from benchmarks.chaos.agents import COUNTER, NOTER
from benchmarks.chaos.load import Accepted
from benchmarks.chaos.probe import Recovery
from benchmarks.chaos.processes import Processes
from benchmarks.chaos.schedule import Blow
from benchmarks.chaos.torment import Result, Tell
from benchmarks.chaos.witness import lines

AGENTS = 8
_WIDTH = 6
_CLIENTS = 6
_JOB_S_MAX = 90.0
_WARM_JOBS = 5


class LostError(RuntimeError):
    """A job came to nothing; the message says why."""


class Peer(Protocol):
    """Another system that is up. Its methods are called from several threads."""

    name: str
    titles: Mapping[str, str]  # The kinds of processes that it has, and how their command lines begin.

    def begin(self, tag: str, keys: Sequence[int]) -> None:
        """Return when the job has been taken; raises LostError where it has not."""
        ...

    def end(self, tag: str, within_s: float) -> list[tuple[int, int]]:
        """Return what each agent that was asked stood at; raises LostError, or TimeoutError where it goes on."""
        ...

    def states(self) -> dict[int, int]:
        """Return what each agent stands at."""
        ...


@dataclass(slots=True)
class _Seen:
    """What the clients saw; appended to by their threads."""

    accepted: list[Accepted] = field(default_factory=list)
    answers: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    undisturbed_s: list[float] = field(default_factory=list)


def contest(peer: Peer, blows: Sequence[Blow], traces: Path, *, seed: int, pace_s: float, tell: Tell) -> Result:
    """Strike what the other system has, and account for every job."""
    seen, is_over, started = _Seen(), threading.Event(), time.monotonic()
    for number in range(_WARM_JOBS + 1):
        began_at = time.monotonic()
        _job(peer, seen, f"warm{number}", range(AGENTS))
        seen.undisturbed_s.append(time.monotonic() - began_at)
    del seen.undisturbed_s[0]
    clients = [
        threading.Thread(target=_client, args=(peer, seen, is_over, number, seed, pace_s), daemon=True)
        for number in range(_CLIENTS)
    ]
    for client in clients:
        client.start()
    result = Result(peer.name, seed, Account(), undisturbed_s=seen.undisturbed_s)
    probes = _strike_all(peer, blows, seen, result, tell, started)
    is_over.set()
    tell("no more blows: waiting for what is under way", result.blows, len(seen.accepted))
    for thread in (*probes, *clients):
        thread.join(_JOB_S_MAX + 30.0)
    result.recoveries = seen.recoveries
    result.account = settle(_evidence(peer, seen, traces))
    result.account.steps //= 2  # Each was told as two.
    result.account.lost += seen.lost
    result.account.stuck += seen.stuck
    result.seconds = time.monotonic() - started
    return result


def _strike_all(
    peer: Peer, blows: Sequence[Blow], seen: _Seen, result: Result, tell: Tell, started: float
) -> list[threading.Thread]:
    processes, probes = Processes(os.getpid(), peer.titles), []
    try:
        for number, blow in enumerate(blows):
            time.sleep(blow.after_s)
            if blow.kind in peer.titles and processes.strike(blow) is not None:
                result.struck = dict(Counter(result.struck) + Counter([f"{blow.kind}, {blow.act}"]))
                recovery = Recovery(blow.kind, str(blow), round(time.monotonic() - started, 3))
                seen.recoveries.append(recovery)
                probes.append(threading.Thread(target=_probe, args=(peer, seen, number, recovery), daemon=True))
                probes[-1].start()
            tell(str(blow), number + 1, len(seen.accepted))
    except KeyboardInterrupt:
        result.is_whole = False
    finally:
        processes.close()
    return probes


def _client(peer: Peer, seen: _Seen, is_over: threading.Event, number: int, seed: int, pace_s: float) -> None:
    draw, count = random.Random(f"{seed}/{number}"), 0
    while not is_over.is_set():
        count += 1
        _job(peer, seen, f"{number}-{count}", draw.sample(range(AGENTS), _WIDTH))
        is_over.wait(draw.uniform(0.5, 1.5) * pace_s)


def _probe(peer: Peer, seen: _Seen, number: int, recovery: Recovery) -> None:
    began_at = time.monotonic()
    if _job(peer, seen, f"probe{number}", range(AGENTS)):
        recovery.took_s = time.monotonic() - began_at


def _job(peer: Peer, seen: _Seen, tag: str, keys: Sequence[int]) -> bool:
    try:
        peer.begin(tag, keys)
        seen.accepted.append(Accepted(tag, tag, "job"))
        seen.answers[tag] = peer.end(tag, _JOB_S_MAX)
    except LostError as error:
        seen.lost.append(f"{tag}: {error}")
    except TimeoutError:
        seen.stuck.append(f"{tag}: not ended after {_JOB_S_MAX:g} s")
    else:
        return True
    return False


def _evidence(peer: Peer, seen: _Seen, traces: Path) -> Evidence:
    """Say it in Nexus' words: each answer is a step of a counter, and of a noter."""
    journals = {tag: [_step(tag, COUNTER, key, n) for key, n in answers] for tag, answers in seen.answers.items()}
    for tag, answers in seen.answers.items():
        journals[tag] += [_step(tag, NOTER, key, None) for key, _ in answers]
    records = {goal.id: {"status": "succeeded", "payload": {"tag": goal.tag}} for goal in seen.accepted}
    states: dict[int, int] = {}
    with contextlib.suppress(LostError):
        states = peer.states()
    return Evidence(
        accepted=seen.accepted, told={}, records=records, journals=journals,
        states={str(key): n for key, n in states.items()}, noted=lines(traces / "noted"), paid=[],
    )  # fmt: skip


def trace_key(tag: str, key: int) -> str:
    return f"{tag}/{NOTER}-{key}"


def _step(tag: str, agent: str, key: int, value: Any) -> dict[str, Any]:
    return {"kind": "step", "step": f"{agent}-{key}", "body": {"agent": f"{agent}/{key}", "value": value}}
