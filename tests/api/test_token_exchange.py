"""Tokens for tokens (RFC 8693): what is given has less than what it was given for, and everything else is refused."""

import asyncio
import base64
import json
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from nexus_ray.audit.ports import RecordQuery
from nexus_ray.core.errors import UnavailableError
from nexus_ray.core.identity import Delegation, Session
from nexus_ray.security.authz import Authorizer
from nexus_ray.security.jwk import thumbprint
from nexus_ray.security.keys import load_or_create_issuer_key
from nexus_ray.security.policy import parse_policy
from nexus_ray.security.rego_engine import RegoEngine
from nexus_ray.security.settings import SecuritySettings
from nexus_ray.security.throttle import ThrottleSettings
from nexus_ray.security.token_exchange import ACCESS_TOKEN, GRANT
from nexus_ray.security.tokens import TokenSettings, issue_token
from tests.api.conftest import Door, is_problem, make_door
from tests.security.test_dpop import JWK, proof

HERE = "http://127.0.0.1:8600"
JWT = "urn:ietf:params:oauth:token-type:jwt"


def client_of(door: Door, token: str = "") -> httpx2.AsyncClient:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=door.app), base_url=HERE, headers=headers)


async def ask(door: Door, token: str, headers: dict[str, str] | None = None, **fields: str) -> httpx2.Response:
    form = {"grant_type": GRANT, "subject_token": token, "subject_token_type": ACCESS_TOKEN, **fields}
    async with client_of(door) as client:
        return await client.post("/v1/token", data=form, headers=headers)


async def exchanged(door: Door, token: str, **fields: str) -> str:
    answer = await ask(door, token, **fields)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["access_token"])


async def status(door: Door, token: str, path: str = "/v1/goals") -> int:
    async with client_of(door, token) as client:
        return (await client.get(path)).status_code


async def session_of(door: Door, id: str) -> dict[str, Any]:
    """Return what the list of sessions says of one; nobody waits for it to be written."""
    async with door.client("operator") as operator, asyncio.timeout(5):
        while True:
            for one in (await operator.get("/v1/sessions")).json()["sessions"]:
                if one["id"] == id:
                    return dict(one)
            await asyncio.sleep(0.01)


def as_actor(token: str) -> dict[str, str]:
    return {"actor_token": token, "actor_token_type": ACCESS_TOKEN}


def issued(door: Door, *roles: str, lifetime_s: float = 600.0, name: str = "ada", **more: Any) -> str:
    key = load_or_create_issuer_key(door.folder)
    return issue_token(key, TokenSettings(), name, roles, lifetime_s, time.time(), **more)


def claims(token: str) -> dict[str, Any]:
    part = token.split(".")[1]
    return dict(json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))))


async def test_a_token_is_exchanged_for_one_that_has_less(door: Door) -> None:
    answer = await ask(door, door.token("operator", "reader"), scope="reader")
    given = answer.json()

    assert answer.status_code == 200 and answer.headers["cache-control"] == "no-store"
    assert given == {
        "access_token": given["access_token"], "issued_token_type": ACCESS_TOKEN, "token_type": "Bearer",
        "expires_in": given["expires_in"], "scope": "reader",
    }  # fmt: skip
    assert 590 <= given["expires_in"] <= 600
    assert await status(door, given["access_token"]) == 200
    async with client_of(door, given["access_token"]) as client:
        is_problem(await client.post("/v1/goals", json={"type": "echo"}), 403, "permission_denied")
        is_problem(await client.get("/v1/sessions"), 403, "permission_denied")


async def test_what_is_not_asked_for_stays_as_it_is(door: Door) -> None:
    token = issued(door, "operator", tenant="acme", acr="gold", amr=["otp"], auth_time=1_700_000_000)

    given = claims(await exchanged(door, token, scope="", requested_token_type=JWT, audience="nexus"))

    kept = {name: given[name] for name in ("sub", "roles", "tenant", "acr", "amr", "auth_time", "aud", "method")}
    assert kept == {
        "sub": "ada", "roles": ["operator"], "tenant": "acme", "acr": "gold", "amr": ["otp"],
        "auth_time": 1_700_000_000, "aud": "nexus", "method": "exchange",
    }  # fmt: skip
    assert given["nexus_parents"] == [claims(token)["jti"]] and not given["nexus_narrowed"] and "act" not in given


async def test_it_ends_with_what_it_was_given_for_and_soon_in_any_case(door: Door) -> None:
    short, long = issued(door, "reader", lifetime_s=40.0), issued(door, "reader", lifetime_s=86_400.0)

    lives = [
        (await ask(door, token, **more)).json()["expires_in"]
        for token, more in ((short, {}), (long, {}), (long, as_actor(short)))
    ]

    assert 20 <= lives[0] <= 40 and lives[1] == 900 and 20 <= lives[2] <= 40


