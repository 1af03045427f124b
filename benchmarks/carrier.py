"""What a parcel costs by each way between two processes, and from where on a large payload is better left in a store.

Two nodes of a Ray cluster on this machine, so that Ray itself moves what is large from one store to another, as it does
between machines. One process sends, an actor on the other node takes in, by each way in turn. CPU is that of both, and
of Ray's raylets where Ray's store is in it. gRPC is measured twice: a call for each parcel, and one stream that all go
through, with the pickles, the event loop and the certificates that the stream of Nexus has.
"""

import asyncio
import contextlib
import os
import pickle
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import uvloop

from benchmarks.cluster import TEXT, say
from benchmarks.sampling import Round, Row, closed_loop, summarise
from nexus_ray.agents.task import TaskOrder
from nexus_ray.config import load
from nexus_ray.core.identity import AgentId
from nexus_ray.runtime.items import Item, Parcel, Request
from nexus_ray.runtime.placement import Member, Membership
from nexus_ray.runtime.streams import Streams
from nexus_ray.runtime.wire import WireClient, WireServer

SECTION = "carrier"
_BATCHES = (1, 32)
_CONCURRENCIES = (1, 8, 64)
_KIB = 1024
_SIZES_KIB = (64, 256, 1024, 4096, 16384)
_STORE_BYTES = 400 * _KIB * _KIB  # Some of the largest at a time, and what Ray has not dropped yet.
_GRPC = "/nexus.Carrier/"
_GRPC_OPTIONS = [("grpc.max_receive_message_length", 1 << 26), ("grpc.max_send_message_length", 1 << 26)]

Send = Callable[[Any], Awaitable[Any]]


class Taker:
    """The process that parcels are brought to; a Ray actor."""

    async def start(self, folder: str, sender: Member) -> tuple[Member, str]:
        """Listen everywhere; return where, and where gRPC does."""
        methods = {"take": self._take, "measure": len}
        self._wire = WireServer(Path(folder) / "taker.sock", methods)
        await self._wire.start()
        self._streams = Streams("taker")
        await self._streams.listen("127.0.0.1", methods)
        self._streams.set_membership(Membership(1, (sender,)))
        self._grpc, port = await _serve_grpc(self._streams, sender)
        certificate = self._streams.certificate
        return Member("taker", "", "", stream=self._streams.address, certificate=certificate), f"127.0.0.1:{port}"

    def _take(self, items: Sequence[Item]) -> None:
        pass

    async def take(self, items: Sequence[Item]) -> None:
        """Take in what came by a Ray call."""

    async def measure(self, payload: bytes) -> int:
        """Return the length of what came in a Ray call."""
        return len(payload)

    async def measure_stored(self, stored: list[Any]) -> int:
        """Return the length of what is in Ray's store."""
        return len(await stored[0])

    async def pid(self) -> int:
        return os.getpid()

    async def loop(self) -> str:
        return type(asyncio.get_running_loop()).__module__


