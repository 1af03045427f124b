"""The door to Ray's dashboard: who may do what there, what goes through, and that Ray's token never does."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from nexus_ray.api.app import build_app
from nexus_ray.api.dashboard import action_of
from nexus_ray.audit.ports import RecordQuery
from nexus_ray.config import RuntimeSettings
from tests.api.conftest import Door, is_problem

RAYS_TOKEN = "5" * 64
JOB = {"entrypoint": "python -V", "metadata": {"nexus_principal": "somebody else", "team": "blue"}}


@dataclass
class Ray:
    """A real server that stands where Ray's dashboard does, and answers what it is told to."""

    port: int = 0
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"ok": true}'
    is_silent: bool = False
    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, target, _ = head[0].split(" ")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            body = await self._body(reader, headers)
            self.asked.append((method, target, headers, body))
            if self.is_silent:
                await reader.read()
                return
            told = {"Content-Type": "application/json", "Content-Length": str(len(self.body)), **self.headers}
            lines = [f"HTTP/1.1 {self.status} Told", *(f"{name}: {value}" for name, value in told.items())]
            writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode() + self.body)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # Whoever asked has gone.
        finally:
            writer.close()

    async def _body(self, reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return await reader.readexactly(int(headers.get("content-length", 0)))
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
        return body


@pytest.fixture
async def ray() -> AsyncIterator[Ray]:
    ray = Ray()
    server = await asyncio.start_server(ray.serve, "127.0.0.1", 0)
    ray.port = server.sockets[0].getsockname()[1]
    yield ray
    server.close()


@pytest.fixture
def door_to(doors: Callable[..., Door], tmp_path: Path, ray: Ray) -> Callable[..., Door]:
    """Return a door before that server, under given settings."""

    def make(roles: dict[str, frozenset[str]] | None = None, **settings: Any) -> Door:
        door = doors(roles=roles)
        token = tmp_path / "ray_token"
        token.write_text(f"{RAYS_TOKEN}\n")
        runtime = RuntimeSettings(**{"dashboard_port": ray.port, **settings})
        door.app = build_app(door.front, runtime, ray_token=token)
        return door

    return make


def test_what_is_not_named_is_for_an_admin() -> None:
    looks = ("", "static/js/main.84605326.js", "api/version", "api/jobs/", "api/jobs/raysubmit_1", "api/v0/tasks",
             "api/jobs/raysubmit_1/logs", "api/jobs/raysubmit_1/logs/tail", "nodes", "nodes/0f",
             "api/packages/gcs/_ray_pkg_0f.zip")  # fmt: skip
    others = ("api/v0/delay/600", "memory_profile", "worker/traceback", "worker/cpu_profile", "task/traceback",
              "test/dump", "api/authenticate", "api/jobs", "API/jobs/", "nowhere", "api/prometheus_health",
              "api/jobs/a/b/c", "api/packages/http/x", "api/version\n")  # fmt: skip

    assert {action_of("GET", path) for path in looks} == {"dashboard:read"}
    assert {action_of("GET", path) for path in others} == {"dashboard:write"}
    assert action_of("POST", "api/jobs/") == action_of("PUT", "api/packages/gcs/x.zip") == "job:submit"
    assert action_of("POST", "api/jobs/raysubmit_1/stop") == "job:stop"
    assert action_of("DELETE", "api/jobs/raysubmit_1") == "job:delete"
    for method, path in (("PUT", "api/serve/applications/"), ("DELETE", "api/serve/applications/"),
                         ("POST", "api/v1/applications/a/deployments/b/scale"), ("POST", "report_events"),
                         ("POST", "api/task_events"), ("POST", "api/version"), ("POST", "")):  # fmt: skip
        assert action_of(method, path) == "dashboard:write"


@pytest.mark.parametrize(
    ("method", "path", "action"),
    [("GET", "api/jobs/", "dashboard:read"), ("POST", "api/jobs/", "job:submit"),
     ("PUT", "api/packages/gcs/x.zip", "job:submit"), ("POST", "api/jobs/a/stop", "job:stop"),
     ("DELETE", "api/jobs/a", "job:delete"), ("PUT", "api/serve/applications/", "dashboard:write"),
     ("GET", "worker/traceback", "dashboard:write")],
)  # fmt: skip
async def test_a_request_needs_its_action_and_no_other(
    door_to: Callable[..., Door], ray: Ray, method: str, path: str, action: str
) -> None:
    others = {"dashboard:read", "dashboard:write", "job:submit", "job:stop", "job:delete"} - {action}
    door = door_to({"only": frozenset({action}), "others": frozenset(others)})

    async with door.client("only") as only, door.client("others") as rest:
        refused = await rest.request(method, f"/ray/{path}", content=b"{}")
        asked = len(ray.asked)
        allowed = await only.request(method, f"/ray/{path}", content=b"{}")

    is_problem(refused, 403, "permission_denied")
    assert asked == 0
    assert (allowed.status_code, allowed.content) == (200, ray.body)


async def test_who_looks_may_not_submit_and_who_operates_may(door_to: Callable[..., Door], ray: Ray) -> None:
    door = door_to()

    async with door.client("reader") as reader, door.client("operator") as operator, door.client() as stranger:
        assert (await reader.get("/ray/api/jobs/")).status_code == 200
        is_problem(await reader.post("/ray/api/jobs/", json=JOB), 403, "permission_denied")
        is_problem(await stranger.get("/ray/api/version"), 401, "unauthenticated")
        assert (await operator.post("/ray/api/jobs/", json=JOB)).status_code == 200
        is_problem(await operator.put("/ray/api/serve/applications/", json={}), 403, "permission_denied")

    assert [(method, target) for method, target, _, _ in ray.asked] == [("GET", "/api/jobs/"), ("POST", "/api/jobs/")]


async def test_another_tenants_operator_neither_looks_nor_submits(door_to: Callable[..., Door], ray: Ray) -> None:
    async with door_to().client("operator", tenant="blue") as client:
        is_problem(await client.get("/ray/api/jobs/"), 403, "permission_denied")
        is_problem(await client.post("/ray/api/jobs/", json=JOB), 403, "permission_denied")

    assert ray.asked == []


async def test_rays_token_goes_in_and_nothing_of_either_sides_secrets_passes(
    door_to: Callable[..., Door], ray: Ray
) -> None:
    door = door_to()
    ray.headers = {"Set-Cookie": f"ray-authentication-token={RAYS_TOKEN}", "Server": "aiohttp", "X-Inside": "10.0.0.1"}
    sent = {"Cookie": "ray-authentication-token=x", "X-Ray-Authorization": "Bearer x", "Origin": "http://evil",
            "X-Forwarded-For": "10.0.0.1", "Connection": "keep-alive, x-y", "Accept": "application/json"}  # fmt: skip

    async with door.client("reader") as client:
        answer = await client.get("/ray/api/version?a=1&b=%20x", headers=sent)

    ((_, target, headers, _),) = ray.asked
    assert target == "/api/version?a=1&b=%20x"
    assert headers["authorization"] == f"Bearer {RAYS_TOKEN}"
    assert set(headers) <= {"host", "accept", "accept-encoding", "connection", "user-agent", "authorization"}
    assert headers["user-agent"].startswith("Mozilla")  # So that Ray leaves secrets out.
    assert RAYS_TOKEN not in str(answer.headers) + answer.text
    assert not {"set-cookie", "server", "x-inside"} & set(answer.headers)


async def test_a_submission_says_who_submits_it_and_is_audited(door_to: Callable[..., Door], ray: Ray) -> None:
    door = door_to()

    async with door.client("operator") as operator, door.client("reader") as reader:
        await operator.post("/ray/api/jobs/", json=JOB)
        ray.status = 400
        failed = await operator.post("/ray/api/jobs/", json=JOB)
        await reader.post("/ray/api/jobs/", json=JOB)
    await door.front._auditor.flush()

    body = ray.asked[0][3]
    assert json.loads(body)["metadata"] == {"nexus_principal": "ada", "nexus_tenant": "main", "team": "blue"}
    assert failed.status_code == 400 and failed.content == ray.body
    found = [record.fields for record in await door.front._auditor.log.records(RecordQuery(action="job:submit"))]
    told = [(one["kind"], one["decision"], one.get("outcome", ""), one["principal"]) for one in reversed(found)]
    assert told == [
        ("intent", "allow", "", "ada"), ("outcome", "allow", "ok", "ada"),
        ("intent", "allow", "", "ada"), ("outcome", "allow", "invalid_argument", "ada"),
        ("event", "deny", "permission_denied", "ada"),
    ]  # fmt: skip
    assert found[-1]["facts"] == {"body_sha256": hashlib.sha256(body).hexdigest()}


@pytest.mark.parametrize("body", [b"", b"[]", b"no", b'{"metadata": 1}'])
async def test_what_is_no_submission_does_not_reach_ray(door_to: Callable[..., Door], ray: Ray, body: bytes) -> None:
    async with door_to().client("operator") as operator:
        is_problem(await operator.post("/ray/api/jobs/", content=body), 422, "invalid_argument")

    assert ray.asked == []


async def test_a_package_is_passed_on_whole_and_within_its_limit(door_to: Callable[..., Door], ray: Ray) -> None:
    door = door_to(body_bytes_max=10, dashboard_body_bytes_max=50_000)
    package = bytes(range(256)) * 150

    async with door.client("operator") as operator:
        taken = await operator.put("/ray/api/packages/gcs/a.zip", content=package)
        is_problem(await operator.put("/ray/api/packages/gcs/a.zip", content=package * 2), 413, "invalid_argument")
        is_problem(await operator.post("/ray/api/jobs/", json=JOB), 413, "invalid_argument")

    assert taken.status_code == 200
    assert [body for *_, body in ray.asked] == [package]


ODD = ("/ray/../v1/goals", "/ray/static/../api/jobs/", "/ray//api/jobs/", "/ray/api%2fjobs%2f", "/ray/%2e%2e/x",
       "/ray/api/jobs/a%00", "/ray/static/%252e%252e/x", "/ray/api/jobs\\a")  # fmt: skip


@pytest.mark.parametrize("path", ODD)
async def test_a_path_that_can_be_read_as_another_is_refused(
    door_to: Callable[..., Door], ray: Ray, path: str
) -> None:
    door = door_to({"root": frozenset({"dashboard:read", "dashboard:write"})})
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": httpx2.URL(f"http://x{path}").path if "%" in path else path, "raw_path": path.encode(),
        "query_string": b"", "root_path": "", "client": None, "server": None,
        "headers": [(b"authorization", f"Bearer {door.token('root')}".encode())],
    }  # fmt: skip
    await door.app(scope, receive, send)

    assert sent[0]["status"] == 404
    assert ray.asked == []


