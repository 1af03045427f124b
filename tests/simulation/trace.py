"""The story of a run, a line for each thing that happened: when, at which turn, in which process, what.

Law: a line holds nothing that could differ between two runs of a seed, such as an address in memory.
"""

from enum import Enum
from typing import Any

from nexus_ray.ledger.goal import Claim, Finish, Note, Release, RequestCancel, Step
from nexus_ray.ledger.machine import Accept, Append, Fence, NextEpoch

Line = tuple[Any, ...]


def text(line: Line) -> str:
    """Return one line: `(time, turn, process, what, details …)`."""
    at, turn, process, what, *details = line
    if what == "committed":
        seq, calls, answers = details
        told = "; ".join(_call(call, answer) for call, answer in zip(calls, answers, strict=True))
        return f"{at:9.6f} {turn:6} {process:<16} committed up to {seq}: {told}"
    if what in ("send", "take", "answer", "broken"):
        process = f"{process} {_ARROWS[what]} {details[0]}"
        details = details[1:]
        return f"{at:9.6f} {turn:6} {process:<36} {' '.join(_word(detail) for detail in details)}"
    return f"{at:9.6f} {turn:6} {process:<16} {what.upper()} {' '.join(_word(detail) for detail in details)}".rstrip()


_ARROWS = {"send": "->", "take": "<-", "answer": "<=", "broken": "!="}


def _word(detail: Any) -> str:
    match detail:
        case list():
            after = [f"{delay_s * 1000:.2f} ms" for delay_s in detail]
            return f"({', '.join(after)})" if after else "(lost)"
        case Enum():
            return str(detail.value)
        case float():
            return f"{detail:.3f}"
    return str(detail)


def _call(call: Any, answer: Any) -> str:
    if isinstance(answer, Exception):
        return f"{type(call).__name__} refused: {answer}"
    match call:
        case Accept(goals, holder):
            ids = [f"{goal.id} ({goal.type})" if new.is_new else f"{goal.id} = {new.goal_id}"
                   for goal, new in zip(goals, answer, strict=True)]  # fmt: skip
            return f"accept {', '.join(ids)}" + (f" for {holder}" if holder else "")
        case Append(writer, writes):
            done = [_write(write) + ("" if took else " (no)") for write, took in zip(writes, answer, strict=True)]
            return f"{writer or 'a client'}: {', '.join(done)}"
        case Fence(host):
            return f"fence {host}"
        case NextEpoch():
            return f"epoch {answer}"
    return str(call)


def _write(write: Any) -> str:
    match write:
        case Claim(goal_id):
            return f"claim {goal_id}"
        case Step(goal_id, step_key, _, body, state, kind):
            version = "" if state is None else f" with {state.agent} version {state.version}"
            return f"{kind.value} {goal_id} {step_key[:8]}{step_key[32:]}{version} {body[:60].decode()}"
        case Note(goal_id):
            return f"note {goal_id}"
        case Release(goal_id):
            return f"release {goal_id}"
        case Finish(goal_id, outcome):
            why = outcome.failure.message if outcome.failure else outcome.result.decode()
            return f"finish {goal_id} {outcome.status.value}: {why}"
        case RequestCancel(goal_id):
            return f"cancel {goal_id}"
    return str(write)
