"""Goals take turns: one with ten thousand tasks does not starve one with three."""

import asyncio

import pytest

import nexus_ray as nexus
from nexus_ray.core.identity import AgentId
from tests.support.runners import bench

MANY = 10_000
FEW = 3


@pytest.mark.parametrize("agents", [1, MANY])
async def test_a_goal_with_few_tasks_is_not_starved_by_one_with_many(agents: int) -> None:
    app = nexus.App("fair")
    ended: list[str] = []

    @app.agent(mailbox_max=MANY)
    class Worker(nexus.Agent):
        async def handle(self, payload: str) -> None:
            if agents == 1:  # So that the others have to wait in its mailbox.
                await asyncio.sleep(0)
            ended.append(payload)

    async with bench(app) as host:
        orders = [
            host.order("worker/k", "many")._replace(agent=AgentId("worker", str(number % agents)))
            for number in range(MANY)
        ]
        late = [host.order(f"worker/{number % agents}", "few")._replace(goal_id="goal-2") for number in range(FEW)]
        running = [host.runner.run(order, is_local=True) for order in orders]
        running += [host.runner.run(order, is_local=True) for order in late]
        await asyncio.wait(running[MANY:], timeout=20.0)
        ahead = ended.index("few"), len(ended)
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    assert ended[: ahead[1]].count("few") == FEW
    assert ahead[1] < MANY // 10