async def test_a_file_outside_of_the_log_folder_is_not_asked_for(door_to: Callable[..., Door], ray: Ray) -> None:
    async with door_to().client("reader") as client:
        for query in ("filename=../../etc/passwd", "filename=%2e%2e/x"):
            is_problem(await client.get(f"/ray/api/v0/logs/file?{query}"), 422, "invalid_argument")
        assert (await client.get("/ray/api/v0/logs/file?filename=gcs_server.out&node_id=0f")).status_code == 200


async def test_rays_own_way_to_hand_out_its_token_is_closed_to_all(door_to: Callable[..., Door], ray: Ray) -> None:
    async with door_to({"root": frozenset({"dashboard:write"})}).client("root") as client:
        for path in ("/ray/api/authenticate", "/ray/api/authenticate/", "/ray/API/Authenticate"):
            is_problem(await client.post(path), 404, "not_found")

    assert ray.asked == []


async def test_no_redirect_is_followed_or_passed_on(door_to: Callable[..., Door], ray: Ray) -> None:
    ray.status, ray.headers = 302, {"Location": f"http://127.0.0.1:{ray.port}/elsewhere"}

    async with door_to().client("reader") as client:
        answer = await client.get("/ray/")

    is_problem(answer, 503, "unavailable")
    assert "location" not in answer.headers
    assert len(ray.asked) == 1


