"""What every ledger promises, from the text of its port."""

import asyncio

import orjson
import pytest

from nexus_ray.agents.task import AgentState, Failure
from nexus_ray.core.errors import (
    AlreadyExistsError,
    FencedError,
    InvalidArgumentError,
    UnavailableError,
)
from nexus_ray.core.identity import AgentId
from nexus_ray.ledger.goal import (
    Claim,
    EntryKind,
    Finish,
    GoalQuery,
    GoalStatus,
    Note,
    Outcome,
    Release,
    RequestCancel,
    Step,
)
from nexus_ray.ledger.ports import Acceptance, Ledger, answer_key
from tests.contracts.conftest import OpenLedger
from tests.support.records import COUNTER, a_finish, a_goal, a_step

TERMINAL = [status for status in GoalStatus if status.is_terminal]


async def kinds(ledger: Ledger, goal_id: str = "goal-1") -> list[str]:
    return [entry.kind.value for entry in await ledger.journal(goal_id, 0, 1000)]


async def is_empty(ledger: Ledger) -> bool:
    return (await ledger.changes(-1, 0, 1))[0] == 0 and await ledger.goals(GoalQuery()) == []


# --- accept


async def test_what_is_accepted_is_read_back_as_it_was(ledger: Ledger) -> None:
    goal = a_goal(payload=b'{"big":123456789012345678901234567890}', headers={"a": "ü", "b": ""}, parent="goal-0",
                  idempotency_key="k")  # fmt: skip

    assert await ledger.accept([goal]) == [Acceptance("goal-1", True)]

    record = await ledger.goal("goal-1")
    assert record is not None
    assert (record.goal, record.status, record.host, record.outcome) == (goal, GoalStatus.ACCEPTED, "", None)
    (entry,) = await ledger.journal("goal-1", 0, 10)
    assert (entry.seq, entry.kind, entry.at, entry.step_key) == (1, EntryKind.ACCEPTED, 10.0, "")
    assert entry.body == b'{"type":"audit","payload":' + goal.payload + b',"deadline_at":99.0}'


async def test_an_id_that_is_there_is_answered_as_it_stands(ledger: Ledger) -> None:
    await ledger.accept([a_goal()])

    again = await ledger.accept([a_goal(payload=b"2"), a_goal("goal-2"), a_goal("goal-2")], "host-a")

    assert again == [Acceptance("goal-1", False), Acceptance("goal-2", True), Acceptance("goal-2", False)]
    record = await ledger.goal("goal-1")
    assert record is not None and record.goal.payload == b'{"n":1}' and record.host == ""
    assert await kinds(ledger) == ["accepted"]


async def test_an_idempotency_key_names_the_first_goal_of_the_same_request(ledger: Ledger) -> None:
    first = [a_goal(idempotency_key="k"), a_goal("goal-2", idempotency_key="k"), a_goal("goal-3")]

    answers = await ledger.accept(first)
    later = await ledger.accept([a_goal("goal-4", idempotency_key="k", deadline_at=1.0, headers={})])

    assert answers == [Acceptance("goal-1", True), Acceptance("goal-1", False), Acceptance("goal-3", True)]
    assert later == [Acceptance("goal-1", False)]
    assert await ledger.goal("goal-2") is None and await ledger.goal("goal-4") is None


async def test_an_idempotency_key_belongs_to_its_principal_and_an_empty_one_to_nobody(ledger: Ledger) -> None:
    await ledger.accept([a_goal(idempotency_key="k")])

    others = await ledger.accept([
        a_goal("goal-2", idempotency_key="k", principal="bob", payload=b"2"), a_goal("goal-3"), a_goal("goal-4"),
    ])  # fmt: skip

    assert all(answer.is_new for answer in others)


