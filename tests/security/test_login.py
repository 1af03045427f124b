"""`nexus login` with a real provider: by device code, in the browser, refreshed, and ended; and who would mix in."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from nexus_ray.cli.oauth import Asker
from nexus_ray.core.clock import SystemClock
from nexus_ray.core.errors import FailedPreconditionError, NexusError, UnauthenticatedError
from nexus_ray.runtime.client import connect
from nexus_ray.runtime.fleet_file import read_login
from nexus_ray.security.authn import Authenticator
from nexus_ray.security.keys import load_or_create_issuer_key
from nexus_ray.security.settings import OidcProvider, SecuritySettings
from nexus_ray.security.tokens import TokenSettings
from tests.cli.support import nexus, printed
from tests.security.oidc_server import OidcServer

FLEET = "http://127.0.0.1:8600"


def settings_of(server: OidcServer, **changes: Any) -> OidcProvider:
    wanted = {"issuer": server.issuer, "audience": "urn:nexus", "client_id": "cli"}
    return OidcProvider.model_validate({**wanted, "scopes": ["openid", "offline_access", "api"], **changes})


@pytest.fixture
def state(server: OidcServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "state"
    monkeypatch.setenv("NEXUS_STATE_DIR", str(folder))
    monkeypatch.setenv("NEXUS_URL", FLEET)
    monkeypatch.setenv("NEXUS_SECURITY__OIDC", json.dumps({"corp": settings_of(server).model_dump()}))
    monkeypatch.delenv("NEXUS_TOKEN", raising=False)
    return folder


@pytest.fixture
def asker(server: OidcServer) -> Any:
    with httpx2.Client(trust_env=False, timeout=10) as http:
        yield Asker(settings_of(server), http)


def person(act: Callable[[str], None]) -> Callable[[str], None]:
    """Act on an address beside the verb that waits, as a browser does."""
    return lambda address: threading.Thread(target=act, args=(address,), daemon=True).start()


async def test_a_person_logs_in_in_the_browser_and_is_let_in(
    server: OidcServer, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import webbrowser

    monkeypatch.setattr(webbrowser, "open", person(lambda address: come_back(server.follow(address))))

    told = printed(nexus("login", "--json"))

    kept = read_login(state)
    assert kept is not None and (told["provider"], told["url"], kept.url) == ("corp", FLEET, FLEET)
    assert (state / "login.json").stat().st_mode & 0o777 == 0o600
    load_or_create_issuer_key(state)
    security = SecuritySettings(oidc={"corp": settings_of(server)})
    authenticator = Authenticator.from_folder(state, TokenSettings(), SystemClock(), security)
    assert (await authenticator.identify(kept.token)).principal == "corp:ann"

    # With the refresh token nobody is asked again; after it was revoked, somebody is.
    monkeypatch.setattr(webbrowser, "open", lambda _: pytest.fail("nobody should be asked"))
    assert nexus("login", "corp").exit_code == 0
    again = read_login(state)
    assert again is not None and again.token != kept.token and again.refresh_token
    assert printed(nexus("logout", "--json")) == {"was_logged_in": True, "provider_told": True}
    assert not (state / "login.json").exists()
    with httpx2.Client(trust_env=False) as http, pytest.raises(UnauthenticatedError):
        Asker(settings_of(server), http).refresh(again.refresh_token)
    assert printed(nexus("logout", "--json")) == {"was_logged_in": False, "provider_told": False}


def come_back(address: str) -> int:
    return httpx2.get(address, trust_env=False, timeout=10).status_code


def test_a_person_confirms_a_code_on_another_device(server: OidcServer, asker: Asker) -> None:
    told: list[str] = []
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            server.follow(told[0].split()[1])

    tokens = asker.by_device(told.append, pause)

    assert tokens["access_token"].count(".") == 2 and pauses == [5.0, 5.0]


def test_a_code_that_nobody_confirms_ends(asker: Asker) -> None:
    with pytest.raises(UnauthenticatedError, match="in time"):
        asker.by_device(lambda _: None, lambda _: None)


def test_answers_that_are_not_to_our_question_are_not_redeemed(server: OidcServer, asker: Asker) -> None:
    statuses: list[int] = []

    def attack(address: str) -> None:
        asked = parse_qs(urlsplit(address).query)
        redirect, state = asked["redirect_uri"][0], asked["state"][0]
        for query in ("?code=x&state=other", "?code=x", f"?code=x&state={state}&state={state}", "", "?" + "a=1&" * 50):
            try:
                statuses.append(come_back(redirect + query))
            except httpx2.HTTPError:
                statuses.append(400)
        statuses.append(come_back(redirect.replace("/callback", "/other") + f"?code=x&state={state}"))
        statuses.append(come_back(server.follow(address)))

    tokens = asker.by_browser(person(attack), wait_s=20)

    assert tokens["access_token"]
    ends_at = time.monotonic() + 5
    while len(statuses) < 7 and time.monotonic() < ends_at:
        time.sleep(0.01)
    assert statuses == [400] * 6 + [200]


@pytest.mark.parametrize("iss", ["", "&iss=https%3A%2F%2Fevil.example", "&iss=&iss="])
def test_an_answer_of_another_provider_is_not_redeemed_here(server: OidcServer, asker: Asker, iss: str) -> None:
    def mix_up(address: str) -> None:
        answer = server.follow(address)
        come_back(answer.partition("&iss=")[0] + iss)

    with pytest.raises(UnauthenticatedError, match=r"another provider|in time"):
        asker.by_browser(person(mix_up), wait_s=1.5)


def test_a_refusal_and_nobody_at_all_are_told(server: OidcServer, asker: Asker) -> None:
    def refuse(address: str) -> None:
        asked = parse_qs(urlsplit(address).query)
        query = f"?error=access_denied&state={asked['state'][0]}&iss={server.issuer}"
        come_back(asked["redirect_uri"][0] + query)

    with pytest.raises(UnauthenticatedError, match="refused"):
        asker.by_browser(person(refuse), wait_s=10)
    with pytest.raises(UnauthenticatedError, match="in time"):
        asker.by_browser(lambda _: None, wait_s=0.01)


def test_the_question_asks_for_pkce_and_nothing_secret(server: OidcServer, asker: Asker) -> None:
    seen: list[str] = []

    with pytest.raises(UnauthenticatedError):
        asker.by_browser(seen.append, wait_s=0.01)

    asked = parse_qs(urlsplit(seen[0]).query)
    assert asked["code_challenge_method"] == ["S256"] and len(asked["code_challenge"][0]) == 43
    assert urlsplit(asked["redirect_uri"][0]).hostname == "127.0.0.1"
    assert len(asked["state"][0]) == len(asked["nonce"][0]) == 64 and "client_secret" not in asked


def test_a_log_in_opens_its_own_fleet_and_no_other_and_ends(state: Path) -> None:
    state.mkdir()
    path = state / "login.json"
    fields = {"url": FLEET, "provider": "corp", "issuer": "https://idp.example", "token": "t", "refresh_token": ""}
    path.write_text(json.dumps({**fields, "expires_at": time.time() + 60}))
    path.chmod(0o600)

    with connect(FLEET + "/") as connection:
        assert connection.url == FLEET
    with pytest.raises(UnauthenticatedError, match="no token for"):
        connect("http://127.0.0.1:8601")
    path.write_text(json.dumps({**fields, "expires_at": time.time() - 1}))
    with pytest.raises(UnauthenticatedError, match="nexus login"):
        connect(FLEET)
    for damage in (lambda: path.chmod(0o640), lambda: path.write_text("{}")):
        damage()
        with pytest.raises(FailedPreconditionError, match="nexus logout"):
            connect(FLEET)
        path.chmod(0o600)
    assert nexus("logout").exit_code == 0 and not path.exists()


@pytest.mark.parametrize(
    ("variables", "arguments", "told"),
    [
        ({"NEXUS_SECURITY__OIDC": ""}, [], "which provider?"), ({}, ["other"], "The settings have corp"),
        ({"NEXUS_URL": ""}, [], "log in to which fleet?"),
    ],
)  # fmt: skip
def test_what_is_missing_for_a_log_in_is_said(
    state: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], arguments: list[str], told: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    result = nexus("login", *arguments)

    assert result.exit_code == 2 and told in result.stderr and not state.exists()


def test_a_provider_without_a_client_or_of_another_issuer_is_not_asked(server: OidcServer) -> None:
    with httpx2.Client(trust_env=False) as http:
        with pytest.raises(FailedPreconditionError, match="client_id"):
            Asker(settings_of(server, client_id=""), http)
        with pytest.raises(NexusError, match="another issuer"):
            Asker(settings_of(server, issuer=server.issuer + "/"), http)
