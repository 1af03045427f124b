"""LangGraph: a graph that sends 32 tasks to a node in one superstep and adds up what comes back.

`none`, `memory` or `sqlite` is the checkpointer. The agents' counts live in this process in all three, as they do in
Nexus' own agents; what a checkpointer keeps is the goal: its input, what each task brought, its end. Each goal is a
thread of its own.
"""

import operator
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from benchmarks.contenders.serve import Goal, serve
from benchmarks.job import TEXT

counts: Counter[str] = Counter()


class State(TypedDict):
    """The goal."""

    width: int
    text: str
    answers: Annotated[list[int], operator.add]


class Task(TypedDict):
    """One agent's share."""

    key: str
    text: str


async def agent(task: Task) -> dict[str, list[int]]:
    counts[task["key"]] += 1
    return {"answers": [counts[task["key"]]]}


def fan_out(state: State) -> list[Send]:
    return [Send("agent", {"key": str(number), "text": state["text"]}) for number in range(state["width"])]


def graph() -> StateGraph:
    made = StateGraph(State)
    made.add_node("agent", agent)
    made.add_conditional_edges(START, fan_out, ["agent"])
    made.add_edge("agent", END)
    return made


@asynccontextmanager
async def contender(folder: Path, way: str) -> AsyncIterator[Goal]:
    if way == "sqlite":
        async with AsyncSqliteSaver.from_conn_string(str(folder / "checkpoints.sqlite")) as saver:
            yield goals(saver)
    else:
        yield goals({"none": None, "memory": InMemorySaver()}[way])


def goals(saver: Any) -> Goal:
    compiled = graph().compile(checkpointer=saver)

    async def goal(width: int) -> int:
        config = {"configurable": {"thread_id": uuid.uuid4().hex}}
        answer = await compiled.ainvoke({"width": width, "text": TEXT, "answers": []}, config)
        return sum(count > 0 for count in answer["answers"])

    return goal


if __name__ == "__main__":
    serve("langgraph", contender)