@pytest.mark.parametrize("other", [{"payload": b'{"n":2}'}, {"type": "other"}])
@pytest.mark.parametrize("in_one_call", [True, False])
async def test_an_idempotency_key_with_another_request_is_refused_and_nothing_is_kept(
    ledger: Ledger, other: dict[str, object], in_one_call: bool
) -> None:
    first, clash = a_goal(idempotency_key="k"), a_goal("goal-3", idempotency_key="k", **other)
    if not in_one_call:
        await ledger.accept([first])

    with pytest.raises(AlreadyExistsError) as caught:
        await ledger.accept([first, a_goal("goal-2"), clash] if in_one_call else [a_goal("goal-2"), clash])

    assert caught.value.details["goal_id"] == "goal-1"
    assert await ledger.goal("goal-2") is None and await ledger.goal("goal-3") is None
    assert len(await ledger.goals(GoalQuery())) == (0 if in_one_call else 1)


async def test_a_holder_claims_what_it_accepts_in_the_same_call(ledger: Ledger) -> None:
    await ledger.accept([a_goal()], "host-a")

    record = await ledger.goal("goal-1")
    assert record is not None and (record.status, record.host) == (GoalStatus.RUNNING, "host-a")
    assert await kinds(ledger) == ["accepted", "claimed"]
    assert await ledger.append("host-b", [Claim("goal-1", 1.0)]) == [False]
    assert await ledger.append("host-a", [Claim("goal-1", 1.0), a_finish()]) == [True, True]


# --- append


async def test_a_claim_is_for_one_host_until_that_is_fenced(ledger: Ledger) -> None:
    await ledger.accept([a_goal()])
    claim = [Claim("goal-1", 11.0)]

    assert await ledger.append("", claim) == [False]
    assert await ledger.append("host-a", claim) == [True]
    assert await ledger.append("host-a", claim) == [True]
    assert await ledger.append("host-b", claim) == [False]
    await ledger.fence("host-a")
    assert await ledger.append("host-b", claim) == [True]

    entries = [entry for entry in await ledger.journal("goal-1", 0, 10) if entry.kind is EntryKind.CLAIMED]
    assert [orjson.loads(entry.body) for entry in entries] == [{"host": "host-a"}, {"host": "host-b"}]


async def test_the_first_record_of_a_step_stands(ledger: Ledger) -> None:
    await ledger.accept([a_goal(), a_goal("goal-2")])

    assert await ledger.append("host-a", [a_step(body=b"1"), a_step(body=b"2"), a_step("s-2")]) == [True, False, True]
    assert await ledger.append("host-b", [a_step(body=b"3"), a_step(goal_id="goal-2")]) == [False, True]

    steps = [(entry.step_key, entry.body) for entry in await ledger.journal("goal-1", 1, 10)]
    assert steps == [("s-1", b"1"), ("s-2", b"{}")]


async def test_a_state_is_committed_with_its_step_if_it_follows_the_stored_one(ledger: Ledger) -> None:
    await ledger.accept([a_goal()])

    first = await ledger.append("host-a", [a_step("a", version=2), a_step("a", version=1), a_step("b", version=1)])
    second = await ledger.append("host-a", [a_step("b", version=2), a_step("b", version=9), a_step("c", version=4)])

    assert first == [False, True, False]
    assert second == [True, False, False]
    assert await ledger.agent_state(COUNTER) == AgentState(COUNTER, 2, b'{"n":2}')
    assert await ledger.agent_state(AgentId("counter", "other")) is None
    assert await kinds(ledger) == ["accepted", "step", "step"]


async def test_a_step_that_stands_does_not_bring_its_state(ledger: Ledger) -> None:
    await ledger.accept([a_goal()])

    assert await ledger.append("host-a", [a_step(), a_step(version=1)]) == [True, False]

    assert await ledger.agent_state(COUNTER) is None


async def test_notes_are_told_in_order_with_steps(ledger: Ledger) -> None:
    await ledger.accept([a_goal()])

    writes = [Note("goal-1", 1.0, b'"a"', EntryKind.PLANNED), a_step(), Note("goal-1", 2.0, b"0")]
    answers = await ledger.append("", writes)

    assert answers == [True, True, True]
    assert await kinds(ledger) == ["accepted", "planned", "step", "note"]


