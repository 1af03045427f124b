import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Answer, Fleet, as_events, as_json, as_problem, goal
from tests.cli.support import nexus, printed, start_nexus

CREATED = "POST /v1/goals"
GOAL = "GET /v1/goals/goal-1"
EVENTS = "GET /v1/goals/goal-1/events"
CANCEL = "POST /v1/goals/goal-1/cancel"
FAILURE = {"code": "unknown", "message": "boom", "agent": "reader/a", "attempts": 3}


def event(seq: int, kind: str, **body: Any) -> dict[str, Any]:
    return {"seq": seq, "at": float(seq), "kind": kind, "body": body}


@pytest.fixture(autouse=True)
def _up(is_up: Callable[..., None]) -> None:
    is_up()


def test_a_submitted_goal_prints_its_id_alone_on_stdout(fleet: Fleet) -> None:
    fleet.on(CREATED, as_json(goal("accepted"), 202))

    result = nexus("goal", "submit", "audit", '{"n": 1}', "--timeout", "30", "--key", "k1")

    assert (result.exit_code, result.stdout) == (0, "goal-1\n")
    assert "nexus goal watch goal-1" in result.stderr
    assert json.loads(fleet.requests[0][2]) == {"type": "audit", "payload": {"n": 1}, "timeout_s": 30.0}
    assert fleet.asked(CREATED)[0]["Idempotency-Key"] == "k1"


def test_a_payload_may_come_from_a_file_or_from_stdin(fleet: Fleet, tmp_path: Path) -> None:
    fleet.on(CREATED, as_json(goal("accepted"), 202))
    file = tmp_path / "payload.json"
    file.write_text('{"from": "file"}')

    assert nexus("goal", "submit", "audit", f"@{file}").exit_code == 0
    assert nexus("goal", "submit", "audit", "-", stdin='{"from": "stdin"}').exit_code == 0
    assert nexus("goal", "submit", "audit").exit_code == 0

    sent = [json.loads(body)["payload"] for _, _, body in fleet.requests]
    assert sent == [{"from": "file"}, {"from": "stdin"}, {}]


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        ("{paths: []}", "quote it for the shell"),
        ("{'a': 1}", "quote it for the shell"),
        ("", "quote it for the shell"),
        ("NaN", "NaN is not a JSON number"),
        ("[" * 100_000, "not JSON"),
        ("@nowhere.json", "cannot read nowhere.json"),
        ("@", "cannot read"),
        ("@/", "directory"),
    ],
)
def test_a_payload_that_cannot_be_read_is_refused_before_anything_is_sent(
    fleet: Fleet, payload: str, told: str
) -> None:
    result = nexus("goal", "submit", "audit", payload)

    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert told.lower() in result.stderr.lower()
    assert fleet.requests == []


def test_a_payload_that_is_not_text_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")

    result = nexus("goal", "submit", "audit", f"@{tmp_path / 'binary'}")

    assert (result.exit_code, fleet.requests) == (2, [])
    assert "not UTF-8" in result.stderr


@pytest.mark.parametrize(
    ("status", "code"), [("succeeded", 0), ("failed", 1), ("cancelled", 5), ("expired", 5), ("running", 0)]
)
def test_how_a_goal_ended_is_the_exit_code_of_whoever_waited(fleet: Fleet, status: str, code: int) -> None:
    fields = {"result": 42} if status == "succeeded" else {} if status == "running" else {"failure": FAILURE}
    fleet.on(CREATED, as_json(goal(status, **fields), 202))
    fleet.on(GOAL, as_json(goal(status, **fields)))

    plain = nexus("goal", "submit", "audit", "--wait", "0.01")
    as_record = nexus("goal", "submit", "audit", "--wait", "0.01", "--json")

    assert (plain.exit_code, as_record.exit_code) == (code, code)
    assert plain.stdout == ("42\n" if status == "succeeded" else "")
    assert printed(as_record)["status"] == status
    if code:
        assert f"goal-1 {status}: boom" in plain.stderr


