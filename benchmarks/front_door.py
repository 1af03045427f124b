"""What HTTP adds: the same goal through Ray Serve (`Prefer: wait`) and from inside the cluster, one at a time."""

import asyncio
from pathlib import Path

import httpx2
import orjson

from benchmarks.cluster import TASKS, TEXT, Fleet, check, direct, fleet, measure, work
from benchmarks.sampling import Round, Row, summarise

SECTION = "front-door"
HTTP, DIRECT = "over HTTP", "from inside the cluster"


def run(folder: Path, is_quick: bool) -> list[Row]:
    with fleet(folder, has_front_door=True) as up:
        return asyncio.run(_measure(up, is_quick))


async def _measure(up: Fleet, is_quick: bool) -> list[Row]:
    rounds, seconds = (2, 0.5) if is_quick else (5, 1.0)
    body = orjson.dumps({"type": "fan_out", "payload": {"text": TEXT, "tasks": TASKS}})
    headers = {
        "Authorization": f"Bearer {up.token}", "Content-Type": "application/json", "Prefer": "wait=30",
    }  # fmt: skip
    seen: dict[str, list[Round]] = {HTTP: [], DIRECT: []}
    async with direct(up.token) as submit, httpx2.AsyncClient(timeout=60.0) as http:

        async def over_http(_: int) -> None:
            response = await http.post(f"{up.url}/v1/goals", content=body, headers=headers)
            answer = response.json()
            if response.status_code != 200 or answer.get("result") != TASKS:
                raise RuntimeError(f"HTTP {response.status_code}: {response.text[:300]}")

        async def from_inside(_: int) -> None:
            check(await submit("fan_out", work()), TASKS)

        ways = {HTTP: over_http, DIRECT: from_inside}
        for name, one in ways.items():
            await measure(f"warm-up, {name}", one, 1, 0.5)
        for _ in range(rounds):
            for name, one in ways.items():
                seen[name].append(await measure(name, one, 1, seconds))
        busy = [await measure(HTTP, over_http, 8, seconds) for _ in range(rounds)]
    return rows(seen, busy)


def rows(seen: dict[str, list[Round]], busy: list[Round]) -> list[Row]:
    medians = {name: [summarise(one.latencies_s).median * 1e3 for one in rounds] for name, rounds in seen.items()}
    made = [
        Row(SECTION, f"{name}, concurrency 1, latency", "ms",
            summarise([latency * 1e3 for one in rounds for latency in one.latencies_s]))
        for name, rounds in seen.items()
    ]  # fmt: skip
    added = [http - inside for http, inside in zip(medians[HTTP], medians[DIRECT], strict=True)]
    made.append(Row(SECTION, "added by HTTP to the median", "ms", summarise(added)))
    made.append(Row(SECTION, "over HTTP, concurrency 8", "goals/s", summarise([one.rate for one in busy])))
    return made
