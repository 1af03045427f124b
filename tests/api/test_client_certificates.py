"""Client certificates as a log-in, over real TLS: who holds one is let in, and nothing that merely says so counts."""

import base64
import hashlib
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from nexus_ray.config import RuntimeSettings, Settings
from nexus_ray.core.errors import FailedPreconditionError
from nexus_ray.runtime.local import check_client_certificates
from nexus_ray.security.keys import load_or_create_issuer_key
from nexus_ray.security.settings import SecuritySettings
from nexus_ray.security.token_exchange import ACCESS_TOKEN, GRANT
from nexus_ray.security.tokens import TokenSettings, issue_token
from tests.api.conftest import Door, is_problem, make_door
from tests.api.test_listener import listening
from tests.api.test_token_exchange import session_of
from tests.support.certificates import Authority
from tests.support.in_process import InProcessFleet

CI = "spiffe://corp.example/ci/builder"


class Files(NamedTuple):
    """Authorities, and certificates with their keys."""

    clients: Authority
    server: tuple[Path, Path]
    trust: Path
    ci: tuple[Path, Path]
    nobody: tuple[Path, Path]
    over: tuple[Path, Path]
    strange: tuple[Path, Path]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("certificates")
    clients, servers = Authority(folder, "clients"), Authority(folder, "servers")
    strange = Authority(folder, "strange")
    return Files(
        clients, servers.issue("server"), servers.file, clients.issue("ci", uri=CI),
        clients.issue("nobody", uri="spiffe://other.example/x"), clients.issue("over", uri=CI, days=-1),
        strange.issue("strange", uri=CI),
    )  # fmt: skip


@pytest.fixture
def security(files: Files) -> SecuritySettings:
    roles = {"spiffe://corp.example/ci/*": ["reader"]}
    taken = {"ca_file": files.clients.file, "trust_domain": "corp.example", "roles": roles}
    return SecuritySettings.model_validate({"certificates": taken})


@pytest.fixture
async def listener(
    fleet: InProcessFleet, tmp_path: Path, files: Files, security: SecuritySettings
) -> AsyncIterator[Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    runtime = RuntimeSettings(http_port=port, tls_cert=files.server[0], tls_key=files.server[1], wait_s_max=5.0)
    door = make_door(fleet, tmp_path / "state", runtime=runtime, security=security)
    async with listening(door, runtime, files.clients.file):
        yield door, f"https://127.0.0.1:{port}"
    await door.front.close()


def client_of(url: str, files: Files, shown: tuple[Path, Path] | None = None, **headers: str) -> httpx2.AsyncClient:
    context = ssl.create_default_context(cafile=str(files.trust))
    if shown is not None:
        context.load_cert_chain(*shown)
    return httpx2.AsyncClient(base_url=url, verify=context, headers=headers)


def thumbprint(file: Path) -> str:
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(file.read_text())).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def token_for(door: Door, *roles: str, **more: Any) -> str:
    key = load_or_create_issuer_key(door.folder)
    return issue_token(key, TokenSettings(), "ada", roles, 600.0, time.time(), **more)


async def test_who_holds_a_certificate_is_let_in_by_its_name_until_its_identity_is_suspended(
    listener: Any, files: Files
) -> None:
    door, url = listener
    async with client_of(url, files, files.ci) as ci, door.client("operator") as operator:
        assert (await ci.get("/v1/goals")).status_code == 200
        is_problem(await ci.post("/v1/goals", json={"type": "echo"}), 403, "permission_denied")
        id = f"x5t#S256:{thumbprint(files.ci[0])}"
        seen = await session_of(door, id)
        await operator.post("/v1/identities:suspend", params={"principal": f"certificate:{CI}"})
        is_problem(await ci.get("/v1/goals"), 401, "unauthenticated")  # On the connection that stood before, too.
        await operator.post("/v1/identities:restore", params={"principal": f"certificate:{CI}"})
        assert (await ci.get("/v1/goals")).status_code == 200
        await operator.post("/v1/sessions:revoke", params={"id": id})
        is_problem(await ci.get("/v1/goals"), 401, "unauthenticated")

    assert (seen["principal"], seen["method"], seen["roles"]) == (f"certificate:{CI}", "certificate", ["reader"])


@pytest.mark.parametrize("which", ["over", "strange"])
async def test_a_certificate_that_is_over_or_another_authoritys_gets_no_further_than_the_handshake(
    listener: Any, files: Files, which: str
) -> None:
    door, url = listener
    headers = {"Authorization": f"Bearer {door.token('operator')}"}
    async with client_of(url, files, getattr(files, which), **headers) as client:
        with pytest.raises(httpx2.TransportError):
            await client.get("/v1/goals")


async def test_without_a_certificate_that_names_somebody_here_a_token_is_needed(listener: Any, files: Files) -> None:
    door, url = listener
    known = {"Authorization": f"Bearer {door.token('operator')}"}
    for shown in (None, files.nobody):
        async with client_of(url, files, shown) as client:
            is_problem(await client.get("/v1/goals"), 401, "unauthenticated")
            assert (await client.get("/health")).status_code == 200
            assert (await client.get("/v1/goals", headers=known)).status_code == 200


