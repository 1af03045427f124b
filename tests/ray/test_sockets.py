"""Every socket of a whole fleet, Ray's included, refuses a stranger: all that listen are found, and each is tried.

What a stranger may still see is written down below with its reason; anything else fails these tests.
"""

import importlib
import pkgutil
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import httpx2
import psutil
import pytest
import ray.core.generated

from nexus_ray.security.certificates import make_certificate
from tests.ray.conftest import Fleet

pytestmark = pytest.mark.ray

# What gRPC brings along: whoever shows the fleet's certificate, and only he, may ask how a server is and what it has.
GRPCS_OWN = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", "grpc.channelz.v1.Channelz"}
# Its one method is not called here: an empty message ends the process before it looks for a token, so the certificate
# is all that keeps strangers from it.
ENDS_WHO_IS_ASKED = "ray.rpc.syncer.RaySyncer"
OPEN_DASHBOARD_PATHS = (
    # The page itself and its scripts, the same for everybody; all that they show they ask for with the token.
    "/", "/favicon.ico", "/static/",
    # Whether tokens are asked for, and the place to hand one in.
    "/api/authentication_mode", "/api/authenticate",
    # Whether the dashboard lives.
    "/api/healthz", "/api/gcs_healthz", "/api/local_raylet_healthz", "/-/healthz",
)  # fmt: skip
NOT_IN_PYTHON = [("ray.rpc.ObjectManagerService", name) for name in ("Push", "Pull", "FreeObjects")]
A_STRANGERS_TOKEN = "0" * 64


class Listener(NamedTuple):
    """Where a process of the fleet listens."""

    process: str
    address: str
    port: int


@pytest.fixture(scope="module")
def listeners(fleet: Fleet) -> list[Listener]:
    found = {
        Listener(process.name(), listening.laddr.ip, listening.laddr.port)
        for process in fleet.processes()
        for listening in connections_of(process, "tcp")
        if listening.status == psutil.CONN_LISTEN
    }
    assert len(found) > 10
    return sorted(found)


def connections_of(process: psutil.Process, kind: str) -> list:
    try:
        return list(process.net_connections(kind))
    except psutil.Error:  # It ended meanwhile.
        return []


def is_grpc(listener: Listener) -> bool:
    """Tell whether Ray's own servers listen there: they take IPv6 too, and nothing else of a fleet does."""
    return listener.address.startswith("::ffff:")


def is_tls(listener: Listener) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", listener.port), timeout=10) as plain:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            with context.wrap_socket(plain):
                return True
    except (ssl.SSLError, OSError):
        return False


def with_certificate(pem: bytes, trusted: bytes, listener: Listener) -> grpc.Channel:
    return grpc.secure_channel(f"127.0.0.1:{listener.port}", grpc.ssl_channel_credentials(trusted, pem, pem))


def grpc_methods() -> Iterator[tuple[str, str]]:
    """Give every method of every service that Ray's own descriptions name."""
    for module in pkgutil.iter_modules(ray.core.generated.__path__):
        if module.name.endswith("_pb2"):
            description = importlib.import_module(f"ray.core.generated.{module.name}").DESCRIPTOR
            for service in description.services_by_name.values():
                for method in service.methods:
                    yield service.full_name, method.name
    yield from NOT_IN_PYTHON


@pytest.mark.parametrize("who", ["plain", "no certificate", "another's certificate"])
def test_nobody_gets_past_the_handshake_of_ray_without_the_fleets_certificate(
    fleet: Fleet, listeners: list[Listener], who: str
) -> None:
    asked = [listener for listener in listeners if is_grpc(listener)]
    trusted = (fleet.state / "ray_tls.pem").read_bytes()
    others = make_certificate("nexus-ray", ["127.0.0.1"])[1]
    method = "/grpc.health.v1.Health/Check"
    codes = []

    for listener in asked:
        channel = {
            "plain": lambda port: grpc.insecure_channel(f"127.0.0.1:{port}"),
            "no certificate": lambda port: grpc.secure_channel(
                f"127.0.0.1:{port}", grpc.ssl_channel_credentials(trusted)
            ),
            "another's certificate": lambda port: grpc.secure_channel(
                f"127.0.0.1:{port}", grpc.ssl_channel_credentials(trusted, others, others)
            ),
        }[who](listener.port)
        with channel:
            codes.append(channel.unary_unary(method).future(b"", timeout=20).code())

    assert len(asked) >= 8
    assert set(codes) == {grpc.StatusCode.UNAVAILABLE}


@pytest.mark.parametrize("token", ["", A_STRANGERS_TOKEN], ids=["none", "another"])
def test_no_method_of_ray_answers_without_the_token(fleet: Fleet, listeners: list[Listener], token: str) -> None:
    pem = (fleet.state / "ray_tls.pem").read_bytes()
    methods = list(grpc_methods())
    metadata = [("authorization", f"Bearer {token}")] if token else []
    answered = []
    refused = 0

    for listener in filter(is_grpc, listeners):
        with with_certificate(pem, pem, listener) as channel:
            calls = [
                (name, channel.unary_unary("/{}/{}".format(*name)).future(b"", timeout=20, metadata=metadata))
                for name in methods
            ]
            codes = {name: call.code() for name, call in calls}
        refused += sum(code == grpc.StatusCode.UNAUTHENTICATED for code in codes.values())
        answered += [
            (listener, name, code)
            for name, code in codes.items()
            if code not in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED)
        ]

    assert answered == []
    assert refused > 200  # The head's store of facts, the raylet, and one port in every worker.


