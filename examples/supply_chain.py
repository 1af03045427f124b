"""A fleet that reviews Python packages: readers read, reviewers give a second opinion, an editor ranks.

    nexus up supply_chain:app
    nexus goal submit review '{"paths": ["src"]}' --watch     # or {}: all that is installed beside the fleet

This file is the fleet. What a reader looks at is in `supply_chain_sources.py`, what it flags in
`supply_chain_checks.py`, and how a report is shown in `supply_chain_page.py`. Nothing that is reviewed is ever run.
"""

import asyncio
from typing import Literal

from pydantic import BaseModel
from supply_chain_checks import RULES
from supply_chain_sources import Reading, Survey, Unit, is_test, read_unit, survey

import nexus_ray as nexus

READERS_AT_ONCE = 8  # Reading is work for the processor: more at a time would only wait for the same cores.
SECOND_OPINIONS_MAX = 20  # How many of the flagged are voted on, the gravest first.
FINDINGS_BYTES_MAX = 500_000  # What the editor gets of findings; with the rest of the draft well under 1 MiB.
CONCERN_SHARE = 0.05  # Grave findings per file from which even a lenient reviewer is concerned.

Verdict = Literal["concern", "disputed", "watch", "flagged", "unreadable", "fine", "clean"]
VERDICTS: dict[Verdict, str] = {
    "concern": "two reviewers of three would look closer before using it",
    "disputed": "no two reviewers agree",
    "watch": "two reviewers of three would keep an eye on it",
    "flagged": "has findings, too light to be voted on",
    "unreadable": "could not be read",
    "fine": "two reviewers of three find it harmless",
    "clean": "nothing found",
}

app = nexus.App("supply-chain")


class ReviewRequest(BaseModel):
    """What to review: folders and files on the fleet's machine, or every distribution installed there."""

    paths: list[str] = []


class Draft(BaseModel):
    """What the editor is given."""

    subject: str
    left_out: int
    readings: list[Reading]
    verdicts: dict[str, Verdict]


class Row(Reading):
    """A reading with its place in the report."""

    rank: int
    verdict: Verdict


class Report(BaseModel):
    """The review: rows from the gravest to the cleanest, and totals over all of them."""

    subject: str
    left_out: int
    files: int
    source_bytes: int
    counts: dict[str, int]
    rules: dict[str, int]
    verdicts: dict[str, int]
    rows: list[Row]


@app.agent
class Scout(nexus.Agent):
    """Finds out what there is to read.

    An agent, and not a few lines in the goal, so that its answer is on record: should the goal be taken up again
    after a crash, it reviews the same things.
    """

    def handle(self, request: ReviewRequest) -> Survey:
        return survey(request.paths)


@app.agent(timeout_s=120, idle_s=30)
class Reader(nexus.Agent):
    """Reads one distribution; a plain `def` runs in a thread, so that its host goes on with other things."""

    def handle(self, unit: Unit) -> Reading:
        return read_unit(unit)


@app.agent(idle_s=30)
class Reviewer(nexus.Agent):
    """Gives an opinion on a reading, through the lens that its number stands for."""

    async def handle(self, reading: Reading) -> Verdict:
        lens = (strict, lenient, contextual)[int(self.id.key.rpartition("#")[2]) - 1]
        return lens(reading)


@app.agent
class Editor(nexus.Agent):
    """Ranks everything and adds it up."""

    def handle(self, draft: Draft) -> Report:
        return rank(draft)


