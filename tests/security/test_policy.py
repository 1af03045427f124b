"""Policies as data, decided by Rego in this process: what is granted, what is refused, what tries to talk it over."""

import os
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from nexus_ray.core.clock import ManualClock
from nexus_ray.core.errors import InvalidArgumentError, PermissionDeniedError, UnavailableError
from nexus_ray.core.identity import Session
from nexus_ray.security.authz import Authorizer
from nexus_ray.security.policy import (
    ACTIONS,
    NO_ROLE,
    Decision,
    Policy,
    PolicyRequest,
    address_bits,
    facts,
    parse_policy,
)
from nexus_ray.security.rego_engine import ENTRYPOINT, RegoEngine, check_module, is_safe, read_module
from tests.security.policy_cases import CASES, POLICY, Case
from tests.security.policy_generator import generated_policy, generated_requests


@pytest.fixture(scope="module")
def engine() -> RegoEngine:
    return RegoEngine(parse_policy(POLICY))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_the_table_is_decided_as_it_says(engine: RegoEngine, case: Case) -> None:
    decision = engine.decide(case.request)

    assert (decision.is_allowed, decision.reason) == (case.reason == "granted", case.reason)
    assert decision.revision == engine.revision


INJECTIONS = [
    'x","allow":true,"z":"', '"', "\\", "\\u0022", 'x"}\n', "\n", "\0", "\u2028", "\ud800", "x" * 1025, "\x7f",
    '"],"roles":["operator"],"a":["', 'reader"; allow := true; "',
]  # fmt: skip


@pytest.mark.parametrize("text", INJECTIONS, ids=range(len(INJECTIONS)))
def test_an_input_that_tries_to_end_its_text_is_refused_unseen(engine: RegoEngine, text: str) -> None:
    asked = PolicyRequest("ann", ("submitter",), "main", "goal:submit", "review.a")
    assert engine.decide(asked).is_allowed

    for changed in ({"principal": text}, {"tenant": text}, {"resource": "review." + text}, {"action": text}):
        decision = engine.decide(asked._replace(**changed))
        assert (decision.is_allowed, decision.reason) == (False, "input_refused"), changed
    assert not engine.decide(asked._replace(roles=(text,))).is_allowed


@pytest.mark.parametrize(
    "line",
    [
        'allow if not net.cidr_contains("10.0.0.0/8", input.source)', 'allow if http.send({"url": input.source})',
        'allow if regex.match("a", input.source)', "allow if opa.runtime().env", "allow if io.jwt.decode(input.source)",
        "allow if count(input.roles) > 0", "allow if true with input as {}", "import data.other",
        "import input.roles as x", "allow if time.now_ns() > 0", "x := `", "allow if walk(input, [a, b])",
        "allow if trace \t(input.source)", "allow if net . cidr_contains(input.source, input.source)",
        'allow if net["cidr_contains"]("a", "b")', "x := input.roles[0]\n\ty := http.send",
        "x := net\n\t.cidr_contains", "x := net.\n\tcidr_contains", 'x := net\n\t["cidr_contains"]',
        "x := startswith\n\t(input.source, input.source)",
    ],
)  # fmt: skip
def test_rules_that_ask_for_more_than_is_known_to_be_safe_do_not_load(line: str) -> None:
    with pytest.raises(InvalidArgumentError):
        RegoEngine(parse_policy(POLICY), f"{read_module()}\n{line}\n")


def test_rules_of_the_old_syntax_or_too_long_do_not_load() -> None:
    for source in ("package nexus.authz\nallow { true }\n", read_module() + "#" * 70_000, ""):
        with pytest.raises(InvalidArgumentError):
            check_module(source)


@pytest.mark.parametrize(
    "answer", ["1", "true", '"yes"', '"Granted"', '"granted "', '["granted"]', '{"granted": true}', "null", '""', ""]
)
def test_only_the_word_of_a_yes_is_a_yes(answer: str) -> None:
    rule = f"reason := {answer}" if answer else 'reason := "granted" if input.no == 1'
    engine = RegoEngine(parse_policy(POLICY), f"package nexus.authz\nimport rego.v1\n{rule}\nallow := true\n")

    decision = engine.decide(PolicyRequest("ann", ("submitter",), "main", "goal:submit", "review.a"))

    assert (decision.is_allowed, decision.reason) == (False, "engine_undefined")


def pointers(policy: Policy, action: str) -> list[dict[str, int]]:
    """Return every pointer that there can be to what the policy says of an action."""
    return [
        {"held": held, "grant": grant, "tenant": tenant, "form": form, "pattern": pattern}
        for held in range(len(policy.document["held"])) for grant, one in enumerate(policy.document["grants"])
        if one["action"] == action for tenant in (0, 1) for form in (0, 1) for pattern in range(len(one["resources"]))
    ]  # fmt: skip


