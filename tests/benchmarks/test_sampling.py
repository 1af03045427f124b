import asyncio

import pytest

from benchmarks.sampling import Round, Row, Summary, Target, closed_loop, nearest_rank, pair_ratios, summarise


def test_a_summary_keeps_the_middle_the_tail_and_the_ends() -> None:
    samples = [float(number) for number in range(100, 0, -1)]

    summary = summarise(samples)

    assert summary == Summary(n=100, median=50.5, p50=50.0, p99=99.0, min=1.0, max=100.0)


def test_one_sample_is_its_own_summary() -> None:
    assert summarise([3.0]) == Summary(n=1, median=3.0, p50=3.0, p99=3.0, min=3.0, max=3.0)


@pytest.mark.parametrize("samples", [[], [1.0, float("nan")], [float("inf")]])
def test_there_is_no_summary_of_nothing_or_of_what_is_no_number(samples: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        summarise(samples)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    ordered = [1.0, 2.0, 10.0]

    assert {nearest_rank(ordered, share / 100) for share in range(101)} == {1.0, 2.0, 10.0}
    assert nearest_rank(ordered, 1.0) == 10.0


def test_rounds_are_compared_in_pairs() -> None:
    assert pair_ratios([20.0, 90.0], [2.0, 3.0]) == [10.0, 30.0]


def test_rounds_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError):
        pair_ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("target", "median", "expected"),
    [
        (Target("at_least", 20.0), 20.0, True),
        (Target("at_least", 20.0), 19.9, False),
        (Target("at_most", 8.0), 8.0, True),
        (Target("at_most", 8.0), 8.1, False),
        (None, 1.0, None),
    ],
)
def test_a_row_is_judged_by_its_median(target: Target | None, median: float, expected: bool | None) -> None:
    row = Row("section", "what", "x", summarise([median]), target)

    assert row.reached is expected


def test_a_row_survives_json() -> None:
    rows = [
        Row("a", "rate", "goals/s", summarise([1.0, 2.0])),
        Row("a", "ratio", "x", summarise([9.0]), Target("at_least", 8.0), series="a", at=8),
    ]

    assert [Row.from_json(row.to_json()) for row in rows] == rows


async def test_a_closed_loop_keeps_as_many_callers_busy_as_asked_and_counts_every_answer() -> None:
    running, running_max, asked = 0, 0, 0

    async def one(lane: int) -> None:
        nonlocal running, running_max, asked
        running += 1
        asked += 1
        running_max = max(running_max, running)
        await asyncio.sleep(0)
        running -= 1

    result = await closed_loop(one, 3, 0.02)

    assert running_max == 3
    assert len(result.latencies_s) == asked >= 3
    assert result.rate == pytest.approx(asked / result.wall_s)


async def test_a_closed_loop_begins_no_more_goals_than_it_may() -> None:
    async def one(lane: int) -> None:
        await asyncio.sleep(0)

    result = await closed_loop(one, 3, 10.0, goals_max=7)

    assert len(result.latencies_s) == 7


async def test_a_failing_caller_fails_the_round() -> None:
    async def one(lane: int) -> None:
        raise RuntimeError("refused")

    with pytest.raises(ExceptionGroup, match="unhandled"):
        await closed_loop(one, 2, 1.0)


def test_cpu_time_is_told_for_each_goal() -> None:
    assert Round(wall_s=2.0, cpu_s=1.0, latencies_s=[0.1] * 4).cpu_us == 250_000
