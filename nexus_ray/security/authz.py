"""Authorization: what a session may do, by its roles; the roles stand in a file.

Law: deny by default. An unknown role grants nothing, an unknown action is granted by nothing, `*` or not, and a file
that cannot be read is refused at load.
"""

import os
import re
import secrets
import tomllib
from pathlib import Path

from nexus_ray.core.errors import FailedPreconditionError, InvalidArgumentError, PermissionDeniedError
from nexus_ray.core.identity import Session
from nexus_ray.observe import metrics

ACTIONS = (
    "goal:submit", "goal:read", "goal:cancel", "goal:answer", "goal_type:read", "agent:read", "host:read", "host:drain",
    "metrics:read", "trace:read", "audit:read", "audit:hold", "session:read", "session:revoke", "identity:read",
    "identity:suspend", "identity:restore",
)  # fmt: skip
_FILE = "roles.toml"
_DEFAULT = """\
# What each role may do. `*` stands only at the end. Changes are read when the fleet starts.
[roles]
reader = ["goal:read", "goal_type:read", "agent:read", "host:read", "metrics:read", "trace:read"]
approver = ["goal:read", "goal:answer"]
auditor = ["audit:*", "goal:read"]
operator = [
  "goal:*", "goal_type:*", "agent:*", "host:*", "metrics:*", "trace:*", "audit:read", "session:*", "identity:*",
]
"""
_GRANT = re.compile(r"[a-z_]+:([a-z_]+|\*)\Z")


def ensure_role_file(folder: Path) -> None:
    """Write the default roles where there is no file yet."""
    path = folder / _FILE
    if path.exists():
        return
    temporary = folder / f"{_FILE}.{secrets.token_hex(8)}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(_DEFAULT)
    try:
        os.link(temporary, path)  # Whole or not at all, and never over what somebody wrote meanwhile.
    except FileExistsError:
        pass
    finally:
        os.unlink(temporary)


def load_roles(folder: Path) -> dict[str, frozenset[str]]:
    """Return what each role grants.

    Raises:
        FailedPreconditionError: There is no file, or it cannot be read.
        InvalidArgumentError: The file is malformed; the message names the role or the line.
    """
    path = folder / _FILE
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise FailedPreconditionError(f"there is no role file {path}; `nexus up` makes it") from None
    except OSError as error:
        raise FailedPreconditionError(f"the role file {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # Not TOML, or not even text.
        raise InvalidArgumentError(f"{path}: {error}") from None
    roles = table.get("roles")
    if not isinstance(roles, dict) or set(table) != {"roles"}:
        raise InvalidArgumentError(f"{path}: one table [roles] is what it holds")
    granted = {}
    for role, grants in roles.items():
        if not is_role_name(role):
            raise InvalidArgumentError(f"{path}: {role!r} is not a role: a name without spaces is")
        if not isinstance(grants, list) or not all(isinstance(grant, str) and _GRANT.match(grant) for grant in grants):
            raise InvalidArgumentError(f"{path}: role {role!r} is a list of actions such as 'goal:read' or 'goal:*'")
        granted[role] = frozenset(grants)
    return granted


def is_role_name(text: str) -> bool:
    """Tell whether a role may be called this; roles travel as one text, parted by spaces."""
    return text.split() == [text]


class Authorizer:
    """Decides by roles."""

    def __init__(self, roles: dict[str, frozenset[str]]) -> None:
        self._roles = roles

    @classmethod
    def from_folder(cls, folder: Path) -> "Authorizer":
        """Return an authorizer over the role file of a state folder."""
        return cls(load_roles(folder))

    @property
    def roles(self) -> list[str]:
        """The roles there are."""
        return sorted(self._roles)

    def authorize(self, session: Session, action: str, resource: str = "") -> None:
        """Refuse what no role of the session grants.

        Raises:
            PermissionDeniedError: Not allowed; `details` hold the action and a fixed reason.
        """
        resource_type, _, operation = action.partition(":")
        is_allowed = action in ACTIONS and any(
            action in grants or f"{resource_type}:*" in grants
            for grants in (self._roles.get(role, frozenset()) for role in session.roles)
        )
        metrics.count(
            "nexus_authz_decisions_total",
            resource_type=resource_type, operation=operation, decision="allow" if is_allowed else "deny",
        )  # fmt: skip
        if not is_allowed:
            raise PermissionDeniedError("not allowed", action=action, resource=resource, reason="no_role_grants_it")