@pytest.mark.parametrize("status", TERMINAL)
async def test_only_the_holder_finishes_and_only_once(ledger: Ledger, status: GoalStatus) -> None:
    await ledger.accept([a_goal()])
    finish = a_finish(status=status)

    assert await ledger.append("host-a", [finish]) == [False]
    assert await ledger.append("", [finish]) == [False]
    await ledger.append("host-a", [Claim("goal-1", 1.0)])
    assert await ledger.append("host-b", [finish]) == [False]
    assert await ledger.append("host-a", [finish, a_finish(result=b"2")]) == [True, False]

    record = await ledger.goal("goal-1")
    assert record is not None and (record.status, record.outcome, record.host) == (status, finish.outcome, "host-a")
    last = (await ledger.journal("goal-1", 0, 10))[-1]
    failure = {"code": "unknown", "message": "it broke", "attempts": 2}
    assert (last.kind, last.at) == (EntryKind.FINISHED, 12.0)
    assert orjson.loads(last.body) == {
        "status": status.value, "answered_by": "ask", "result": 1 if status == "succeeded" else None,
        "failure": None if status == "succeeded" else failure,
    }  # fmt: skip


@pytest.mark.parametrize(
    "write",
    [Claim("goal-1", 1.0), a_step(version=1), Note("goal-1", 1.0, b"0"), a_finish(), RequestCancel("goal-1", 1.0, "x")],
    ids=lambda write: type(write).__name__,
)
async def test_nothing_is_written_about_a_goal_that_is_unknown_or_has_ended(ledger: Ledger, write: Step) -> None:
    assert await ledger.append("host-a", [write]) == [False]
    assert await is_empty(ledger)
    await ledger.accept([a_goal()], "host-a")
    await ledger.append("host-a", [a_finish()])
    before = await kinds(ledger)

    assert await ledger.append("host-a", [write]) == [False]

    assert await kinds(ledger) == before and await ledger.agent_state(COUNTER) is None


async def test_the_first_cancel_request_stands_and_anybody_may_make_one(ledger: Ledger) -> None:
    await ledger.accept([a_goal()], "host-a")

    assert await ledger.append("", [RequestCancel("goal-1", 1.0, "ann")]) == [True]
    assert await ledger.append("host-b", [RequestCancel("goal-1", 2.0, "bob")]) == [True]

    record = await ledger.goal("goal-1")
    assert record is not None and (record.cancel_requested_by, record.status) == ("ann", GoalStatus.RUNNING)
    assert await kinds(ledger) == ["accepted", "claimed", "cancel_requested"]
    assert orjson.loads((await ledger.journal("goal-1", 2, 1))[0].body) == {"by": "ann"}
    assert await ledger.append("host-a", [a_finish(status=GoalStatus.CANCELLED)]) == [True]


async def test_calls_of_one_writer_keep_their_order(ledger: Ledger) -> None:
    await ledger.accept([a_goal()], "host-a")

    calls = [ledger.append("host-a", [a_step(f"s-{n}", version=n)]) for n in range(1, 30)]
    answers = await asyncio.gather(*calls, ledger.append("host-a", [a_finish()]), ledger.append("host-a", [a_step()]))

    assert answers == [[True]] * 30 + [[False]]
    assert [entry.step_key for entry in await ledger.journal("goal-1", 2, 29)] == [f"s-{n}" for n in range(1, 30)]


# --- fencing


async def test_a_fenced_host_writes_nothing_any_more(ledger: Ledger) -> None:
    await ledger.accept([a_goal()], "host-a")
    before, _ = await ledger.changes(-1, 0, 1)

    await ledger.fence("host-a")
    await ledger.fence("host-a")

    for writes in ([], [a_step(version=1), a_finish()], [RequestCancel("goal-1", 1.0, "ann")]):
        with pytest.raises(FencedError):
            await ledger.append("host-a", writes)
    with pytest.raises(FencedError):
        await ledger.accept([a_goal("goal-2")], "host-a")
    assert (await ledger.changes(-1, 0, 1))[0] == before
    assert await ledger.goal("goal-2") is None and await ledger.agent_state(COUNTER) is None
    assert await ledger.append("host-b", [Claim("goal-1", 1.0), a_step(version=1), a_finish()]) == [True] * 3