async def _serve_grpc(own: Streams, sender: Member) -> tuple[Any, int]:
    import grpc

    async def call(request: Any, context: Any) -> Any:
        return len(request) if isinstance(request, bytes) else None

    async def stream(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for number, request in requests:
            yield number, await call(request, context)

    forms = {"request_deserializer": pickle.loads, "response_serializer": pickle.dumps}
    handlers = {
        "Call": grpc.unary_unary_rpc_method_handler(call, **forms),
        "Stream": grpc.stream_stream_rpc_method_handler(stream, **forms),
    }
    server = grpc.aio.server(options=_GRPC_OPTIONS)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("nexus.Carrier", handlers)])
    chain = [(_key(own), own.certificate.encode())]
    credentials = grpc.ssl_server_credentials(chain, sender.certificate.encode(), require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    return server, port


def _key(own: Streams) -> bytes:
    return own._secret.partition(b"-----BEGIN CERTIFICATE-----")[0]


class GrpcStream:
    """Calls over one bidirectional stream of gRPC."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._writing = asyncio.Lock()  # gRPC takes one write at a time.
        self._reading = asyncio.ensure_future(self._read())

    async def send(self, value: Any) -> Any:
        self._number += 1
        number = self._number
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        async with self._writing:
            await self._call.write((number, value))
        return await future

    async def _read(self) -> None:
        async for number, value in self._call:
            self._waiting.pop(number).set_result(value)

    async def close(self) -> None:
        self._reading.cancel()
        self._call.cancel()


@contextlib.asynccontextmanager
async def _ways(actor: Any, folder: str) -> AsyncIterator[dict[str, dict[str, Send]]]:
    """Yield what sends a parcel, and what sends a payload, by each way."""
    import grpc
    import ray

    own = Streams("sender")
    member, address = await actor.start.remote(folder, Member("sender", "", "", certificate=own.certificate))
    own.set_membership(Membership(1, (member,)))
    near = await WireClient.connect(Path(folder) / "taker.sock")
    far = await own.dial(member)
    credentials = grpc.ssl_channel_credentials(member.certificate.encode(), _key(own), own.certificate.encode())
    options = [*_GRPC_OPTIONS, ("grpc.ssl_target_name_override", "taker")]
    forms = {"request_serializer": partial(pickle.dumps, protocol=5), "response_deserializer": pickle.loads}
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        call = channel.unary_unary(f"{_GRPC}Call", **forms)
        stream = GrpcStream(channel.stream_stream(f"{_GRPC}Stream", **forms)())

        async def stored(payload: bytes) -> Any:
            reference = await asyncio.to_thread(ray.put, payload)
            return await actor.measure_stored.remote([reference])

        yield {
            "parcel": {
                "Ray call": lambda items: actor.take.remote(items),
                "Unix socket": lambda items: near.call("take", items),
                "TLS stream": lambda items: far.call("take", items),
                "gRPC call": lambda items: call(items),
                "gRPC stream": stream.send,
            },
            "payload": {
                "Unix socket": lambda payload: near.call("measure", payload),
                "TLS stream": lambda payload: far.call("measure", payload),
                "in a Ray call": lambda payload: actor.measure.remote(payload),
                "in Ray's store": stored,
            },
        }
        await stream.close()
    near.close()
    far.close()


def run(folder: Path, is_quick: bool) -> list[Row]:
    from nexus_ray.runtime.local import set_environment
    from nexus_ray.runtime.state import prepare_state

    os.umask(0o077)
    settings = load(state_dir=folder)
    prepare_state(settings)
    set_environment(settings)
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": _STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        ray.init(address=cluster.address, namespace="nexus", log_to_driver=False, logging_level="ERROR")
        cluster.add_node(**node, resources={"there": 1})
        actor = ray.remote(Taker).options(num_cpus=0, resources={"there": 1}, max_concurrency=1000).remote()
        say(f"the actor's event loop is of {ray.get(actor.loop.remote(), timeout=60)}")
        with (
            tempfile.TemporaryDirectory(prefix="nexus-") as sockets,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            return runner.run(_measured(actor, sockets, is_quick))
    finally:
        ray.shutdown()
        cluster.shutdown()


async def _measured(actor: Any, folder: str, is_quick: bool) -> list[Row]:
    rounds, seconds = (1, 0.1) if is_quick else (3, 0.3)
    raylets = [one for one in psutil.Process().children(recursive=True) if one.name() == "raylet"]
    processes = [psutil.Process(), psutil.Process(await actor.pid.remote())]
    made: list[Row] = []
    async with _ways(actor, folder) as ways:
        for batch in _BATCHES:
            for concurrency in _CONCURRENCIES:
                title = f"{batch} of 256 B, concurrency {concurrency}"
                made += await _compare(
                    title, "parcels/s", ways["parcel"], _parcel(batch), concurrency, rounds, seconds, processes
                )
        for size in _SIZES_KIB:
            payload = os.urandom(size * _KIB)
            made += await _compare(
                f"{size:,} KiB", "payloads/s", ways["payload"], payload, 2, rounds, seconds, [*processes, *raylets]
            )
    return made


async def _compare(
    title: str, unit: str, ways: dict[str, Send], value: Any, concurrency: int, rounds: int, seconds: float,
    processes: list[psutil.Process],
) -> list[Row]:  # fmt: skip
    seen: dict[str, list[Round]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, send in ways.items():
            await send(value)

            async def one(lane: int, send: Send = send) -> None:
                await send(value)

            before = _cpu_s(processes)
            result = await closed_loop(one, concurrency, seconds)
            result.cpu_s = _cpu_s(processes) - before
            seen[way].append(result)
    made = []
    for way, results in seen.items():
        rates = summarise([result.rate for result in results])
        cpu = summarise([result.cpu_us for result in results])
        latency = summarise([took * 1e3 for result in results for took in result.latencies_s])
        say(f"{title}, {way}: {rates.median:,.0f} {unit}, {latency.p50:.3g} ms, {cpu.median:,.0f} µs of CPU")
        made += [
            Row(SECTION, f"{title}, {way}", unit, rates),
            Row(SECTION, f"{title}, {way}, latency", "ms", latency),
            Row(SECTION, f"{title}, {way}, CPU of all", "µs", cpu),
        ]
    return made


def _cpu_s(processes: list[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def _parcel(batch: int) -> list[Item]:
    payload = f'{{"text":"{TEXT}"}}'.encode()
    headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}

    def order(number: int) -> TaskOrder:
        return TaskOrder("goal-0", f"step-{number}", AgentId("reader", str(number)), payload, headers, time.time())

    return Parcel(Request(number, order(number)) for number in range(batch))
