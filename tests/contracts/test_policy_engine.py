"""What every policy engine promises: Rego in this process, and a real Open Policy Agent by each of its two ways."""

import os
import random
from collections.abc import Callable

import pytest

from nexus_ray.security.opa import OpaEngine, OpaServer
from nexus_ray.security.policy import ACTIONS, Policy, PolicyEngine, PolicyRequest, parse_policy
from nexus_ray.security.rego_engine import RegoEngine, is_safe
from tests.security.policy_cases import CASES, POLICY, Case
from tests.security.policy_generator import generated_policy, generated_requests, plainly_allowed
from tests.support.opa import Opa

_COMPARED = int(os.environ.get("POLICY_REQUESTS", "1000"))
_POLICIES = max(5, _COMPARED // 500)
_SEED = 20_261_124
Made = Callable[[Policy], PolicyEngine]


@pytest.fixture(scope="module", params=["embedded", "opa by socket", "opa by mutual tls"])
def made(request: pytest.FixtureRequest) -> Made:
    """Makes an engine by a policy."""
    if request.param == "embedded":
        return RegoEngine
    opa: Opa = request.getfixturevalue("opa")
    settings = opa.settings if request.param == "opa by socket" else opa.tls_settings

    def make(policy: Policy) -> PolicyEngine:
        opa.put(policy)
        return OpaEngine(policy, OpaServer(settings))

    return make


@pytest.fixture(scope="module")
def engine(made: Made) -> PolicyEngine:
    return made(parse_policy(POLICY))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_the_table_is_decided_as_it_says(engine: PolicyEngine, case: Case) -> None:
    decision = engine.decide(case.request)

    assert (decision.is_allowed, decision.reason) == (case.reason == "granted", case.reason)
    assert decision.revision == engine.revision


def test_what_narrows_alike_is_decided_alike(engine: PolicyEngine) -> None:
    for case in CASES:
        assert engine.decide(engine.narrow(case.request)) == engine.decide(case.request)


@pytest.mark.parametrize("text", ['"', "\\", "\n", "\0", "\u2028", "\ud800", "x" * 1025, 'x","allow":true,"z":"'])
def test_a_text_that_could_end_a_text_is_refused_unseen(engine: PolicyEngine, text: str) -> None:
    asked = PolicyRequest("ann", ("submitter",), "main", "goal:submit", "review.a")
    assert engine.decide(asked).is_allowed

    for changed in ({"principal": text}, {"tenant": text}, {"resource": "review." + text}, {"action": text}):
        decision = engine.decide(asked._replace(**changed))
        assert (decision.is_allowed, decision.reason) == (False, "input_refused"), changed


def test_nothing_is_raised_whatever_is_asked(engine: PolicyEngine) -> None:
    for request in (PolicyRequest("", (), "", ""), PolicyRequest("a", ("a",) * 200, "b", "c", at=-1e11)):
        assert not engine.decide(request).is_allowed


def test_names_beyond_ascii_are_names_like_others(made: Made) -> None:
    roles = {"söker": ["goal:submit räksmörgås.*"], "lead": ["goal:read"]}
    bound = [{"role": "söker", "principals": ["corp:åsa", "日*"]}]
    engine = made(parse_policy({"roles": roles, "bindings": bound, "tenants": ["öst"]}))

    asked = PolicyRequest("x", ("söker",), "öst", "goal:submit", "räksmörgås.1")
    assert engine.decide(asked).is_allowed
    assert engine.decide(asked._replace(principal="corp:åsa", roles=())).is_allowed
    assert engine.decide(asked._replace(principal="日本", roles=())).is_allowed
    assert not engine.decide(asked._replace(resource="raksmorgas.1")).is_allowed
    assert not engine.decide(asked._replace(tenant="ost")).is_allowed
    # Another way to write the same letters is another name.
    assert not engine.decide(asked._replace(roles=("so\u0308ker",))).is_allowed


def test_a_policy_that_grants_nothing_grants_nothing(made: Made) -> None:
    engine = made(parse_policy({"roles": {}}))

    assert not [a for a in ACTIONS if engine.decide(PolicyRequest("ann", ("admin", "*"), "main", a)).is_allowed]


def test_both_engines_and_a_plain_reading_say_the_same_to_generated_requests_under_generated_policies(opa: Opa) -> None:
    seeded = random.Random(_SEED)
    allowed = refused = 0
    for _ in range(_POLICIES):
        table = generated_policy(seeded)
        policy = parse_policy(table)
        opa.put(policy)
        embedded = RegoEngine(policy)
        # What would end a text is refused before either sees it: that is the table's.
        requests = [r for r in generated_requests(seeded, _COMPARED // _POLICIES) if is_safe(policy.narrow(r))]
        answers = opa.answers(policy, [policy.narrow(request) for request in requests])

        for request, answer in zip(requests, answers, strict=True):
            mine = embedded.decide(request)
            assert mine.is_allowed is plainly_allowed(table, request), (_SEED, table, request)
            assert answer["allow"] is mine.is_allowed, (_SEED, policy.document, request)
            assert (answer["reason"], answer["revision"]) == (mine.reason, mine.revision), (_SEED, request)
            allowed, refused = allowed + mine.is_allowed, refused + (not mine.is_allowed)

    # A comparison of nothing but refusals would show nothing.
    assert allowed > _COMPARED / 5 and refused > _COMPARED / 5
    assert allowed + refused == _COMPARED // _POLICIES * _POLICIES