WRONG: list[tuple[dict[str, str], str]] = [
    ({"scope": "admin"}, "invalid_scope"), ({"scope": "reader admin"}, "invalid_scope"),
    ({"scope": "reader  reader"}, "invalid_scope"), ({"scope": "Reader"}, "invalid_scope"),
    ({"audience": "another"}, "invalid_target"), ({"resource": "https://evil.example"}, "invalid_target"),
    ({"subject_token": ""}, "invalid_request"), ({"subject_token_type": ""}, "invalid_request"),
    ({"subject_token_type": "urn:ietf:params:oauth:token-type:saml2"}, "invalid_request"),
    ({"requested_token_type": "urn:ietf:params:oauth:token-type:refresh_token"}, "invalid_request"),
    ({"actor_token": "x"}, "invalid_request"), ({"actor_token_type": ACCESS_TOKEN}, "invalid_request"),
    ({"principal": "root"}, "invalid_request"), ({"subject_token": "nonsense"}, "invalid_request"),
    ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
]  # fmt: skip


async def test_what_asks_for_more_or_for_something_else_is_refused(door: Door) -> None:
    for fields, error in WRONG:
        answer = await ask(door, door.token("reader", "submitter"), **fields)

        assert (answer.status_code, answer.json()["error"]) == (400, error), fields
        assert answer.headers["content-type"] == "application/json" and answer.headers["cache-control"] == "no-store"
        assert answer.json()["error_description"]


async def test_of_a_token_that_is_not_accepted_nobody_learns_why(door: Door) -> None:
    good = door.token("reader")
    expired = issue_token(
        load_or_create_issuer_key(door.folder), TokenSettings(), "ada", ["reader"], 10.0, time.time() - 60
    )
    dead = [expired, good[:-4] + "AAAA", "x" * 20_000, issued(door, "reader", cnf={"jkt": "x"}),
            issued(door, "reader", cnf={"x5t#S256": "x"})]  # fmt: skip
    answers = [await ask(door, token) for token in dead]
    answers += [await ask(door, good, **as_actor(token)) for token in (*dead, issued(door, "reader", tenant="acme"))]

    assert {(one.status_code, one.text) for one in answers} == {
        (400, '{"error":"invalid_request","error_description":"a token is not accepted"}')
    }


async def test_a_service_acts_for_a_user_with_what_the_user_has_and_is_named(door: Door) -> None:
    robot = issued(door, "admin", name="robot")
    first = await exchanged(door, door.token("reader", "submitter"), scope="reader", **as_actor(robot))
    second = await exchanged(door, first, **as_actor(issued(door, "reader", name="helper-2")))

    assert claims(second)["act"] == {"sub": "helper-2", "act": {"sub": "robot"}}
    assert claims(second)["roles"] == ["reader"] and claims(second)["sub"] == "ada"
    async with client_of(door, second) as client:
        assert (await client.get("/v1/goals")).status_code == 200
        is_problem(await client.post("/v1/goals", json={"type": "echo"}), 403, "permission_denied")
    listed = await session_of(door, claims(second)["jti"])
    assert (listed["actor"], listed["method"], listed["principal"]) == ("helper-2", "exchange", "ada")
    await door.front._auditor.flush()
    log = door.front._auditor.log
    denied = await log.records(RecordQuery(action="goal:submit", decision="deny"))
    assert denied[0].fields["principal"] == "ada" and denied[0].fields["facts"]["actor"] == "helper-2"
    given = [one.fields["facts"] for one in await log.records(RecordQuery(action="token:exchange"))]
    assert [one["actors"] for one in given] == [["helper-2", "robot"], ["robot"]]
    assert first not in str(given) and robot not in str(given)


async def test_who_acts_for_somebody_lends_no_name_out_and_the_chain_ends(door: Door) -> None:
    ada, robot = door.token("reader"), issued(door, "reader", name="robot")
    for_ada = await exchanged(door, ada, **as_actor(robot))

    assert (await ask(door, ada, **as_actor(for_ada))).json()["error"] == "invalid_request"
    token = ada
    for _ in range(4):
        token = await exchanged(door, token, **as_actor(robot))
    assert (await ask(door, token, **as_actor(robot))).json()["error"] == "invalid_request"


async def test_roles_that_were_bound_to_the_name_do_not_come_along_when_less_was_asked_for(door: Door) -> None:
    table = {"roles": {"reader": ["goal:read"], "boss": ["goal:cancel"]},
             "bindings": [{"role": "boss", "principals": ["ada"]}]}  # fmt: skip
    authorizer = Authorizer({}, engine=RegoEngine(parse_policy(table)))
    whole = Session("s", "ada", "nexus-local", ("reader",), 9e9, delegation=Delegation((), ("p",), False))
    less = Session("t", "ada", "nexus-local", ("reader",), 9e9, delegation=Delegation((), ("p",), True))

    token = await exchanged(door, door.token("reader"), scope="reader")
    again = await exchanged(door, token)

    authorizer.authorize(whole, "goal:cancel")
    authorizer.authorize(less, "goal:read")
    with pytest.raises(Exception, match="not allowed"):
        authorizer.authorize(less, "goal:cancel")
    assert claims(token)["nexus_narrowed"] and claims(again)["nexus_narrowed"]  # Nor by exchanging it once more.


