"""Routes for what goals ask of people: what is open, and the answer.

Law: as everywhere, a route parses, asks and answers. Nothing waits here: an answer is recorded, and the goal is told.
"""

from typing import Annotated, Any

import orjson
from fastapi import Depends, FastAPI, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from nexus_ray.api.gate import caller
from nexus_ray.api.openapi import answer, needs, refusals
from nexus_ray.api.schemas import GOAL_ID, instant
from nexus_ray.core.identity import Session
from nexus_ray.goals.questions import TEXT_CHARACTERS_MAX, Approval, Question
from nexus_ray.runtime.front import FrontDoor

_SEQ_MAX = 2**63 - 1  # What a ledger can count to.
_QUESTIONS_MAX = 1000  # Of 4 KiB at the most.
_AT = "2026-01-31T12:00:00.000Z"

Caller = Annotated[Session, Depends(caller)]


class Answer(BaseModel):
    """A person's answer to a question."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"approved": True, "comment": "fine"}]})

    approved: bool = Field(strict=True)
    comment: str = Field("", max_length=TEXT_CHARACTERS_MAX, description="Why; kept with the answer.")


class QuestionAnswer(BaseModel):
    """A question that a goal asks of a person."""

    goal_id: str
    goal_type: str
    key: str = Field(description="Names the question within its goal.")
    question: str
    to: str = Field(description="The role or the principal that may answer; empty: whoever may answer at all.")
    since: str = Field(description="RFC 3339, UTC.")
    until: str = Field(description="RFC 3339, UTC: then it is too late.")


class QuestionsAnswer(BaseModel):
    """Questions that nobody has answered, oldest first."""

    questions: list[QuestionAnswer]
    next: int | None = Field(description="The `after` of the page after; null on the last.")


class AnsweredAnswer(BaseModel):
    """The answer that stands."""

    goal_id: str
    key: str
    question: str
    approved: bool
    by: str
    comment: str
    at: str = Field(description="RFC 3339, UTC.")


_QUESTION = {
    "goal_id": GOAL_ID, "goal_type": "order", "key": "main", "question": "Ship 40 pumps to Bergen?", "to": "finance",
    "since": _AT, "until": "2026-02-28T12:00:00.000Z",
}  # fmt: skip
_ANSWERED = {
    "goal_id": GOAL_ID, "key": "main", "question": "Ship 40 pumps to Bergen?", "approved": True, "by": "ada",
    "comment": "fine", "at": _AT,
}  # fmt: skip


def question_routes(app: FastAPI, front: FrontDoor) -> None:
    """Add the routes."""

    @app.get(
        "/v1/questions",
        tags=["goals"],
        openapi_extra=needs("goal:read"),
        responses={
            200: answer(QuestionsAnswer, "A page.", {"questions": [_QUESTION], "next": 7}),
            **refusals(403, 422),
        },
    )
    async def questions(
        session: Caller,
        after: Annotated[int, Query(ge=0, le=_SEQ_MAX, description="`next` of the page before.")] = 0,
        limit: Annotated[int, Query(ge=1, le=_QUESTIONS_MAX)] = 50,
    ) -> Response:
        """List what goals ask of people and nobody has answered, oldest first."""
        found = await front.questions(session, after, limit)
        following = found[-1][0] if len(found) == limit else None
        return _json({"questions": [_question_json(question) for _, question in found], "next": following})

    @app.post(
        "/v1/goals/{goal_id}/questions/{key}",
        tags=["goals"],
        openapi_extra=needs("goal:answer"),
        responses={
            200: answer(AnsweredAnswer, "It stands; so does the same answer sent again.", _ANSWERED),
            **refusals(403, 404, 409, 422),
        },
    )
    async def answer_question(session: Caller, goal_id: str, key: str, given: Answer) -> Response:
        """Answer a question of a goal; the first answer stands."""
        question, stands = await front.answer(session, goal_id, key, given.approved, given.comment)
        return _json(_answered_json(question, stands))


def _question_json(question: Question) -> dict[str, Any]:
    return {
        "goal_id": question.goal_id,
        "goal_type": question.goal_type,
        "key": question.key,
        "question": question.text,
        "to": question.to,
        "since": instant(question.since),
        "until": instant(question.until),
    }


def _answered_json(question: Question, stands: Approval) -> dict[str, Any]:
    return {
        "goal_id": question.goal_id,
        "key": question.key,
        "question": question.text,
        "approved": stands.approved,
        "by": stands.by,
        "comment": stands.comment,
        "at": instant(stands.at),
    }


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
