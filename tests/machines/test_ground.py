"""Ids, errors, deadlines, contexts and who is who."""

import itertools
import pickle
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_ray.core.clock import ManualClock, SystemClock
from nexus_ray.core.context import CallContext
from nexus_ray.core.deadline import Deadline
from nexus_ray.core.errors import DeadlineExceededError, InvalidArgumentError, NexusError, error_classes
from nexus_ray.core.identity import AgentId, Session, check_key, check_type_name
from nexus_ray.core.ids import digest, new_id
from nexus_ray.observe.traces import RootSampler
from nexus_ray.resilience.retry import RetryPolicy


def test_ids_sort_by_time_and_are_never_the_same() -> None:
    ids = []
    for _ in range(5):
        ids.append([new_id("goal") for _ in range(200)])
        before = time.time_ns() // 1_000_000
        while time.time_ns() // 1_000_000 == before:  # Until the millisecond is over, which is what they sort by.
            pass

    assert all(max(earlier) < min(later) for earlier, later in itertools.pairwise(ids))
    assert len({one for some in ids for one in some}) == 1000
    assert all(len(one) == 27 and one.isascii() and one[5:].isalnum() for one in ids[0])


@given(st.lists(st.binary(max_size=5), max_size=4), st.lists(st.binary(max_size=5), max_size=4))
def test_a_digest_names_its_parts_and_where_they_end(one: list[bytes], other: list[bytes]) -> None:
    assert (digest(*one) == digest(*other)) == (one == other)
    assert len(digest(*one)) == 32


@pytest.mark.parametrize("cls", error_classes().values(), ids=lambda cls: cls.__name__)
def test_an_error_survives_a_pickle_with_its_message_and_its_facts(cls: type[NexusError]) -> None:
    error = cls("what happened", agent="reader/k", attempts=3, problems=[{"field": "n"}])

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is cls and copy.code == error.code == cls.code
    assert (str(copy), copy.message, copy.details) == ("what happened", "what happened", error.details)
    assert cls().message == "" and cls().details == {}


def test_each_error_means_something_of_its_own() -> None:
    classes = error_classes()
    by_code: dict[str, set[str]] = {}
    for name, cls in classes.items():
        by_code.setdefault(cls.code, set()).add(name)

    shared = {code: names for code, names in by_code.items() if len(names) > 1}
    assert shared == {
        "internal": {"NexusError", "InternalError"},
        "aborted": {"FencedError", "QuorumNotReachedError", "EffectUnknownError", "NotDoneError", "SagaFailedError"},
    }  # fmt: skip
    assert all(cls.__doc__ and name.endswith("Error") for name, cls in classes.items())


@pytest.mark.parametrize("name", ["cause", "pid", "ip"])
def test_a_fact_may_not_have_a_name_that_ray_takes(name: str) -> None:
    with pytest.raises(AssertionError):
        NexusError("x", **{name: 1})


def test_a_deadline_is_an_instant() -> None:
    deadline = Deadline.after(10, now=100.0)

    assert (deadline.remaining_s(104.0), deadline.remaining_s(111.0)) == (6.0, 0.0)
    assert not deadline.is_over(109.9) and deadline.is_over(110.0)
    deadline.check(109.9, "asking")
    with pytest.raises(DeadlineExceededError, match="before asking") as caught:
        deadline.check(112.5, "asking")
    assert caught.value.details == {"late_s": 2.5}
    assert Deadline(1.0) < Deadline(2.0)


TEXT = st.text(max_size=20)
ROLES = st.lists(st.text(min_size=1).filter(lambda role: role.split() == [role]), max_size=3).map(tuple)


@given(TEXT, TEXT, ROLES, st.floats(allow_nan=False), st.floats(allow_nan=False), TEXT)
def test_a_context_travels_as_headers(
    one: str, principal: str, roles: tuple[str, ...], expires_at: float, deadline_at: float, traceparent: str
) -> None:
    context = CallContext(Session(one, principal, "iss", roles, expires_at), Deadline(deadline_at), traceparent)

    headers = context.to_headers()

    assert all(isinstance(value, str) for value in headers.values())
    assert CallContext.from_headers(headers) == context


