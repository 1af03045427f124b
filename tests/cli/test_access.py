"""`nexus session` and `nexus identity`."""

from collections.abc import Callable

from tests.cli.conftest import Fleet, as_json, as_problem
from tests.cli.support import nexus, printed

SESSION = {
    "id": "9f2c", "principal": "ada", "issuer": "x", "tenant": "main", "roles": ["operator"], "method": "token",
    "seen_at": 1.0, "expires_at": 2.0, "is_revoked": True,
}  # fmt: skip
IDENTITY = {"principal": "ada", "tenant": "main", "by": "eve", "at": 1.0, "goals_cancelled": 2}


def test_sessions_and_identities_are_listed(fleet: Fleet, is_up: Callable[..., None]) -> None:
    is_up()
    fleet.on("GET /v1/sessions", as_json({"sessions": [SESSION]}))
    fleet.on("GET /v1/identities", as_json({"identities": [IDENTITY]}))

    sessions, suspended = nexus("session", "list"), nexus("identity", "list")

    assert "9f2c" in sessions.stdout and "yes" in sessions.stdout
    assert "ada" in suspended.stdout and "eve" in suspended.stdout
    assert printed(nexus("session", "list", "--json")) == {"sessions": [SESSION]}
    assert printed(nexus("identity", "list", "--json")) == {"identities": [IDENTITY]}


def test_a_session_is_revoked_and_an_identity_suspended_and_restored(fleet: Fleet, is_up: Callable[..., None]) -> None:
    is_up()
    fleet.on("POST /v1/sessions:revoke", as_json({"id": "9f2c"}))
    fleet.on("POST /v1/identities:suspend", as_json(IDENTITY))
    fleet.on("POST /v1/identities:restore", as_json({**IDENTITY, "goals_cancelled": 0}))

    assert nexus("session", "revoke", "9f2c").stderr == "session 9f2c is revoked\n"
    assert nexus("identity", "suspend", "ada", "--cancel-goals").stderr == "ada is suspended; goals asked to end: 2\n"
    assert nexus("identity", "restore", "ada").stderr == "ada is restored\n"
    assert printed(nexus("identity", "suspend", "ada", "--json")) == IDENTITY


def test_who_may_not_is_told_so(fleet: Fleet, is_up: Callable[..., None]) -> None:
    is_up()
    fleet.on("POST /v1/identities:suspend", as_problem("permission_denied", "not allowed", 403))

    assert nexus("identity", "suspend", "ada").exit_code == 3
