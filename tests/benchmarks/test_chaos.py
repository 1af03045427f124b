"""The chaos run's own judgement: an account that could not find a loss would find none."""

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest

from benchmarks.chaos.__main__ import parse
from benchmarks.chaos.account import Account, Evidence, settle
from benchmarks.chaos.load import Accepted
from benchmarks.chaos.processes import Processes
from benchmarks.chaos.schedule import KILL, KINDS, PAUSE, Blow, schedule


def record(tag: str, status: str = "succeeded", result: Any = None) -> dict[str, Any]:
    return {"status": status, "payload": {"tag": tag}, "result": result}


def step(agent: str, key: str, value: Any) -> dict[str, Any]:
    return {"kind": "step", "step": key, "body": {"agent": agent, "value": value}}


FINISHED = {"kind": "finished", "body": {}}
COUNTED = [step("chaos_counter/a", "s1", 1), step("chaos_counter/a", "s2", 2), FINISHED]
DONE = [step("chaos_noter/0", "n1", "g2/n1"), step("chaos_payer/0", "p1", "paid"), FINISHED]

GOOD = Evidence(
    accepted=[Accepted("t1", "g1", "chaos_count"), Accepted("t2", "g2", "chaos_note")],
    told={"g1": record("t1", result=[1, 2])},
    records={"g1": record("t1", result=[1, 2]), "g2": record("t2")},
    journals={"g1": COUNTED, "g2": DONE},
    states={"a": 2, "never-asked": 0},
    noted=["g2/n1"],
    paid=["g2/p1!pay"],
)


def count(account: Account) -> tuple[int, int, int]:
    lost, doubled = account.lost + account.counts_lost, account.doubled + account.counts_doubled
    assert account.is_clean == (not lost + doubled + account.stuck)
    return len(lost), len(doubled), len(account.stuck)


def test_where_all_agrees_nothing_is_held_against_a_run() -> None:
    account = settle(GOOD)

    assert account.is_clean and count(account) == (0, 0, 0)
    assert (account.accepted, account.steps, account.effects, account.ended) == (2, 4, 2, {"succeeded": 2})


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"records": {"g2": record("t2")}}, (2, 0, 0)),  # Accepted and gone, and what a client was told of it as well.
        ({"told": {"g1": record("t1", result=[7])}}, (1, 0, 0)),
        ({"records": {**GOOD.records, "g3": record("t1")}}, (0, 1, 0)),
        ({"records": {**GOOD.records, "g2": record("t2", "running")}}, (0, 0, 1)),
        ({"journals": {**GOOD.journals, "g2": [*DONE, FINISHED]}}, (0, 1, 0)),
        ({"journals": {**GOOD.journals, "g1": [*COUNTED, COUNTED[0]]}}, (1, 1, 0)),
        ({"journals": {**GOOD.journals, "g1": [COUNTED[0], step("chaos_counter/a", "s2", 1)]}}, (1, 1, 0)),
        ({"states": {"a": 1}}, (1, 0, 0)),
        ({"states": {"a": 3}}, (0, 1, 0)),
        ({"noted": []}, (1, 0, 0)),
        ({"noted": ["g2/n1", "g2/other"]}, (0, 1, 0)),
        ({"paid": []}, (1, 0, 0)),
        ({"paid": ["g2/p1!pay"] * 2}, (0, 1, 0)),
        ({"paid": ["g2/p1!pay", "g2/p2!pay"]}, (0, 1, 0)),
    ],
)
def test_each_loss_and_each_doubling_is_found(change: dict[str, Any], found: tuple[int, int, int]) -> None:
    assert count(settle(replace(GOOD, **change))) == found


def test_what_an_agent_does_by_itself_may_happen_again_under_the_same_key_and_is_told() -> None:
    account = settle(replace(GOOD, noted=["g2/n1", "g2/n1"]))

    assert account.is_clean and account.repeated == 1


def test_an_effect_that_is_called_unknown_was_done_once_or_not_at_all() -> None:
    journals = {**GOOD.journals, "g2": [DONE[0], step("chaos_payer/0", "p1", "unknown")]}

    for paid in ([], ["g2/p1!pay"]):
        account = settle(replace(GOOD, journals=journals, paid=paid))
        assert account.is_clean and account.unknown == 1


def test_a_seed_gives_the_same_schedule_again_and_strikes_every_kind() -> None:
    blows = schedule(7, 25, 1.0)

    assert blows == schedule(7, 25, 1.0) != schedule(8, 25, 1.0)
    assert {blow.kind for blow in blows[: len(KINDS)]} == set(KINDS)
    assert all((blow.pause_s > 0) == (blow.act == PAUSE) and 0.3 <= blow.after_s <= 1.7 for blow in blows)
    assert all(0 <= blow.choose(2) <= 1 and blow.choose(1) == 0 for blow in blows)


SLEEP = ["sleep", "61.5"]


@pytest.fixture
def parent() -> Iterator["subprocess.Popen[bytes]"]:
    """A process with one child that sleeps."""
    process = subprocess.Popen(["sh", "-c", " ".join([*SLEEP, "& wait"])])
    yield process
    for child in psutil.Process(process.pid).children():
        child.kill()
    process.kill()
    process.wait()


def until(what: Callable[[], Any]) -> Any:
    ends_at = time.monotonic() + 10
    while not (found := what()):
        assert time.monotonic() < ends_at
        time.sleep(0.01)
    return found


def test_only_what_the_root_has_started_is_struck(parent: "subprocess.Popen[bytes]") -> None:
    stranger = subprocess.Popen(SLEEP)
    try:
        processes = Processes(parent.pid, {"sleeper": " ".join(SLEEP)})
        (child,) = until(lambda: processes.of("sleeper"))

        struck = processes.strike(Blow(0.0, "sleeper", 0.99, KILL))

        child.wait(10)
        assert struck == child.pid != stranger.pid and stranger.poll() is None
        assert processes.of("sleeper") == []
    finally:
        stranger.kill()
        stranger.wait()


def test_what_is_paused_goes_on_at_the_end(parent: "subprocess.Popen[bytes]") -> None:
    processes = Processes(parent.pid, {"sleeper": " ".join(SLEEP)})
    (child,) = until(lambda: processes.of("sleeper"))

    processes.strike(Blow(0.0, "sleeper", 0.0, PAUSE, pause_s=60.0))
    until(lambda: child.status() == psutil.STATUS_STOPPED)

    processes.close()
    until(lambda: child.status() != psutil.STATUS_STOPPED)


def test_nobody_of_a_kind_is_not_there_to_be_struck(parent: "subprocess.Popen[bytes]") -> None:
    processes = Processes(parent.pid, {"sleeper": "no such process"}, back_s_max=0.2)

    assert processes.strike(Blow(0.0, "sleeper", 0.0, KILL)) is None


@pytest.mark.parametrize(
    "arguments",
    [["--kills", "0"], ["--every", "0"], ["--against", "nobody"], ["--alone"],
     ["--alone", "--against", "raw-ray", "--write-readme"]],
)  # fmt: skip
def test_what_makes_no_run_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)


def test_a_run_may_be_replayed_against_others() -> None:
    options = parse(["--kills", "1000", "--seed", "7", "--against", "raw-ray,langgraph"])

    assert (options.kills, options.seed, options.against) == (1000, 7, ["raw-ray", "langgraph"])
