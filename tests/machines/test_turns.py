"""Turns: order within a lane, and one of each lane at a time."""

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from nexus_ray.agents.turns import Turns

LANES = st.sampled_from("abcd")


def drained(turns: Turns[str]) -> list[str]:
    return [turns.take() for _ in range(len(turns))]


def test_lanes_take_turns_and_keep_their_own_order() -> None:
    turns: Turns[str] = Turns()
    for number in range(4):
        turns.put("many", f"m{number}")
    for number in range(2):
        turns.put("few", f"f{number}")

    assert drained(turns) == ["m0", "f0", "m1", "f1", "m2", "m3"]
    assert not turns


def test_who_comes_late_in_a_lane_of_its_own_waits_for_one_of_each_other() -> None:
    turns: Turns[str] = Turns()
    for number in range(10_000):
        turns.put("many", f"m{number}")
    turns.take()
    turns.put("few", "f0")

    assert [turns.take(), turns.take()] == ["m1", "f0"]


def test_who_leaves_is_not_taken() -> None:
    turns: Turns[str] = Turns()
    turns.put("a", "1")
    turns.put("a", "2")

    assert turns.remove("a", "1") and not turns.remove("a", "1") and not turns.remove("b", "2")
    assert drained(turns) == ["2"]


@given(st.lists(st.one_of(st.tuples(st.just("put"), LANES), st.tuples(st.just("take"), LANES)), max_size=60))
def test_nothing_is_lost_doubled_or_overtaken_in_its_lane(events: list[tuple[str, str]]) -> None:
    turns: Turns[tuple[str, int]] = Turns()
    put: dict[str, int] = defaultdict(int)
    taken: dict[str, list[int]] = defaultdict(list)
    waits_behind: dict[str, int] = {}  # How many turns a lane has waited for its next.
    for kind, lane in events:
        if kind == "put":
            turns.put(lane, (lane, put[lane]))
            put[lane] += 1
            waits_behind.setdefault(lane, 0)
        elif turns:
            from_lane, number = turns.take()
            taken[from_lane].append(number)
            waits_behind = {other: n + 1 for other, n in waits_behind.items() if put[other] > len(taken[other])}
            if from_lane in waits_behind:
                waits_behind[from_lane] = 0
        assert all(waited < 4 for waited in waits_behind.values())

    for numbers in taken.values():
        assert numbers == list(range(len(numbers)))
    assert len(turns) == sum(put.values()) - sum(map(len, taken.values()))
