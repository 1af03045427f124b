"""Where a request comes from when proxies stand before the fleet, and whom that cannot be told by."""

import httpx2
import pytest
from pydantic import ValidationError

from nexus_ray.api.proxies import Proxies, peer_of
from nexus_ray.config import RuntimeSettings
from nexus_ray.security.throttle import ThrottleSettings
from tests.api.conftest import Door, is_problem, make_door

PROXY = "10.0.0.7"
TRUSTED = ("10.0.0.0/24", "2001:db8::/64")


def seen(peer: str, *said: str, header: str = "x-forwarded-for", trusted: tuple[str, ...] = TRUSTED) -> str:
    settings = RuntimeSettings.model_validate({"trusted_proxies": trusted, "proxy_header": header})
    headers = [(header.encode(), value.encode()) for value in said]
    headers.append((b"x-real-ip", b"192.0.2.66"))
    scope = Proxies(settings).seen_through({"type": "http", "client": (peer, 4711), "headers": headers})
    assert peer_of(scope) == peer
    return str(scope["client"][0])


@pytest.mark.parametrize(
    ("said", "source"),
    [
        (("192.0.2.1",), "192.0.2.1"), (("192.0.2.1:5000",), "192.0.2.1"), (("2001:db8:1::1",), "2001:db8:1::1"),
        (("[2001:db8:1::1]:443",), "2001:db8:1::1"), (("198.51.100.9, 192.0.2.1",), "192.0.2.1"),
        (("198.51.100.9", "192.0.2.1"), "192.0.2.1"), (("198.51.100.9, 192.0.2.1, 10.0.0.8",), "192.0.2.1"),
        (("10.0.0.9, 10.0.0.8",), "10.0.0.9"), (("::ffff:10.0.0.8, 192.0.2.1 ",), "192.0.2.1"),
        # What cannot be read is nobody, and whatever stands before it is hearsay.
        (("192.0.2.1, unknown",), PROXY), (("192.0.2.1,",), PROXY), (("192.0.2.1, 1.2.3.4.5",), PROXY), ((), PROXY),
        (("192.0.2.1, localhost",), PROXY), (("",), PROXY), (("192.0.2.1 10.0.0.8",), PROXY),
    ],
)  # fmt: skip
def test_the_last_hop_is_believed_of_a_proxy_that_is_known(said: tuple[str, ...], source: str) -> None:
    assert seen(PROXY, *said) == source


@pytest.mark.parametrize("peer", ["192.0.2.7", "10.0.1.7", "2001:db8:0:1::7", "here"])
def test_nobody_else_is_believed(peer: str) -> None:
    assert seen(peer, "127.0.0.1") == peer
    assert seen(PROXY, "127.0.0.1", trusted=()) == PROXY


@pytest.mark.parametrize(
    ("said", "source"),
    [
        (("for=192.0.2.1",), "192.0.2.1"), (('For="[2001:db8:1::1]:4711";proto=https',), "2001:db8:1::1"),
        (("proto=http;for=192.0.2.1;by=203.0.113.43",), "192.0.2.1"), (("for=1.1.1.1, for=192.0.2.1",), "192.0.2.1"),
        (("for=192.0.2.1, for=10.0.0.8",), "192.0.2.1"), (("for=_hidden",), PROXY), (("by=192.0.2.1",), PROXY),
        (('for=192.0.2.1, by="a,for=1.1.1.1"',), PROXY), (("for=192.0.2.1;for=",), "192.0.2.1"), (("",), PROXY),
    ],
)  # fmt: skip
def test_the_standard_header_says_the_same_where_that_is_the_one(said: tuple[str, ...], source: str) -> None:
    assert seen(PROXY, *said, header="forwarded") == source
    # The header that the proxy does not write is the caller's.
    assert seen(PROXY, *said, header="x-forwarded-for") == PROXY or "for=" not in said[0]


def test_a_chain_is_followed_for_so_many_hops() -> None:
    assert seen(PROXY, ", ".join(["192.0.2.1", *["10.0.0.8"] * 10_000])) == "10.0.0.8"


def test_what_is_no_network_is_refused() -> None:
    for text in ("proxy.example", "10.0.0.7/24", ""):
        with pytest.raises(ValidationError):
            RuntimeSettings(trusted_proxies=(text,))


async def test_who_guesses_behind_a_proxy_waits_and_nobody_else_there_does(door: Door) -> None:
    runtime = RuntimeSettings(trusted_proxies=TRUSTED)
    throttle = ThrottleSettings(source_failures_max=1)
    here = make_door(door.fleet, door.folder, runtime=runtime, throttle=throttle, auditor=door.front._auditor)
    known = {"Authorization": f"Bearer {door.token('reader')}"}
    wrong = {"Authorization": "Bearer nonsense", "X-Forwarded-For": "192.0.2.1"}

    transport = httpx2.ASGITransport(app=here.app, client=(PROXY, 1))
    async with httpx2.AsyncClient(transport=transport, base_url="http://fleet") as client:
        for _ in range(2):
            is_problem(await client.get("/v1/goals", headers=wrong), 401, "unauthenticated")
        is_problem(await client.get("/v1/goals", headers=wrong), 429, "resource_exhausted")
        spoof = {**wrong, "X-Forwarded-For": "203.0.113.5, 192.0.2.1"}
        is_problem(await client.get("/v1/goals", headers=spoof), 429, "resource_exhausted")
        other = {**known, "X-Forwarded-For": "192.0.2.2"}
        assert (await client.get("/v1/goals", headers=other)).status_code == 200
        # Clear text from a proxy that is not on this machine would have crossed a network.
        body = {"username": "ada", "password": "x"}
        claimed = {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "https"}
        is_problem(await client.post("/v1/token", json=body, headers=claimed), 401, "unauthenticated")
