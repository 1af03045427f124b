"""Who may do what: nothing, unless a role says so."""

import os
import stat
import threading
from pathlib import Path

import pytest

from nexus_ray.core.errors import FailedPreconditionError, InvalidArgumentError, PermissionDeniedError
from nexus_ray.core.identity import Session
from nexus_ray.security.authz import Authorizer, ensure_role_file, load_roles
from nexus_ray.security.policy import ACTIONS


def session(*roles: str) -> Session:
    return Session("s", "ann", "nexus-local", roles, 9e9)


@pytest.fixture
def authorizer(tmp_path: Path) -> Authorizer:
    ensure_role_file(tmp_path)
    return Authorizer.from_folder(tmp_path)


def is_allowed(authorizer: Authorizer, who: Session, action: str) -> bool:
    try:
        authorizer.authorize(who, action)
    except PermissionDeniedError as error:
        assert (str(error), error.details["reason"]) == ("not allowed", "no_role_grants_it")
        return False
    return True


def test_a_reader_reads_and_an_operator_does_the_rest(authorizer: Authorizer) -> None:
    reads = {action for action in ACTIONS if is_allowed(authorizer, session("reader"), action)}

    # Who comes in is no business of everybody who may look.
    of_people = {"session:read", "identity:read", "audit:read", "policy:read"}
    for_operators = {"ledger:read"}
    assert reads == {action for action in ACTIONS if action.endswith(":read")} - of_people - for_operators
    # Whose records are kept is for who looks at what operators did.
    refused = {action for action in ACTIONS if not is_allowed(authorizer, session("operator"), action)}
    assert refused == {"audit:hold", "dashboard:write"}


def test_an_auditor_sees_what_was_done_and_does_nothing(authorizer: Authorizer) -> None:
    granted = {action for action in ACTIONS if is_allowed(authorizer, session("auditor"), action)}

    assert granted == {"audit:read", "audit:hold", "goal:read", "policy:read"}


def test_an_approver_sees_what_is_asked_and_answers_it_and_no_more(authorizer: Authorizer) -> None:
    granted = {action for action in ACTIONS if is_allowed(authorizer, session("approver"), action)}

    assert granted == {"goal:read", "goal:answer"}


@pytest.mark.parametrize("roles", [(), ("",), ("Operator",), ("operator ",), ("root",), ("*",), ("goal:*",)])
def test_no_role_or_an_unknown_one_may_do_nothing(authorizer: Authorizer, roles: tuple[str, ...]) -> None:
    assert not any(is_allowed(authorizer, session(*roles), action) for action in ACTIONS)
    assert is_allowed(authorizer, session(*roles, "reader"), "goal:read")


@pytest.mark.parametrize("action", ["", "goal", "goal:", ":read", "goal:explode", "goal:*", "*", "x:read", "GOAL:READ"])
def test_an_unknown_action_is_granted_by_nothing(authorizer: Authorizer, action: str) -> None:
    assert not is_allowed(authorizer, session("operator", "reader"), action)


def test_a_star_grants_its_own_prefix_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "roles.toml").write_text('[roles]\nlead = ["goal:*", "agent:read"]\nodd = ["goal_type:*"]\n')
    authorizer = Authorizer.from_folder(tmp_path)

    granted = {action for action in ACTIONS if is_allowed(authorizer, session("lead"), action)}

    assert granted == {"goal:submit", "goal:read", "goal:cancel", "goal:answer", "agent:read"}
    assert [action for action in ACTIONS if is_allowed(authorizer, session("odd"), action)] == ["goal_type:read"]
    assert authorizer.roles == ["lead", "odd"]


@pytest.mark.parametrize(
    "content",
    [b"", b"[roles", b"roles = 1", b"[other]\n", b"[roles]\na = 1", b'[roles]\na = "goal:read"', b"[roles]\na = [1]",
     b'[roles]\na = ["goal"]', b'[roles]\na = ["*"]', b'[roles]\na = ["goal:re*"]', b'[roles]\na = ["goal:read\\n"]',
     b'[roles]\na = ["*:read"]', b'[roles]\n[extra]\n', b"\xff\xfe\x00", b'[roles]\n"a b" = ["goal:read"]'],
)  # fmt: skip
def test_a_malformed_file_is_refused_and_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "roles.toml").write_bytes(content)

    with pytest.raises(InvalidArgumentError) as caught:
        load_roles(tmp_path)

    assert "roles.toml" in str(caught.value)


def test_a_missing_or_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError):
        load_roles(tmp_path)
    (tmp_path / "roles.toml").mkdir()
    with pytest.raises(FailedPreconditionError):
        load_roles(tmp_path)


def test_the_default_file_is_written_once_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        makers = [threading.Thread(target=ensure_role_file, args=(tmp_path,)) for _ in range(8)]
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join()
    finally:
        os.umask(before)
    path = tmp_path / "roles.toml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["roles.toml"]

    path.write_text("[roles]\n")
    ensure_role_file(tmp_path)

    assert load_roles(tmp_path) == {}