@pytest.mark.parametrize("status", [401, 403])
async def test_a_token_that_ray_refuses_is_not_the_callers_fault(
    door_to: Callable[..., Door], ray: Ray, status: int
) -> None:
    ray.status = status

    async with door_to().client("reader") as client:
        is_problem(await client.get("/ray/api/version"), 503, "unavailable")


async def test_without_a_dashboard_the_answer_says_so(door_to: Callable[..., Door], ray: Ray) -> None:
    async with door_to(dashboard=False).client("reader") as client:
        assert "NEXUS_RUNTIME__DASHBOARD" in is_problem(await client.get("/ray/"), 404, "not_found")["detail"]
    async with door_to(dashboard_port=1).client("reader") as client:
        is_problem(await client.get("/ray/"), 503, "unavailable")

    assert ray.asked == []


async def test_a_dashboard_that_says_nothing_is_not_waited_for_longer_than_allowed(
    door_to: Callable[..., Door], ray: Ray
) -> None:
    ray.is_silent = True

    async with door_to(dashboard_s_max=0.05).client("reader") as client:
        is_problem(await client.get("/ray/api/version"), 504, "deadline_exceeded")


async def test_an_answer_that_is_too_long_is_broken_off(door_to: Callable[..., Door], ray: Ray) -> None:
    ray.body = b"x" * 300_000

    async with door_to(dashboard_answer_bytes_max=100_000).client("reader") as client:
        with pytest.raises(Exception, match="already started"):
            await client.get("/ray/api/jobs/a/logs")


async def test_so_many_at_one_time_and_no_more(door_to: Callable[..., Door], ray: Ray) -> None:
    ray.is_silent = True
    door = door_to(dashboard_requests_max=1, dashboard_s_max=0.2)

    async with door.client("reader") as client:
        first = asyncio.ensure_future(client.get("/ray/api/version"))
        while not ray.asked:
            await asyncio.sleep(0.001)
        is_problem(await client.get("/ray/api/version"), 429, "resource_exhausted")
        is_problem(await first, 504, "deadline_exceeded")
        ray.is_silent = False
        assert (await client.get("/ray/api/version")).status_code == 200


async def test_a_log_is_not_followed_but_over_a_web_socket(door_to: Callable[..., Door], ray: Ray) -> None:
    async with door_to({"root": frozenset({"dashboard:read"})}).client("root") as client:
        is_problem(await client.get("/ray/api/jobs/a/logs/tail"), 409, "failed_precondition")

    assert ray.asked == []
