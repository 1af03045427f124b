"""Log-ins over HTTP: a directory's password or an identity provider's answer becomes a short token, once."""

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest

from nexus_ray.audit.ports import RecordQuery
from nexus_ray.config import Settings
from nexus_ray.core.clock import SystemClock
from nexus_ray.core.errors import UnavailableError
from nexus_ray.runtime.log_ins import LedgerOnce, open_exchange
from nexus_ray.security.settings import SecuritySettings
from nexus_ray.security.throttle import ThrottleSettings
from tests.api.conftest import Door, is_problem, make_door
from tests.security.test_ldap import ENTRIES
from tests.security.test_saml import request_of
from tests.support.certificates import Authority
from tests.support.identity_provider import ACS, FLEET, NAME, URL, IdentityProvider, instant
from tests.support.in_process import InProcessFleet
from tests.support.slapd import Slapd

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture(scope="module")
def idp(tmp_path_factory: pytest.TempPathFactory) -> IdentityProvider:
    return IdentityProvider(tmp_path_factory.mktemp("idp"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    authority = Authority(tmp_path_factory.mktemp("authority"))
    server = Slapd(authority.file, authority.issue("good"), ENTRIES)
    yield {
        "url": server.url, "ca_file": authority.file, "user_dn": "uid={user},ou=people,dc=example",
        "group_base": "ou=groups,dc=example", "roles": {"cn=readers,ou=groups,dc=example": ("reader",)},
        "tenant": "acme",
    }  # fmt: skip
    server.close()


@pytest.fixture
async def door(fleet: InProcessFleet, tmp_path: Path, idp: IdentityProvider, directory: Any) -> Any:
    saml = {
        "entity_id": FLEET, "acs_url": ACS, "idp_entity_id": NAME, "idp_url": URL,
        "idp_certificates": [idp.certificate], "roles": {"ops": ("operator",)},
    }  # fmt: skip
    security = SecuritySettings.model_validate({"ldap": directory, "saml": saml})
    made = make_door(fleet, tmp_path / "state")
    settings = Settings(state_dir=made.folder, security=security, throttle=ThrottleSettings(name_failures_max=3))
    made.front.exchange = open_exchange(settings, fleet.ledger, SystemClock(), made.front._auditor)
    yield made
    await made.front.close()


async def by_password(client: httpx2.AsyncClient, user: str = "bob", password: str = "builder") -> httpx2.Response:
    return await client.post("/v1/token", json={"username": user, "password": password})


def claims(door: Door, token: str) -> dict[str, Any]:
    part = token.split(".")[1]
    return dict(json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))))


async def test_a_password_of_the_directory_becomes_a_short_token_with_its_roles(door: Door) -> None:
    async with door.client() as client:
        answer = await by_password(client)
        granted = answer.json()
        known = {"Authorization": f"Bearer {granted['access_token']}"}

        assert (answer.status_code, granted["token_type"], granted["expires_in"]) == (200, "Bearer", 900)
        assert answer.headers["cache-control"] == "no-store"
        assert (await client.get("/v1/goals", headers=known)).status_code == 200
        is_problem(await client.post("/v1/goals", json={"type": "echo"}, headers=known), 403, "permission_denied")

    said = claims(door, granted["access_token"])
    assert (said["sub"], said["roles"], said["tenant"], said["method"]) == ("ldap:bob", ["reader"], "acme", "password")
    assert said["amr"] == ["pwd"] and said["exp"] - said["iat"] == 900 and abs(said["auth_time"] - time.time()) < 5


