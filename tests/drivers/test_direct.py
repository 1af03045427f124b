"""The door for callers inside the cluster: the same pipeline as at the front, many goals to a call."""

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

import nexus_ray as nexus
from nexus_ray.audit.ports import RecordQuery
from nexus_ray.config import Settings, load
from nexus_ray.core.clock import ManualClock
from nexus_ray.core.errors import UnavailableError
from nexus_ray.ledger.goal import GoalStatus
from nexus_ray.ledger.memory import MemoryLedger
from nexus_ray.runtime.direct import Answer, DirectClient, DirectDoor
from nexus_ray.runtime.front import SubmitRequest
from nexus_ray.runtime.placement import Member, Membership
from nexus_ray.runtime.process import HostProcess
from nexus_ray.runtime.state import prepare_state
from nexus_ray.security.authz import Authorizer
from nexus_ray.security.keys import load_or_create_issuer_key
from nexus_ray.security.tokens import issue_token
from tests.support.auditing import auditor_of


class Bench:
    """One host with a door, and tokens for it."""

    def __init__(self, settings: Settings, host: HostProcess, clock: ManualClock) -> None:
        self.host = host
        self.clock = clock
        self.auditor = auditor_of(settings, clock)
        self.door = DirectDoor(host, settings, self.auditor, Authorizer.from_folder(settings.state_dir))
        self._settings = settings

    def token(self, role: str = "operator") -> str:
        key = load_or_create_issuer_key(self._settings.state_dir)
        return issue_token(key, self._settings.tokens, "tester", [role], 600.0, self.clock.now())

    async def ask(self, *requests: SubmitRequest, token: str | None = None, client: str = "c") -> dict[int, Answer]:
        numbered = list(enumerate(requests))
        answers: dict[int, Answer] = {}
        while len(answers) < len(requests):
            found = await self.door.exchange(client, self.token() if token is None else token, numbered, 5.0)
            assert found, "nothing came"
            answers.update({answer.number: answer for answer in found})
            numbered = []
        return answers


@pytest.fixture
async def bench(tmp_path: Path, clock: ManualClock) -> Any:
    app = nexus.App("test")

    @app.agent
    class Doubler(nexus.Agent):
        async def handle(self, payload: int) -> int:
            return payload * 2

    @app.goal
    async def double(request: int, team: nexus.Team) -> int:
        return await team.ask(Doubler, request)

    settings = load(state_dir=tmp_path)
    prepare_state(settings)
    carrier: Any = None
    host = HostProcess(
        host="host-0", node="here", app=app, settings=settings, ledger=MemoryLedger(), carrier=carrier, clock=clock
    )
    host.start()
    host.set_membership(Membership(1, (Member("host-0", "here", ""),)))
    made = Bench(settings, host, clock)
    yield made
    await host.close()
    await made.auditor.close()


async def test_goals_of_one_call_each_get_their_outcome(bench: Bench) -> None:
    answers = await bench.ask(*(SubmitRequest("double", b"%d" % n) for n in range(20)))

    outcomes = [answers[n].outcome for n in range(20)]
    assert [orjson.loads(outcome.result) for outcome in outcomes if outcome] == [n * 2 for n in range(20)]
    assert {outcome.status for outcome in outcomes if outcome} == {GoalStatus.SUCCEEDED}


async def test_goals_and_refusals_at_this_door_are_written_down_too(bench: Bench) -> None:
    await bench.ask(SubmitRequest("double", b"1"), SubmitRequest("double", b"2"))
    await bench.ask(SubmitRequest("double", b"3"), token="nonsense", client="another")
    await bench.auditor.flush()

    found = [one.fields for one in await bench.auditor.log.records(RecordQuery(is_oldest_first=True))]

    told = [(one["kind"], one["action"], one.get("principal"), one.get("outcome")) for one in found]
    assert told == [
        ("event", "session:authenticate", "tester", "ok"),
        ("intent", "goal:submit", "tester", None), ("intent", "goal:submit", "tester", None),
        ("outcome", "goal:submit", "tester", "ok"), ("outcome", "goal:submit", "tester", "ok"),
        ("event", "session:authenticate", None, "unauthenticated"),
    ]  # fmt: skip
    assert {one["source"] for one in found} == {"cluster"}


async def test_the_same_key_is_the_same_goal(bench: Bench) -> None:
    request = SubmitRequest("double", b"4", idempotency_key="k")

    first = await bench.ask(request)
    second = await bench.ask(request, client="another")

    assert first[0].goal_id == second[0].goal_id
    assert second[0].outcome is not None and second[0].outcome.result == b"8"


@pytest.mark.parametrize(
    ("role", "request_", "error"),
    [
        ("reader", SubmitRequest("double", b"1"), "PermissionDeniedError"),
        ("operator", SubmitRequest("nosuch", b"1"), "NotFoundError"),
        ("operator", SubmitRequest("double", b'"x"'), "InvalidArgumentError"),
        ("operator", SubmitRequest("double", b"1", timeout_s=-1.0), "InvalidArgumentError"),
    ],
)
async def test_what_is_refused_is_refused_alone_and_accepted_nowhere(
    bench: Bench, role: str, request_: SubmitRequest, error: str
) -> None:
    answers = await bench.ask(request_, token=bench.token(role))
    beside = await bench.ask(request_, SubmitRequest("double", b"1"))

    assert answers[0].error == error and answers[0].outcome is None
    assert beside[1].outcome is not None


@pytest.mark.parametrize("token", ["", "garbage", "a.b.c"])
async def test_a_stranger_gets_nothing(bench: Bench, token: str) -> None:
    answers = await bench.ask(SubmitRequest("double", b"1"), token=token)

    assert answers[0].error == "UnauthenticatedError" and answers[0].message == "authentication failed"
    assert bench.host.coordinator.held == 0


async def test_a_token_that_expires_while_the_client_is_known_is_refused(bench: Bench) -> None:
    token = bench.token()
    assert (await bench.ask(SubmitRequest("double", b"1"), token=token))[0].outcome is not None

    bench.clock.advance(700)

    assert (await bench.ask(SubmitRequest("double", b"1"), token=token))[0].error == "UnauthenticatedError"


async def test_a_call_that_was_lost_takes_no_answers_of_the_name_that_follows_it(bench: Bench) -> None:
    lost = asyncio.ensure_future(bench.door.exchange("before", bench.token(), [], 5.0))
    await asyncio.sleep(0)

    answers = await bench.ask(SubmitRequest("double", b"3"), client="after")

    assert answers[0].outcome is not None and not lost.done()
    lost.cancel()


async def test_answers_that_nobody_fetches_are_forgotten(bench: Bench) -> None:
    assert await bench.door.exchange("gone", bench.token(), [(0, SubmitRequest("double", b"1"))], 0.0) == []
    while not bench.door._callers["gone"].ready:
        await asyncio.sleep(0)

    bench.clock.advance(61)
    await bench.ask(SubmitRequest("double", b"1"))

    assert list(bench.door._callers) == ["c"]


async def test_a_client_that_knows_no_host_says_so_and_does_not_break() -> None:
    client = DirectClient("token")

    with pytest.raises(UnavailableError, match="no hosts"):
        await client.run("double", b"1", 0.1)
