"""The sealed context of a call: what opens, and that nothing else does."""

import time
from dataclasses import replace

import pytest

from nexus_ray.core.context import CallContext, ContextSeal, Headers
from nexus_ray.core.deadline import Deadline
from nexus_ray.core.errors import PermissionDeniedError
from nexus_ray.core.identity import Delegation, Session

SEAL = ContextSeal(b"k" * 32)
PLAIN = Session("s", "ada", "idp", ("operator", "viewer"), 90.0, "acme", "oidc", 5.0, "high", ("pwd", "otp"))
SESSION = replace(PLAIN, delegation=Delegation(("robot", "helper-2"), ("p1", "p2"), True))
CONTEXT = CallContext(SESSION, Deadline(100.0), "00-trace", "10.1.2.3")


def headers() -> Headers:
    return SEAL.sealed(CONTEXT.to_headers(), "goal-1")


def reason(given: Headers, subject: str = "goal-1", now: float = 10.0, seal: ContextSeal = SEAL) -> str:
    with pytest.raises(PermissionDeniedError) as caught:
        seal.opened(given, subject, now)
    return str(caught.value.details["reason"])


def test_what_was_sealed_opens_whole_for_its_subject() -> None:
    assert SEAL.opened(headers(), "goal-1", 10.0) == CONTEXT
    assert SEAL.opened({**headers(), "traceparent": "00-next"}, "goal-1", 10.0).session == SESSION


@pytest.mark.parametrize("name", sorted(set(CONTEXT.to_headers()) - {"traceparent"}))
def test_a_field_that_was_changed_or_taken_out_is_refused(name: str) -> None:
    assert reason({**headers(), name: "9e9"}) == "forged_context"
    assert reason({key: value for key, value in headers().items() if key != name}) == "forged_context"


@pytest.mark.parametrize("name", ["delegation", "source"])
def test_what_was_not_there_is_not_put_in_later(name: str) -> None:
    bare = CallContext(PLAIN, Deadline(100.0), "00-trace")
    without = SEAL.sealed(bare.to_headers(), "goal-1")

    assert SEAL.opened(without, "goal-1", 10.0) == bare
    assert reason({**without, name: headers()[name]}) == "forged_context"


def test_what_was_sealed_for_another_by_another_or_not_at_all_is_refused() -> None:
    assert reason(headers(), "goal-2") == "forged_context"
    assert reason(headers(), seal=ContextSeal(b"o" * 32)) == "forged_context"
    assert reason(CONTEXT.to_headers()) == "forged_context"
    assert reason({**headers(), "seal": "é"}) == "forged_context"
    assert reason({}) == "forged_context"


def test_fields_do_not_run_into_each_other() -> None:
    one = CallContext(Session("s", "a', 'b", "c", (), 9.0), Deadline(9.0)).to_headers()
    two = CallContext(Session("s", "a", "b', 'c", (), 9.0), Deadline(9.0)).to_headers()

    assert SEAL.sealed(one, "x")["seal"] != SEAL.sealed(two, "x")["seal"]


def test_a_context_that_is_over_is_refused() -> None:
    assert reason(headers(), now=100.0) == "expired_context"


def test_what_a_seal_costs_is_printed() -> None:
    plain, count = CONTEXT.to_headers(), 2000
    began_at = time.perf_counter()
    for _ in range(count):
        sealed = SEAL.sealed(plain, "goal-1")
    sealed_at = time.perf_counter()
    for _ in range(count):
        SEAL.opened(sealed, "goal-1", 10.0)
    opened_at = time.perf_counter()

    print(f"\nseal {(sealed_at - began_at) / count * 1e6:.1f} µs, open {(opened_at - sealed_at) / count * 1e6:.1f} µs")
    assert SEAL.opened(sealed, "goal-1", 10.0) == CONTEXT
