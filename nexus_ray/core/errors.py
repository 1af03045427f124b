"""Every error that Nexus raises: one tree, a class only where a caller reacts differently.

Codes are gRPC's canonical words. An error has one positional message and its facts as keywords, because
anything else does not survive a Ray call; for the same reason no fact may be called `cause`, `args`, `pid` or `ip`.
The message is for the caller, and holds no secret and no remote traceback; `details` are for the log.

Bugs are not here: those are `assert`, `ValueError` and `RuntimeError`.
"""

from typing import Any, ClassVar

_RESERVED = frozenset({"cause", "args", "pid", "ip"})


class NexusError(Exception):
    """The root: something in the world went wrong, and the message says what to do about it."""

    code: ClassVar[str] = "internal"

    def __init__(self, message: str = "", **details: Any) -> None:
        super().__init__(message)
        assert not _RESERVED & details.keys(), f"reserved names in details: {details.keys()}"
        self.details = details

    @property
    def message(self) -> str:
        """What to tell the caller."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        return self.message


class InternalError(NexusError):
    """A fault of Nexus itself; the log has the rest."""


class InvalidArgumentError(NexusError):
    """The request is wrong and stays wrong; `details["problems"]` lists fields, where there are fields."""

    code = "invalid_argument"


class UnauthenticatedError(NexusError):
    """No valid credential. Outside, all of them read alike; `details["reason"]` is for the log only."""

    code = "unauthenticated"


class PermissionDeniedError(NexusError):
    """Known, but not allowed."""

    code = "permission_denied"


class NotFoundError(NexusError):
    """No such goal, agent, goal type or file."""

    code = "not_found"


class AlreadyExistsError(NexusError):
    """The name is taken by something else: an idempotency key with another body, a state folder in use."""

    code = "already_exists"


class FailedPreconditionError(NexusError):
    """The thing is not in a state that allows this: a terminal goal is cancelled, a port is taken."""

    code = "failed_precondition"


class FencedError(NexusError):
    """The writer was declared dead, or the state has moved on: it may compute, but not commit."""

    code = "aborted"


class ResourceExhaustedError(NexusError):
    """Over a limit; `details["retry_after_s"]` says when to come back, where that helps."""

    code = "resource_exhausted"


class UnavailableError(NexusError):
    """Not now: a host is gone, a disk is full, a part is starting. Safe to try again."""

    code = "unavailable"


class DeadlineExceededError(NexusError):
    """The deadline passed."""

    code = "deadline_exceeded"


class CancelledByCallerError(NexusError):
    """Somebody cancelled the goal; `details["by"]` says who."""

    code = "cancelled"


class DataLossError(NexusError):
    """A record cannot be read back; nothing is guessed in its place."""

    code = "data_loss"


class TaskFailedError(NexusError):
    """An agent's task failed for good.

    `details` say where and how often: `agent`, `host`, `attempts`, `step`, `error_type`.
    """

    code = "unknown"


class EffectUnknownError(TaskFailedError):
    """Something outside was begun and nobody saw it end: whether it happened is not known, and it is not tried again.

    `details` say what: `effect`, `agent`, `step`.
    """

    code = "aborted"


class NotDoneError(NexusError):
    """What an effect raises to say that nothing happened outside, so that it may be tried again."""

    code = "aborted"


class SagaFailedError(NexusError):
    """A saga was given up: `details` name the step that `failed`, and what was `compensated` and `not_compensated`."""

    code = "aborted"


class QuorumNotReachedError(NexusError):
    """Too few answers: `details` hold `needed`, `answered`, `failed` and the first failures."""

    code = "aborted"


def error_classes() -> dict[str, type[NexusError]]:
    """Return every error class by its name, the root included."""
    found: dict[str, type[NexusError]] = {}
    waiting: list[type[NexusError]] = [NexusError]
    while waiting:
        cls = waiting.pop()
        found[cls.__name__] = cls
        waiting.extend(cls.__subclasses__())
    return found