def test_what_rays_servers_say_they_have_was_all_asked_for(fleet: Fleet, listeners: list[Listener]) -> None:
    pem = (fleet.state / "ray_tls.pem").read_bytes()
    listed: set[str] = set()

    for listener in filter(is_grpc, listeners):
        with with_certificate(pem, pem, listener) as channel:
            listed |= services_of(channel)

    assert "ray.rpc.NodeManagerService" in listed
    assert listed - {service for service, _ in grpc_methods()} - GRPCS_OWN == {ENDS_WHO_IS_ASKED}


def services_of(channel: grpc.Channel) -> set[str]:
    """Return the services that a server lists by reflection: field 7 of the request, field 6 of the answer."""
    method = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    try:
        (answer,) = method(iter([b"\x3a\x01*"]), timeout=20)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED
        return set()
    return {part.decode() for part in _names(answer)}


def _names(answer: bytes) -> Iterator[bytes]:
    """Give the names in a list of services: length-delimited fields, one inside the other."""
    for number, body in _fields(answer):
        if number == 6:
            for _, service in _fields(body):
                yield from (name for at, name in _fields(service) if at == 1)


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(message):
        key = message[at]
        length = shift = 0
        while True:  # A varint, seven bits a byte.
            at += 1
            length |= (message[at] & 0x7F) << shift
            shift += 7
            if message[at] < 0x80:
                break
        assert key & 7 == 2, "only length-delimited fields are asked for"
        yield key >> 3, message[at + 1 : at + 1 + length]
        at += 1 + length


def test_every_other_socket_refuses_http_from_a_stranger(fleet: Fleet, listeners: list[Listener]) -> None:
    dashboard_port = int(fleet.record["dashboard_url"].rpartition(":")[2])
    asked = [entry for entry in listeners if not is_grpc(entry) and entry.port != dashboard_port]
    said = {}

    for listener in asked:
        for path in ("/", "/metrics", "/api/version", "/logs"):
            said[listener, path] = said_to(f"http://127.0.0.1:{listener.port}{path}")

    # The front door, and the two agents of the node; the hosts' streams hang up on who does not speak TLS.
    assert set(said.values()) == {"401", "nothing"}
    assert all(is_tls(listener) for (listener, _), answer in said.items() if answer == "nothing")
    assert len(asked) >= 5


def said_to(url: str) -> str:
    try:
        return str(httpx2.get(url, timeout=10).status_code)
    except httpx2.TransportError:
        return "nothing"


def test_every_route_of_the_dashboard_asks_for_the_token(fleet: Fleet) -> None:
    url = fleet.record["dashboard_url"]
    routes = dashboard_routes()
    answered = []

    with httpx2.Client(base_url=url, timeout=20, follow_redirects=False) as client:
        for method, path in routes:
            if not is_open(path):
                for headers in ({}, {"Authorization": f"Bearer {A_STRANGERS_TOKEN}"}):
                    status = client.request(method, path, headers=headers).status_code
                    if status not in (401, 403):
                        answered.append((method, path, status))

    assert len(routes) > 40
    assert answered == []


def is_open(path: str) -> bool:
    return any(path == named or (len(named) > 1 and named.endswith("/") and path.startswith(named))
               for named in OPEN_DASHBOARD_PATHS)  # fmt: skip


def dashboard_routes() -> list[tuple[str, str]]:
    """Return what Ray's dashboard has routes for, read off its own tables of them."""
    # Imported here: much comes with them.
    from ray.dashboard.optional_utils import DashboardHeadRouteTable
    from ray.dashboard.subprocesses.module import SubprocessModule
    from ray.dashboard.subprocesses.routes import SubprocessRouteTable
    from ray.dashboard.utils import DashboardHeadModule, get_all_modules

    get_all_modules(DashboardHeadModule)
    get_all_modules(SubprocessModule)
    found = set()
    for table in (DashboardHeadRouteTable, SubprocessRouteTable):
        for method, paths in table._bind_map.items():
            found |= {("GET" if method == "*" else method, re.sub(r"\{.*?\}", "x", path)) for path in paths}
    return sorted(found)


def test_a_unix_socket_is_its_owners_and_nobody_can_put_another_in_its_place(fleet: Fleet) -> None:
    paths = {
        Path(listening.laddr)
        for process in fleet.processes()
        for listening in connections_of(process, "unix")
        if str(listening.laddr).startswith("/")
    }

    assert len(paths) > 5
    assert [str(path) for path in paths if path.exists() and path.stat().st_mode & 0o077] == []
    # Some folder on the way lets nobody in but the owner.
    assert [str(path) for path in paths if not any(is_closed(folder) for folder in path.parents)] == []


def is_closed(folder: Path) -> bool:
    return folder.exists() and not folder.stat().st_mode & 0o077
