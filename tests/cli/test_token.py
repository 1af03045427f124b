import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from nexus_ray.audit.ports import RecordQuery
from nexus_ray.cli.token import parse_ttl_s
from nexus_ray.config import load
from nexus_ray.core.clock import SystemClock
from nexus_ray.core.errors import InvalidArgumentError, UnauthenticatedError
from nexus_ray.runtime.audit_link import open_audit_file
from nexus_ray.runtime.state import StateLock, prepare_state, socket_folder, write_operator_token
from nexus_ray.runtime.wire import WireServer
from nexus_ray.security.authn import Authenticator
from nexus_ray.security.authz import Authorizer
from nexus_ray.security.tokens import TokenSettings
from tests.cli.support import nexus, printed


def records_of(state: Path) -> list[dict[str, Any]]:
    async def read() -> list[dict[str, Any]]:
        log = await open_audit_file(load())
        try:
            return [record.fields for record in await log.records(RecordQuery(is_oldest_first=True))]
        finally:
            await log.close()

    return asyncio.run(read())


def session_of(state: Path, token: str) -> Any:
    return Authenticator.from_folder(state, TokenSettings(), SystemClock()).authenticate(token)


def test_a_token_opens_what_its_role_grants_for_as_long_as_it_says(state: Path) -> None:
    result = nexus("token", "create", "--role", "reader", "--ttl", "30m", "--name", "ada@example.org")

    session = session_of(state, result.stdout.strip())

    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    assert (session.principal, session.roles) == ("ada@example.org", ("reader",))
    assert abs(session.expires_at - time.time() - 1800) < 60
    Authorizer.from_folder(state).authorize(session, "goal:read")


def test_a_token_is_told_to_scripts_with_what_it_grants(state: Path) -> None:
    told = printed(nexus("token", "create", "--role", "reader", "--role", "operator", "--role", "reader", "--json"))

    assert (told["principal"], told["roles"]) == ("local-user", ["reader", "operator"])
    assert session_of(state, told["token"]).roles == ("reader", "operator")
    assert abs(told["expires_at"] - time.time() - 3600) < 60


def test_keys_and_roles_are_nobody_elses_to_read_whatever_the_umask(state: Path) -> None:
    before = os.umask(0)
    try:
        assert nexus("token", "create", "--role", "reader").exit_code == 0
    finally:
        os.umask(before)

    modes = {path.name: path.stat().st_mode & 0o777 for path in state.iterdir()}
    assert state.stat().st_mode & 0o777 == 0o700
    assert (modes["issuer.key"], modes["roles.toml"]) == (0o600, 0o600)