def test_a_manual_clock_moves_when_told_and_never_back() -> None:
    clock = ManualClock(5.0)
    clock.advance(2.5)

    assert clock.now() == clock.monotonic() == 7.5
    with pytest.raises(ValueError):
        clock.advance(-1)
    assert abs(SystemClock().now() - time.time()) < 60 and SystemClock().monotonic() <= SystemClock().monotonic()


@pytest.mark.parametrize("text", ["reader/a", "reader/a/b", "r/ ü", "a.b-c_1/" + "k" * 200, "reader//"])
def test_an_agents_id_is_read_as_it_is_written(text: str) -> None:
    assert str(AgentId.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "reader", "reader/", "/a", "Reader/a", "1r/a", "r r/a", "r/" + "k" * 201, "r/a\n", "r/\0", "r/\ud800",
     "r" * 64 + "/a", "r\n/a", "ü/a"],
)  # fmt: skip
def test_what_is_no_agents_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        AgentId.parse(text)


def test_a_refused_name_is_shown_in_part_only() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_key("k" * 1000)
    assert len(str(caught.value)) < 150
    check_type_name("r" * 63)


# --- retry and sampling


@given(
    st.integers(1, 10), st.floats(0, 5), st.floats(1, 10), st.floats(0, 5), st.integers(1, 12), st.floats(-1, 10),
    st.sampled_from(["unavailable", "unknown", "internal"]), st.integers(),
)  # fmt: skip
def test_a_retry_is_bounded_in_number_and_length_and_ends_before_the_deadline(
    attempts_max: int, base_s: float, factor: float, ceiling_s: float, attempt: int, remaining_s: float, code: str,
    seed: int,
) -> None:  # fmt: skip
    policy = RetryPolicy(attempts_max, base_s, factor, ceiling_s, frozenset({"unavailable", "unknown"}))

    delay_s = policy.next_delay_s(attempt, code, remaining_s, random.Random(seed))

    assert delay_s == policy.next_delay_s(attempt, code, remaining_s, random.Random(seed))
    if attempt >= attempts_max or code == "internal" or remaining_s <= 0:
        assert delay_s is None
    if delay_s is not None:
        assert 0 <= delay_s <= min(ceiling_s, base_s * factor ** (attempt - 1)) and delay_s < remaining_s


def test_pauses_grow_and_are_spread() -> None:
    policy, rng = RetryPolicy(attempts_max=10, base_s=1.0, ceiling_s=8.0), random.Random(7)

    means = [
        sum(policy.next_delay_s(attempt, "unavailable", 99.0, rng) or 0.0 for _ in range(400)) / 400
        for attempt in range(1, 7)
    ]

    for mean, bound in zip(means, (1, 2, 4, 8, 8, 8), strict=True):
        assert abs(mean - bound / 2) < 0.1 * bound
    assert policy.next_delay_s(10**6, "unavailable", 99.0, rng) is None


@pytest.mark.parametrize("fields", [{"attempts_max": 0}, {"base_s": -1}, {"factor": 0.5}, {"ceiling_s": -1}])
def test_a_policy_without_sense_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        RetryPolicy(**fields)  # type: ignore[arg-type]


def test_the_first_roots_of_each_second_are_kept_and_a_share_of_the_rest() -> None:
    sampler = RootSampler(5, 0.1, random.Random(3))

    first = [sampler.keeps(10.0 + n / 10_000) for n in range(2005)]
    second = [sampler.keeps(11.0) for _ in range(5)]

    assert all(first[:5]) and all(second) and 150 < sum(first[5:]) < 250
    none = RootSampler(0, 0.0)
    assert not any(none.keeps(1.0) for _ in range(100))