@pytest.mark.parametrize(("status", "code"), [("succeeded", 0), ("failed", 1), ("cancelled", 5), ("expired", 5)])
@pytest.mark.parametrize("verb", [("watch", "goal-1"), ("submit", "audit", "--watch")])
def test_a_watched_goal_tells_its_progress_on_stderr_and_its_result_on_stdout(
    fleet: Fleet, verb: tuple[str, ...], status: str, code: int
) -> None:
    fields = {"result": {"ok": True}} if status == "succeeded" else {"failure": FAILURE}
    fleet.on(CREATED, as_json(goal("accepted"), 202))
    ended = as_json(goal(status, **fields))
    fleet.on(GOAL, *([ended] if "submit" in verb else [as_json(goal("running")), ended]))
    fleet.on(
        EVENTS,
        as_events(
            event(1, "accepted"), event(2, "step", agent="reader/a", failure={"message": "torn"}),
            event(3, "finished", status=status),
        ),
    )  # fmt: skip

    result = nexus("goal", *verb)

    assert result.exit_code == code
    assert result.stdout == ('{\n  "ok": true\n}\n' if code == 0 else "")
    assert "failed: reader/a: torn" in result.stderr


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (as_problem("invalid_argument", "no", 422), 2),
        (as_problem("not_found", "no", 404), 2),
        (as_problem("already_exists", "no", 409), 2),
        (as_problem("unauthenticated", "authentication failed", 401), 3),
        (as_problem("permission_denied", "not allowed", 403), 3),
        (as_problem("resource_exhausted", "no", 429), 4),
        (as_problem("internal", "no", 500), 1),
        (as_json({"not": "a goal"}, 418), 1),
    ],
)
def test_a_refusal_is_one_line_and_the_exit_code_of_its_kind(fleet: Fleet, answer: Answer, code: int) -> None:
    fleet.on(CREATED, answer)

    result = nexus("goal", "submit", "audit")

    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert ("nexus token create" in result.stderr) == (code == 3)


def test_the_fields_that_are_wrong_are_named(fleet: Fleet) -> None:
    status, headers, body = as_problem("invalid_argument", "the payload does not fit", 422)
    problem = {**json.loads(body), "errors": [{"field": "paths.0", "problem": "not a text"}]}
    fleet.on(CREATED, (status, headers, json.dumps(problem).encode()))

    assert "paths.0 not a text" in nexus("goal", "submit", "audit").stderr


@pytest.mark.parametrize("verb", ["show", "watch", "cancel"])
def test_an_unknown_goal_is_wrong_input_to_every_verb(fleet: Fleet, verb: str) -> None:
    fleet.on("GET /v1/goals/goal-0", as_problem("not_found", "there is no goal 'goal-0'", 404))

    result = nexus("goal", verb, "goal-0")

    assert (result.exit_code, result.stdout) == (2, "")
    assert "there is no goal 'goal-0'" in result.stderr


def test_goals_are_listed_for_people_and_for_scripts(fleet: Fleet) -> None:
    fleet.on("GET /v1/goals", as_json({"goals": [goal(), goal("failed", id="goal-2")]}))

    people = nexus("goal", "list", "--status", "failed", "--type", "audit", "--limit", "5")
    script = nexus("goal", "list", "--json")

    assert (people.exit_code, script.exit_code) == (0, 0)
    assert "goal-1" in people.stdout and "goal-2" in people.stdout
    assert [row["id"] for row in printed(script)["goals"]] == ["goal-1", "goal-2"]


def test_no_goals_are_no_failure(fleet: Fleet) -> None:
    fleet.on("GET /v1/goals", as_json({"goals": []}))

    assert (nexus("goal", "list").exit_code, nexus("goal", "list").stdout) == (0, "")
    assert printed(nexus("goal", "list", "--json")) == {"goals": []}


@pytest.mark.parametrize("arguments", [("--status", "lost"), ("--limit", "0"), ("--limit", "201"), ("--limit", "x")])
def test_a_list_of_something_that_there_is_not_is_refused(fleet: Fleet, arguments: tuple[str, str]) -> None:
    result = nexus("goal", "list", *arguments)

    assert (result.exit_code, fleet.requests) == (2, [])


def test_a_cancel_says_so_and_a_late_one_is_refused(fleet: Fleet) -> None:
    fleet.on(GOAL, as_json(goal("running")))
    fleet.on(CANCEL, as_json(goal("running"), 202), as_json(goal("running"), 202), as_problem(
        "failed_precondition", "goal goal-1 has ended: succeeded", 409))  # fmt: skip

    first = nexus("goal", "cancel", "goal-1")
    second = nexus("goal", "cancel", "goal-1", "--json")
    late = nexus("goal", "cancel", "goal-1")

    assert (first.exit_code, first.stderr) == (0, "cancelling goal-1\n")
    assert printed(second)["id"] == "goal-1"
    assert (late.exit_code, late.stderr) == (2, "error: goal goal-1 has ended: succeeded\n")