async def test_the_front_door_cannot_be_fenced(ledger: Ledger) -> None:
    with pytest.raises(ValueError):
        await ledger.fence("")

    assert await ledger.accept([a_goal()]) == [Acceptance("goal-1", True)]


async def test_epochs_grow_from_one(ledger: Ledger) -> None:
    assert [await ledger.next_epoch() for _ in range(3)] == [1, 2, 3]
    assert sorted(await asyncio.gather(*(ledger.next_epoch() for _ in range(20)))) == list(range(4, 24))


# --- reads


async def test_a_journal_is_read_in_pages(ledger: Ledger) -> None:
    await ledger.accept([a_goal(), a_goal("goal-2")], "host-a")
    await ledger.append("host-a", [a_step(f"s-{n}", f"goal-{1 + n % 2}") for n in range(20)])

    whole = await ledger.journal("goal-1", 0, 1000)
    pages, seq = [], 0
    while page := await ledger.journal("goal-1", seq, 5):
        pages += page
        seq = page[-1].seq

    assert pages == whole and len(whole) == 12
    assert [entry.seq for entry in whole] == sorted({entry.seq for entry in whole})
    assert await ledger.journal("goal-1", 0, 0) == [] == await ledger.journal("goal-1", 0, -1)
    assert await ledger.journal("goal-9", 0, 10) == []


async def test_changes_name_each_goal_once_and_say_how_far_they_looked(ledger: Ledger) -> None:
    await ledger.accept([a_goal(), a_goal("goal-2")], "host-a")
    await ledger.append("host-a", [a_step("a"), a_step("b"), a_step("c", "goal-2")])

    assert await ledger.changes(-1, 0, 10) == (7, [])
    assert await ledger.changes(0, 0, 100) == (7, ["goal-1", "goal-2"])
    assert await ledger.changes(0, 0, 2) == (2, ["goal-1"])
    assert await ledger.changes(5, 0, 100) == (7, ["goal-1", "goal-2"])
    assert await ledger.changes(7, 0, 100) == (7, [])


async def test_whoever_waits_for_changes_is_woken_by_one(ledger: Ledger) -> None:
    waiting = [asyncio.ensure_future(ledger.changes(0, 30.0, 10)) for _ in range(3)]
    await asyncio.sleep(0)

    await ledger.accept([a_goal()])

    assert await asyncio.wait_for(asyncio.gather(*waiting), 10) == [(1, ["goal-1"])] * 3
    assert await ledger.changes(1, 0.001, 10) == (1, [])


async def test_more_may_not_wait_than_the_limit_says(open_ledger: OpenLedger) -> None:
    ledger = await open_ledger(waiters_max=1)
    waiting = asyncio.ensure_future(ledger.changes(0, 30.0, 10))
    await asyncio.sleep(0)

    with pytest.raises(UnavailableError) as caught:
        await ledger.changes(0, 30.0, 10)

    assert caught.value.details["retry_after_s"] > 0
    await ledger.accept([a_goal()])
    assert (await waiting)[1] == ["goal-1"]


async def test_the_unfinished_come_in_the_order_of_their_ids_in_pages(ledger: Ledger) -> None:
    await ledger.accept([a_goal(f"goal-{n}") for n in (3, 1, 2, 5, 4)], "host-a")
    await ledger.append("host-a", [a_finish("goal-2")])

    first = await ledger.unfinished("", 2)
    rest = await ledger.unfinished(first[-1].goal.id, 10)

    assert [record.goal.id for record in first + rest] == ["goal-1", "goal-3", "goal-4", "goal-5"]
    assert await ledger.unfinished("goal-5", 10) == [] == await ledger.unfinished("", 0)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (GoalQuery(), [4, 3, 2, 1]),
        (GoalQuery(limit=2), [4, 3]),
        (GoalQuery(limit=0), []),
        (GoalQuery(before="goal-3"), [2, 1]),
        (GoalQuery(status="running"), [3, 1]),
        (GoalQuery(status="succeeded"), [2]),
        (GoalQuery(status="accepted"), [4]),
        (GoalQuery(status="failed"), []),
        (GoalQuery(status="no-such"), []),
        (GoalQuery(type="other"), [3]),
        (GoalQuery(principal="bob"), [2, 1]),
        (GoalQuery(parent="goal-1"), [4]),
        (GoalQuery(principal="bob", status="running", before="goal-2", type="audit"), [1]),
    ],
)
async def test_lists_are_newest_first_and_filtered(ledger: Ledger, query: GoalQuery, found: list[int]) -> None:
    await ledger.accept(
        [a_goal("goal-1", principal="bob"), a_goal("goal-2", principal="bob"), a_goal("goal-3", type="other")], "host-a"
    )
    await ledger.accept([a_goal("goal-4", parent="goal-1")])
    await ledger.append("host-a", [a_finish("goal-2")])

    assert [record.goal.id for record in await ledger.goals(query)] == [f"goal-{n}" for n in found]


