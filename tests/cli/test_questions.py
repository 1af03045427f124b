import json
from collections.abc import Callable

import pytest

from nexus_ray.cli.watch import Progress
from tests.cli.conftest import Fleet, as_json, as_problem
from tests.cli.support import nexus, printed

LIST = "GET /v1/questions"
ANSWER = "POST /v1/goals/goal-1/questions/main"
QUESTION = {
    "goal_id": "goal-1", "goal_type": "order", "key": "main", "question": "Ship\x1b[2J it?", "to": "finance",
    "since": "2026-01-31T12:00:00.000Z", "until": "2026-02-28T12:00:00.000Z",
}  # fmt: skip
STANDS = {"goal_id": "goal-1", "key": "main", "question": "Ship it?", "approved": True, "by": "me", "comment": "ok"}


@pytest.fixture(autouse=True)
def _up(is_up: Callable[..., None]) -> None:
    is_up()


def test_open_questions_are_listed_for_people_and_for_scripts(fleet: Fleet) -> None:
    fleet.on(LIST, as_json({"questions": [QUESTION], "next": None}))

    shown, listed = nexus("goal", "questions"), nexus("goal", "questions", "--json")

    assert shown.exit_code == 0
    assert "goal-1" in shown.stdout and "finance" in shown.stdout and "\x1b" not in shown.stdout
    assert printed(listed) == {"questions": [QUESTION]}


def test_where_nothing_is_asked_it_is_said(fleet: Fleet) -> None:
    fleet.on(LIST, as_json({"questions": [], "next": None}))

    result = nexus("goal", "questions")

    assert (result.exit_code, result.stdout) == (0, "")
    assert "nobody is asked" in result.stderr


@pytest.mark.parametrize(("option", "approved"), [("--yes", True), ("--no", False)])
def test_an_answer_is_sent_with_its_comment(fleet: Fleet, option: str, approved: bool) -> None:
    fleet.on(ANSWER, as_json({**STANDS, "approved": approved}))

    said = nexus("goal", "answer", "goal-1", option, "--comment", "ok")
    told = nexus("goal", "answer", "goal-1", "main", option, "--json")

    assert said.exit_code == 0
    assert said.stderr == f"{'approved' if approved else 'not approved'}: Ship it?\n"
    assert json.loads(fleet.requests[0][2]) == {"approved": approved, "comment": "ok"}
    assert printed(told)["by"] == "me"


def test_an_answer_without_a_yes_or_a_no_is_none(fleet: Fleet) -> None:
    result = nexus("goal", "answer", "goal-1")

    assert result.exit_code == 2 and "--yes or --no" in result.stderr
    assert fleet.requests == []


@pytest.mark.parametrize(
    ("code", "status", "exit_code"),
    [("already_exists", 409, 2), ("failed_precondition", 409, 2), ("not_found", 404, 2), ("permission_denied", 403, 3)],
)
def test_an_answer_that_is_refused_says_why(fleet: Fleet, code: str, status: int, exit_code: int) -> None:
    fleet.on(ANSWER, as_problem(code, "question 'main' was answered by ada: approved", status))

    result = nexus("goal", "answer", "goal-1", "--yes")

    assert result.exit_code == exit_code
    assert "answered by ada" in result.stderr and result.stdout == ""


def test_who_watches_a_goal_sees_what_is_asked_and_answered() -> None:
    progress = Progress()
    asked = {"key": "main", "to": "finance", "question": "Ship it?"}
    answers = [{"approved": True, "by": "ada"}, {"approved": False, "by": "bob"}, {"expired": True}]

    lines = [progress.step({"kind": "asked", "body": asked})]
    lines += [progress.step({"kind": "answered", "body": body}) for body in answers]

    assert lines == [
        "question main to finance: Ship it?", "approved by ada", "not approved by bob", "nobody answered in time",
    ]  # fmt: skip
    assert progress.step({"kind": "effect_begun", "body": {"effect": "charge"}}) is None
    assert progress.doing == "effect charge"
