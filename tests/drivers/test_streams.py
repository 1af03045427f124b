"""Calls between machines: who is let in and who is not, seen from both sides, and what is read of whom."""

import asyncio
import contextlib
import pickle
import re
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nexus_ray.core.errors import ResourceExhaustedError, UnavailableError
from nexus_ray.observe import metrics
from nexus_ray.runtime import streams
from nexus_ray.runtime.placement import Member, Membership
from nexus_ray.runtime.streams import Streams
from tests.support.runners import until

LOOPS = [None, uvloop.new_event_loop]
UNPICKLED: list[str] = []


def note(what: str) -> str:
    UNPICKLED.append(what)
    return what


class Poison:
    """Tells when it is unpickled."""

    def __reduce__(self) -> Any:
        return note, ("here",)


def frame(value: Any) -> bytes:
    pickled = pickle.dumps(value)
    return struct.pack(">I", len(pickled)) + pickled


POISON = frame((1, "take", (Poison(),)))


def member(of: Streams, **changed: Any) -> Member:
    given = {"host": "host", "node": "n", "node_id": "n", "stream": of.address, "certificate": of.certificate}
    return Member(**given | changed)


class Pair:
    """A host that listens, one that it lets in, and a stranger with a certificate of its own."""

    def __init__(self) -> None:
        self.there, self.here, self.stranger = Streams("there"), Streams("here"), Streams("stranger")
        self.calls: list[Any] = []

    def take(self, value: Any) -> Any:
        self.calls.append(value)
        return value

    def let_in(self, *others: Streams, epoch: int = 1) -> None:
        self.there.set_membership(Membership(epoch, tuple(member(one) for one in (self.there, *others))))

    async def refuses(self, who: Streams, to: Member | None = None) -> None:
        with pytest.raises(UnavailableError):
            await who.dial(to or member(self.there))
        assert self.calls == [] and UNPICKLED == []

    async def lets_in(self, who: Streams) -> None:
        client = await who.dial(member(self.there))
        assert await client.call("take", "hello") == "hello"
        client.close()
        self.calls.clear()

    async def answer(self, to_send: bytes, context: ssl.SSLContext | None) -> bytes:
        """Connect, say something, and return all that comes back until the end."""
        ip, _, port = self.there.address.rpartition(":")
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(ip, int(port), ssl=context)
            try:
                writer.write(to_send)
                return await reader.read()
            finally:
                writer.transport.abort()
        return b""


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    both = Pair()
    await both.there.listen("127.0.0.1", {"take": both.take, "grow": lambda length: b"x" * length})
    both.let_in(both.here)
    UNPICKLED.clear()
    try:
        yield both
    finally:
        await both.there.close()


def on_both_loops(law: Callable[[Pair], Any]) -> Any:
    async def within() -> None:
        async with pair() as both:
            await asyncio.wait_for(law(both), 20)

    def test(loop: Any) -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(within())

    return pytest.mark.parametrize("loop", LOOPS)(test)


def refusals() -> float:
    found = re.search(r'nexus_strangers_refused_total{door="stream"} (\S+)', metrics.exposition().decode())
    return float(found[1]) if found else 0.0


@on_both_loops
async def test_a_member_is_let_in_and_what_it_says_arrives(both: Pair) -> None:
    client = await both.here.dial(member(both.there))

    sent = [{"small": 1}, b"x" * 5_000_000, [b"y" * 300_000] * 20]
    assert await asyncio.gather(*(client.call("take", value) for value in sent)) == sent
    client.close()


@on_both_loops
async def test_a_certificate_that_the_membership_does_not_name_is_refused(both: Pair) -> None:
    await both.refuses(both.stranger)

    both.let_in(both.stranger)

    await both.lets_in(both.stranger)


@on_both_loops
async def test_a_host_that_has_left_is_hung_up_on_and_refused(both: Pair) -> None:
    client = await both.here.dial(member(both.there))
    assert client.is_open

    both.let_in(both.stranger, epoch=2)

    await until(lambda: not client.is_open)
    await both.refuses(both.here)


@on_both_loops
async def test_one_that_left_during_its_handshake_is_refused(both: Pair) -> None:
    both.there._welcome.clear()  # What OpenSSL was told before is as it was.

    await both.refuses(both.here)


@on_both_loops
async def test_somebody_else_at_a_members_address_is_not_spoken_to(both: Pair) -> None:
    both.let_in(both.here, both.stranger)

    await both.refuses(both.here, member(both.there, certificate=both.stranger.certificate))
    await both.lets_in(both.here)


@on_both_loops
async def test_before_there_is_a_membership_nobody_is_let_in(both: Pair) -> None:
    both.there.set_membership(Membership(0, ()))

    await both.refuses(both.here)


