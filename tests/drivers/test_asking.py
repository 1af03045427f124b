"""Asking: what the goal hears where an answer cannot be read."""

from typing import Any

from pydantic import BaseModel, ValidationInfo, field_validator

import nexus_ray as nexus
from tests.support.in_process import in_process_fleet


class Strange(BaseModel):
    number: int

    @field_validator("number")
    @classmethod
    def _check(cls, number: int, info: ValidationInfo) -> int:
        if info.mode == "json":
            raise RuntimeError("a validator of the user's")
        return number


async def test_what_a_schema_raises_while_an_answer_is_read_fails_the_goal_and_nobody_else() -> None:
    app = nexus.App("test")

    @app.agent
    class Odd(nexus.Agent):
        async def handle(self, payload: int) -> Strange:
            return Strange(number=payload)

    @app.agent
    class Even(nexus.Agent):
        async def handle(self, payload: int) -> int:
            return payload

    @app.goal
    async def ask(kind: str, team: nexus.Team) -> Any:
        return await team.fan_out(kind, [2, 4])

    async with in_process_fleet(app, hosts=1) as fleet:
        odd = await fleet.run("ask", "odd")
        even = await fleet.run("ask", "even")

    assert odd.failure is not None and odd.failure.error_type == "RuntimeError"
    assert even.result == b"[2,4]"
