"""LangGraph's process: jobs are threads of one graph, checkpointed in SQLite; those under way are resumed at the start.

It is written with care: a job is said to be taken when its input is in a checkpoint, every superstep is checkpointed
before the next (`durability="sync"`), counts are kept in LangGraph's own store, and a job that is sent again is not
begun again. Speaks JSON lines: `{"tag", "keys"}` in, `{"taken"}` and `{"ended", "answers"}` out; `{"states"}` for all.
"""

import asyncio
import json
import operator
import sys
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.store.base import BaseStore
from langgraph.store.sqlite import AsyncSqliteStore
from langgraph.types import Send

from benchmarks.chaos.traces import append

_WORK_S = 0.02
_COUNTS = ("counts",)
_OPEN = ("open",)


class State(TypedDict):
    """A job."""

    tag: str
    keys: list[int]
    answers: Annotated[list[Any], operator.add]


class Task(TypedDict):
    """One agent's share."""

    tag: str
    key: int


class Worker:
    """One process's jobs."""

    def __init__(self, traces: str, saver: AsyncSqliteSaver, store: AsyncSqliteStore) -> None:
        self._traces = traces
        self._store = store
        self._counting: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._taking: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._running: dict[str, asyncio.Task[None]] = {}
        made = StateGraph(State)
        made.add_node("agent", self._agent)
        made.add_conditional_edges(START, _fan_out, ["agent"])
        made.add_edge("agent", END)
        self._graph = made.compile(checkpointer=saver, store=store)

    async def resume(self) -> None:
        """Take up every job that has begun and not ended; the checkpointer cannot list them, so the store does."""
        for item in await self._store.asearch(_OPEN, limit=100_000):
            self._go_on(item.key)

    async def take(self, tag: str, keys: list[int]) -> None:
        """Take a job, once."""
        config = _thread(tag)
        async with self._taking[tag]:
            if not (await self._graph.aget_state(config)).values:
                await self._store.aput(_OPEN, tag, {})
                await self._graph.aupdate_state(config, {"tag": tag, "keys": keys, "answers": []}, as_node=START)
        _say({"taken": tag})
        self._go_on(tag)

    async def states(self) -> None:
        items = await self._store.asearch(_COUNTS, limit=1000)
        _say({"states": {item.key: item.value["n"] for item in items}})

    def _go_on(self, tag: str) -> None:
        if tag not in self._running:
            self._running[tag] = asyncio.get_running_loop().create_task(self._run(tag))
            self._running[tag].add_done_callback(lambda _: self._running.pop(tag))

    async def _run(self, tag: str) -> None:
        config = _thread(tag)
        state = await self._graph.aget_state(config)
        if state.next:
            await self._graph.ainvoke(None, config, durability="sync")
            state = await self._graph.aget_state(config)
        if state.values:
            await self._store.adelete(_OPEN, tag)
            _say({"ended": tag, "answers": state.values["answers"]})

    async def _agent(self, task: Task, *, store: BaseStore) -> dict[str, list[Any]]:
        key = str(task["key"])
        async with self._counting[task["key"]]:
            item = await store.aget(_COUNTS, key)
            n = (item.value["n"] if item is not None else 0) + 1
            await store.aput(_COUNTS, key, {"n": n})
        append(self._traces, "noted", f"{task['tag']}/chaos_noter-{key}")
        await asyncio.sleep(_WORK_S)
        return {"answers": [[task["key"], n]]}


def _fan_out(state: State) -> list[Send]:
    return [Send("agent", {"tag": state["tag"], "key": key}) for key in state["keys"]]


def _thread(tag: str) -> Any:
    return {"configurable": {"thread_id": tag}}


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def main(folder: Path, traces: str) -> None:
    async with (
        AsyncSqliteSaver.from_conn_string(str(folder / "checkpoints.sqlite")) as saver,
        AsyncSqliteStore.from_conn_string(str(folder / "store.sqlite")) as store,
    ):
        await store.setup()
        worker = Worker(traces, saver, store)
        await worker.resume()
        taking = set()
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            taking.add(asyncio.ensure_future(worker.take(**order) if order else worker.states()))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