# --- limits


@pytest.mark.parametrize(
    "write",
    [a_step(body=b"123456789"), Note("goal-1", 1.0, b"123456789"), a_finish(result=b"123456789"),
     Step("goal-1", "s", 1.0, b"", AgentState(COUNTER, 1, b"123456789")), a_step("x" * 600), a_step(""),
     RequestCancel("goal-1", 1.0, ""), Note("goal-1", 1.0, b"0", EntryKind.STEP),
     Finish("goal-1", Outcome(GoalStatus.RUNNING, 1.0))],
)  # fmt: skip
async def test_what_is_over_a_limit_is_refused_and_its_call_is_not_kept(open_ledger: OpenLedger, write: Step) -> None:
    ledger = await open_ledger(body_bytes_max=8)
    await ledger.accept([a_goal(payload=b"12345678")], "host-a")

    with pytest.raises(InvalidArgumentError):
        await ledger.append("host-a", [a_step("before"), write])

    assert await kinds(ledger) == ["accepted", "claimed"]
    assert await ledger.append("host-a", [a_step(body=b"12345678")]) == [True]


async def test_goals_and_calls_over_a_limit_are_refused(open_ledger: OpenLedger) -> None:
    ledger = await open_ledger(body_bytes_max=8, call_writes_max=2)

    too_many = [a_goal(f"goal-{n}") for n in range(3)]
    for refused in ([a_goal(payload=b"123456789")], [a_goal("x" * 600)], [a_goal("")], too_many):
        with pytest.raises(InvalidArgumentError):
            await ledger.accept(refused)
    with pytest.raises(InvalidArgumentError):
        await ledger.append("", [a_step()] * 3)

    assert await is_empty(ledger)
    assert await ledger.accept([]) == [] == await ledger.append("", [])


@pytest.mark.parametrize("bad", [{"goal_id": "\ud800"}, {"goal_id": "a\0b"}, {"idempotency_key": "\ud800"},
                                 {"principal": "a\0"}, {"type": "\udfff"}])  # fmt: skip
async def test_what_is_not_text_is_refused_without_its_neighbours(ledger: Ledger, bad: dict[str, str]) -> None:
    answers = await asyncio.gather(
        ledger.accept([a_goal()]), ledger.accept([a_goal(**{"goal_id": "goal-3", **bad})]),
        ledger.accept([a_goal("goal-2")]), return_exceptions=True,
    )  # fmt: skip

    assert answers[0] == [Acceptance("goal-1", True)] and answers[2] == [Acceptance("goal-2", True)]
    assert isinstance(answers[1], InvalidArgumentError)


async def test_no_answer_is_longer_than_the_limit(open_ledger: OpenLedger) -> None:
    ledger = await open_ledger(read_rows_max=2)
    await ledger.accept([a_goal(f"goal-{n}") for n in range(5)])
    await ledger.append("", [Note("goal-0", 1.0, b"0")] * 3)

    assert len(await ledger.goals(GoalQuery(limit=10))) == len(await ledger.unfinished("", 10)) == 2
    assert len(await ledger.journal("goal-0", 0, 10)) == 2
    assert (await ledger.changes(0, 0, 10))[0] == 2