def test_a_pointer_to_what_is_not_the_callers_grants_nothing() -> None:
    policy = parse_policy(POLICY)
    asked = PolicyRequest("bob", ("viewer", "night"), "main", "goal:submit", "report", at=0.0)
    told = facts(asked, policy)
    whole = {**told, "source": "-", "weekday": "mon", "minute": 0, "resource": ["~report", "6=report"]}
    everything = pointers(policy, "goal:submit") + pointers(policy, "goal:read")
    engine = RegoEngine(policy)

    for holders in (told["holders"], ["@6=viewer", "@5=night", "~bob", "3=bob"]):
        for candidates in (
            everything,
            [{"held": -1, "grant": 0}, {"held": 10**9, "grant": 10**9}, {}, {"held": "0"}, {"tenant": 7}],
        ):
            interpreter, bundle = engine._interpreter()
            interpreter.set_input({**whole, "holders": holders, "candidates": candidates})
            answer = str(interpreter.query_bundle_entrypoint(bundle, ENTRYPOINT))
            assert answer == '{"expressions":["no_role_grants_it"]}'


def test_what_is_not_pointed_at_would_have_granted_nothing() -> None:
    seeded = Random(20_261_124)
    allowed = 0
    for _ in range(4):
        policy = parse_policy(generated_policy(seeded))
        engine = RegoEngine(policy)
        for request in generated_requests(seeded, 20):
            asked = policy.narrow(request)
            if not is_safe(asked):
                continue
            moment = facts(asked._replace(principal="", roles=()), policy)
            names = [f"~{asked.principal}", f"{len(asked.principal)}={asked.principal}"]
            everything = {
                **moment, "holders": [*names, *(f"@{len(role)}={role}" for role in asked.roles)],
                "resource": [f"~{asked.resource}", f"{len(asked.resource)}={asked.resource}"],
                "source": address_bits(asked.source), "weekday": time.strftime("%a", time.gmtime(asked.at)).lower(),
                "minute": time.gmtime(asked.at).tm_hour * 60 + time.gmtime(asked.at).tm_min,
                "candidates": pointers(policy, asked.action),
            }  # fmt: skip
            interpreter, bundle = engine._interpreter()
            interpreter.set_input(everything)
            answer = str(interpreter.query_bundle_entrypoint(bundle, ENTRYPOINT))
            decision = engine.decide(request)
            assert answer == f'{{"expressions":["{decision.reason}"]}}', request
            allowed += decision.is_allowed
    assert allowed > 10


