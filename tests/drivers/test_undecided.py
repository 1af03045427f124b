"""While no policy engine decides nothing is begun, and what was accepted waits for it rather than fails."""

import orjson
import pytest

from nexus_ray.core.clock import SystemClock
from nexus_ray.core.errors import UnavailableError
from nexus_ray.core.identity import Session
from nexus_ray.goals.rights import Rights
from nexus_ray.goals.spec import Specs
from nexus_ray.ledger.memory import MemoryLedger
from nexus_ray.runtime.intake import SubmitRequest, build_goal
from nexus_ray.security.authz import Authorizer
from nexus_ray.security.policy import Decision, PolicyRequest
from tests.drivers.test_may_ask import HANDLED, SEAL, Settings, make_app
from tests.support.in_process import InProcessFleet


class _Away:
    """Decides nothing a few times, and then allows."""

    revision = "1"

    def __init__(self, times: float) -> None:
        self.times = times

    def narrow(self, request: PolicyRequest) -> PolicyRequest:
        return request

    def decide(self, request: PolicyRequest) -> Decision:
        self.times -= 1
        reason = "granted" if self.times < 0 else "engine_timeout"
        return Decision(reason == "granted", reason, self.revision)


@pytest.mark.parametrize(("times", "code"), [(3, ""), (1e9, "deadline_exceeded")])
async def test_a_goal_waits_for_a_decision_until_its_deadline(times: float, code: str) -> None:
    HANDLED.clear()
    app, settings, ledger = make_app(), Settings(), MemoryLedger()
    fleet = InProcessFleet(app, ledger, settings, rights=Rights(SEAL, Authorizer({}, engine=_Away(times)).authorize))
    fleet.add("host-0")
    fleet.publish()
    ada = Session("s", "ada", "idp", ("sender",), 9e9, tenant="acme")
    request = SubmitRequest("write", orjson.dumps(7), 0.4 if code else 10.0)
    try:
        specs = Specs(app.agents, app.goals)
        goal = build_goal(request, ada, specs, settings.goals, SystemClock().now(), "", SEAL)
        await ledger.accept([goal])
        await fleet.poke([goal])
        outcome = await fleet.outcome(goal)
    finally:
        await fleet.hosts_by_name["host-0"].close()

    assert (outcome.failure.code if outcome.failure else "") == code
    assert HANDLED.count("writer") == (0 if code else 1)


def test_a_caller_is_told_to_come_back_and_not_that_he_may_not() -> None:
    authorizer = Authorizer({}, engine=_Away(1))
    ada = Session("s", "ada", "idp", (), 9e9)

    with pytest.raises(UnavailableError) as caught:
        authorizer.authorize(ada, "goal:read")

    assert (caught.value.code, caught.value.details["reason"]) == ("unavailable", "engine_timeout")
    authorizer.authorize(ada, "goal:read")