async def test_a_closed_ledger_refuses_everything_and_lets_waiters_go(ledger: Ledger) -> None:
    await ledger.accept([a_goal()])
    waiting = asyncio.ensure_future(ledger.changes(1, 30.0, 10))
    await asyncio.sleep(0)

    await ledger.close()
    await ledger.close()

    for call in (
        waiting, ledger.accept([a_goal()]), ledger.append("", [a_step()]), ledger.goal("goal-1"), ledger.next_epoch(),
        ledger.goals(GoalQuery()), ledger.unfinished("", 1), ledger.journal("goal-1", 0, 1), ledger.changes(-1, 0, 1),
        ledger.agent_state(COUNTER), ledger.fence("host-a"),
    ):  # fmt: skip
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(call, 10)


async def test_a_failure_keeps_every_field(ledger: Ledger) -> None:
    failure = Failure("unknown", 'with "quotes"\n', "KeyError", "reader/k", "host-a", 3, "s-1")
    await ledger.accept([a_goal()], "host-a")

    await ledger.append("host-a", [Finish("goal-1", Outcome(GoalStatus.FAILED, 12.5, failure=failure))])

    record = await ledger.goal("goal-1")
    assert record is not None and record.outcome == Outcome(GoalStatus.FAILED, 12.5, b"", failure, "")


# --- release, keys and questions


async def test_a_goal_that_was_given_back_may_be_claimed_by_another(ledger: Ledger) -> None:
    await ledger.accept([a_goal()], "host-a")

    assert await ledger.append("host-b", [Release("goal-1", 11.0)]) == [False]
    assert await ledger.append("", [Release("goal-1", 11.0)]) == [False]
    assert await ledger.append("host-a", [Release("goal-1", 11.0), a_finish()]) == [True, False]
    record = await ledger.goal("goal-1")
    assert record is not None and (record.status, record.host) == (GoalStatus.ACCEPTED, "")
    assert await ledger.append("host-b", [Claim("goal-1", 12.0), a_finish()]) == [True, True]
    assert await kinds(ledger) == ["accepted", "claimed", "released", "claimed", "finished"]


async def test_a_key_is_recorded_once_whatever_its_kind(ledger: Ledger) -> None:
    await ledger.accept([a_goal()], "host-a")
    timer = Step("goal-1", "t", 11.0, b'{"due_at":20.0}', kind=EntryKind.TIMER)

    assert await ledger.append("host-a", [timer, a_step("t"), timer]) == [True, False, False]

    entry = await ledger.entry("goal-1", "t")
    assert entry is not None and (entry.kind, entry.body, entry.step_key) == (EntryKind.TIMER, timer.body, "t")
    assert await ledger.entry("goal-1", "u") is None and await ledger.entry("goal-2", "t") is None


async def test_only_kinds_that_have_a_key_are_recorded_under_one(ledger: Ledger) -> None:
    await ledger.accept([a_goal()], "host-a")

    with pytest.raises(InvalidArgumentError):
        await ledger.append("host-a", [Step("goal-1", "k", 11.0, b"{}", kind=EntryKind.FINISHED)])


async def test_questions_are_those_that_wait_for_an_answer(ledger: Ledger) -> None:
    await ledger.accept([a_goal(), a_goal("goal-2"), a_goal("goal-3")], "host-a")
    asked = [Step(f"goal-{n}", "q", 11.0, b"{}", kind=EntryKind.ASKED) for n in (1, 2, 3)]
    await ledger.append("host-a", asked)
    answer = Step("goal-1", answer_key("q"), 12.0, b"{}", kind=EntryKind.ANSWERED)

    assert await ledger.append("", [answer, answer]) == [True, False]
    await ledger.append("host-a", [a_finish("goal-2")])

    (open_one,) = await ledger.questions(0, 10)
    assert (open_one.goal_id, open_one.step_key, open_one.kind) == ("goal-3", "q", EntryKind.ASKED)
    assert await ledger.questions(open_one.seq, 10) == [] and await ledger.questions(0, 0) == []
