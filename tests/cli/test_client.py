import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexus_ray.core.clock import ManualClock
from nexus_ray.core.errors import (
    CancelledByCallerError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    TaskFailedError,
    UnauthenticatedError,
    UnavailableError,
)
from nexus_ray.runtime.client import Connection, connect

from .conftest import Fleet, as_events, as_json, as_problem, goal

CREATED = "POST /v1/goals"
GOAL = "GET /v1/goals/goal-1"
EVENTS = "GET /v1/goals/goal-1/events"


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def connection(fleet: Fleet, pauses: list[float]) -> Iterator[Connection]:
    clock = ManualClock()

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        clock.advance(seconds)

    with Connection(fleet.url, "secret-token", pause=pause, clock=clock) as connection:
        yield connection


def event(seq: int, kind: str, **body: Any) -> dict[str, Any]:
    return {"seq": seq, "at": float(seq), "kind": kind, "body": body}


def test_a_submit_that_was_not_answered_is_repeated_under_the_same_key(fleet: Fleet, connection: Connection) -> None:
    fleet.on(CREATED, None, as_json(goal("accepted"), 202))

    handle = connection.submit("audit", {"n": 1})

    assert handle.id == "goal-1"
    first, second = fleet.asked(CREATED)
    assert first["Idempotency-Key"] == second["Idempotency-Key"]
    assert first["Authorization"] == "Bearer secret-token"
    assert json.loads(fleet.requests[0][2]) == {"type": "audit", "payload": {"n": 1}}


def test_not_now_is_repeated_after_the_time_that_the_fleet_asks_for(
    fleet: Fleet, connection: Connection, pauses: list[float]
) -> None:
    fleet.on("GET /v1/agents", as_problem("unavailable", "starting", 503, Retry_After="2"), as_json({"agents": []}))

    assert connection.agents() == []
    assert len(pauses) == 1 and 2.0 <= pauses[0] <= 2.5


def test_a_long_retry_after_is_cut_short(fleet: Fleet, connection: Connection, pauses: list[float]) -> None:
    fleet.on("GET /v1/agents", as_problem("unavailable", "starting", 503, Retry_After="3600"))

    with pytest.raises(UnavailableError, match="starting"):
        connection.agents()
    assert len(pauses) == 3 and max(pauses) <= 6.25


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("invalid_argument", 422, InvalidArgumentError),
        ("unauthenticated", 401, UnauthenticatedError),
        ("not_found", 404, NotFoundError),
        ("failed_precondition", 409, FailedPreconditionError),
    ],
)
def test_a_problem_is_raised_as_the_error_of_its_code_and_not_repeated(
    fleet: Fleet, connection: Connection, code: str, status: int, error: type[Exception]
) -> None:
    fleet.on(CREATED, as_problem(code, "what to do", status))

    with pytest.raises(error, match="what to do"):
        connection.submit("audit", {})
    assert len(fleet.requests) == 1


def test_an_answer_that_is_not_a_fleets_is_told_apart(fleet: Fleet, connection: Connection) -> None:
    fleet.on("GET /v1/agents", (200, {"Content-Type": "text/html"}, b"<html>"))

    with pytest.raises(UnavailableError, match="another service"):
        connection.agents()


def test_what_a_proxy_says_of_a_replica_that_died_is_no_answer_of_the_fleet(
    fleet: Fleet, connection: Connection
) -> None:
    lost = (500, {"Content-Type": "text/plain"}, b"Internal Server Error")
    fleet.on(CREATED, lost, as_json(goal("accepted"), 202))

    assert connection.submit("audit", {}).id == "goal-1"
    first, second = fleet.asked(CREATED)
    assert first["Idempotency-Key"] == second["Idempotency-Key"]


def test_a_cancel_that_a_proxy_lost_is_not_repeated_and_invites_to_look(fleet: Fleet, connection: Connection) -> None:
    fleet.on("GET /v1/goals/goal-1", as_json(goal("running")))
    fleet.on("POST /v1/goals/goal-1/cancel", (500, {"Content-Type": "text/plain"}, b"Internal Server Error"))

    with pytest.raises(UnavailableError):
        connection.goal("goal-1").cancel()
    assert len(fleet.asked("POST /v1/goals/goal-1/cancel")) == 1


def test_an_error_that_the_fleet_tells_of_itself_is_not_repeated(fleet: Fleet, connection: Connection) -> None:
    fleet.on(CREATED, as_problem("internal", "something went wrong", 500))

    with pytest.raises(InternalError):
        connection.submit("audit", {})
    assert len(fleet.asked(CREATED)) == 1


def test_events_go_on_where_the_stream_broke_and_none_comes_twice(fleet: Fleet, connection: Connection) -> None:
    first = as_events(event(3, "accepted"), event(5, "planned"), cut=b'id: 6\nevent: step\ndata: {"seq"')
    second = as_events(event(5, "planned"), event(6, "step", agent="reader/a"), event(9, "finished"))
    fleet.on(GOAL, as_json(goal("running")))
    fleet.on(EVENTS, first, second)

    events = list(connection.goal("goal-1").events())

    assert [(e["seq"], e["kind"]) for e in events] == [(3, "accepted"), (5, "planned"), (6, "step"), (9, "finished")]
    assert [headers.get("Last-Event-ID") for headers in fleet.asked(EVENTS)] == [None, "5"]


