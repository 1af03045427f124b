"""Who and what: agents by type and key, callers by session.

A `Session` is proof that somebody authenticated. Only `security.authn.Authenticator` makes one;
`CallContext.from_headers` carries it on within the cluster.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

from nexus_ray.core.errors import InvalidArgumentError

TYPE_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,62}\Z")
MAIN_TENANT = "main"  # Whose everything is that names no tenant.
ALL_TENANTS = "*"
_OF = "\x1f"  # Between a key and its tenant; no key that anybody gives may hold it (see `check_key`).
KEY_CHARACTERS_MAX = 200  # A key ends up in URLs, logs and an index.


class AgentId(NamedTuple):
    """An agent's identity: it always exists, whether active or not."""

    type: str
    key: str

    def __str__(self) -> str:
        return f"{self.type}/{self.bare.key}"

    def of(self, tenant: str) -> "AgentId":
        """Return the agent of this name that is a tenant's own: no other tenant has a name for it."""
        return self if tenant == MAIN_TENANT else AgentId(self.type, f"{self.key}{_OF}{tenant}")

    @property
    def bare(self) -> "AgentId":
        """The name by which its tenant knows it."""
        return AgentId(self.type, self.key.partition(_OF)[0])

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.key.partition(_OF)[2] or MAIN_TENANT

    @classmethod
    def parse(cls, text: str) -> "AgentId":
        """Read `TYPE/KEY`; a key may itself hold slashes.

        Raises:
            InvalidArgumentError: No slash, a malformed type, or an empty or too long key.
        """
        type_name, _, key = text.partition("/")
        check_type_name(type_name)
        check_key(key)
        return cls(type_name, key)


class Delegation(NamedTuple):
    """What is different about a session whose token was exchanged for another one (RFC 8693).

    `actors` act for the principal, the one who does now first. `parents` are the sessions that it came out of: where
    one of them is revoked, so is this. `is_narrowed` says that it has the roles which it names and nothing else.
    """

    actors: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    is_narrowed: bool = False


@dataclass(frozen=True, slots=True)
class Session:
    """An authenticated caller.

    `expires_at` and `authenticated_at` are wall-clock seconds; `roles` are names from the role file, unknown ones
    grant nothing. `method` says with what somebody authenticated, `acr` and `amr` how well (OpenID Connect Core 1.0,
    section 2). `bound` names the key or the certificate that its token is bound to, if it is; it does not travel on.
    """

    id: str
    principal: str
    issuer: str
    roles: tuple[str, ...]
    expires_at: float
    tenant: str = MAIN_TENANT
    method: str = "token"
    authenticated_at: float = 0.0
    acr: str = ""
    amr: tuple[str, ...] = ()
    bound: str = ""
    delegation: Delegation | None = None

    @property
    def actor(self) -> str:
        """Who acts for the principal; nobody, where that is empty, but itself."""
        return self.delegation.actors[0] if self.delegation is not None and self.delegation.actors else ""

    @property
    def sees_all(self) -> bool:
        """Tell whether tenants do not part this caller from anything: an `admin` of the tenant `*`."""
        return self.tenant == ALL_TENANTS and "admin" in self.roles

    @property
    def home(self) -> str:
        """The tenant that what this caller makes belongs to."""
        return MAIN_TENANT if self.sees_all else self.tenant

    def sees(self, tenant: str) -> bool:
        """Tell whether what belongs to a tenant is there for this caller at all."""
        return self.sees_all or tenant == self.tenant


def check_type_name(name: str) -> None:
    """Refuse a type name that would not survive a URL, a metric label or a file name.

    Raises:
        InvalidArgumentError: The name is malformed.
    """
    if not TYPE_NAME.match(name):
        raise InvalidArgumentError(
            f"{name!r} is not a type name: use 1 to 63 of a-z, 0-9, '_', '.', '-', starting with a letter"
        )


def check_key(key: str) -> None:
    """Refuse an agent key that is empty, too long or not printable.

    Raises:
        InvalidArgumentError: The key is malformed.
    """
    if not key or len(key) > KEY_CHARACTERS_MAX or not key.isprintable():
        raise InvalidArgumentError(f"an agent key is 1 to {KEY_CHARACTERS_MAX} printable characters, not {key[:40]!r}")