def test_a_goal_is_shown_with_what_it_failed_of_and_its_spans(fleet: Fleet) -> None:
    span = {"trace_id": "t", "span_id": "a", "parent_id": "", "name": "goal.submit", "started_at": 1.0, "ended_at": 2.0,
            "status": "ok", "attributes": {}}  # fmt: skip
    fleet.on(GOAL, as_json(goal("failed", failure=FAILURE)))
    fleet.on(f"{GOAL}/trace", as_json({"spans": [span, {**span, "span_id": "b", "parent_id": "a", "name": "task"}]}))

    people = nexus("goal", "show", "goal-1", "--trace")
    script = nexus("goal", "show", "goal-1", "--trace", "--json")

    assert "boom (agent reader/a, attempts 3)" in people.stdout.replace("\n", " ")
    assert "goal.submit" in people.stdout and "task" in people.stdout
    assert [row["name"] for row in printed(script)["spans"]] == ["goal.submit", "task"]
    assert "spans" not in printed(nexus("goal", "show", "goal-1", "--json"))


BELLS = "\x1b[2J\x9b2J\x07\u202e\x7f\x85"


@pytest.mark.parametrize(
    "arguments", [("show", "goal-1"), ("show", "goal-1", "--json"), ("watch", "goal-1"), ("list",)]
)
@pytest.mark.parametrize("status", ["succeeded", "failed"])
def test_what_comes_from_elsewhere_is_never_obeyed_by_the_terminal(
    fleet: Fleet, arguments: tuple[str, ...], status: str
) -> None:
    odd = goal(status, result=BELLS, type=BELLS, principal=f"[bold]{BELLS}", failure={"message": BELLS, "code": "x"})
    fleet.on(GOAL, as_json(odd))
    fleet.on("GET /v1/goals", as_json({"goals": [odd]}))
    fleet.on(EVENTS, as_events(event(1, "note", text=BELLS), event(2, "finished", status=status)))

    result = nexus("goal", *arguments)

    shown = result.stdout + result.stderr
    assert not set(BELLS) - set("[2J") & set(shown)
    if "--json" in arguments:
        assert printed(result)["principal"] == f"[bold]{BELLS}"


def until(is_true: Callable[[], object], seconds: float = 30.0) -> None:
    ends_at = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < ends_at, "in vain"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("verb", "is_cancelled"), [(("submit", "audit", "--watch"), True), (("watch", "goal-1"), False)]
)
def test_ctrl_c_ends_the_watch_and_cancels_only_what_it_began(
    fleet: Fleet, verb: tuple[str, ...], is_cancelled: bool
) -> None:
    status, headers, body = as_events(event(1, "accepted"))
    fleet.on(CREATED, as_json(goal("accepted"), 202))
    fleet.on(GOAL, as_json(goal("running")))
    fleet.on(EVENTS, (status, {**headers, "Hold": "1"}, body))
    fleet.on(CANCEL, as_json(goal("running"), 202))
    process = start_nexus("goal", *verb)
    until(lambda: fleet.asked(EVENTS))

    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)

    assert (process.returncode, stdout) == (130, "")
    assert "Traceback" not in stderr
    assert len(fleet.asked(CANCEL)) == int(is_cancelled)
    assert ("cancelled goal-1" if is_cancelled else "the goal goes on") in stderr


def test_the_tokens_of_the_environment_come_before_the_state_folder(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.on("GET /v1/goals", as_json({"goals": []}))
    monkeypatch.setenv("NEXUS_TOKEN", "mine")

    nexus("goal", "list")

    assert fleet.asked("GET /v1/goals")[0]["Authorization"] == "Bearer mine"


def test_without_a_fleet_every_verb_says_how_to_start_one(state: Path) -> None:
    os.unlink(state / "fleet.json")

    for verb in (("submit", "audit"), ("list",), ("show", "goal-1"), ("watch", "goal-1"), ("cancel", "goal-1")):
        result = nexus("goal", *verb)
        assert (result.exit_code, result.stdout) == (4, "")
        assert "nexus up module:app" in result.stderr