def client_context(secret: bytes = b"", version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """What somebody may come with who does not mind whom he speaks to."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = version
    if secret:
        with streams._as_file(secret) as path:
            context.load_cert_chain(path)
    return context


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("how", ["in clear", "no certificate", "unknown", "signed by a member", "TLS 1.2"])
def test_of_a_stranger_nothing_is_read(how: str, loop: Any) -> None:
    async def law() -> None:
        async with pair() as both:
            member_secret = both.here._secret
            context = {
                "in clear": lambda: None,
                "no certificate": client_context,
                "unknown": lambda: client_context(both.stranger._secret),
                "signed by a member": lambda: client_context(signed_by(member_secret)),
                "TLS 1.2": lambda: client_context(member_secret, ssl.TLSVersion.TLSv1_2),
            }[how]()
            before = refusals()

            assert b"nexus" not in await asyncio.wait_for(both.answer(POISON, context), 20)

            await until(lambda: refusals() == before + 1)
            assert both.calls == [] and UNPICKLED == []
            await both.lets_in(both.here)
            # The same bytes of a member are read: the line above would see it.
            reader = asyncio.ensure_future(both.answer(POISON, client_context(member_secret)))
            await until(lambda: UNPICKLED == ["here"])
            reader.cancel()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(law())


def signed_by(secret: bytes) -> bytes:
    """Return a certificate and key that a member's key has signed."""
    signer = serialization.load_pem_private_key(secret, None)
    issuer = x509.load_pem_x509_certificate(secret)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([])).issuer_name(issuer.subject).public_key(key.public_key())
        .serial_number(1).not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2100, 1, 1, tzinfo=UTC))
        .sign(signer, hashes.SHA256())  # type: ignore[arg-type]
    )  # fmt: skip
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem = serialization.Encoding.PEM
    return key.private_bytes(*form) + certificate.public_bytes(pem) + issuer.public_bytes(pem)


@pytest.mark.parametrize("loop", LOOPS)
def test_who_says_nothing_is_hung_up_on_and_keeps_others_out_no_longer(
    monkeypatch: pytest.MonkeyPatch, loop: Any
) -> None:
    monkeypatch.setattr(streams, "_HANDSHAKE_S", 0.6)
    monkeypatch.setattr(streams, "_HANDSHAKES_MAX", 4)

    async def law() -> None:
        async with pair() as both:
            ip, _, port = both.there.address.rpartition(":")
            silent = [await asyncio.open_connection(ip, int(port)) for _ in range(6)]

            await until(lambda: refusals() >= before + 4)
            await both.lets_in(both.here)

            assert [await reader.read() for reader, _ in silent] == [b""] * 6
            for _, writer in silent:
                writer.close()

    before = refusals()
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(law())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_frame_over_the_limit_is_not_sent_and_one_that_comes_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, loop: Any
) -> None:
    monkeypatch.setattr(streams, "FRAME_BYTES_MAX", 10_000)

    async def law() -> None:
        async with pair() as both:
            client = await both.here.dial(member(both.there))
            for call in (("take", b"x" * 10_000), ("grow", 10_000)):
                with pytest.raises(ResourceExhaustedError, match="over the limit"):
                    await client.call(*call)
            assert await client.call("take", b"x" * 9_000) == b"x" * 9_000

            client.transport.write(struct.pack(">I", 10_001))
            await until(lambda: not client.is_open)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(law())


async def test_nobody_there_is_said_at_once_and_one_that_does_not_answer_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "_HANDSHAKE_S", 0.2)
    monkeypatch.setattr(streams, "_CONNECT_S", 0.2)
    here = Streams("here")
    gone = await asyncio.start_server(lambda reader, writer: reader.read(), "127.0.0.1", 0)
    address = f"127.0.0.1:{gone.sockets[0].getsockname()[1]}"

    with pytest.raises(UnavailableError, match="no stream"):
        await here.dial(member(here, stream=address))
    gone.close()
    with pytest.raises(UnavailableError, match="no stream"):
        await here.dial(member(here, stream=address))


async def test_where_there_is_no_such_address_there_is_no_stream_and_no_error() -> None:
    here = Streams("here")

    await here.listen("192.0.2.1", {})

    assert here.address == ""


def test_every_certificate_is_new_and_no_key_is_on_a_disk(tmp_path: Any) -> None:
    one, other = Streams("host"), Streams("host")

    assert one.certificate != other.certificate
    with streams._as_file(one._secret) as path:
        assert path.startswith("/proc/self/fd/") and b"PRIVATE KEY" in one._secret
    assert "PRIVATE" not in one.certificate
