"""dramatiq: a group of 32 messages over Redis, results and all; by default a worker process per core, 8 threads each.

Redis and the workers are children of this process. Redis runs with its own defaults, on loopback, behind a password.
A worker keeps the counts of the messages that it happens to get: dramatiq has no place for an agent.
"""

import asyncio
import os
import secrets
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends.redis import RedisBackend

from benchmarks.contenders.serve import Goal, serve
from benchmarks.job import TEXT

_URL = "NEXUS_BENCHMARK_REDIS_URL"
_STARTED_S_MAX = 20.0
_ANSWERED_MS_MAX = 60_000

counts: Counter[str] = Counter()


def count(key: str, text: str) -> int:
    counts[key] += 1
    return counts[key]


def declare(url: str) -> dramatiq.Actor:
    """Return the actor, with its messages and results in this Redis."""
    broker = RedisBroker(url=url)
    broker.add_middleware(Results(backend=RedisBackend(url=url)))
    dramatiq.set_broker(broker)
    return dramatiq.actor(count, store_results=True)


if _URL in os.environ:
    declare(os.environ[_URL])  # A worker imports this module, and so knows the actor.


def start_redis(folder: Path) -> tuple["subprocess.Popen[str]", str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    password = secrets.token_hex(16)
    process = subprocess.Popen(["redis-server", "-"], stdin=subprocess.PIPE, stdout=2, cwd=folder, text=True)
    assert process.stdin is not None
    process.stdin.write(f"bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {folder}\n")
    process.stdin.close()
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    client, ends_at = redis.Redis.from_url(url), time.monotonic() + _STARTED_S_MAX
    while True:
        try:
            client.ping()
            return process, url
        except redis.ConnectionError:
            if time.monotonic() > ends_at or process.poll() is not None:
                raise
            time.sleep(0.05)


def fan_out(handle: dramatiq.Actor, width: int) -> int:
    group = dramatiq.group(handle.message(str(number), TEXT) for number in range(width)).run()
    return sum(answer > 0 for answer in group.get_results(block=True, timeout=_ANSWERED_MS_MAX))


@asynccontextmanager
async def contender(folder: Path, way: str) -> AsyncIterator[Goal]:
    server, url = start_redis(folder)
    handle = declare(url)
    command = [sys.executable, "-m", "dramatiq", "benchmarks.contenders.dramatiq"]
    workers = subprocess.Popen(command, env={**os.environ, _URL: url}, stdout=2)

    async def goal(width: int) -> int:
        return await asyncio.to_thread(fan_out, handle, width)

    try:
        yield goal
    finally:
        for process in (workers, server):
            process.terminate()
            process.wait(20.0)


if __name__ == "__main__":
    serve("dramatiq", contender)
