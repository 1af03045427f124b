"""The call context: who asks, until when, under which trace. It is born once at the edge and travels on.

It crosses processes as headers, the first argument of every remote method, because context variables do not.
"""

from dataclasses import dataclass

from nexus_ray.core.deadline import Deadline
from nexus_ray.core.identity import Session

Headers = dict[str, str]


@dataclass(frozen=True, slots=True)
class CallContext:
    """What every operation is told besides its own arguments.

    `traceparent` is a W3C trace context header, empty where nothing traces.
    """

    session: Session
    deadline: Deadline
    traceparent: str = ""

    def to_headers(self) -> Headers:
        """Return the context as text fields."""
        return {
            "session": self.session.id,
            "principal": self.session.principal,
            "issuer": self.session.issuer,
            "roles": " ".join(self.session.roles),
            "expires": repr(self.session.expires_at),
            "deadline": repr(self.deadline.at),
            "traceparent": self.traceparent,
        }

    @classmethod
    def from_headers(cls, headers: Headers) -> "CallContext":
        """Read back what `to_headers` wrote, inside the cluster only: outside headers are never trusted."""
        return cls(
            session=Session(
                id=headers["session"],
                principal=headers["principal"],
                issuer=headers["issuer"],
                roles=tuple(headers["roles"].split()),
                expires_at=float(headers["expires"]),
            ),
            deadline=Deadline(float(headers["deadline"])),
            traceparent=headers["traceparent"],
        )
