"""Log-ins with a password of a directory: a real slapd over TLS, and everything that must not open it."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from nexus_ray.core.clock import ManualClock
from nexus_ray.core.errors import (
    FailedPreconditionError,
    NexusError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from nexus_ray.security.ldap import Directory
from nexus_ray.security.login import LdapSettings
from tests.support.certificates import Authority
from tests.support.slapd import Slapd, group, person

_ROLES = {"CN=Operators, OU=groups,DC=example": ("operator",), "cn=readers,ou=groups,dc=example": ("reader",)}
_PLACE = "uid={user},ou=people,dc=example"
ENTRIES = (
    person("ada", "lovelace") + person("bob", "builder") + person("eve", "nobody") + person("a*b", "star")
    + "\ndn: uid=x\\2Cy,ou=people,dc=example\nobjectClass: inetOrgPerson\nuid: x,y\ncn: x\nsn: x\nuserPassword: comma\n"
    + "\ndn: cn=two,ou=people,dc=example\nobjectClass: inetOrgPerson\nuid: two\nuid: ada2\ncn: two\nsn: two\n"
    + "userPassword: twice\n"
    + group("operators", "ada", "a*b", "x\\2Cy") + group("readers", "ada", "bob") + group("others", "eve")
)  # fmt: skip


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def slapd(authority: Authority) -> Iterator[Slapd]:
    server = Slapd(authority.file, authority.issue("good"), ENTRIES)
    yield server
    server.close()


def searching(slapd: Slapd, authority: Authority, **more: Any) -> LdapSettings:
    password = authority.file.parent / "search.password"
    password.write_text("looking\n")
    found = {
        "url": slapd.url, "ca_file": authority.file, "bind_dn": "cn=search,dc=example", "bind_password_file": password,
        "user_base": "ou=people,dc=example", "group_base": "ou=groups,dc=example", "roles": _ROLES,
    }  # fmt: skip
    return LdapSettings.model_validate({**found, **more})


def placing(slapd: Slapd, authority: Authority, **more: Any) -> LdapSettings:
    found = {
        "url": slapd.url, "ca_file": authority.file, "user_dn": _PLACE, "group_base": "ou=groups,dc=example",
        "roles": _ROLES,
    }  # fmt: skip
    return LdapSettings.model_validate({**found, **more})


WAYS = {"by search": searching, "by place": placing}


@pytest.fixture(params=WAYS)
def directory(request: pytest.FixtureRequest, slapd: Slapd, authority: Authority, clock: ManualClock) -> Any:
    made = Directory(WAYS[request.param](slapd, authority, tenant="acme", concurrent_max=len(INJECTIONS)), clock)
    yield made
    made.close()


async def test_a_user_is_let_in_with_the_roles_of_the_groups(directory: Directory, clock: ManualClock) -> None:
    found = await directory.log_in("ada", "lovelace")

    assert (found.principal, found.roles, found.tenant) == ("ldap:ada", ("operator", "reader"), "acme")
    assert (found.provider, found.method, found.amr) == ("ldap", "password", ("pwd",))
    assert found.authenticated_at == clock.now()


async def test_the_directory_says_how_a_name_is_written(directory: Directory) -> None:
    assert (await directory.log_in("ADA", "lovelace")).principal == "ldap:ada"


async def test_a_name_with_special_characters_is_only_a_name(directory: Directory) -> None:
    assert (await directory.log_in("a*b", "star")).principal == "ldap:a*b"
    assert (await directory.log_in("x,y", "comma")).principal == "ldap:x,y"


async def refusal(directory: Directory, user: str, password: str) -> UnauthenticatedError:
    with pytest.raises(UnauthenticatedError) as caught:
        await directory.log_in(user, password)
    return caught.value


async def test_an_unknown_user_and_a_wrong_password_read_alike(directory: Directory) -> None:
    unknown = await refusal(directory, "zoe", "lovelace")
    wrong = await refusal(directory, "ada", "builder")

    assert unknown.message == wrong.message == "authentication failed"
    assert unknown.details == wrong.details == {"reason": "user_or_password"}


async def test_an_unknown_user_costs_the_directory_the_same_binds(slapd: Slapd, authority: Authority) -> None:
    class Counting(Directory):
        binds = 0

        def _connection(self, dn: str, password: str) -> Any:
            self.binds += 1
            return super()._connection(dn, password)

    directory = Counting(searching(slapd, authority), ManualClock())

    await refusal(directory, "ada", "builder")
    wrong, directory.binds = directory.binds, 0
    await refusal(directory, "zoe", "builder")

    assert directory.binds == wrong == 2
    directory.close()


INJECTIONS = (
    "*", "a*", "ad?", "ada)(uid=*", ")(uid=*", "*)(objectClass=*", "ada)(|(uid=*", "ada\0", "\0", "ada\\", "\\2a",
    "ada,ou=people", "ada,ou=people,dc=example", "ada+cn=ada", "ada\n", "ada#", "#ada", '"ada"', "ada;x",
    "uid=ada", "\\61da", "\ud800", "x" * 191, "", " ", "(", "{user}", "{dn}",
)  # fmt: skip


async def test_no_way_of_writing_a_name_opens_another_entry(directory: Directory) -> None:
    errors = await asyncio.gather(*(directory.log_in(name, "lovelace") for name in INJECTIONS), return_exceptions=True)

    for name, error in zip(INJECTIONS, errors, strict=True):
        assert isinstance(error, UnauthenticatedError) and error.message == "authentication failed", name


async def test_an_empty_password_is_never_a_bind(directory: Directory) -> None:
    for password in ("", "\0", "lovelace\0", "\0lovelace", "x" * 1025):
        assert (await refusal(directory, "ada", password)).details["reason"] == "password"


async def test_who_is_in_no_group_of_the_table_is_refused(directory: Directory) -> None:
    assert (await refusal(directory, "eve", "nobody")).message == "authentication failed"


async def test_an_entry_with_two_names_is_nobody(slapd: Slapd, authority: Authority) -> None:
    directory = Directory(searching(slapd, authority), ManualClock())

    assert (await refusal(directory, "ada2", "twice")).details["reason"] == "name"
    directory.close()


async def test_a_filter_that_finds_two_lets_neither_in(slapd: Slapd, authority: Authority) -> None:
    settings = searching(slapd, authority, user_filter="(|(uid={user})(uid=bob))")
    directory = Directory(settings, ManualClock())

    await refusal(directory, "ada", "lovelace")
    directory.close()


CERTIFICATES = {"another authority": {}, "expired": {"days": -1.0}, "another name": {"host": "directory.example"}}


@pytest.mark.parametrize("which", CERTIFICATES)
async def test_a_server_without_a_good_certificate_never_sees_a_password(
    authority: Authority, tmp_path: Path, which: str
) -> None:
    options: dict[str, Any] = CERTIFICATES[which]
    signer = Authority(tmp_path) if which == "another authority" else authority
    server = Slapd(authority.file, signer.issue(which.replace(" ", "-"), **options), ENTRIES)
    directory = Directory(placing(server, authority), ManualClock())

    try:
        with pytest.raises(UnavailableError):
            await directory.log_in("ada", "lovelace")
        server_checked = Directory(placing(server, signer), ManualClock())
        if which == "another authority":  # So that it is this, and nothing else, that was refused.
            assert (await server_checked.log_in("ada", "lovelace")).principal == "ldap:ada"
    finally:
        directory.close()
        server.close()


async def test_a_directory_that_hangs_is_given_up_and_the_number_of_log_ins_is_bounded(authority: Authority) -> None:
    server = Slapd(authority.file, authority.issue("hangs"), ENTRIES)
    directory = Directory(placing(server, authority, timeout_s=0.3, concurrent_max=2), ManualClock())
    try:
        server.signal(signal.SIGSTOP)

        results = await asyncio.gather(*(directory.log_in("ada", "lovelace") for _ in range(3)), return_exceptions=True)
        server.signal(signal.SIGCONT)

        assert [type(one) for one in results] == [UnavailableError, UnavailableError, ResourceExhaustedError]
        async with asyncio.timeout(10):
            while not isinstance(await _tried(directory), str):
                await asyncio.sleep(0.01)
    finally:
        directory.close()
        server.close()


async def _tried(directory: Directory) -> str | NexusError:
    try:
        return (await directory.log_in("ada", "lovelace")).principal
    except NexusError as error:
        return error


async def test_a_searching_account_that_is_refused_is_no_fault_of_the_user(slapd: Slapd, authority: Authority) -> None:
    settings = searching(slapd, authority)
    assert settings.bind_password_file
    settings.bind_password_file.write_text("forgotten")
    directory = Directory(settings, ManualClock())

    with pytest.raises(UnavailableError):
        await directory.log_in("ada", "lovelace")
    directory.close()


WRONG: dict[str, dict[str, Any]] = {
    "plain": {"url": "ldap://127.0.0.1"}, "no host": {"url": "ldaps://"}, "a path": {"url": "ldaps://h/dc=example"},
    "a user": {"url": "ldaps://me@h"}, "no place": {"user_dn": ""}, "no name in it": {"user_dn": "uid=ada"},
    "both ways": {"bind_dn": "cn=search"}, "no roles": {"roles": {}}, "no groups": {"group_base": ""},
}  # fmt: skip


@pytest.mark.parametrize("which", WRONG)
def test_settings_that_would_be_unsafe_are_refused(which: str) -> None:
    good = {"url": "ldaps://h", "user_dn": _PLACE, "group_base": "dc=example", "roles": _ROLES}
    assert LdapSettings.model_validate(good).url == "ldaps://h"

    with pytest.raises(ValidationError):
        LdapSettings.model_validate({**good, **WRONG[which]})


def test_files_that_cannot_be_read_are_told_at_the_start(tmp_path: Path) -> None:
    good = {"url": "ldaps://h", "user_dn": _PLACE, "group_base": "dc=example", "roles": _ROLES}
    settings = LdapSettings.model_validate({**good, "ca_file": tmp_path / "none.pem"})

    with pytest.raises(FailedPreconditionError):
        Directory(settings, ManualClock())
