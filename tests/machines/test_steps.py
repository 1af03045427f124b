import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_ray.agents.mailbox import Mailbox
from nexus_ray.agents.task import Failure, TaskResult
from nexus_ray.core.errors import DataLossError, ResourceExhaustedError
from nexus_ray.goals.step import StepKeys, step_body, step_result

ASKS = st.lists(
    st.tuples(st.sampled_from(["reader", "goal:x"]), st.sampled_from(["a", "b"]), st.sampled_from([b"1", b"2"])),
    max_size=12,
)


@given(ASKS, st.randoms())
def test_step_keys_depend_on_what_is_asked_and_how_often_and_not_on_the_order(
    asks: list[tuple[str, str, bytes]], rng: random.Random
) -> None:
    first, second = StepKeys(), StepKeys()
    mixed = asks.copy()
    rng.shuffle(mixed)

    keys = [first.next(*ask) for ask in asks]
    again = [second.next(*ask) for ask in mixed]

    assert sorted(keys) == sorted(again) and len(set(keys)) == len(keys)
    for ask in asks:
        assert [key for key, other in zip(keys, asks, strict=True) if other == ask] == [
            key for key, other in zip(again, mixed, strict=True) if other == ask
        ]


def test_where_one_part_of_an_ask_ends_matters() -> None:
    keys = StepKeys()

    assert len({keys.next("ab", "c", b""), keys.next("a", "bc", b""), keys.next("a", "b", b"c")}) == 3


@pytest.mark.parametrize("failure", [None, Failure("unknown", "it broke\n", "KeyError", "reader/a", "host-a", 2, "s")])
@pytest.mark.parametrize("value", [b"null", b'{"a":[1.5,"\xc3\xbc"]}', b"0"])
def test_a_result_comes_back_from_the_journal(failure: Failure | None, value: bytes) -> None:
    result = TaskResult("s", b"" if failure else value, failure, "host-a", 2, 1.25, 2.5)

    assert step_result("s", step_body("reader/a", result)) == result


@pytest.mark.parametrize("body", [b"", b"{", b"\xff"])
def test_a_step_that_cannot_be_read_back_is_not_guessed(body: bytes) -> None:
    with pytest.raises(DataLossError):
        step_result("s", body)


async def enter(mailbox: Mailbox, story: list[int], number: int) -> None:
    await mailbox.enter()
    story.append(number)


async def test_turns_are_given_in_order_and_no_more_than_there_are() -> None:
    mailbox, story = Mailbox(2, 10), list[int]()
    tasks = [asyncio.ensure_future(enter(mailbox, story, number)) for number in range(5)]
    await asyncio.sleep(0)
    assert (story, mailbox.running, mailbox.waiting) == ([0, 1], 2, 3)

    for expected in ([0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]):
        mailbox.leave()
        await asyncio.sleep(0)
        assert story == expected and mailbox.running == 2

    mailbox.leave()
    mailbox.leave()
    assert mailbox.is_idle
    await asyncio.gather(*tasks)


async def test_above_the_bound_is_refused_and_below_it_taken_again() -> None:
    mailbox, story = Mailbox(1, 2), list[int]()
    tasks = [asyncio.ensure_future(enter(mailbox, story, number)) for number in range(3)]
    await asyncio.sleep(0)

    with pytest.raises(ResourceExhaustedError) as caught:
        await mailbox.enter()
    assert caught.value.details["retry_after_s"] > 0
    mailbox.leave()
    await asyncio.sleep(0)
    tasks.append(asyncio.ensure_future(enter(mailbox, story, 3)))
    for _ in range(2):
        await asyncio.sleep(0)
        mailbox.leave()
    await asyncio.gather(*tasks)

    assert story == [0, 1, 2, 3]


@pytest.mark.parametrize("is_given", [False, True], ids=["while it waits", "when its turn was just given"])
async def test_a_cancelled_wait_gives_its_turn_to_the_next(is_given: bool) -> None:
    mailbox, story = Mailbox(1, 10), list[int]()
    tasks = [asyncio.ensure_future(enter(mailbox, story, number)) for number in range(3)]
    await asyncio.sleep(0)

    if is_given:
        mailbox.leave()
    tasks[1].cancel()
    await asyncio.wait([tasks[1]])
    if not is_given:
        mailbox.leave()
    await asyncio.wait_for(tasks[2], 5)

    assert story == [0, 2] and (mailbox.running, mailbox.waiting) == (1, 0)


async def test_a_wait_that_is_cancelled_just_before_its_turn_would_come_ends_as_cancelled() -> None:
    mailbox, story = Mailbox(1, 10), list[int]()
    tasks = [asyncio.ensure_future(enter(mailbox, story, number)) for number in range(3)]
    await asyncio.sleep(0)

    tasks[1].cancel()
    mailbox.leave()
    await asyncio.wait(tasks, timeout=5)

    assert tasks[1].cancelled() and story == [0, 2] and (mailbox.running, mailbox.waiting) == (1, 0)


async def test_a_turn_that_is_held_on_is_given_back_by_its_own_leave() -> None:
    mailbox, story = Mailbox(1, 10), list[int]()
    tasks = [asyncio.ensure_future(enter(mailbox, story, number)) for number in range(2)]
    await asyncio.sleep(0)

    mailbox.hold()
    mailbox.leave()
    await asyncio.sleep(0)
    assert story == [0] and mailbox.running == 1
    mailbox.leave()
    await asyncio.gather(*tasks)

    assert story == [0, 1]


@given(st.lists(st.sampled_from(["enter", "leave", "cancel"]), max_size=40), st.integers(1, 3), st.randoms())
def test_whatever_happens_turns_are_neither_lost_nor_made(
    moves: list[str], concurrency: int, rng: random.Random
) -> None:
    async def story() -> None:
        mailbox = Mailbox(concurrency, 5)
        inside, waiting = 0, list[asyncio.Future[None]]()
        for move in moves:
            if move == "enter" and len(waiting) < 5:
                waiting.append(asyncio.ensure_future(mailbox.enter()))
            elif move == "leave" and inside:
                mailbox.leave()
                inside -= 1
            elif move == "cancel" and waiting:
                rng.choice(waiting).cancel()
            if rng.random() < 0.7:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            inside += sum(task.done() and not task.cancelled() for task in waiting)
            waiting = [task for task in waiting if not task.done()]
            assert inside <= concurrency
        for _ in range(200):
            await asyncio.sleep(0)
            inside += sum(task.done() and not task.cancelled() for task in waiting)
            waiting = [task for task in waiting if not task.done()]
            if inside:
                mailbox.leave()
                inside -= 1
        assert not waiting and mailbox.is_idle

    asyncio.run(story())
