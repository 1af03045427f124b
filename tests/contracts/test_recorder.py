"""What a recorder promises, from the text of its port, held by the write stream; and what the stream adds."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from nexus_ray.agents.ports import Recorder
from nexus_ray.agents.task import AgentState, TaskOrder, TaskResult
from nexus_ray.core.errors import FencedError, InvalidArgumentError, UnavailableError
from nexus_ray.core.identity import AgentId
from nexus_ray.goals import stream as module
from nexus_ray.goals.stream import WriteStream
from nexus_ray.ledger.goal import EntryKind, Note, RequestCancel, Write
from nexus_ray.ledger.limits import LedgerSettings
from nexus_ray.ledger.memory import MemoryLedger
from tests.support.records import COUNTER, a_finish, a_goal, a_step


class Away(MemoryLedger):
    """A ledger that is away while `is_away`, and that keeps each batch it was given."""

    def __init__(self) -> None:
        super().__init__(LedgerSettings(body_bytes_max=1000))
        self.is_away = False
        self.tries = 0
        self.batches: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def append(self, writer: str, writes: Sequence[Write]) -> list[bool]:
        self.tries += 1
        await self.gate.wait()
        if self.is_away:
            raise UnavailableError("the disk is full")
        answers = await super().append(writer, writes)
        self.batches.append(len(writes))
        return answers


@pytest.fixture
async def ledger(monkeypatch: pytest.MonkeyPatch) -> Away:
    monkeypatch.setattr(module, "_RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(module, "_RETRY_CEILING_S", 0.002)
    ledger = Away()
    await ledger.accept([a_goal()], "host-a")
    return ledger


@pytest.fixture
async def stream(ledger: Away) -> AsyncIterator[WriteStream]:
    stream = WriteStream(ledger, "host-a")
    stream.start()
    yield stream
    ledger.is_away = False
    ledger.gate.set()
    await stream.close()


def record(recorder: Recorder, number: int, version: int = 0, value: bytes = b"1") -> "asyncio.Future[bool]":
    order = TaskOrder("goal-1", f"s-{number}", COUNTER, b"0", {}, 99.0)
    result = TaskResult(order.step_key, value, None, "host-a", 1, 1.0, 2.0)
    return recorder.record(order, result, AgentState(COUNTER, version, b"{}") if version else None)


async def steps(ledger: MemoryLedger) -> list[str]:
    return [entry.step_key for entry in await ledger.journal("goal-1", 0, 5000) if entry.kind is EntryKind.STEP]


async def test_what_is_recorded_is_durable_with_its_state_when_the_future_says_so(
    ledger: Away, stream: WriteStream
) -> None:
    assert await record(stream, 1, version=1) is True

    assert await steps(ledger) == ["s-1"]
    assert await stream.load(COUNTER) == AgentState(COUNTER, 1, b"{}")
    assert await stream.load(AgentId("counter", "other")) is None


async def test_what_does_not_take_effect_is_false(ledger: Away, stream: WriteStream) -> None:
    assert await record(stream, 1) is True
    assert await record(stream, 1) is False
    assert await record(stream, 2, version=7) is False
    assert await stream.write(a_finish()) is True
    assert await record(stream, 3) is False


async def test_records_keep_their_order_and_many_go_in_one_transaction(ledger: Away, stream: WriteStream) -> None:
    ledger.gate.clear()
    first = record(stream, 0, version=1)
    await asyncio.sleep(0)
    futures = [record(stream, number, version=number + 1) for number in range(1, 300)]
    ledger.gate.set()

    assert await first and all(await asyncio.gather(*futures))
    assert await steps(ledger) == [f"s-{number}" for number in range(300)]
    assert len(ledger.batches) <= 3


async def test_what_nobody_waits_for_keeps_its_order_and_goes_by_itself(ledger: Away, stream: WriteStream) -> None:
    results = [TaskResult(f"s-{number}", b"1", None, "host-a", 1, 1.0, 2.0) for number in range(2)]
    orders = [TaskOrder("goal-1", result.step_key, COUNTER, b"0", {}, 99.0) for result in results]

    stream.keep(orders[0], results[0])
    await record(stream, 7)
    stream.keep(orders[1], results[1])

    async with asyncio.timeout(10):
        while await steps(ledger) != ["s-0", "s-7", "s-1"]:
            await asyncio.sleep(0.001)


async def test_a_batch_is_bounded(ledger: Away, stream: WriteStream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_WRITES_MAX", 10)

    await asyncio.gather(*(record(stream, number) for number in range(25)))

    assert ledger.batches == [10, 10, 5]


async def test_a_ledger_that_is_away_is_asked_again_until_it_takes_the_record(
    ledger: Away, stream: WriteStream
) -> None:
    ledger.is_away = True
    futures = [record(stream, number, version=number + 1) for number in range(3)]
    async with asyncio.timeout(10):
        while ledger.tries < 4:
            await asyncio.sleep(0.001)
    assert not any(future.done() for future in futures)
    ledger.is_away = False

    assert await asyncio.gather(*futures) == [True] * 3
    assert await steps(ledger) == ["s-0", "s-1", "s-2"]


async def test_a_record_that_can_never_be_written_fails_alone(ledger: Away, stream: WriteStream) -> None:
    answers = await asyncio.gather(
        record(stream, 1), record(stream, 2, value=b'"' + b"x" * 2000 + b'"'), record(stream, 3),
        stream.write(a_step("")), stream.write(RequestCancel("goal-1", 1.0, "ann")), return_exceptions=True,
    )  # fmt: skip

    assert [answer for answer in answers if isinstance(answer, bool)] == [True] * 3
    assert isinstance(answers[1], InvalidArgumentError) and isinstance(answers[3], InvalidArgumentError)
    assert await steps(ledger) == ["s-1", "s-3"]


async def test_a_fenced_host_records_nothing_more_and_hears_it_at_once(ledger: Away, stream: WriteStream) -> None:
    await record(stream, 1)
    await ledger.fence("host-a")

    for future in (record(stream, 2), record(stream, 3)):
        with pytest.raises(FencedError):
            await future
    await asyncio.wait_for(stream.fenced, 5)
    late = record(stream, 4)

    assert late.done() and isinstance(late.exception(), FencedError)
    assert await steps(ledger) == ["s-1"]


async def test_a_fence_between_two_bad_records_is_noticed(ledger: Away, stream: WriteStream) -> None:
    await ledger.fence("host-a")

    answers = await asyncio.gather(stream.write(a_step("")), record(stream, 1), return_exceptions=True)

    assert isinstance(answers[1], FencedError)
    await asyncio.wait_for(stream.fenced, 5)


async def test_nobody_need_wait_for_a_record_and_a_caller_that_goes_takes_nothing_with_it(
    ledger: Away, stream: WriteStream
) -> None:
    ledger.gate.clear()
    cancelled, kept = record(stream, 1), record(stream, 2)
    await asyncio.sleep(0)
    cancelled.cancel()
    ledger.gate.set()

    assert await kept is True
    assert await steps(ledger) == ["s-1", "s-2"]


async def test_closing_writes_what_waits_and_what_is_under_way(ledger: Away) -> None:
    stream = WriteStream(ledger, "host-a")
    stream.start()
    ledger.gate.clear()
    first = record(stream, 1)
    await asyncio.sleep(0)
    second = stream.write(Note("goal-1", 1.0, b"0"))
    closing = asyncio.ensure_future(stream.close())
    await asyncio.sleep(0)
    ledger.gate.set()
    await asyncio.wait_for(closing, 5)

    assert await first is True and await second is True
    with pytest.raises(UnavailableError):
        await record(stream, 2)


async def test_closing_does_not_wait_for_a_ledger_that_is_away(ledger: Away) -> None:
    stream = WriteStream(ledger, "host-a")
    stream.start()
    ledger.is_away = True
    futures = [record(stream, number) for number in range(3)]
    await asyncio.sleep(0)

    await asyncio.wait_for(stream.close(), 5)

    for future in futures:
        with pytest.raises(UnavailableError):
            await future
