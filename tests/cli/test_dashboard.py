"""`nexus dashboard`: one browser gets in, by a code that works once, and nobody else on the machine does."""

import http.client
import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nexus_ray.cli.dashboard import Passage, serving
from nexus_ray.runtime.client import connect
from tests.cli.conftest import Fleet, as_json, as_problem
from tests.cli.support import nexus, start_nexus

VERSION = as_json({"ray_version": "2.60.0"})


@pytest.fixture
def passage(fleet: Fleet, is_up: Callable[..., None]) -> Iterator[Passage]:
    is_up()
    fleet.on("GET /ray/api/version", VERSION)
    with connect() as connection, serving(connection) as passage:
        yield passage


def ask(passage: Passage, method: str, path: str, body: bytes | None = None, **headers: str) -> Any:
    """Send a request as it is written; returns status, headers and body."""
    connection = http.client.HTTPConnection(passage.hosts[0], timeout=10)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def let_in(passage: Passage) -> str:
    """Open the printed address as a browser does; returns the cookie that it got."""
    status, headers, page = ask(passage, "GET", passage.url.partition(passage.hosts[0])[2])
    assert status == 200 and passage.base in page.decode()
    return str(headers["Set-Cookie"])


def test_the_first_who_opens_the_address_looks_with_the_callers_token(passage: Passage, fleet: Fleet) -> None:
    cookie = let_in(passage)

    status, headers, body = ask(passage, "GET", f"{passage.base}api/version", Cookie=cookie.partition(";")[0])

    assert (status, json.loads(body)) == (200, {"ray_version": "2.60.0"})
    assert {"HttpOnly", "SameSite=Strict", f"Path={passage.base}"} <= set(cookie.split("; "))
    (asked,) = fleet.asked("GET /ray/api/version")
    assert asked["Authorization"] == "Bearer secret-token"
    assert "Cookie" not in asked and "secret-token" not in str(headers)
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


def test_the_address_opens_once(passage: Passage) -> None:
    let_in(passage)

    assert ask(passage, "GET", passage.url.partition(passage.hosts[0])[2])[0] == 401


@pytest.mark.parametrize("path", ["/", "/open?code=", "/open?code=x", "/open", "/api/version", "/ray/api/version"])
def test_a_stranger_on_the_same_machine_is_refused(passage: Passage, fleet: Fleet, path: str) -> None:
    let_in(passage)

    for headers in ({}, {"Cookie": "nexus_dashboard=x"}, {"Authorization": "Bearer secret-token"}):
        assert ask(passage, "GET", path, **headers)[0] == 401
        assert ask(passage, "GET", f"{passage.base}api/version", **headers)[0] == 401
    assert fleet.requests == []


def test_the_cookie_opens_nothing_where_the_path_is_not_known(passage: Passage, fleet: Fleet) -> None:
    cookie = let_in(passage).partition(";")[0]

    for path in ("/", "/api/version", "//", f"{passage.base}../api/version"[1:]):
        assert ask(passage, "GET", f"/{path.lstrip('/')}x", Cookie=cookie)[0] in (401, 404)
    assert ask(passage, "GET", f"{passage.base}api/version", Cookie=f"{cookie}; {cookie}")[0] == 401
    assert fleet.requests == []


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1:1", "127.0.0.2:8265"])
def test_another_name_for_this_machine_is_refused(passage: Passage, fleet: Fleet, host: str) -> None:
    cookie = let_in(passage).partition(";")[0]

    assert ask(passage, "GET", f"{passage.base}api/version", Cookie=cookie, Host=host)[0] == 421
    assert fleet.requests == []


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_only_its_own_pages_change_anything(passage: Passage, fleet: Fleet, method: str) -> None:
    cookie = let_in(passage).partition(";")[0]
    fleet.on(f"{method} /ray/api/jobs/x", as_json({"stopped": True}))
    path, own = f"{passage.base}api/jobs/x", f"http://{passage.hosts[0]}"

    for origin in ({}, {"Origin": "null"}, {"Origin": "http://evil.example"}, {"Origin": f"{own}0"}):
        assert ask(passage, method, path, b"{}", Cookie=cookie, **origin)[0] == 403
    assert fleet.requests == []
    assert ask(passage, method, path, b"{}", Cookie=cookie, Origin=own)[0] == 200
    assert fleet.requests[-1][2] == b"{}"


def test_a_page_of_another_port_may_not_even_look(passage: Passage, fleet: Fleet) -> None:
    cookie = let_in(passage).partition(";")[0]
    path = f"{passage.base}api/version"

    assert ask(passage, "GET", path, Cookie=cookie, Sec_Fetch_Site="same-site")[0] == 403
    assert ask(passage, "GET", path, Cookie=cookie, Sec_Fetch_Site="cross-site")[0] == 403
    assert fleet.requests == []
    assert ask(passage, "GET", path, Cookie=cookie, Sec_Fetch_Site="same-origin")[0] == 200


@pytest.mark.parametrize("way", ["../v1/goals", "static/../../v1/goals", "%2e%2e/v1/goals", "..%2fv1/goals"])
def test_the_token_goes_nowhere_but_to_the_dashboard(passage: Passage, fleet: Fleet, way: str) -> None:
    cookie = let_in(passage).partition(";")[0]

    assert ask(passage, "GET", f"{passage.base}{way}", Cookie=cookie)[0] == 404
    assert fleet.requests == []


def test_what_the_fleet_refuses_stays_refused(passage: Passage, fleet: Fleet) -> None:
    cookie = let_in(passage).partition(";")[0]
    fleet.on("POST /ray/api/jobs/", as_problem("permission_denied", "not allowed", 403))

    status, _, body = ask(
        passage, "POST", f"{passage.base}api/jobs/", b"{}", Cookie=cookie, Origin=f"http://{passage.hosts[0]}"
    )

    assert status == 403 and json.loads(body)["code"] == "permission_denied"


def test_who_may_not_look_is_told_before_anything_opens(fleet: Fleet, is_up: Callable[..., None]) -> None:
    is_up()
    fleet.on("GET /ray/api/version", as_problem("permission_denied", "not allowed", 403))

    result = nexus("dashboard", "--no-browser")

    assert result.exit_code == 3 and "http" not in result.stdout


def test_ctrl_c_ends_it(fleet: Fleet, is_up: Callable[..., None], state: Any) -> None:
    is_up()
    fleet.on("GET /ray/api/version", VERSION)
    process = start_nexus("dashboard", "--no-browser", NEXUS_STATE_DIR=str(state))
    assert process.stdout is not None
    printed = process.stdout.readline()

    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)

    assert printed.startswith("http://127.0.0.1:") and "/open?code=" in printed
    assert process.returncode == 130, said
    assert f"{fleet.url}/ray" in said and "secret-token" not in said
