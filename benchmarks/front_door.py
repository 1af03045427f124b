"""What HTTP adds: the same goal over HTTP (`Prefer: wait`) and from inside the cluster, one at a time.

And how many requests a second go through a front door: goals that are accepted on disk, one a request and many a
request, beside bare uvicorn and bare Ray Serve, which accept nothing.
"""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import orjson
import psutil

from benchmarks.cluster import TASKS, TEXT, Fleet, check, direct, fleet, free_port, measure, say, work
from benchmarks.http_load import Load, load, post
from benchmarks.sampling import Round, Row, summarise

SECTION = "front-door"
HTTP, DIRECT = "over HTTP", "from inside the cluster"


SINGLE, BATCH = "Nexus, one goal a request", "Nexus, 200 goals a request"
UVICORN, SERVE = "bare uvicorn, nothing accepted", "bare Ray Serve with its proxy, nothing accepted"
CONNECTIONS, BATCH_CONNECTIONS, BATCH_GOALS = 16, 4, 200


def run(folder: Path, is_quick: bool) -> list[Row]:
    with fleet(folder, has_front_door=True) as up:
        made = asyncio.run(_measure(up, is_quick))
        return made + doors(up, is_quick)


def doors(up: Fleet, is_quick: bool) -> list[Row]:
    """Requests a second through each door; Ray Serve's comes last, because Serve must be started anew for it."""
    rounds, seconds = (1, 0.5) if is_quick else (5, 2.0)
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in (UVICORN, SINGLE, BATCH, SERVE)}
    goal = orjson.dumps({"type": "fan_out", "payload": {"text": TEXT, "tasks": 0}})
    token = f"Authorization: Bearer {up.token}"
    single = post("/v1/goals", goal, "application/json", token)
    batch = post("/v1/goals:batch", b"\n".join([goal] * BATCH_GOALS), "application/x-ndjson", token)
    with _uvicorn() as beside:
        ways = {UVICORN: (beside, single, CONNECTIONS, 1), SINGLE: (_port(up.url), single, CONNECTIONS, 1),
                BATCH: (_port(up.url), batch, BATCH_CONNECTIONS, BATCH_GOALS)}  # fmt: skip
        for number in range(rounds + 1):
            for name, way in ways.items():
                found = _through(name, *way, seconds)
                if number:  # The first is a warm-up.
                    seen[name].append(found)
    port = _bare_serve()
    for number in range(rounds + 1):
        found = _through(SERVE, port, single, CONNECTIONS, 1, seconds)
        if number:
            seen[SERVE].append(found)
    return [
        Row(SECTION, f"{name}, {what}", unit, summarise([found[index] for found in measured]))
        for name, measured in seen.items()
        for index, what, unit in ((0, "16 connections" if name != BATCH else "4 connections", "/s"),
                                  (1, "CPU of all processes", "µs each"))
    ]  # fmt: skip


def _through(name: str, port: int, request: bytes, connections: int, each: int, seconds: float) -> tuple[float, float]:
    time.sleep(1.0)  # What was accepted in the round before is worked off meanwhile.
    before = _cpu_s()
    found: Load = load("127.0.0.1", port, request, connections, seconds)
    cpu_s = _cpu_s() - before
    if found.errors or not found.latencies_s:
        raise RuntimeError(f"{name}: {found.errors} errors; {found.answer}")
    rate = found.rate * each
    say(f"{name}: {rate:,.0f}/s")
    return rate, cpu_s * 1e6 / (len(found.latencies_s) * each)


def _cpu_s() -> float:
    """Return the CPU time of everything that was started here; the client's process has come and gone between two."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:2])
    return total


def _port(url: str) -> int:
    return int(httpx2.URL(url).port or 0)


@contextlib.contextmanager
def _uvicorn() -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "benchmarks.bare_http:app", "--port", str(port), "--no-access-log"]
    process = subprocess.Popen([*command, "--log-level", "warning"])
    try:
        for _ in range(100):
            with contextlib.suppress(httpx2.TransportError):
                httpx2.get(f"http://127.0.0.1:{port}/")
                break
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def _bare_serve() -> int:
    from ray import serve

    from benchmarks.bare_http import application
    from nexus_ray.api.ingress import close_front_door

    close_front_door()
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(application(), name="bare", route_prefix="/")
    return port


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
