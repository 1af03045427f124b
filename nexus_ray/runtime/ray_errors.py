"""The one place where Ray's errors become Nexus's."""

import ray.exceptions

from nexus_ray.core.errors import InternalError, NexusError, UnavailableError


def translate(error: BaseException, what: str) -> NexusError:
    """Return the error to raise for one that a Ray call to `what` raised.

    What the far side raised on purpose comes back as it was, without the traceback that Ray puts into its text.
    """
    if isinstance(error, ray.exceptions.RayTaskError):
        inner = error.cause
        if isinstance(inner, NexusError):
            return type(inner)(inner.message, **inner.details)
        return InternalError(f"{what} failed; its log says why", error_type=type(inner).__name__)
    if isinstance(error, ray.exceptions.RayError | ConnectionError | ValueError):
        # ValueError is what looking up an actor that is not there raises.
        return UnavailableError(f"{what} does not answer", error_type=type(error).__name__)
    if isinstance(error, NexusError):
        return error
    return InternalError(f"{what} failed: {type(error).__name__}")