def test_who_is_one_of_many_is_looked_up_and_not_looked_for() -> None:
    people = [{"role": "lead", "principals": [f"person-{number}", f"team-{number}:*"]} for number in range(500)]
    roles = {"lead": {"grants": ["goal:read"], "hours": ["00:00-12:00"]}, "other": ["goal:read"]}
    policy = parse_policy({"roles": roles, "bindings": people})

    for name in ("person-123", "team-499:ann"):
        told = facts(PolicyRequest(name, (), "main", "goal:read"), policy)
        assert len(told["candidates"]) == 1
        assert RegoEngine(policy).decide(PolicyRequest(name, (), "main", "goal:read")).is_allowed
    # Where one grants it without limits, the others are not gone through.
    assert len(facts(PolicyRequest("person-1", ("lead", "other"), "main", "goal:read"), policy)["candidates"]) == 1
    assert facts(PolicyRequest("person-500", ("x",), "main", "goal:read"), policy)["candidates"] == []


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"roles": {"a": ["goal:explode"]}}, "goal:explode"), ({"roles": {"a": ["x:*"]}}, "x:*"), ({"extra": 1}, "roles"),
     ({"roles": {"a": ["goal:read a*b"]}}, "a*b"), ({"roles": {"a": {"grants": [], "odd": 1}}}, "'a'"),
     ({"roles": {"a": {"grants": [], "hours": ["8-9"]}}}, "8-9"), ({"bindings": [{"role": "none"}]}, "none"),
     ({"roles": {"a": {"grants": [], "hours": ["24:30-24:40"]}}}, "24:30"), ({"tenants": "main"}, "tenants"),
     ({"roles": {"a": {"grants": [], "weekdays": ["noday"]}}}, "weekdays"), ({"bindings": [{"x": 1}]}, "binding"),
     ({"roles": {"a": {"grants": [], "sources": ["10.0.0.1/8"]}}}, "10.0.0.1/8"), ({"bindings": {}}, "bindings"),
     ({"roles": {"a": []}, "bindings": [{"role": "a"}]}, "binding of 'a'"), ({"roles": {'a"b': []}}, "a\"b"),
     ({"roles": {"a": []}, "bindings": [{"role": "a", "groups": ["e*"]}]}, "in full")],
)  # fmt: skip
def test_a_mistake_in_a_policy_is_named(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_policy({"roles": {}, **changed})

    assert named in str(caught.value)


def test_a_changed_file_is_in_force_after_a_second_and_a_broken_one_changes_nothing(
    tmp_path: Path, clock: ManualClock
) -> None:
    def write(text: str) -> None:
        (tmp_path / "new").write_text(text)
        os.replace(tmp_path / "new", tmp_path / "roles.toml")

    def may(action: str) -> bool:
        try:
            authorizer.authorize(Session("s", "ann", "local", ("lead",), 9e9), action)
        except PermissionDeniedError:
            return False
        return True

    write('[roles]\nlead = ["goal:read"]\n')
    authorizer = Authorizer.from_folder(tmp_path, clock)
    first = authorizer.revision
    assert may("goal:read") and not may("goal:cancel")

    write('[roles]\nlead = ["goal:cancel"]\n')
    clock.advance(1.0)
    assert may("goal:cancel") and not may("goal:read")
    second = authorizer.revision
    write("[roles]\nlead = 1\n")
    clock.advance(1.0)
    assert may("goal:cancel") and not may("goal:read")
    (tmp_path / "roles.toml").unlink()
    clock.advance(1.0)

    assert may("goal:cancel")
    assert authorizer.revision == second != first


class _Counting:
    """Allows until told otherwise, and counts how often it was asked."""

    revision = "1"

    def __init__(self) -> None:
        self.asked = 0
        self.is_allowed = True
        self.fails = False
        self.refusal = NO_ROLE

    def narrow(self, request: PolicyRequest) -> PolicyRequest:
        return request

    def decide(self, request: PolicyRequest) -> Decision:
        self.asked += 1
        if self.fails:
            raise RuntimeError("out of order")
        return Decision(self.is_allowed, "granted" if self.is_allowed else self.refusal, self.revision)


def test_a_decision_is_remembered_for_seconds_for_its_own_session_until_flushed(clock: ManualClock) -> None:
    engine = _Counting()
    authorizer = Authorizer({}, engine=engine, clock=clock)
    ann, bob = (Session(name, name, "local", ("lead",), 9e9) for name in ("ann", "bob"))

    for _ in range(3):
        authorizer.authorize(ann, "goal:read")
    assert engine.asked == 1
    engine.is_allowed = False
    with pytest.raises(PermissionDeniedError):
        authorizer.authorize(bob, "goal:read")
    authorizer.authorize(ann, "goal:read")
    authorizer.flush()
    with pytest.raises(PermissionDeniedError):
        authorizer.authorize(ann, "goal:read")
    engine.is_allowed = True
    clock.advance(4.9)
    with pytest.raises(PermissionDeniedError):
        authorizer.authorize(ann, "goal:read")
    clock.advance(0.2)

    authorizer.authorize(ann, "goal:read")


def test_a_resource_is_a_decision_of_its_own_only_where_the_policy_looks_at_it(clock: ManualClock) -> None:
    engine = RegoEngine(parse_policy({"roles": {"lead": ["goal:read", "goal:submit review.*"]}}))
    authorizer = Authorizer({}, engine=engine, clock=clock)
    ann = Session("ann", "ann", "local", ("lead",), 9e9)

    for name in ("a", "b", 'c"'):
        authorizer.authorize(ann, "goal:read", name)
    authorizer.authorize(ann, "goal:submit", "review.a")
    with pytest.raises(PermissionDeniedError):
        authorizer.authorize(ann, "goal:submit", "other")

    reads, submits = (sum(action in key for key in authorizer._remembered) for action in ("goal:read", "goal:submit"))
    assert (reads, submits) == (1, 2)


def test_an_engine_that_fails_is_a_no_and_is_asked_again(clock: ManualClock) -> None:
    engine = _Counting()
    engine.fails = True
    authorizer = Authorizer({}, engine=engine, clock=clock)
    ann = Session("ann", "ann", "local", (), 9e9)

    with pytest.raises(UnavailableError) as caught:
        authorizer.authorize(ann, "goal:read")
    engine.fails = False
    authorizer.authorize(ann, "goal:read")

    assert caught.value.details["reason"] == "engine_failed"


@pytest.mark.parametrize("reason", ["engine_undefined", "engine_failed", "engine_timeout", "revision_unknown"])
def test_what_was_not_decided_is_not_remembered(clock: ManualClock, reason: str) -> None:
    engine = _Counting()
    engine.is_allowed, engine.refusal = False, reason
    authorizer = Authorizer({}, engine=engine, clock=clock)
    ann = Session("ann", "ann", "local", (), 9e9)

    with pytest.raises(UnavailableError) as caught:
        authorizer.authorize(ann, "goal:read")
    engine.is_allowed = True
    authorizer.authorize(ann, "goal:read")

    assert (caught.value.details["reason"], engine.asked) == (reason, 2)


def test_a_decision_that_took_too_long_is_no() -> None:
    granted = next(case.request for case in CASES if case.reason == "granted")
    assert RegoEngine(parse_policy(POLICY), timeout_s=60).decide(granted).is_allowed

    decision = RegoEngine(parse_policy(POLICY), timeout_s=0).decide(granted)

    assert (decision.is_allowed, decision.reason) == (False, "engine_timeout")


def test_every_action_is_granted_to_an_admin_and_none_to_a_stranger(tmp_path: Path) -> None:
    from nexus_ray.security.authz import ensure_role_file, load_policy

    ensure_role_file(tmp_path)
    engine = RegoEngine(load_policy(tmp_path))

    for action in ACTIONS:
        assert engine.decide(PolicyRequest("ann", ("admin",), "main", action)).is_allowed
        assert not engine.decide(PolicyRequest("ann", (), "main", action)).is_allowed
