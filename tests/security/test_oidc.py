"""Access tokens of a real OpenID Connect provider, beside those of the local issuer."""

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nexus_ray.core.clock import ManualClock, SystemClock
from nexus_ray.core.errors import InvalidArgumentError, UnauthenticatedError, UnavailableError
from nexus_ray.core.identity import Delegation, Session
from nexus_ray.observe import metrics
from nexus_ray.security import fetch
from nexus_ray.security.authn import Authenticator
from nexus_ray.security.keys import KeySet, load_or_create_issuer_key
from nexus_ray.security.oidc import OidcIssuer
from nexus_ray.security.settings import OidcProvider, SecuritySettings
from nexus_ray.security.tokens import LocalIssuer, TokenSettings, issue_token
from tests.security.conftest import NOW
from tests.security.oidc_server import OidcServer, claims_of


class Bench:
    """An authenticator with providers; its monotonic clock is moved by hand, its wall clock is the machine's."""

    def __init__(self, folder: Path, **providers: OidcProvider) -> None:
        self.key = load_or_create_issuer_key(folder)
        self.clock = ManualClock(SystemClock().now())
        security = SecuritySettings(oidc=providers)
        self.authenticator = Authenticator.from_folder(folder, TokenSettings(), self.clock, security)

    async def session(self, token: str) -> Session:
        return await self.authenticator.identify(token)

    async def reason(self, token: str) -> Any:
        with pytest.raises(UnauthenticatedError) as caught:
            await self.authenticator.identify(token)
        assert str(caught.value) == "authentication failed"
        return caught.value.details["reason"]


def provider(server: OidcServer, **changes: Any) -> OidcProvider:
    wanted = {
        "issuer": server.issuer, "audience": "urn:nexus", "tenant_claim": "tid", "tenants": {"acme": "acme-corp"},
        "roles_claim": "groups", "roles": {"nexus-readers": ["reader", "reader"]},
    }  # fmt: skip
    return OidcProvider.model_validate({**wanted, **changes})


def counted(name: str, result: str) -> float:
    start = f'nexus_auth_attempts_total{{method="token",provider="{name}",result="{result}"}} '
    lines = [line for line in metrics.exposition().decode().splitlines() if line.startswith(start)]
    return float(lines[0].rpartition(" ")[2]) if lines else 0.0


