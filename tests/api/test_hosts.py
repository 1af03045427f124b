"""Hosts over HTTP: who there is, and draining."""

import httpx2
import pytest

from nexus_ray.api.hosts import DrainAnswer, HostsAnswer
from tests.api.conftest import is_problem


async def states(client: httpx2.AsyncClient) -> dict[str, str]:
    body = (await client.get("/v1/hosts")).json()
    return {host.host: host.state for host in HostsAnswer.model_validate(body).hosts}


async def test_a_host_is_drained_and_takes_its_share_again(operator: httpx2.AsyncClient) -> None:
    assert await states(operator) == {"host-0": "active", "host-1": "active"}

    drained = await operator.post("/v1/hosts/host-0/drain")
    assert DrainAnswer.model_validate(drained.json()).hosts == ["host-0"]
    assert await states(operator) == {"host-0": "drained", "host-1": "active"}

    assert (await operator.delete("/v1/hosts/host-0/drain")).json() == {"hosts": ["host-0"]}
    assert await states(operator) == {"host-0": "active", "host-1": "active"}


async def test_the_last_host_and_one_that_is_not_there_are_refused(operator: httpx2.AsyncClient) -> None:
    assert (await operator.post("/v1/hosts/host-0/drain")).is_success

    is_problem(await operator.post("/v1/hosts/host-1/drain"), 409, "failed_precondition")
    is_problem(await operator.post("/v1/hosts/host-9/drain"), 404, "not_found")
    is_problem(await operator.delete(f"/v1/hosts/{'h' * 300}/drain"), 422, "invalid_argument")
    assert await states(operator) == {"host-0": "drained", "host-1": "active"}


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_who_may_only_read_drains_nothing(
    operator: httpx2.AsyncClient, reader: httpx2.AsyncClient, method: str
) -> None:
    is_problem(await reader.request(method, "/v1/hosts/host-0/drain"), 403, "permission_denied")

    assert set((await states(operator)).values()) == {"active"}