async def test_a_log_in_is_on_record_before_its_token_is_given_and_none_is_where_it_cannot_be(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = door.front._auditor.log
    async with door.client() as client:
        await by_password(client)
        (record,) = await log.records(RecordQuery(action="token:create"))

        async def fails(*_: Any) -> Any:
            raise UnavailableError("the disk is full")

        monkeypatch.setattr(log, "_call", fails)
        is_problem(await by_password(client), 503, "unavailable")

    told = record.fields
    assert (told["principal"], told["tenant"], told["source"], told["outcome"]) == (
        "ldap:bob", "acme", "127.0.0.1", "ok",
    )  # fmt: skip
    assert told["facts"] == {"provider": "ldap", "method": "password", "roles": ["reader"]}
    assert "builder" not in str(told)
    monkeypatch.undo()


async def test_a_form_is_taken_as_well(door: Door) -> None:
    form = urlencode({"grant_type": "password", "username": "bob", "password": "builder"})

    async with door.client() as client:
        assert (await client.post("/v1/token", content=form, headers=FORM)).status_code == 200


BODIES: dict[str, tuple[bytes, str]] = {
    "wrong password": (b'{"username":"bob","password":"x"}', "application/json"),
    "unknown user": (b'{"username":"zoe","password":"builder"}', "application/json"),
    "no role": (b'{"username":"eve","password":"nobody"}', "application/json"),
    "empty password": (b'{"username":"bob","password":""}', "application/json"),
    "a field more": (b'{"username":"bob","password":"builder","x":"y"}', "application/json"),
    "a list": (b'["bob","builder"]', "application/json"),
    "a number": (b'{"username":"bob","password":1}', "application/json"),
    "no JSON": (b"{", "application/json"), "nothing": (b"", "application/json"),
    "too long": (b'{"username":"bob","password":"' + b"x" * 5000 + b'"}', "application/json"),
    "twice": (b"username=bob&password=builder&username=ada", FORM["Content-Type"]),
    "not a form": (b"username", FORM["Content-Type"]), "another kind": (b"username=bob&password=builder", "text/plain"),
    "many fields": (b"&".join(b"a%d=1" % n for n in range(100)), FORM["Content-Type"]),
}  # fmt: skip


async def test_all_that_fails_reads_alike(door: Door) -> None:
    async with door.client() as client:
        stranger = await client.get("/v1/goals")
        for name, (body, kind) in BODIES.items():
            answer = await client.post("/v1/token", content=body, headers={"Content-Type": kind})
            assert is_problem(answer, 401, "unauthenticated") == stranger.json(), name
            assert dict(answer.headers) == dict(stranger.headers), name


async def test_a_password_does_not_cross_in_clear_from_another_machine(door: Door) -> None:
    body = {"username": "bob", "password": "builder"}
    far = httpx2.ASGITransport(app=door.app, client=("192.0.2.7", 1))

    async with httpx2.AsyncClient(transport=far, base_url="http://fleet") as client:
        is_problem(await client.post("/v1/token", json=body), 401, "unauthenticated")
    async with httpx2.AsyncClient(transport=far, base_url="https://fleet") as client:
        assert (await client.post("/v1/token", json=body)).status_code == 200


async def test_who_fails_often_waits_and_nobody_else_does(door: Door) -> None:
    async with door.client() as client:
        for _ in range(4):
            is_problem(await by_password(client, password="guess"), 401, "unauthenticated")
        refused = await by_password(client)

    is_problem(refused, 429, "resource_exhausted")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    async with door.client() as client:  # Another name from there is looked at.
        assert (await by_password(client, "ada", "lovelace")).status_code == 200
    elsewhere = httpx2.ASGITransport(app=door.app, client=("192.0.2.8", 1))
    async with httpx2.AsyncClient(transport=elsewhere, base_url="https://fleet") as client:
        assert (await by_password(client)).status_code == 200


async def begun(client: httpx2.AsyncClient) -> tuple[str, str]:
    """Return the id of a request and the cookie that goes with its answer."""
    answer = await client.get("/v1/saml/login")
    assert answer.status_code == 303 and answer.headers["location"].startswith(URL)
    cookie = answer.headers["set-cookie"]
    assert {"Secure", "HttpOnly", "Path=/", "SameSite=None"} <= set(cookie.split("; "))
    return request_of(answer.headers["location"]).get("ID"), cookie.partition(";")[0]


async def post(client: httpx2.AsyncClient, cookie: str, **fields: str) -> httpx2.Response:
    return await client.post("/v1/saml/acs", content=urlencode(fields), headers={**FORM, "Cookie": cookie})


async def test_an_answer_of_the_identity_provider_becomes_a_token_once(door: Door, idp: IdentityProvider) -> None:
    async with door.client() as client:
        request, cookie = await begun(client)
        response = idp.answer(request)
        answer = await post(client, cookie, SAMLResponse=response, RelayState="https://evil.example/")
        again = await post(client, cookie, SAMLResponse=response)
        other = await post(client, cookie, SAMLResponse=idp.answer(request, id="_another"))
        known = {"Authorization": f"Bearer {answer.json()['access_token']}"}

        assert (await client.get("/v1/hosts", headers=known)).status_code == 200
    assert answer.status_code == 200 and "location" not in answer.headers and "evil" not in answer.text
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert claims(door, answer.json()["access_token"])["sub"] == "saml:ada@example"
    for refused in (again, other):
        is_problem(refused, 401, "unauthenticated")


async def test_of_many_at_one_time_one_gets_the_token(door: Door, idp: IdentityProvider) -> None:
    async with door.client() as client:
        request, cookie = await begun(client)
        response = idp.answer(request)
        answers = await asyncio.gather(*(post(client, cookie, SAMLResponse=response) for _ in range(4)))

    assert sorted(answer.status_code for answer in answers) == [200, 401, 401, 401]


async def test_another_gateway_knows_what_was_used(door: Door, fleet: InProcessFleet) -> None:
    first, second = LedgerOnce(fleet.ledger), LedgerOnce(fleet.ledger)

    assert await first.claim("saml/x", 100.0, 200.0)
    assert not await second.claim("saml/x", 199.0, 300.0)
    assert await second.claim("saml/x", 200.0, 300.0)


async def test_an_answer_without_its_browser_or_with_more_than_it_needs_is_refused(
    door: Door, idp: IdentityProvider
) -> None:
    async with door.client() as client:
        request, cookie = await begun(client)
        response = idp.answer(request)

        is_problem(await post(client, "", SAMLResponse=response), 401, "unauthenticated")
        is_problem(await post(client, cookie, SAMLResponse=response, more="x"), 401, "unauthenticated")
        is_problem(await post(client, cookie, RelayState="x"), 401, "unauthenticated")
        is_problem(await post(client, cookie, SAMLResponse="x" * 300_000), 401, "unauthenticated")
        assert (await post(client, cookie, SAMLResponse=response)).status_code == 200


async def test_a_session_of_the_provider_that_ends_sooner_ends_the_token(door: Door, idp: IdentityProvider) -> None:
    async with door.client() as client:
        request, cookie = await begun(client)
        until = f' SessionNotOnOrAfter="{instant(time.time() + 100)}"'
        answer = await post(client, cookie, SAMLResponse=idp.answer(request, session=until))

    assert 90 <= answer.json()["expires_in"] <= 100


async def test_the_metadata_is_there_for_the_identity_provider(door: Door) -> None:
    async with door.client() as client:
        answer = await client.get("/v1/saml/metadata")

    assert answer.status_code == 200 and ACS in answer.text and FLEET in answer.text
    assert answer.headers["content-type"].startswith("application/samlmetadata+xml")


async def test_where_nothing_is_configured_there_is_nothing_for_strangers(
    fleet: InProcessFleet, tmp_path: Path
) -> None:
    door = make_door(fleet, tmp_path / "state")
    assert open_exchange(Settings(state_dir=door.folder), fleet.ledger, SystemClock(), door.front._auditor) is None
    async with door.client() as client:
        stranger = await client.get("/v1/goals")
        answers = [await by_password(client), await client.get("/v1/saml/login"), await client.get("/v1/saml/metadata"),
                   await post(client, "", SAMLResponse="x")]  # fmt: skip

    for answer in answers:
        assert (answer.status_code, answer.content) == (401, stranger.content)
    await door.front.close()


async def test_attempts_are_counted(door: Door) -> None:
    async with door.client("operator") as client:
        await by_password(client)
        await by_password(client, password="guess")
        text = (await client.get("/metrics")).text

    for result in ("success", "failure"):
        labels = f'method="password",provider="ldap",result="{result}"'
        (line,) = [line for line in text.splitlines() if line.startswith(f"nexus_auth_attempts_total{{{labels}}}")]
        assert float(line.split()[-1]) >= 1
