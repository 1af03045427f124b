"""The same work under eight strategies: a lot of things is appraised by experts who are slow, dear and fallible.

    nexus up strategies:app
    nexus goal submit hedge '{"round": 1}' --watch

Every goal here takes the same lot and wants a value for each thing in it; only the way the experts are asked differs.
How long an expert takes, whether it fails and whether it errs follows from the round, the thing and the expert's
number alone, so the strategies of one round meet the same luck. `notebooks/01_strategies.ipynb` compares them.
"""

import asyncio
import random
import zlib

from pydantic import BaseModel, Field

import nexus_ray as nexus

THINGS = ["amphora", "barometer", "carpet", "dulcimer", "easel", "fiddle", "globe", "harp"]
USUAL_S = 0.02  # The middle of what an expert takes; one call in eight is a straggler and takes ten times as long.
SIGMA = 0.5
STRAGGLER_SHARE = 1 / 8
STRAGGLER_FACTOR = 10
FAILURE_SHARE = 0.03
ERROR_SHARE = 0.08
HEDGE_AFTER_S = 0.06  # Three times the usual: nearly all good calls have ended by then.

app = nexus.App("strategies")


class Lot(BaseModel):
    """What is to be appraised, and in which round: the same round is the same luck."""

    things: list[str] = Field(default=THINGS, min_length=1, max_length=100)
    round: int = Field(default=0, ge=0)


class Question(BaseModel):
    """One thing of a lot."""

    thing: str
    round: int


class Value(BaseModel):
    """What an expert says: a value, in the same made-up unit as its fee."""

    thing: str
    round: int
    value: int


class Appraisal(BaseModel):
    """The lot's values, what is missing, and how many are right: an example knows the truth, a real fleet would not."""

    values: dict[str, int]
    missing: list[str]
    right: int
    total: int


def worth(thing: str) -> int:
    """Return the true value of a thing."""
    return 10 + zlib.crc32(thing.encode()) % 90


@app.agent
class Expert(nexus.Agent):
    """Appraises one thing; the key is the thing and the expert's number, such as `harp#2`. Fee: 1."""

    async def handle(self, question: Question, task: nexus.Task) -> Value:
        luck = random.Random(f"{question.round} {task.agent.key}")
        takes_s = USUAL_S * luck.lognormvariate(0, SIGMA)
        if luck.random() < STRAGGLER_SHARE:
            takes_s *= STRAGGLER_FACTOR
        await asyncio.sleep(takes_s)
        if luck.random() < FAILURE_SHARE:
            raise RuntimeError(f"no opinion on the {question.thing}")
        value = worth(question.thing)
        if luck.random() < ERROR_SHARE:
            value += luck.randint(5, 50)
        return Value(thing=question.thing, round=question.round, value=value)


@app.agent
class Reviewer(nexus.Agent):
    """Looks at what an expert said and puts it right. Fee: 2."""

    async def handle(self, value: Value) -> Value:
        await asyncio.sleep(USUAL_S / 2)
        return value.model_copy(update={"value": worth(value.thing)})


@app.agent
class Adder(nexus.Agent):
    """Puts lists of values together, in a map-reduce. Fee: 0.5."""

    async def handle(self, parts: list[Value] | list[list[Value]]) -> list[Value]:
        return [value for part in parts for value in (part if isinstance(part, list) else [part])]


@app.goal
async def ask(lot: Lot, team: nexus.Team) -> Appraisal:
    """Ask one expert after the other."""
    team.plan("ask", Expert, len(lot.things))
    return appraisal(lot, [await team.ask(Expert, one, key=first(one)) for one in questions(lot)])


@app.goal
async def fan_out(lot: Lot, team: nexus.Team) -> Appraisal:
    """Ask one expert for each thing, all at once; every answer is needed."""
    return appraisal(lot, await team.fan_out(Expert, questions(lot), key=first))


@app.goal
async def quorum(lot: Lot, team: nexus.Team) -> Appraisal:
    """Ask one expert for each thing, all at once; three answers of four are enough."""
    return appraisal(lot, await team.fan_out(Expert, questions(lot), key=first, quorum=0.75))


@app.goal
async def race(lot: Lot, team: nexus.Team) -> Appraisal:
    """Ask three experts for each thing and take the first answer."""
    calls = [[nexus.Call(Expert, one, key) for key in experts(one, 3)] for one in questions(lot)]
    return appraisal(lot, await asyncio.gather(*(team.race(three) for three in calls)))


@app.goal
async def hedge(lot: Lot, team: nexus.Team) -> Appraisal:
    """Ask one expert for each thing, and a second one where the first is slow or fails."""
    asked = (team.hedge(Expert, one, keys=experts(one, 3), after_s=HEDGE_AFTER_S) for one in questions(lot))
    return appraisal(lot, await asyncio.gather(*asked))


@app.goal
async def vote(lot: Lot, team: nexus.Team) -> Appraisal:
    """Ask three experts for each thing and take what two of them say; leave out what they disagree on."""

    async def agreed(one: Question) -> Value | None:
        try:
            return await team.vote(Expert, one, voters=3, agree=2, key=one.thing)
        except nexus.QuorumNotReachedError as error:
            team.note(f"{one.thing}: {error}")
            return None

    answers = await asyncio.gather(*(agreed(one) for one in questions(lot)))
    return appraisal(lot, [answer for answer in answers if answer is not None])


@app.goal
async def pipeline(lot: Lot, team: nexus.Team) -> Appraisal:
    """Have each thing appraised by one expert and the answer looked at by a reviewer."""
    lines = (team.pipeline(one, Expert, Reviewer, key=first(one)) for one in questions(lot))
    return appraisal(lot, await asyncio.gather(*lines))


@app.goal
async def map_reduce(lot: Lot, team: nexus.Team) -> Appraisal:
    """Ask one expert for each thing, and have adders put the answers together by fours."""
    return appraisal(lot, await team.map_reduce(Expert, questions(lot), Adder, key=first, arity=4))


def questions(lot: Lot) -> list[Question]:
    return [Question(thing=thing, round=lot.round) for thing in lot.things]


def first(one: Question) -> str:
    return f"{one.thing}#1"


def experts(one: Question, count: int) -> list[str]:
    return [f"{one.thing}#{number}" for number in range(1, count + 1)]


def appraisal(lot: Lot, answers: list[Value]) -> Appraisal:
    values = {answer.thing: answer.value for answer in answers}
    return Appraisal(
        values=values,
        missing=[thing for thing in lot.things if thing not in values],
        right=sum(value == worth(thing) for thing, value in values.items()),
        total=sum(values.values()),
    )