@app.goal(timeout_s=600)
async def review(request: ReviewRequest, team: nexus.Team) -> Report:
    """Review installed Python distributions, or folders and files: read, doubt, rank."""
    found = await team.ask(Scout, request)
    if found.problem:
        raise nexus.InvalidArgumentError(found.problem)
    team.note(f"reading {_count(len(found.units), 'unit')}: {found.subject}")

    # A reader that fails is an answer as well: what it could not read stands in the report as unreadable.
    answers = await team.fan_out(
        Reader, found.units, key=lambda unit: unit.name, return_errors=True, concurrency=READERS_AT_ONCE
    )
    readings = [
        Reading(name=unit.name, problem=str(answer)) if isinstance(answer, nexus.NexusError) else answer
        for unit, answer in zip(found.units, answers, strict=True)
    ]

    flagged = sorted((reading for reading in readings if reading.score), key=lambda r: (-r.score, r.name))
    doubted = flagged[:SECOND_OPINIONS_MAX]
    team.note(f"{len(flagged)} of {len(readings)} flagged, a vote on the gravest {len(doubted)}")
    async with asyncio.TaskGroup() as votes:
        opinions = {reading.name: votes.create_task(second_opinion(team, reading)) for reading in doubted}

    return await team.ask(
        Editor,
        Draft(
            subject=found.subject,
            left_out=found.left_out,
            readings=within_budget(readings),
            verdicts={name: opinion.result() for name, opinion in opinions.items()},
        ),
    )


async def second_opinion(team: nexus.Team, reading: Reading) -> Verdict:
    """Ask three reviewers; what two of them say is the verdict."""
    try:
        return await team.vote(Reviewer, reading, voters=3, agree=2, key=reading.name)
    except nexus.QuorumNotReachedError:
        return "disputed"


def strict(reading: Reading) -> Verdict:
    """Goes by the gravest finding, wherever it is."""
    return "concern" if reading.counts["high"] else "watch" if reading.counts["medium"] else "fine"


def lenient(reading: Reading) -> Verdict:
    """Goes by the share of grave findings: a large package may have a few."""
    is_dense = reading.grave > CONCERN_SHARE * reading.files
    return "concern" if is_dense else "watch" if reading.grave > 1 else "fine"


def contextual(reading: Reading) -> Verdict:
    """Leaves out tests and calls whose arguments are all constants; is concerned where several kinds are left."""
    kinds = {item.rule for item in reading.findings if not item.literal and not is_test(item.file)}
    grave = sum(RULES[kind].severity == "high" for kind in kinds)
    return "concern" if grave > 1 else "watch" if grave else "fine"


def within_budget(readings: list[Reading]) -> list[Reading]:
    """Return the readings with as many findings as may travel to the editor; the gravest keep theirs."""
    room = FINDINGS_BYTES_MAX
    kept = []
    for reading in sorted(readings, key=lambda reading: (-reading.score, reading.name)):
        sizes = [len(item.model_dump_json()) for item in reading.findings]
        count = next((i for i in range(len(sizes)) if sum(sizes[: i + 1]) > room), len(sizes))
        room -= sum(sizes[:count])
        kept.append(reading.model_copy(update={"findings": reading.findings[:count]}))
    return kept


def rank(draft: Draft) -> Report:
    """Return the report: by verdict, then by score, then by name."""
    order = list(VERDICTS)
    judged = []
    for reading in draft.readings:
        unvoted: Verdict = "unreadable" if reading.problem else "flagged" if sum(reading.counts.values()) else "clean"
        judged.append((draft.verdicts.get(reading.name, unvoted), reading))
    judged.sort(key=lambda pair: (order.index(pair[0]), -pair[1].score, pair[1].name.lower()))
    rows = [
        Row(**reading.model_dump(), rank=number, verdict=verdict) for number, (verdict, reading) in enumerate(judged, 1)
    ]
    return Report(
        subject=draft.subject,
        left_out=draft.left_out,
        files=sum(row.files for row in rows),
        source_bytes=sum(row.source_bytes for row in rows),
        counts={name: sum(row.counts[name] for row in rows) for name in ("high", "medium", "low")},
        rules={name: total for name in RULES if (total := sum(row.rules.get(name, 0) for row in rows))},
        verdicts={name: total for name in order if (total := sum(row.verdict == name for row in rows))},
        rows=rows,
    )


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
