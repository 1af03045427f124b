"""A token that is bound to a key, at the gate: what the proof must name is the request as it came in."""

import time
from typing import Any

import httpx2
import pytest

from nexus_ray.api.app import build_app
from nexus_ray.config import RuntimeSettings
from nexus_ray.security.jwk import thumbprint
from nexus_ray.security.keys import load_or_create_issuer_key
from nexus_ray.security.tokens import TokenSettings, issue_token
from tests.api.conftest import Door, is_problem
from tests.security.test_dpop import JWK, proof

HERE = "http://127.0.0.1:8600"


@pytest.fixture
def bound(door: Door) -> str:
    key = load_or_create_issuer_key(door.folder)
    return issue_token(key, TokenSettings(), "ada", ["reader"], 600, time.time(), cnf={"jkt": thumbprint(JWK)})


def show(token: str, number: int, **claims: Any) -> dict[str, str]:
    named = {"iat": time.time(), "jti": str(number), "htm": "GET", "htu": f"{HERE}/v1/goals", **claims}
    return {"Authorization": f"DPoP {token}", "DPoP": proof(token, claims=named)}


def client_of(app: Any, base_url: str = HERE) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=base_url)


async def test_a_bound_token_opens_with_its_proof_and_for_nothing_else(door: Door, bound: str) -> None:
    async with client_of(door.app) as client:
        good = show(bound, 1)
        assert (await client.get("/v1/goals", headers=good, params={"limit": 1})).status_code == 200
        assert (await client.get("/v1/goals", headers=show(bound, 2))).status_code == 200

        refused = [
            await client.get("/v1/goals", headers=good),
            await client.get("/v1/goals", headers={"Authorization": f"Bearer {bound}"}),
            await client.get("/v1/goals", headers={"Authorization": f"DPoP {bound}"}),
            await client.get("/v1/goals", headers={**show(bound, 3), "Authorization": f"Bearer {bound}"}),
            await client.get("/v1/goals/x", headers=show(bound, 4)),
            await client.post("/v1/goals", headers=show(bound, 5)),
            await client.get("/v1/goals", headers=[*show(bound, 6).items(), ("DPoP", show(bound, 7)["DPoP"])]),
        ]
    assert len({is_problem(answer, 401, "unauthenticated")["detail"] for answer in refused}) == 1


async def test_a_name_that_the_caller_made_up_for_us_is_not_believed(door: Door, bound: str) -> None:
    evil = "http://evil.example"
    async with client_of(door.app, evil) as client:
        answer = await client.get("/v1/goals", headers=show(bound, 1, htu=f"{evil}/v1/goals"))
        is_problem(answer, 401, "unauthenticated")

    public = "https://nexus.example"
    async with client_of(build_app(door.front, RuntimeSettings(), public), evil) as client:
        answer = await client.get("/v1/goals", headers=show(bound, 2, htu=f"{evil}/v1/goals"))
        is_problem(answer, 401, "unauthenticated")
        assert (await client.get("/v1/goals", headers=show(bound, 3, htu=f"{public}/v1/goals"))).status_code == 200