async def test_a_client_of_the_provider_is_let_in_with_tenant_and_mapped_roles(
    server: OidcServer, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, corp=provider(server))
    token = server.robot_token()
    before = counted("corp", "success"), counted("local", "success")

    session = await bench.session(token)
    ours = issue_token(bench.key, TokenSettings(), "ann", ["operator"], 60, bench.clock.now())
    local = await bench.session(ours)

    claims = claims_of(token)
    assert (session.principal, session.issuer, session.roles) == ("corp:robot", server.issuer, ("reader",))
    assert (session.tenant, session.method, session.expires_at) == ("acme-corp", "oidc", claims["exp"])
    assert (session.id, session.authenticated_at) == (claims["jti"], claims["iat"])
    assert (local.principal, local.tenant, local.method) == ("ann", "main", "token")
    assert await bench.session(token) is session
    assert (counted("corp", "success"), counted("local", "success")) == (before[0] + 2, before[1] + 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"audience": "urn:other"}, "issuer_or_audience"), ({"tenants": {"other": "x"}}, "tenant"),
        ({"tenant_claim": "nothing"}, "tenant"), ({"algorithms": ["RS256"]}, "algorithm_or_type"),
        ({"types": ["JWT"]}, "algorithm_or_type"), ({"principal_claim": "email"}, "claim_email"),
        ({"acr_values": ["mfa"]}, "acr"), ({"lifetime_max_s": 599}, "lifetime"),
        ({"issuer": "https://elsewhere.example"}, "algorithm_or_type"),
    ],
)  # fmt: skip
async def test_what_the_settings_do_not_name_is_refused(
    server: OidcServer, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    bench = Bench(tmp_path, corp=provider(server, **changes))

    assert await bench.reason(server.robot_token()) == reason


async def test_an_issuer_is_compared_to_the_letter(server: OidcServer, tmp_path: Path) -> None:
    bench = Bench(tmp_path, corp=provider(server, issuer=f"{server.issuer}/"))

    assert await bench.reason(server.robot_token()) == "algorithm_or_type"
    assert OidcProvider(issuer="https://a.example/", audience="x").issuer == "https://a.example/"


async def test_a_role_that_the_table_does_not_name_grants_nothing(server: OidcServer, tmp_path: Path) -> None:
    bench = Bench(tmp_path, corp=provider(server, roles={"other": ["operator"]}, roles_claim="groups"))
    deep = Bench(tmp_path, corp=provider(server, roles_claim="a.b.c"))

    assert (await bench.session(server.robot_token())).roles == ()
    assert (await deep.session(server.robot_token())).roles == ()


async def test_a_rotated_key_is_found_and_the_old_one_ends_at_once(server: OidcServer, tmp_path: Path) -> None:
    bench = Bench(tmp_path, corp=provider(server))
    old = server.robot_token()
    await bench.session(old)

    server.tell("rotate")
    new = server.robot_token()
    asked = server.tell("nothing")
    assert await bench.reason(new) == "unknown_key"  # Within the cool-down nobody asks.
    bench.clock.advance(30)
    await asyncio.gather(*(bench.session(new) for _ in range(10)))

    assert server.tell("nothing") == asked + 1, "ten who wait are one request"
    assert await bench.reason(old) == "key_is_gone"


async def test_a_key_that_was_withdrawn_ends_a_token_that_was_seen_before_too(
    server: OidcServer, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, corp=provider(server, keys_fresh_s=100))
    token = server.robot_token()
    await bench.session(token)
    server.tell("rotate")

    bench.clock.advance(99)
    assert (await bench.session(token)).principal == "corp:robot"
    bench.clock.advance(2)
    await bench.session(token)  # Goes on with the old keys, and has them asked for again.
    async with asyncio.timeout(5):
        while bench.authenticator._issuers[server.issuer]._asking is not None:  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
    assert await bench.reason(token) == "key_is_gone"

    fresh = server.robot_token()
    await bench.session(fresh)
    server.tell("rotate")
    bench.clock.advance(201)
    assert await bench.reason(fresh) == "key_is_gone"  # After a quiet time even the first one waits.


async def test_old_keys_serve_while_the_provider_is_away_and_not_for_ever(server: OidcServer, tmp_path: Path) -> None:
    limits = {"keys_fresh_s": 10, "keys_stale_s": 60, "cooldown_s": 5}
    bench = Bench(tmp_path, corp=provider(server, **limits))
    token = server.robot_token()
    await bench.session(token)
    server.tell("break")
    try:
        for _ in range(5):
            bench.clock.advance(11)
            assert (await bench.session(token)).principal == "corp:robot"
            assert (await bench.session(server.robot_token())).principal == "corp:robot"
            await asyncio.sleep(0.02)
        bench.clock.advance(6)
        assert await bench.reason(token) == "key_is_gone"
        assert await bench.reason(token) == "unknown_key"
    finally:
        server.tell("mend")
    bench.clock.advance(6)
    assert (await bench.session(token)).principal == "corp:robot"


async def test_a_provider_that_never_answered_lets_nobody_in_and_harms_nobody_else(tmp_path: Path) -> None:
    away = OidcProvider(issuer="http://127.0.0.1:9", audience="x", timeout_s=1)
    bench = Bench(tmp_path, away=away)
    forged = issue_token(
        bench.key, TokenSettings(issuer=away.issuer, audience="x"), "ann", ["operator"], 60, bench.clock.now()
    )

    assert await bench.reason(forged) in ("algorithm_or_type", "unknown_key")
    ours = issue_token(bench.key, TokenSettings(), "ann", [], 60, bench.clock.now())
    assert (await bench.session(ours)).principal == "ann"


@pytest.mark.parametrize(
    "changes",
    [{"issuer": "http://idp.example"}, {"issuer": "ftp://127.0.0.1"}, {"issuer": "https://u:p@idp.example"},
     {"issuer": "https://idp.example#x"}, {"issuer": "https://idp.example?x"}, {"issuer": "https://"}, {"issuer": ""},
     {"audience": ""}, {"algorithms": ["HS256"]}, {"algorithms": ["none"]}, {"algorithms": []}, {"types": []},
     {"tenants": {"a": "b"}}, {"tenant_claim": "tid"}, {"unknown": 1}],
)  # fmt: skip
def test_settings_that_would_weaken_it_are_refused(changes: dict[str, Any]) -> None:
    good = {"issuer": "https://idp.example", "audience": "nexus"}
    SecuritySettings.model_validate({"oidc": {"corp": good}})

    with pytest.raises(ValueError):
        SecuritySettings.model_validate({"oidc": {"corp": {**good, **changes}}})


@pytest.mark.parametrize("names", [["local"], ["Corp"], ["a b"], [""], ["a", "b"]])
def test_providers_have_names_of_their_own_and_issuers_too(names: list[str]) -> None:
    good = {"issuer": "https://idp.example", "audience": "nexus"}

    with pytest.raises(ValueError):
        SecuritySettings.model_validate({"oidc": dict.fromkeys(names, good)})


@pytest.mark.parametrize(
    ("address", "is_loopback", "is_private", "may"),
    [
        ("93.184.216.34", False, False, True), ("2606:4700::1", False, False, True),
        ("127.0.0.1", False, False, False), ("127.0.0.1", False, True, False), ("127.0.0.1", True, False, True),
        ("::1", False, True, False), ("::1", True, False, True), ("10.0.0.1", False, False, False),
        ("10.0.0.1", True, False, False), ("10.0.0.1", False, True, True), ("192.168.1.1", False, False, False),
        ("172.16.0.1", False, False, False), ("100.64.0.1", False, False, False), ("fd00::1", False, False, False),
        ("fd00::1", False, True, True), ("169.254.169.254", True, True, False), ("fe80::1%eth0", True, True, False),
        ("0.0.0.0", True, True, False), ("::", True, True, False), ("224.0.0.1", True, True, False),
        ("255.255.255.255", True, True, False), ("::ffff:169.254.169.254", True, True, False),
        ("::ffff:127.0.0.1", False, True, False), ("64:ff9b::a9fe:a9fe", True, True, False),
        ("2002:7f00:1::", False, True, False), ("192.0.2.1", False, False, False),
    ],
)  # fmt: skip
def test_only_addresses_that_are_meant_are_connected_to(
    address: str, is_loopback: bool, is_private: bool, may: bool
) -> None:
    assert fetch.may_connect(address, may_be_loopback=is_loopback, may_be_private=is_private) is may


@pytest.mark.parametrize(
    "url",
    ["http://169.254.169.254/latest", "https://169.254.169.254/latest", "https://localhost/keys", "http://127.0.0.1/",
     "https://[::ffff:127.0.0.1]/keys", "https://2130706433/", "https://0x7f.1/", "file:///etc/passwd", "gopher://x/",
     "https://u@127.0.0.1/", "https://idp.example\\@127.0.0.1/", "https://idp.example:0/", "https://[::1",
     "https://a b/"],
)  # fmt: skip
async def test_a_document_of_a_public_provider_leads_nowhere_inside(url: str) -> None:
    with pytest.raises(UnavailableError) as caught:
        await fetch.get_json(url, timeout_s=2, bytes_max=1000)

    assert "answer" not in str(caught.value), "refused before anything was asked"


async def test_what_is_fetched_is_bounded_and_never_redirected() -> None:
    answers = {
        "/ok": b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"a\":1}",
        "/redirect": b"HTTP/1.1 302 Found\r\nLocation: /ok\r\nContent-Length: 0\r\n\r\n",
        "/large": b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b" " * 5000,
        "/packed": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        "/text": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "/slow": b"",
    }  # fmt: skip

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        writer.write(answers[path])
        if path == "/slow":
            await reader.read()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with listening:
        got = await fetch.get_json(f"{url}/ok", timeout_s=2, bytes_max=1000, may_be_loopback=True)
        assert got == {"a": 1}
        for path in answers.keys() - {"/ok"}:
            with pytest.raises(UnavailableError):
                await fetch.get_json(f"{url}{path}", timeout_s=0.2, bytes_max=1000, may_be_loopback=True)


def test_providers_come_from_the_environment_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    from nexus_ray.config import load

    monkeypatch.setenv("NEXUS_SECURITY__OIDC", '{"corp": {"issuer": "https://idp.example", "audience": "nexus"}}')
    assert load().security.oidc["corp"].audience == "nexus"

    monkeypatch.setenv("NEXUS_SECURITY__OIDC", '{"corp": {"issuer": "http://idp.example", "audience": "nexus"}}')
    with pytest.raises(InvalidArgumentError, match="not https"):
        load()


def test_whatever_a_proved_token_claims_it_is_read_or_refused() -> None:
    """A provider that has gone mad, or was broken into, harms nobody: it is one more refusal, never a crash."""
    dice = random.Random(7)
    settings = OidcProvider(
        issuer="https://idp.example", audience="nexus", tenant_claim="tid", tenants={"a": "a-corp"},
        roles_claim="realm.roles", roles={"r": ("reader",), "bad": ("two words",)}, acr_values=("mfa",),
    )  # fmt: skip
    corp = OidcIssuer("corp", settings, ManualClock())
    local = LocalIssuer(KeySet({}), TokenSettings())
    good = {
        "iss": "https://idp.example", "aud": "nexus", "sub": "ann", "iat": NOW, "exp": NOW + 60, "nbf": NOW, "jti": "1",
        "tid": "a", "acr": "mfa", "amr": ["pwd"], "auth_time": NOW, "realm": {"roles": ["r", "bad", "x"]},
        "cnf": {"jkt": "k"}, "roles": ["reader"], "tenant": "main", "method": "token", "act": {"sub": "robot"},
        "nexus_parents": ["1"], "nexus_narrowed": True,
    }  # fmt: skip
    odd: list[Any] = [None, True, 0, -1, 1e308, 10**400, "", "a", "r", "\u202e", "x" * 300, [], ["r"], [[]], [None], {},
                      {"roles": "r bad"}, {"roles": {"r": 1}}, {"jkt": []}, {"jkt": "k"}, ["nexus", {}],
                      "nexus"]  # fmt: skip
    read = corp.read(good, NOW)
    assert (read.roles, read.tenant, read.acr, read.amr) == (("reader",), "a-corp", "mfa", ("pwd",))
    assert read.bound == "jkt:k" and read.delegation == Delegation(("corp:robot",))

    ends = Counter[str]()
    for _ in range(3000):
        claims = {**good, **{dice.choice(list(good)): dice.choice(odd) for _ in range(dice.randint(1, 3))}}
        for issuer, named in ((corp, {}), (local, {"iss": "nexus-local"} if claims["iss"] == good["iss"] else {})):
            try:
                found = issuer.read({**claims, **named}, NOW)
            except UnauthenticatedError:
                ends["refused"] += 1
            else:
                ends["read"] += 1
                assert found.subject and found.tenant and found.expires_at + 5 > NOW
                assert set(found.roles) <= {"reader", "r"}

    assert min(ends["refused"], ends["read"]) > 500, ends
