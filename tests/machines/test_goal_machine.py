from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nexus_ray.agents.task import Failure
from nexus_ray.goals.machine import (
    Answered,
    CancelAsked,
    Command,
    DeadlinePassed,
    Event,
    GiveBack,
    GoalMachine,
    Granted,
    LeaveAsked,
    LetGo,
    Raised,
    RecordOutcome,
    Refused,
    RunFunction,
    StopFunction,
    StopOverdue,
    Stopped,
)
from nexus_ray.ledger.goal import GoalStatus

TRACES = Path(__file__).parent / "traces" / "goal.txt"
BROKE = Failure("unknown", "it broke")


def event_of(text: str) -> Event:
    word, _, argument = text.partition(" ")
    simple: dict[str, Event] = {
        "granted": Granted(), "refused": Refused(), "raised": Raised(BROKE), "deadline": DeadlinePassed(),
        "stopped": Stopped(), "leave": LeaveAsked(), "overdue": StopOverdue(),
    }  # fmt: skip
    if word == "answered":
        return Answered(argument.encode())
    return CancelAsked(argument) if word == "cancel" else simple[word]


def text_of(command: Command) -> str:
    if not isinstance(command, RecordOutcome):
        return type(command).__name__
    outcome = command.outcome
    said = outcome.result.decode() or (f"{outcome.failure.code}: {outcome.failure.message}" if outcome.failure else "")
    return f"RecordOutcome {outcome.status} {said}"


def stories() -> Iterator[tuple[str, list[str]]]:
    for story in TRACES.read_text().split("\n\n")[1:]:
        title, *lines = story.strip().splitlines()
        yield title, lines


def a_machine(title: str) -> GoalMachine:
    return GoalMachine(replays=title.startswith("again"))


@pytest.mark.parametrize(("title", "lines"), [pytest.param(*story, id=story[0]) for story in stories()])
def test_a_goal_lives_as_it_is_told(title: str, lines: list[str]) -> None:
    machine = a_machine(title)
    told = []
    for number, line in enumerate(lines):
        event = line.partition("->")[0].strip()
        commands = machine.step(event_of(event), float(number))
        told.append(f"{event} -> {' '.join(map(text_of, commands))}".rstrip())
        assert all(c.outcome.finished_at == number for c in commands if isinstance(c, RecordOutcome))

    assert told == [line.rstrip() for line in lines]


class AnyLife(RuleBasedStateMachine):
    replays = False

    def __init__(self) -> None:
        super().__init__()
        self.machine = GoalMachine(replays=self.replays)
        self.now = 0.0
        self.commands: list[Command] = []
        self.first_stop: GoalStatus | None = None

    @rule(event=st.sampled_from(
        [
            Granted(), Refused(), Answered(b"7"), Raised(BROKE), CancelAsked("ann"), DeadlinePassed(), LeaveAsked(),
            StopOverdue(), Stopped(),
        ]
    ))  # fmt: skip
    def anything_happens(self, event: Event) -> None:
        self.now += 1.0
        was_over, was_running = self.machine.is_over, RunFunction() in self.commands
        if isinstance(event, Answered | Raised | Stopped) and not was_running:
            return  # A function that does not run tells nothing.
        if isinstance(event, Granted) and was_running:
            return  # A claim is answered once.
        if not was_over and self.first_stop is None and isinstance(event, CancelAsked | DeadlinePassed):
            self.first_stop = GoalStatus.CANCELLED if isinstance(event, CancelAsked) else GoalStatus.EXPIRED

        commands = self.machine.step(event, self.now)

        assert not (was_over and commands), "nothing follows the end"
        self.commands += commands

    @invariant()
    def one_end_and_the_first_reason_stands(self) -> None:
        ends = [command for command in self.commands if isinstance(command, RecordOutcome | LetGo | GiveBack)]
        outcomes = [command.outcome for command in ends if isinstance(command, RecordOutcome)]
        assert len(ends) == self.machine.is_over
        assert self.commands.count(RunFunction()) <= 1
        assert StopFunction() not in self.commands or RunFunction() in self.commands
        assert GiveBack() not in self.commands or self.machine.is_leaving
        for outcome in outcomes:
            assert outcome.status is self.machine.status and outcome.status.is_terminal
            assert (outcome.failure is None) == (outcome.status is GoalStatus.SUCCEEDED) == bool(outcome.result)
            if self.first_stop is not None:
                assert outcome.status is self.first_stop


class AnyLifeAfterAnother(AnyLife):
    replays = True


TestAnyLife = AnyLife.TestCase
TestAnyLifeAfterAnother = AnyLifeAfterAnother.TestCase
for lives in (TestAnyLife, TestAnyLifeAfterAnother):
    lives.settings = settings(max_examples=60, stateful_step_count=12, derandomize=True)