def test_a_key_that_others_can_read_is_not_used(state: Path) -> None:
    nexus("token", "create", "--role", "reader")
    (state / "issuer.key").chmod(0o644)

    result = nexus("token", "create", "--role", "reader")

    assert (result.exit_code, result.stdout) == (2, "")
    assert "chmod 600" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--role", "root"), "there is no role 'root'; roles.toml has admin, approver, auditor, operator, reader, "),
        (("--role", "reader", "--ttl", "31d"), "30 days at most"),
        (("--role", "reader", "--ttl", "soon"), "write 90s, 30m, 1h or 7d"),
        (("--role", "reader", "--ttl", "0s"), "not a length of time"),
        (("--role", "reader", "--name", "a b"), "not a name for a token"),
        (("--role", "reader", "--name", ""), "not a name for a token"),
        ((), "--role"),
    ],
)
def test_what_makes_no_token_is_refused(arguments: tuple[str, ...], told: str) -> None:
    result = nexus("token", "create", *arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr


def test_a_role_file_that_is_damaged_makes_no_token(state: Path) -> None:
    state.mkdir()
    (state / "roles.toml").write_text("[roles]\nreader = 'goal:read'\n")

    result = nexus("token", "create", "--role", "reader")

    assert (result.exit_code, result.stdout) == (2, "")
    assert "role 'reader'" in result.stderr


def test_a_token_is_on_record_before_it_is_given_away(state: Path) -> None:
    first = printed(nexus("token", "create", "--role", "reader", "--name", "ada", "--json"))
    nexus("token", "create", "--role", "operator", "--name", "bob")

    found = records_of(state)
    assert [(one["action"], one["resource"], one["outcome"]) for one in found] == [
        ("token:create", "ada", "ok"), ("token:create", "bob", "ok"),
    ]  # fmt: skip
    assert found[0]["principal"].startswith("os:") and found[0]["retention"] == "administration"
    assert found[0]["facts"]["id"] == session_of(state, first["token"]).id
    assert first["token"] not in str(found)


def test_what_cannot_be_written_down_gives_no_token(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUS_AUDIT__ANSWER_S_MAX", "0.3")
    lock = StateLock(state)  # As a fleet that is up, whose ledger does not answer.

    result = nexus("token", "create", "--role", "reader")
    lock.release()

    assert (result.exit_code, result.stdout) == (4, "")
    assert "not done" in result.stderr
    assert nexus("token", "create", "--role", "reader").exit_code == 0


def test_while_a_fleet_is_up_its_ledger_writes_the_record(state: Path) -> None:
    settings = load()

    async def beside_a_fleet() -> tuple[Any, list[Any]]:
        prepare_state(settings)
        log = await open_audit_file(settings)
        server = WireServer(
            socket_folder(state) / "ledger.sock", {"audit": lambda name, *given: getattr(log, name)(*given)}
        )
        await server.start()
        lock = StateLock(state)
        try:
            made = await asyncio.to_thread(nexus, "token", "create", "--role", "reader", "--name", "ada")
            return made, [record.fields for record in await log.records(RecordQuery())]
        finally:
            lock.release()
            await server.close()
            await log.close()

    made, found = asyncio.run(beside_a_fleet())

    assert made.exit_code == 0
    assert [(one["action"], one["resource"]) for one in found] == [("token:create", "ada")]


def test_a_key_that_is_rotated_is_on_record_and_what_it_signed_holds(state: Path) -> None:
    prepare_state(load())
    write_operator_token(load())
    before, own = nexus("token", "create", "--role", "reader").stdout.strip(), (state / "token").read_text()

    told = printed(nexus("token", "rotate-key", "--json"))
    after = nexus("token", "create", "--role", "reader").stdout.strip()

    record = records_of(state)[1]
    assert (record["action"], record["resource"], record["facts"]["before"]) == (
        "key:rotate", told["kid"], told["before"],
    )  # fmt: skip
    assert abs(told["before_until"] - time.time() - 30 * 86_400) < 600
    for token in (before, own, after, (state / "token").read_text()):
        assert session_of(state, token)
    assert (state / "token").read_text() != own


def test_a_key_that_leaked_ends_with_all_that_it_signed(state: Path) -> None:
    first = nexus("token", "create", "--role", "reader").stdout.strip()
    nexus("token", "rotate-key")
    second = nexus("token", "create", "--role", "reader").stdout.strip()

    result = nexus("token", "rotate-key", "--forget-old")

    assert result.exit_code == 0 and "ended now" in result.stderr
    for token in (first, second):
        with pytest.raises(UnauthenticatedError):
            session_of(state, token)
    assert session_of(state, nexus("token", "create", "--role", "reader").stdout.strip())


def test_a_key_is_not_rotated_where_that_cannot_be_written_down_or_there_is_none(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert nexus("token", "rotate-key").exit_code == 2
    nexus("token", "create", "--role", "reader")
    before = (state / "issuer.key").read_bytes(), (state / "jwks.json").read_bytes()
    monkeypatch.setenv("NEXUS_AUDIT__ANSWER_S_MAX", "0.2")
    lock = StateLock(state)

    result = nexus("token", "rotate-key")
    lock.release()

    assert result.exit_code == 4
    assert ((state / "issuer.key").read_bytes(), (state / "jwks.json").read_bytes()) == before


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h", 3600), ("7d", 604_800), (" 1h ", 3600)]
)
def test_a_length_of_time_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert parse_ttl_s(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "-1h", "1.5h", "1w", "1h30m", "٣h", "9999999999s", "0d"])
def test_anything_else_is_not(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_ttl_s(text)