async def test_a_token_comes_before_the_certificate_and_a_wrong_one_is_not_made_good_by_it(
    listener: Any, files: Files
) -> None:
    _, url = listener
    async with client_of(url, files, files.ci) as ci:
        for wrong in ("Bearer nonsense", "Bearer", "Basic eA==", "DPoP x", ""):
            is_problem(await ci.get("/v1/goals", headers={"Authorization": wrong}), 401, "unauthenticated")
        twice = [("Authorization", "Bearer x"), ("Authorization", "Bearer y")]
        is_problem(await ci.get("/v1/goals", headers=twice), 401, "unauthenticated")


async def test_a_page_in_a_browser_gets_nothing_for_the_certificate_of_who_looks_at_it(
    listener: Any, files: Files
) -> None:
    _, url = listener
    async with client_of(url, files, files.ci) as ci:
        for of_browser in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": url}):
            is_problem(await ci.get("/v1/goals", headers=of_browser), 401, "unauthenticated")


async def test_a_certificate_that_a_header_claims_is_never_believed(listener: Any, files: Files) -> None:
    door, url = listener
    pem = files.ci[0].read_text()
    flat = pem.replace("\n", "%0A")
    claimed = {
        "X-Forwarded-Client-Cert": f"Cert={flat};URI={CI}", "X-SSL-Client-Cert": flat, "X-Client-Cert": flat,
        "Client-Cert": f":{base64.b64encode(ssl.PEM_cert_to_DER_cert(pem)).decode()}:",
        "X-SSL-Client-Verify": "SUCCESS",
    }  # fmt: skip
    bound = token_for(door, "reader", cnf={"x5t#S256": thumbprint(files.ci[0])})
    async with client_of(url, files) as client:
        for name, value in claimed.items():
            is_problem(await client.get("/v1/goals", headers={name: value}), 401, "unauthenticated")
            both = {name: value, "Authorization": f"Bearer {bound}"}
            is_problem(await client.get("/v1/goals", headers=both), 401, "unauthenticated")


async def test_a_token_that_is_bound_to_a_certificate_opens_with_it_and_stays_bound(
    listener: Any, files: Files
) -> None:
    door, url = listener
    bound = token_for(door, "reader", cnf={"x5t#S256": thumbprint(files.ci[0])})
    known = {"Authorization": f"Bearer {bound}"}
    form = {"grant_type": GRANT, "subject_token": bound, "subject_token_type": ACCESS_TOKEN}
    async with (
        client_of(url, files, files.ci) as ci, client_of(url, files, files.nobody) as other,
        client_of(url, files) as bare, door.client() as unencrypted,
    ):  # fmt: skip
        assert (await ci.get("/v1/goals", headers=known)).status_code == 200
        given = (await ci.post("/v1/token", data=form)).json()["access_token"]
        for client in (other, bare, unencrypted):
            is_problem(await client.get("/v1/goals", headers=known), 401, "unauthenticated")
            again = await client.post("/v1/token", data=form)
            assert again.json()["error"] == "invalid_request"
            new = {"Authorization": f"Bearer {given}"}
            is_problem(await client.get("/v1/goals", headers=new), 401, "unauthenticated")
        assert (await ci.get("/v1/goals", headers={"Authorization": f"Bearer {given}"})).status_code == 200

    part = given.split(".")[1]
    assert json.loads(base64.urlsafe_b64decode(part + "=="))["cnf"] == {"x5t#S256": thumbprint(files.ci[0])}


async def test_only_tls_1_3_is_spoken(listener: Any, files: Files) -> None:
    _, url = listener
    context = ssl.create_default_context(cafile=str(files.trust))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with httpx2.AsyncClient(base_url=url, verify=context) as client:
        with pytest.raises(httpx2.TransportError):
            await client.get("/health")


@pytest.mark.parametrize(
    ("runtime", "ca_file", "told"),
    [({}, "ca", "--tls-cert"), ({"front": "proxy", "tls": True}, "ca", "replica"), ({"tls": True}, "none", "cannot be"),
     ({"tls": True}, "empty", "holds no")],
)  # fmt: skip
def test_where_nobody_could_see_or_check_a_certificate_none_is_configured(
    files: Files, tmp_path: Path, runtime: dict[str, Any], ca_file: str, told: str
) -> None:
    empty = tmp_path / "empty"
    empty.write_text("")
    paths = {"ca": files.clients.file, "none": tmp_path / "none", "empty": empty}
    tls = {"tls_cert": files.server[0], "tls_key": files.server[1]} if runtime.pop("tls", False) else {}
    security = {"certificates": {"ca_file": paths[ca_file], "trust_domain": "x"}}

    with pytest.raises(FailedPreconditionError, match=told):
        check_client_certificates(Settings.model_validate({"runtime": {**runtime, **tls}, "security": security}))

    whole = {"tls_cert": files.server[0], "tls_key": files.server[1]}
    security["certificates"]["ca_file"] = files.clients.file
    check_client_certificates(Settings.model_validate({"runtime": whole, "security": security}))
