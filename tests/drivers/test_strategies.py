"""The corners of the strategies, each as a goal over a fleet in one process."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest

import nexus_ray as nexus
from nexus_ray.core.errors import NexusError
from nexus_ray.goals.strategies import Call
from nexus_ray.ledger.goal import EntryKind, GoalQuery, GoalStatus
from tests.support.in_process import in_process_fleet

Coordination = Callable[[nexus.Team], Awaitable[Any]]


class Crew:
    """Agents that echo, fail, hang and disagree; `asked` tells who was asked what."""

    def __init__(self) -> None:
        self.app = nexus.App("test")
        self.asked: list[tuple[str, Any]] = []
        self.cancelled = 0
        crew = self

        @self.app.agent
        class Echo(nexus.Agent):
            async def handle(self, payload: Any, task: nexus.Task) -> Any:
                crew.asked.append((task.agent.key, payload))
                return payload

        @self.app.agent
        class Plus(nexus.Agent):
            async def handle(self, payload: int) -> int:
                return payload + 1

        @self.app.agent
        class Summer(nexus.Agent):
            async def handle(self, payload: list[int], task: nexus.Task) -> int:
                crew.asked.append((task.agent.key, payload))
                return sum(payload)

        @self.app.agent
        class Fails(nexus.Agent):
            async def handle(self, payload: Any) -> Any:
                raise ValueError(f"no {payload}")

        @self.app.agent(concurrency=9)
        class Mixed(nexus.Agent):
            async def handle(self, payload: Any, task: nexus.Task) -> Any:
                crew.asked.append((task.agent.key, payload))
                word = task.agent.key if payload is None else payload
                if str(word).startswith("bad"):
                    raise ValueError(word)
                if str(word).startswith("hang"):
                    try:
                        await asyncio.sleep(3600)
                    except asyncio.CancelledError:
                        crew.cancelled += 1
                        raise
                return word

        @self.app.agent
        class Voter(nexus.Agent):
            async def handle(self, payload: list[Any], task: nexus.Task) -> Any:
                answer = payload[int(task.agent.key.rpartition("#")[2]) - 1]
                if answer == "bad":
                    raise ValueError(answer)
                return answer

    async def coordinate(self, coordination: Coordination) -> Any:
        """Run `coordination` as a goal; return its answer, or what it raised as `(class, details)`."""

        @self.app.goal
        async def goal(request: Any, team: nexus.Team) -> Any:
            try:
                return {"answer": await coordination(team)}
            except NexusError as error:
                return {"error": type(error).__name__, "message": str(error), **error.details}

        async with in_process_fleet(self.app) as fleet:
            outcome = await fleet.run("goal", timeout_s=10)
            (record,) = await fleet.ledger.goals(GoalQuery())
            entries = await fleet.ledger.journal(record.goal.id, 0, 1000)
        self.planned = [orjson.loads(entry.body) for entry in entries if entry.kind is EntryKind.PLANNED]
        assert outcome.status is GoalStatus.SUCCEEDED, outcome
        said = orjson.loads(outcome.result)
        return said.get("answer", said)


# --- fan_out


@pytest.mark.parametrize(
    ("quorum", "words", "answers"),
    [
        (0.5, ["a", "bad", "b", "bad"], ["a", "b"]), (0.51, ["a", "b", "c", "bad"], ["a", "b", "c"]),
        (1.0, ["a", "b"], ["a", "b"]), (0.3, ["bad", "b", "bad"], ["b"]), (1, ["a"], ["a"]),
        (2, ["a", "hang", "b"], ["a", "b"]),
    ],
)  # fmt: skip
async def test_a_quorum_is_a_count_or_a_share_rounded_up(quorum: Any, words: list[str], answers: list[str]) -> None:
    crew = Crew()

    assert await crew.coordinate(lambda team: team.fan_out("mixed", words, quorum=quorum)) == answers
    assert crew.cancelled == words.count("hang")


@pytest.mark.parametrize(("quorum", "needed"), [(2, 2), (3, 3), (1.0, 3), (0.6, 2)])
async def test_a_quorum_that_cannot_be_reached_any_more_fails_at_once(quorum: Any, needed: int) -> None:
    crew = Crew()
    words = ["bad", "bad", "hang"]

    said = await crew.coordinate(lambda team: team.fan_out("mixed", words, quorum=quorum))

    assert (said["error"], said["needed"], said["answered"]) == ("QuorumNotReachedError", needed, 0)
    assert said["failed"] >= 1 and "mixed/" in said["failures"][0] and crew.cancelled == 1


@pytest.mark.parametrize("quorum", [0, -1, 4, 0.0, 1.5, True, False])
async def test_a_quorum_without_sense_is_refused_before_anybody_is_asked(quorum: Any) -> None:
    crew = Crew()

    said = await crew.coordinate(lambda team: team.fan_out("echo", [1, 2, 3], quorum=quorum))

    assert said["error"] == "InvalidArgumentError" and crew.asked == []


async def test_without_a_quorum_the_first_failure_fails_the_whole_and_stops_the_rest() -> None:
    crew = Crew()

    said = await crew.coordinate(lambda team: team.fan_out("mixed", ["hang", "bad", "hang2"]))

    assert (said["error"], said["agent"], crew.cancelled) == ("TaskFailedError", "mixed/1", 2)


async def test_nobody_asked_is_nobody_answered() -> None:
    crew = Crew()

    assert await crew.coordinate(lambda team: team.fan_out("echo", [], quorum=0.9)) == []
    assert crew.planned == []


async def test_no_more_are_asked_at_one_time_than_the_goal_wants() -> None:
    crew = Crew()
    most = 0

    @crew.app.agent(concurrency=99)
    class Counts(nexus.Agent):
        running = 0

        async def handle(self, payload: int) -> int:
            nonlocal most
            Counts.running += 1
            most = max(most, Counts.running)
            await asyncio.sleep(0)
            Counts.running -= 1
            return payload

    answers = await crew.coordinate(lambda team: team.fan_out(Counts, list(range(30)), concurrency=4))

    assert answers == list(range(30)) and most <= 4
    assert crew.planned == [{"strategy": "fan_out", "agent": "counts", "tasks": 30}]


# --- map_reduce, pipeline


@pytest.mark.parametrize(
    ("count", "arity", "sums"), [(0, 2, 1), (1, 2, 1), (2, 2, 1), (3, 2, 3), (9, 3, 4), (9, 64, 1)]
)
async def test_a_map_is_reduced_by_tree_down_to_one(count: int, arity: int, sums: int) -> None:
    crew = Crew()

    answer = await crew.coordinate(lambda team: team.map_reduce("plus", list(range(count)), "summer", arity=arity))

    assert answer == sum(range(1, count + 1))
    assert len(crew.asked) == sums and all(len(payload) <= arity for _, payload in crew.asked)


async def test_a_map_that_fails_is_not_reduced() -> None:
    crew = Crew()

    said = await crew.coordinate(lambda team: team.map_reduce("fails", [1, 2], "summer"))

    assert said["error"] == "TaskFailedError" and crew.asked == []
    assert (await Crew().coordinate(lambda team: team.map_reduce("plus", [1], "summer", arity=1)))["error"] == (
        "InvalidArgumentError"
    )


async def test_a_stage_that_fails_ends_the_pipeline_and_is_named() -> None:
    crew = Crew()

    said = await crew.coordinate(lambda team: team.pipeline(1, "plus", "fails", "echo", key="k"))

    assert (said["error"], said["agent"], crew.asked) == ("TaskFailedError", "fails/k", [])
    assert "no 2" in said["message"]
    assert await Crew().coordinate(lambda team: team.pipeline(1, "plus", "plus")) == 3
    assert await Crew().coordinate(lambda team: team.pipeline(1)) == 1


# --- race, hedge, vote


async def test_a_race_that_all_lose_says_why() -> None:
    said = await Crew().coordinate(lambda team: team.race([Call("fails", 1, "a"), Call("fails", 2, "b")]))

    assert (said["error"], said["failed"], said["answered"]) == ("QuorumNotReachedError", 2, 0)
    assert sorted("no 1" in text or "no 2" in text for text in said["failures"]) == [True, True]


async def test_a_race_is_won_by_the_first_good_answer_though_others_failed_before() -> None:
    crew = Crew()

    calls = [Call("mixed", "bad"), Call("mixed", "hang", "h"), Call("mixed", "good", "g")]

    assert await crew.coordinate(lambda team: team.race(calls)) == "good"
    assert crew.cancelled == 1
    assert (await Crew().coordinate(lambda team: team.race([])))["error"] == "InvalidArgumentError"


@pytest.mark.parametrize(
    ("keys", "answer", "asked"),
    [(["a", "b"], "a", 1), (["hang", "b", "c"], "b", 2), (["bad", "b"], "b", 2), (["bad", "hang", "c"], "c", 3)],
)  # fmt: skip
async def test_a_hedge_asks_the_next_key_when_one_is_late_or_fails(keys: list[str], answer: str, asked: int) -> None:
    crew = Crew()

    found = await crew.coordinate(lambda team: team.hedge("mixed", None, keys=keys, after_s=0.05))

    assert found == answer and [key for key, _ in crew.asked] == keys[:asked]
    assert crew.cancelled == sum(key.startswith("hang") for key in keys[:asked])


async def test_a_hedge_that_all_lose_says_so_and_one_without_keys_is_refused() -> None:
    said = await Crew().coordinate(lambda team: team.hedge("mixed", None, keys=["bad1", "bad2"], after_s=1))
    refused = await Crew().coordinate(lambda team: team.hedge("mixed", None, keys=[], after_s=1))

    assert (said["error"], said["failed"], refused["error"]) == ("QuorumNotReachedError", 2, "InvalidArgumentError")


@pytest.mark.parametrize(
    ("answers", "agree", "expected"),
    [
        ([1, 2, 1], 2, 1), ([1, 2, 2], 2, 2), ([1, "bad", 1], 2, 1),
        ([{"a": 1, "b": 2}, {"b": 2, "a": 1}, 0], 2, {"a": 1, "b": 2}), ([5, 5, 5], 3, 5), ([1, 2, 3], 1, None),
    ],
)  # fmt: skip
async def test_a_vote_is_won_by_what_enough_say(answers: list[Any], agree: int, expected: Any) -> None:
    found = await Crew().coordinate(lambda team: team.vote("voter", answers, voters=3, agree=agree))

    assert found == expected if expected is not None else found in answers


@pytest.mark.parametrize(
    ("answers", "agreed"), [([1, 2, 3], 1), ([1, 1, 2], 2), (["bad", "bad", 1], 1), (["bad"] * 3, 0)]
)
async def test_a_vote_without_agreement_says_how_near_it_came(answers: list[Any], agreed: int) -> None:
    said = await Crew().coordinate(lambda team: team.vote("voter", answers, voters=3, agree=3))

    assert (said["error"], said["needed"], said["answered"]) == ("QuorumNotReachedError", 3, agreed)
    assert said["failed"] == answers.count("bad")


async def test_a_vote_compares_what_it_is_told_to() -> None:
    answers = [{"risk": "high", "why": 1}, {"risk": "low"}, {"risk": "high", "why": 2}]

    found = await Crew().coordinate(lambda team: team.vote("voter", answers, by=lambda answer: answer["risk"]))

    assert found == answers[0]
    refused = await Crew().coordinate(lambda team: team.vote("voter", answers, voters=2, agree=3))
    assert refused["error"] == "InvalidArgumentError"
