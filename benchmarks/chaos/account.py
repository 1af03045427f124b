"""The account: from what clients were told, what stands on record, and what was done outside, to what went wrong.

Law: pure. A loss or a doubling is shown by two things that do not agree, each of which names what it is about.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.chaos.agents import COUNTER, NOTER, PAYER, UNKNOWN
from benchmarks.chaos.load import Accepted

ENDED = frozenset({"succeeded", "failed", "cancelled", "expired"})


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that there is to judge by.

    `records` and `journals` are of every goal that stands on record, whoever asked for it; `told` are the ends that
    waiting clients were told; `states` are the counters' by key; `noted` and `paid` are lines outside.
    """

    accepted: Sequence[Accepted]
    told: Mapping[str, Mapping[str, Any]]
    records: Mapping[str, Mapping[str, Any]]
    journals: Mapping[str, Sequence[Mapping[str, Any]]]
    states: Mapping[str, int]
    noted: Sequence[str]
    paid: Sequence[str]


@dataclass(slots=True)
class Account:
    """What is to be 0, with what it is about; and figures beside it."""

    accepted: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    counts_lost: list[str] = field(default_factory=list)  # Steps that an agent's state does not know of any more.
    counts_doubled: list[str] = field(default_factory=list)  # Changes of a state that no step stands for.
    stuck: list[str] = field(default_factory=list)
    effects: int = 0
    repeated: int = 0  # Lines outside beyond the first of their key: allowed for what agents do by themselves.
    unknown: int = 0
    refused: list[str] = field(default_factory=list)  # Never accepted, although a client asked until the end.

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.doubled or self.counts_lost or self.counts_doubled or self.stuck)


def settle(evidence: Evidence) -> Account:
    """Draw up the account."""
    made = Account(accepted=len(evidence.accepted))
    made.ended = dict(Counter(str(record["status"]) for record in evidence.records.values()))
    made.lost += _goals_lost(evidence)
    made.doubled += _goals_doubled(evidence)
    made.stuck += [
        f"{id}: {record['status']}" for id, record in evidence.records.items() if record["status"] not in ENDED
    ]
    values: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    for goal_id, entries in evidence.journals.items():
        made.doubled += _entries_doubled(goal_id, entries)
        for agent, step, value in _steps(entries):
            made.steps += 1
            values[agent].append((f"{goal_id}/{step.partition('#')[0]}", value))
    _settle_states(made, evidence.states, values)
    _settle_noted(made, evidence.noted, values)
    _settle_paid(made, evidence.paid, values)
    return made


def _goals_lost(evidence: Evidence) -> Iterator[str]:
    for goal in evidence.accepted:
        if goal.id not in evidence.records:
            yield f"{goal.id} ({goal.tag}) was accepted and is not on record"
    for goal_id, told in evidence.told.items():
        stands = evidence.records.get(goal_id, {})
        if (told["status"], told.get("result")) != (stands.get("status"), stands.get("result")):
            yield f"{goal_id}: a client was told {told['status']}, on record is {stands.get('status')}"


def _goals_doubled(evidence: Evidence) -> Iterator[str]:
    by_tag: dict[str, set[str]] = defaultdict(set)
    for goal_id, record in evidence.records.items():
        by_tag[record["payload"]["tag"]].add(goal_id)
    for goal in evidence.accepted:
        by_tag[goal.tag].add(goal.id)
    yield from (f"{tag} is {len(goals)} goals: {sorted(goals)}" for tag, goals in by_tag.items() if len(goals) > 1)


def _entries_doubled(goal_id: str, entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    keyed = Counter((entry["kind"], entry["step"]) for entry in entries if entry.get("step"))
    yield from (f"{goal_id}: {kind} {step} is recorded {n} times" for (kind, step), n in keyed.items() if n > 1)
    ends = sum(entry["kind"] == "finished" for entry in entries)
    if ends > 1:
        yield f"{goal_id} has {ends} outcomes"


def _steps(entries: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str, Any]]:
    for entry in entries:
        if entry["kind"] == "step" and "value" in entry["body"]:
            yield str(entry["body"].get("agent", "")), str(entry["step"]), entry["body"]["value"]


def _settle_states(made: Account, states: Mapping[str, int], values: Mapping[str, list[tuple[str, Any]]]) -> None:
    """A counter that was asked n times, once each, has answered 1 to n, and stands at n."""
    for key, stands in states.items():
        answers = Counter(int(value) for _, value in values.get(f"{COUNTER}/{key}", []))
        for number in range(1, max([stands, *answers]) + 1):
            for _ in range(answers[number] - 1):
                made.counts_lost.append(f"{COUNTER}/{key}: {answers[number]} steps brought it to {number}")
            if number > stands:
                made.counts_lost.append(f"{COUNTER}/{key}: a step brought it to {number}, its state is {stands}")
            elif answers[number] == 0:
                made.counts_doubled.append(f"{COUNTER}/{key}: no step on record brought it to {number}")


def _settle_noted(made: Account, noted: Sequence[str], values: Mapping[str, list[tuple[str, Any]]]) -> None:
    """Every recorded step has its lines, all under one key, and no line has another key."""
    lines = Counter(noted)
    recorded = dict.fromkeys(key for agent, done in values.items() if agent.startswith(f"{NOTER}/") for key, _ in done)
    made.effects += len(lines)
    made.repeated += sum(lines.values()) - len(lines)
    made.lost += [f"{key}: on record, and no line outside" for key in recorded if key not in lines]
    made.doubled += [f"{key}: a line outside that no step stands for" for key in lines if key not in recorded]


def _settle_paid(made: Account, paid: Sequence[str], values: Mapping[str, list[tuple[str, Any]]]) -> None:
    """An effect was done once where it is recorded as done, and at the most once where it is called unknown."""
    lines = Counter(paid)
    made.effects += len(lines)
    known = set()
    for agent, done in values.items():
        if agent.startswith(f"{PAYER}/"):
            for step, value in done:
                key = f"{step}!pay"
                known.add(key)
                made.unknown += value == UNKNOWN
                if value != UNKNOWN and key not in lines:
                    made.lost.append(f"{key}: recorded as done, and not done")
    made.doubled += [f"{key}: done {n} times" for key, n in lines.items() if n > 1]
    made.doubled += [
        f"{key}: done, and on record is neither that nor that it is unknown" for key in lines if key not in known
    ]