def test_events_after_the_end_are_none(fleet: Fleet, connection: Connection) -> None:
    fleet.on(GOAL, as_json(goal()))
    fleet.on(EVENTS, as_events())

    assert list(connection.goal("goal-1").events(after=9)) == []


def test_a_stream_that_never_brings_anything_is_given_up(
    fleet: Fleet, connection: Connection, pauses: list[float]
) -> None:
    fleet.on(GOAL, as_json(goal("running")))
    fleet.on(EVENTS, None)

    with pytest.raises(UnavailableError):
        list(connection.goal("goal-1").events())
    assert len(fleet.asked(EVENTS)) == 8
    assert sum(pauses) > 10


def test_a_front_door_that_was_there_before_is_waited_for(
    fleet: Fleet, connection: Connection, pauses: list[float]
) -> None:
    fleet.on(GOAL, as_json(goal("running")), *[None] * 6, as_json(goal(result=7)))

    assert connection.goal("goal-1").result() == 7
    assert 10 < sum(pauses) < 20


def test_one_that_was_never_there_is_given_up_soon(fleet: Fleet, connection: Connection, pauses: list[float]) -> None:
    fleet.on("GET /v1/agents", None)

    with pytest.raises(UnavailableError):
        connection.agents()
    assert len(fleet.asked("GET /v1/agents")) == 4


def test_a_refused_stream_is_a_problem(fleet: Fleet, connection: Connection) -> None:
    fleet.on(GOAL, as_json(goal("running")))
    fleet.on(EVENTS, as_problem("permission_denied", "not allowed", 403))

    with pytest.raises(Exception, match="not allowed"):
        list(connection.goal("goal-1").events())
    assert len(fleet.asked(EVENTS)) == 1


def test_a_result_is_waited_for(fleet: Fleet, connection: Connection) -> None:
    fleet.on(CREATED, as_json(goal("accepted"), 202))
    fleet.on(GOAL, as_json(goal("running")), as_json(goal(result={"ok": True})))

    assert connection.submit("audit", {}).result() == {"ok": True}


def test_a_wait_ends_in_time_and_the_goal_goes_on(fleet: Fleet, connection: Connection) -> None:
    fleet.on(GOAL, as_json(goal("running")))

    with pytest.raises(DeadlineExceededError, match="goes on"):
        connection.goal("goal-1").result(timeout_s=1.0)


@pytest.mark.parametrize(
    ("status", "failure", "error"),
    [
        ("failed", {"code": "unknown", "message": "boom", "error_type": "ValueError"}, TaskFailedError),
        ("failed", {"code": "invalid_argument", "message": "boom"}, InvalidArgumentError),
        ("failed", {"code": "from_the_future", "message": "boom"}, TaskFailedError),
        ("cancelled", {"code": "cancelled", "message": "boom"}, CancelledByCallerError),
        ("expired", {"code": "deadline_exceeded", "message": "boom"}, DeadlineExceededError),
    ],
)
def test_a_goal_without_a_result_raises_why(
    fleet: Fleet, connection: Connection, status: str, failure: dict[str, Any], error: type[Exception]
) -> None:
    fleet.on(GOAL, as_json(goal(status, failure=failure)))

    with pytest.raises(error, match="boom"):
        connection.goal("goal-1").result()


def test_a_cancel_whose_answer_was_lost_is_not_repeated(fleet: Fleet, connection: Connection) -> None:
    fleet.on(GOAL, as_json(goal("running")))
    fleet.on("POST /v1/goals/goal-1/cancel", None)

    with pytest.raises(UnavailableError):
        connection.goal("goal-1").cancel()
    assert len(fleet.asked("POST /v1/goals/goal-1/cancel")) == 1


def test_readiness_is_an_answer_even_when_it_is_no(fleet: Fleet, connection: Connection) -> None:
    fleet.on("GET /ready", as_json({"hosts": False, "ledger": True}, 503))

    assert connection.ready() == {"hosts": False, "ledger": True}


def test_the_state_folder_says_where_the_fleet_is(fleet: Fleet, is_up: Any) -> None:
    is_up()
    fleet.on("GET /v1/hosts", as_json({"hosts": []}))

    with connect() as connection:
        assert connection.hosts() == []
    assert fleet.asked("GET /v1/hosts")[0]["Authorization"] == "Bearer secret-token"


def test_without_a_fleet_the_error_says_how_to_start_one() -> None:
    with pytest.raises(UnavailableError, match="nexus up module:app"):
        connect()


def test_a_fleet_whose_process_is_gone_is_not_up(is_up: Any) -> None:
    is_up(pid=2**22 - 3)

    with pytest.raises(UnavailableError, match="nexus up"):
        connect()


def test_the_operators_token_is_not_sent_to_another_address(is_up: Any) -> None:
    is_up()

    with pytest.raises(UnauthenticatedError, match="NEXUS_TOKEN"):
        connect(url="https://fleet.example")


def test_a_token_is_not_sent_in_clear_beyond_this_machine() -> None:
    with pytest.raises(FailedPreconditionError, match="https"):
        connect(url="http://fleet.example", token="t")


def test_a_token_that_others_can_read_is_refused(state: Path, is_up: Any) -> None:
    is_up()
    (state / "token").chmod(0o644)

    with pytest.raises(FailedPreconditionError, match="chmod 600"):
        connect()


def test_a_damaged_fleet_file_is_told(state: Path) -> None:
    state.mkdir()
    (state / "fleet.json").write_text("{")

    with pytest.raises(FailedPreconditionError, match=r"fleet\.json"):
        connect()
