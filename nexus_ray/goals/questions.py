"""Questions to people: how one stands on record, who may answer it, and that the first answer stands.

Law: a question and its answer are entries of the goal's journal, so they outlive every process. An answer is given
by name, once; whoever comes later is told whose stands.
"""

import re
from dataclasses import dataclass
from typing import Any

import orjson

from nexus_ray.agents.schema import load_json
from nexus_ray.core.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)
from nexus_ray.core.identity import Session
from nexus_ray.ledger.goal import Entry, EntryKind, GoalRecord, Step
from nexus_ray.ledger.ports import Ledger, answer_key

TEXT_CHARACTERS_MAX = 4000  # A screen of text; what is to be read at length is linked to.
_KEY = re.compile(r"[A-Za-z0-9_.-]{1,100}\Z")
_NAME_CHARACTERS_MAX = 200


@dataclass(frozen=True, slots=True)
class Approval:
    """What a person answered; `at` is wall-clock seconds."""

    approved: bool
    by: str
    comment: str
    at: float


@dataclass(frozen=True, slots=True)
class Question:
    """A question as it stands on record.

    `to` is the role or the principal that may answer, or empty where everybody may who may answer at all; `until`
    and `since` are wall-clock seconds.
    """

    goal_id: str
    goal_type: str
    key: str
    text: str
    to: str
    since: float
    until: float


def question_key(key: str) -> str:
    """Return the step key under which a question is recorded.

    Raises:
        InvalidArgumentError: The key would not survive a URL.
    """
    if not _KEY.match(key):
        raise InvalidArgumentError(f"{key[:40]!r} is not a question's key: use 1 to 100 of A-Z, a-z, 0-9, _ . -")
    return f"question:{key}"


def asked_body(goal_type: str, key: str, text: str, to: str, until: float) -> bytes:
    """Return what the journal keeps of a question.

    Raises:
        InvalidArgumentError: The text is empty or too long, or `to` is no name.
    """
    if not text.strip() or len(text) > TEXT_CHARACTERS_MAX:
        raise InvalidArgumentError(f"a question has 1 to {TEXT_CHARACTERS_MAX} characters")
    if len(to) > _NAME_CHARACTERS_MAX or (to and not to.isprintable()):
        raise InvalidArgumentError(f"whom to ask is a role or a principal of up to {_NAME_CHARACTERS_MAX} characters")
    return orjson.dumps({"goal_type": goal_type, "key": key, "question": text, "to": to, "until": until})


def question_of(entry: Entry) -> Question:
    """Read back what `asked_body` wrote."""
    body = load_json(entry.body, "question")
    return Question(
        entry.goal_id, body["goal_type"], body["key"], body["question"], body["to"], entry.at, body["until"]
    )


EXPIRED_BODY = orjson.dumps({"expired": True})
"""What stands in the place of an answer when there was none in time; nobody can answer any more."""


def approval_of(entry: Entry) -> Approval | None:
    """Return an answer, or None where it came too late."""
    body: dict[str, Any] = load_json(entry.body, "answer")
    if body.get("expired"):
        return None
    return Approval(body["approved"], body["by"], body["comment"], entry.at)


async def answer_question(
    ledger: Ledger, record: GoalRecord, session: Session, key: str, approved: bool, comment: str, now: float
) -> tuple[Question, Approval]:
    """Record a person's answer; the same answer of the same person again is no second one.

    Raises:
        NotFoundError: The goal has asked no such question.
        PermissionDeniedError: Somebody else was asked.
        AlreadyExistsError: It was answered; the message says by whom.
        FailedPreconditionError: The goal has ended, or the time for an answer is over.
        InvalidArgumentError: The comment is too long.
    """
    goal_id = record.goal.id
    entry = await ledger.entry(goal_id, question_key(key))
    if entry is None or entry.kind is not EntryKind.ASKED:
        raise NotFoundError(f"goal {goal_id} asks no question {key!r}")
    question = question_of(entry)
    if question.to and question.to != session.principal and question.to not in session.roles:
        raise PermissionDeniedError("not allowed: somebody else is asked", action="goal:answer", reason="not_asked")
    if len(comment) > TEXT_CHARACTERS_MAX:
        raise InvalidArgumentError(f"a comment has at most {TEXT_CHARACTERS_MAX} characters")
    stands = await ledger.entry(goal_id, answer_key(entry.step_key))
    if stands is None:
        if now >= question.until:
            raise FailedPreconditionError(f"the time to answer question {key!r} of goal {goal_id} is over")
        body = orjson.dumps({"approved": approved, "by": session.principal, "comment": comment})
        step = Step(goal_id, answer_key(entry.step_key), now, body, kind=EntryKind.ANSWERED)
        if (await ledger.append("", [step]))[0]:
            return question, Approval(approved, session.principal, comment, now)
        stands = await ledger.entry(goal_id, answer_key(entry.step_key))
    if stands is None:
        raise FailedPreconditionError(f"goal {goal_id} has ended: nobody waits for an answer any more")
    answer = approval_of(stands)
    if answer is None:
        raise FailedPreconditionError(f"the time to answer question {key!r} of goal {goal_id} is over")
    if (answer.approved, answer.by, answer.comment) != (approved, session.principal, comment):
        said = "approved" if answer.approved else "not approved"
        raise AlreadyExistsError(f"question {key!r} was answered by {answer.by}: {said}", by=answer.by)
    return question, answer
