"""The call context: who asks, until when, under which trace. It is born once at the edge and travels on.

It crosses processes as headers, the first argument of every remote method, because context variables do not. What
outlives a call, or comes from afar, is sealed: with the fleet's key, for one subject, so that no header which anybody
else wrote, or wrote for something else, is ever believed.
"""

import functools
import hashlib
import hmac
import json
import operator
from dataclasses import dataclass

from nexus_ray.core.deadline import Deadline
from nexus_ray.core.errors import PermissionDeniedError
from nexus_ray.core.identity import MAIN_TENANT, Delegation, Session

Headers = dict[str, str]

_SESSIONS_MAX = 2000  # Read from headers and remembered; some 2 MB.
_SEAL = "seal"
_DELEGATION, _SOURCE = "delegation", "source"  # Only where there is one; covered by the seal, there or not.
_SEALED = (
    "session", "principal", "issuer", "roles", "expires", "deadline", "tenant", "method", "authenticated_at",
    "acr", "amr",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CallContext:
    """What every operation is told besides its own arguments.

    `traceparent` is a W3C trace context header, empty where nothing traces; `source` is where the request came from,
    for roles that hold somewhere only.
    """

    session: Session
    deadline: Deadline
    traceparent: str = ""
    source: str = ""

    def to_headers(self) -> Headers:
        """Return the context as text fields."""
        session = self.session
        headers = {
            "session": session.id,
            "principal": session.principal,
            "issuer": session.issuer,
            "roles": " ".join(session.roles),
            "expires": repr(session.expires_at),
            "deadline": repr(self.deadline.at),
            "traceparent": self.traceparent,
            "tenant": session.tenant,
            "method": session.method,
            "authenticated_at": repr(session.authenticated_at),
            "acr": session.acr,
            "amr": " ".join(session.amr),
        }
        if session.delegation is not None:
            headers[_DELEGATION] = json.dumps(session.delegation)
        if self.source:
            headers[_SOURCE] = self.source
        return headers

    @classmethod
    def from_headers(cls, headers: Headers) -> "CallContext":
        """Read back what `to_headers` wrote, inside the cluster only: outside headers are never trusted."""
        session = _session(
            headers["session"], headers["principal"], headers["issuer"], headers["roles"], headers["expires"],
            headers.get("tenant", MAIN_TENANT), headers.get("method", "token"), headers.get("authenticated_at", "0"),
            headers.get("acr", ""), headers.get("amr", ""), headers.get(_DELEGATION, ""),
        )  # fmt: skip
        return cls(session, Deadline(float(headers["deadline"])), headers["traceparent"], headers.get(_SOURCE, ""))


# Goals of one caller have one session between them; to read it anew is half of what opening a context takes.
@functools.lru_cache(maxsize=_SESSIONS_MAX)
def _session(
    id: str, principal: str, issuer: str, roles: str, expires: str, tenant: str, method: str, authenticated: str,
    acr: str, amr: str, delegation: str,
) -> Session:  # fmt: skip
    return Session(
        id, principal, issuer, tuple(roles.split()), float(expires), tenant, method, float(authenticated), acr,
        tuple(amr.split()), delegation=_delegation(delegation) if delegation else None,
    )  # fmt: skip


_fields = operator.itemgetter(*_SEALED)
_shown = operator.itemgetter(*_SEALED, _SEAL)


def what_is_sealed(headers: Headers) -> tuple[str, ...]:
    """Return what a seal covers, and the seal: headers equal in this open alike; nothing where one is missing."""
    try:
        shown: tuple[str, ...] = _shown(headers)
    except KeyError:
        return ()
    return (*shown, headers.get(_DELEGATION, ""), headers.get(_SOURCE, ""))


def _delegation(text: str) -> Delegation:
    actors, parents, is_narrowed = json.loads(text)
    return Delegation(tuple(actors), tuple(parents), is_narrowed)


class ContextSeal:
    """Seals contexts with the fleet's key (keyed BLAKE2b), and opens them."""

    def __init__(self, key: bytes) -> None:
        if not 32 <= len(key) <= 64:
            raise ValueError("a key of the fleet has 32 to 64 bytes")
        self._key = key

    def sealed(self, headers: Headers, subject: str) -> Headers:
        """Return headers that open for this subject, such as a goal's id, and for no other."""
        return {**headers, _SEAL: self._sum(headers, subject)}

    def opened(self, headers: Headers, subject: str, now: float) -> CallContext:
        """Return the context that was sealed for a subject.

        The trace is not covered: it says nothing about who may do what, and every hop writes its own.

        Raises:
            PermissionDeniedError: It was not, or its deadline has passed; `details["reason"]` says which.
        """
        shown = headers.get(_SEAL, "")
        try:
            is_ours = hmac.compare_digest(shown.encode(), self._sum(headers, subject).encode())
        except (KeyError, ValueError):
            is_ours = False
        if not is_ours:
            raise PermissionDeniedError("not allowed: the context is not the fleet's", reason="forged_context")
        context = CallContext.from_headers(headers)
        if context.deadline.at <= now:
            raise PermissionDeniedError("not allowed: the context is over", reason="expired_context")
        return context

    def _sum(self, headers: Headers, subject: str) -> str:
        # `repr` of a tuple: no field runs into the next, whatever is in it.
        rest = tuple((name, headers[name]) for name in (_DELEGATION, _SOURCE) if name in headers)
        told = repr((subject, _fields(headers), rest) if rest else (subject, _fields(headers)))
        # Keyed BLAKE2 is a MAC by itself (RFC 7693, 1), and takes a fifth of the time of OpenSSL's HMAC.
        return hashlib.blake2b(told.encode("utf-8", "surrogatepass"), key=self._key, digest_size=32).hexdigest()
