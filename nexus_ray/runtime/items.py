"""What a parcel holds, and how it crosses: orders, answers, and word that nobody waits, or that a goal has ended.

Law: what comes out at the other end equals what went in. A parcel crosses as plain tuples: an object, and each object
in it again, takes pickle twice as long as what it holds.
"""

from typing import Any, NamedTuple

from nexus_ray.agents.task import TaskOrder, TaskResult
from nexus_ray.core.identity import AgentId
from nexus_ray.runtime.wire import register, register_plain

_REQUEST_FIELDS = 9  # As they are packed; an answer has one less.


class Request(NamedTuple):
    """Please run this; answer to `number`."""

    number: int
    order: TaskOrder


class Reply(NamedTuple):
    """The answer to `number`: a result, or why there is none (`code` and `message`)."""

    number: int
    result: TaskResult | None
    code: str = ""
    message: str = ""


class Cancel(NamedTuple):
    """Nobody waits for `number` any more."""

    number: int


class Forget(NamedTuple):
    """This goal has ended: its own agents may go."""

    goal_id: str


Item = Request | Reply | Cancel | Forget


class Parcel(list[Item]):
    """What goes to one host in one call."""


def _pack(parcel: Parcel) -> list[Any]:
    packed: list[Any] = []
    for item in parcel:
        if type(item) is Request:
            number, (goal_id, step_key, (agent_type, key), payload, headers, deadline_at, private) = item
            packed.append((number, goal_id, step_key, agent_type, key, payload, headers, deadline_at, private))
        elif type(item) is Reply and item.result is not None:
            packed.append((item.number, *item.result))
        else:
            packed.append(item)
    return packed


def _unpack(packed: list[Any]) -> list[Item]:
    new = tuple.__new__  # A third of what the constructor of a named tuple takes.
    items: list[Item] = []
    for one in packed:
        if type(one) is not tuple:
            items.append(one)
        elif len(one) == _REQUEST_FIELDS:
            number, goal_id, step_key, agent_type, key, *rest = one
            order = new(TaskOrder, (goal_id, step_key, new(AgentId, (agent_type, key)), *rest))
            items.append(new(Request, (number, order)))
        else:
            items.append(new(Reply, (one[0], new(TaskResult, one[1:]), "", "")))
    return items


register(Request, Reply, Cancel, Forget)
register_plain(Parcel, _pack, _unpack)