@pytest.mark.parametrize("what", ["the subject's session", "the actor's session", "the subject", "the actor"])
async def test_where_one_of_them_may_come_in_no_more_neither_may_what_came_of_it(door: Door, what: str) -> None:
    ada, robot = door.token("reader"), issued(door, "reader", name="robot")
    token = await exchanged(door, await exchanged(door, ada, **as_actor(robot)))
    assert await status(door, token) == 200

    async with door.client("operator", name="eve") as eve:
        if what.endswith("session"):
            id = claims(ada if "subject" in what else robot)["jti"]
            answer = await eve.post("/v1/sessions:revoke", params={"id": id})
        else:
            name = "ada" if what == "the subject" else "robot"
            answer = await eve.post("/v1/identities:suspend", params={"principal": name})
        assert answer.status_code == 200

    assert await status(door, token) == 401
    assert (await ask(door, token)).json()["error"] == "invalid_request"


async def test_a_token_that_is_bound_to_a_key_needs_its_proof_and_stays_bound(door: Door) -> None:
    bound = issued(door, "reader", cnf={"jkt": thumbprint(JWK)})

    def shown(token: str, number: int, **named: Any) -> dict[str, str]:
        named = {"iat": time.time(), "jti": str(number), "htm": "POST", "htu": f"{HERE}/v1/token", **named}
        return {"DPoP": proof(token, claims=named)}

    answer = await ask(door, bound, shown(bound, 1))
    given = answer.json()["access_token"]

    assert answer.json()["token_type"] == "DPoP" and claims(given)["cnf"] == {"jkt": thumbprint(JWK)}
    assert await status(door, given) == 401
    for headers in (None, shown(bound, 1), shown(bound, 2, htm="GET"), shown(given, 3)):
        assert (await ask(door, bound, headers)).json()["error"] == "invalid_request"
    use = {**shown(given, 4, htm="GET", htu=f"{HERE}/v1/goals"), "Authorization": f"DPoP {given}"}
    async with client_of(door) as client:
        assert (await client.get("/v1/goals", headers=use)).status_code == 200


async def test_it_is_on_record_before_it_is_given_and_none_is_where_it_cannot_be(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = door.front._auditor.log
    token = await exchanged(door, door.token("reader"))
    (record,) = await log.records(RecordQuery(action="token:exchange"))

    async def fails(*_: Any) -> Any:
        raise UnavailableError("the disk is full")

    monkeypatch.setattr(log, "_call", fails)

    assert record.fields["facts"]["id"] == claims(token)["jti"] and record.fields["resource"] == "ada"
    is_problem(await ask(door, door.token("reader")), 503, "unavailable")
    monkeypatch.undo()


async def test_who_guesses_tokens_waits(doors: Callable[..., Door]) -> None:
    door = doors(throttle=ThrottleSettings(name_failures_max=2))
    for _ in range(3):
        assert (await ask(door, door.token("reader")[:-4] + "AAAA")).status_code == 400

    answer = await ask(door, door.token("reader"))

    is_problem(answer, 429, "resource_exhausted")
    assert (await ask(door, door.token("reader", name="bob"))).status_code == 200


async def test_one_principal_has_so_many_tokens_exchanged_a_minute_and_others_have_theirs(door: Door) -> None:
    here = make_door(
        door.fleet, door.folder, security=SecuritySettings(exchanges_a_minute_max=2), auditor=door.front._auditor
    )
    first = await exchanged(here, door.token("reader"))
    await exchanged(here, first)

    is_problem(await ask(here, door.token("reader")), 429, "resource_exhausted")
    is_problem(await ask(here, first), 429, "resource_exhausted")
    assert (await ask(here, door.token("reader", name="bob"))).status_code == 200


async def test_tokens_cross_in_clear_on_this_machine_only(door: Door) -> None:
    form = {"grant_type": GRANT, "subject_token": door.token("reader"), "subject_token_type": ACCESS_TOKEN}
    far = httpx2.ASGITransport(app=door.app, client=("192.0.2.7", 1))

    async with httpx2.AsyncClient(transport=far, base_url="http://fleet") as client:
        is_problem(await client.post("/v1/token", data=form), 401, "unauthenticated")
    async with httpx2.AsyncClient(transport=far, base_url="https://fleet") as client:
        assert (await client.post("/v1/token", data=form)).status_code == 200


MALFORMED: list[dict[str, Any]] = [
    {"act": "robot"}, {"act": {}}, {"act": {"sub": 1}}, {"act": {"sub": "a", "act": []}}, {"nexus_parents": "x"},
    {"nexus_parents": [1]}, {"nexus_narrowed": "yes"},
    {"act": {"sub": "1", "act": {"sub": "2", "act": {"sub": "3", "act": {"sub": "4", "act": {"sub": "5"}}}}}},
]  # fmt: skip


async def test_a_delegation_that_cannot_be_read_lets_nobody_in(door: Door) -> None:
    assert await status(door, issued(door, "reader", act={"sub": "robot"})) == 200
    for more in MALFORMED:
        assert await status(door, issued(door, "reader", **more)) == 401, more
