"""A policy engine that is not there, is slow, lies or speaks half: the answer is no until it is well again."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from nexus_ray.core.clock import ManualClock
from nexus_ray.core.errors import PermissionDeniedError, UnavailableError
from nexus_ray.core.identity import Session
from nexus_ray.security.authz import Authorizer, load_policy
from nexus_ray.security.opa import OpaEngine, OpaServer
from nexus_ray.security.policy import Decision, Policy, PolicyRequest, parse_policy
from nexus_ray.security.policy_settings import PolicySettings
from tests.support.certificates import Authority
from tests.support.opa import Opa

POLICY = parse_policy({"roles": {"lead": ["goal:read"]}})
YES = PolicyRequest("ann", ("lead",), "main", "goal:read")
NO = PolicyRequest("ann", (), "main", "goal:read")
WHOLE = b'{"result":{"allow":true,"reason":"granted","revision":"%s"}}' % POLICY.revision.encode()


def http(body: bytes, status: bytes = b"200 OK", more: bytes = b"") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(body), more, body)


class Scripted:
    """Answers every request with the same bytes, in pieces, and may hang up after it."""

    def __init__(self, path: Path) -> None:
        self.pieces = [http(WHOLE)]
        self.hangs_up = False
        self.asked = 0
        self.gate = threading.Event()  # Each piece but the first waits for it.
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, contextlib.suppress(OSError):
                    while connection.recv(65536):
                        self.asked += 1
                        for number, piece in enumerate(self.pieces):
                            if number:
                                self.gate.wait(0.02)
                            connection.sendall(piece)
                        if self.hangs_up:
                            break

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Scripted]:
    server = Scripted(tmp_path / "opa.sock")
    yield server
    server.close()


def made(path: Path, clock: ManualClock, policy: Policy = POLICY, **rest: Any) -> OpaEngine:
    settings = PolicySettings(engine="opa", opa_address=f"unix://{path}", **{"decision_timeout_s": 5.0, **rest})
    return OpaEngine(policy, OpaServer(settings, clock))


def said(decision: Decision) -> tuple[bool, str]:
    assert decision.revision == POLICY.revision
    return decision.is_allowed, decision.reason


REV = POLICY.revision.encode()
ANSWERS: list[tuple[str, list[bytes], str]] = [
    ("an error of its own", [http(WHOLE, b"500 Internal Server Error")], "engine_failed"),
    ("too much to do", [http(WHOLE, b"503 Service Unavailable")], "engine_failed"),
    ("no such way", [http(WHOLE, b"404 Not Found")], "engine_failed"),
    ("nothing in it", [http(WHOLE, b"204 No Content")], "engine_failed"),
    ("a way elsewhere", [http(b"", b"307 Temporary Redirect", b"Location: http://127.0.0.1:1/\r\n")], "engine_failed"),
    ("wait", [b"HTTP/1.1 100 Continue\r\n\r\n" + http(WHOLE)], "engine_failed"),
    ("an old protocol", [http(WHOLE).replace(b"1.1", b"1.0")], "engine_failed"),
    ("no protocol", [b"yes\r\n\r\n"], "engine_failed"),
    ("no length", [b"HTTP/1.1 200 OK\r\n\r\n" + WHOLE], "engine_failed"),
    ("two lengths", [http(WHOLE, more=b"Content-Length: 2\r\n")], "engine_failed"),
    ("a length below nothing", [b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + WHOLE], "engine_failed"),
    ("chunks", [http(WHOLE, more=b"Transfer-Encoding: chunked\r\n")], "engine_failed"),
    ("more than was asked", [http(WHOLE) + http(WHOLE)], "engine_failed"),
    ("too much", [http(b" " * 70_000 + WHOLE)], "engine_failed"),
    ("a head without an end", [b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000], "engine_failed"),
    ("no JSON", [http(b"yes")], "engine_failed"),
    ("half of it", [http(WHOLE)[:-4]], "engine_failed"),
    ("nothing decided", [http(b"{}")], "engine_undefined"),
    ("only a word", [http(b'{"result":true}')], "engine_undefined"),
    ("a list", [http(b"[true]")], "engine_undefined"),
    ("no yes and no no", [http(b'{"result":{"reason":"granted","revision":"%s"}}' % REV)], "engine_undefined"),
    ("a one", [http(WHOLE.replace(b":true", b":1"))], "engine_undefined"),
    ("a text", [http(WHOLE.replace(b":true", b':"true"'))], "engine_undefined"),
    ("a yes with a no", [http(WHOLE.replace(b"granted", b"no_role_grants_it"))], "engine_undefined"),
    ("a yes without a reason", [http(WHOLE.replace(b"reason", b"season"))], "engine_undefined"),
    ("a yes by nothing", [http(b'{"result":{"allow":true,"reason":"granted"}}')], "revision_unknown"),
    ("a yes of another policy", [http(WHOLE.replace(REV, b"0" * 16))], "revision_unknown"),
    ("a no that calls itself granted", [http(WHOLE.replace(b":true", b":false"))], "no_role_grants_it"),
    ("a no of its own", [http(WHOLE.replace(b":true", b":false").replace(b"granted", b"x"))], "no_role_grants_it"),
]  # fmt: skip


@pytest.mark.parametrize(("pieces", "reason"), [case[1:] for case in ANSWERS], ids=[case[0] for case in ANSWERS])
def test_only_a_whole_yes_of_our_policy_is_a_yes(
    scripted: Scripted, tmp_path: Path, clock: ManualClock, pieces: list[bytes], reason: str
) -> None:
    engine = made(tmp_path / "opa.sock", clock)
    assert said(engine.decide(YES)) == (True, "granted")

    scripted.pieces, scripted.hangs_up = pieces, True
    assert said(engine.decide(YES)) == (False, reason)
    scripted.pieces, scripted.hangs_up = [http(WHOLE)], False
    clock.advance(1.1)

    assert said(engine.decide(YES)) == (True, "granted")


def test_an_answer_in_pieces_is_whole_when_it_is_whole(scripted: Scripted, tmp_path: Path, clock: ManualClock) -> None:
    engine = made(tmp_path / "opa.sock", clock)
    scripted.pieces = [bytes([one]) for one in http(WHOLE)]
    scripted.gate.set()

    assert said(engine.decide(YES)) == (True, "granted")


def test_an_answer_that_trickles_in_has_one_deadline(scripted: Scripted, tmp_path: Path, clock: ManualClock) -> None:
    # Each byte comes well within the time-out, and all of them do not.
    scripted.pieces = [bytes([one]) for one in http(WHOLE)]
    engine = made(tmp_path / "opa.sock", clock, decision_timeout_s=0.1)

    assert said(engine.decide(YES)) == (False, "engine_timeout")


def test_a_late_answer_is_nobodys(scripted: Scripted, tmp_path: Path, clock: ManualClock) -> None:
    engine = made(tmp_path / "opa.sock", clock, decision_timeout_s=0.1)
    scripted.pieces = [b"", http(WHOLE)]  # Nothing, and then a yes when it is too late for it.
    scripted.gate.wait = lambda timeout=None: threading.Event().wait(0.3) or True  # type: ignore[method-assign]
    assert said(engine.decide(YES)) == (False, "engine_timeout")

    scripted.pieces = [http(WHOLE.replace(b":true", b":false").replace(b"granted", b"no_role_grants_it"))]
    clock.advance(1.1)
    ends_at = time.monotonic() + 10
    while (found := said(engine.decide(NO)))[1] == "engine_timeout" and time.monotonic() < ends_at:
        clock.advance(20)

    assert found == (False, "no_role_grants_it")


def test_one_that_fails_is_left_alone_longer_and_longer(tmp_path: Path, clock: ManualClock) -> None:
    engine = made(tmp_path / "opa.sock", clock)
    assert said(engine.decide(YES)) == (False, "engine_failed")
    server = Scripted(tmp_path / "opa.sock")
    try:
        clock.advance(0.9)
        assert said(engine.decide(YES)) == (False, "engine_failed")
        assert server.asked == 0
        clock.advance(0.2)
        assert said(engine.decide(YES)) == (True, "granted")

        server.pieces, server.hangs_up = [b""], True
        rests = []
        for _ in range(7):
            server.asked, waited_s = 0, 0
            while server.asked == 0:
                assert said(engine.decide(YES)) == (False, "engine_failed")
                clock.advance(1)
                waited_s += 1
            rests.append(waited_s)
        assert rests == [1, 1, 2, 4, 8, 16, 16]
    finally:
        server.close()


def test_a_socket_that_others_could_have_put_there_is_not_asked(
    scripted: Scripted, tmp_path: Path, clock: ManualClock
) -> None:
    tmp_path.chmod(0o777)

    assert said(made(tmp_path / "opa.sock", clock).decide(YES)) == (False, "engine_failed")
    assert scripted.asked == 0


@pytest.mark.parametrize("way", ["settings", "tls_settings"])
def test_a_real_one_that_is_killed_is_no_and_recovers_by_itself(opa: Opa, clock: ManualClock, way: str) -> None:
    opa.put(POLICY)
    engine = OpaEngine(POLICY, OpaServer(getattr(opa, way), clock))
    assert said(engine.decide(YES)) == (True, "granted")

    opa.stop()
    assert said(engine.decide(YES)) == (False, "engine_failed")
    opa.start()
    clock.advance(1.1)
    assert said(engine.decide(YES)) == (False, "engine_undefined")  # It is back, and knows nothing yet.
    opa.put(parse_policy({"roles": {"lead": ["goal:*"]}}))
    assert said(engine.decide(YES)) == (False, "revision_unknown")
    opa.put(POLICY)
    assert said(engine.decide(YES)) == (True, "granted")

    opa.stop()  # And where nobody asked meanwhile, nobody notices.
    opa.start()
    opa.put(POLICY)
    assert said(engine.decide(YES)) == (True, "granted")


def test_a_real_one_that_hangs_is_no_in_time_and_then_at_once(opa: Opa, clock: ManualClock) -> None:
    opa.put(POLICY)
    hasty = opa.settings.model_copy(update={"decision_timeout_s": 0.2})
    engine = OpaEngine(POLICY, OpaServer(hasty, clock))
    with opa.stalled():
        assert said(engine.decide(YES)) == (False, "engine_timeout")
        for _ in range(1000):  # Would take minutes if each waited.
            assert said(engine.decide(YES)) == (False, "engine_timeout")
    patient = OpaEngine(POLICY, OpaServer(opa.settings, clock))

    assert said(patient.decide(NO)) == (False, "no_role_grants_it")
    assert said(patient.decide(YES)) == (True, "granted")


def test_only_the_right_authority_and_a_certificate_of_ours_open_it(
    opa: Opa, clock: ManualClock, tmp_path: Path
) -> None:
    opa.put(POLICY)
    stranger = Authority(tmp_path, "stranger")
    certificate, key = stranger.issue("nexus")
    right: Callable[..., PolicySettings] = lambda **other: opa.tls_settings.model_copy(update=other)  # noqa: E731

    for settings, is_allowed in [
        (right(), True),
        (right(opa_ca=stranger.file), False),
        (right(opa_certificate=certificate, opa_key=key), False),
        (right(opa_address=opa.tls_settings.opa_address.replace("127.0.0.1", "localhost")), False),
        (right(opa_ca=tmp_path / "none.pem"), False),
        (right(opa_key=tmp_path / "none.key"), False),
    ]:
        assert OpaEngine(POLICY, OpaServer(settings, clock)).decide(YES).is_allowed is is_allowed, settings


def test_many_threads_get_each_their_own_answer(opa: Opa, clock: ManualClock) -> None:
    opa.put(POLICY)
    engine = OpaEngine(POLICY, OpaServer(opa.settings, clock))
    wrong: list[Decision] = []

    def ask(number: int) -> None:
        for _ in range(20):
            decision = engine.decide(YES if number % 2 else NO)
            if decision.is_allowed is not bool(number % 2):
                wrong.append(decision)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert not wrong


def test_a_role_file_is_decided_by_a_real_one_and_a_change_of_it_when_both_have_it(
    opa: Opa, clock: ManualClock, tmp_path: Path
) -> None:
    def may(action: str) -> str:
        try:
            authorizer.authorize(Session("s", "ann", "local", ("lead",), 9e9), action)
        except (PermissionDeniedError, UnavailableError) as error:
            return str(error.details["reason"])
        return "granted"

    (tmp_path / "roles.toml").write_text('[roles]\nlead = ["goal:read"]\n')
    opa.put(load_policy(tmp_path))
    authorizer = Authorizer.from_folder(tmp_path, clock, opa.settings)
    assert (may("goal:read"), may("goal:cancel")) == ("granted", "no_role_grants_it")

    (tmp_path / "roles.toml").write_text('[roles]\nlead = ["goal:cancel"]\n')
    clock.advance(1.0)
    assert (may("goal:read"), may("goal:cancel")) == ("revision_unknown", "revision_unknown")
    opa.put(load_policy(tmp_path))

    assert (may("goal:read"), may("goal:cancel")) == ("no_role_grants_it", "granted")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"engine": "opa"}, "opa_address"), ({"engine": "opa", "opa_address": "http://127.0.0.1:8181"}, "plain http"),
        ({"engine": "opa", "opa_address": "https://opa:8181"}, "opa_ca"), ({"engine": "rego"}, "embedded"),
        ({"engine": "opa", "opa_address": "unix://relative/opa.sock"}, "unix:///"),
        ({"engine": "opa", "opa_address": "unix:///"}, "unix:///"), ({"opa_address": "unix:///o/s"}, "not 'opa'"),
        ({"engine": "opa", "opa_address": "https://u:p@opa"}, "malformed"), ({"bundle": "b.tar.gz"}, "together"),
        ({"engine": "opa", "opa_address": "https://opa:99999"}, "malformed"), ({"verification_key": "k"}, "together"),
        ({"engine": "opa", "opa_address": "https://opa/v1"}, "host:port"), ({"decision_timeout_s": 0}, "than 0"),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_safe_are_refused(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PolicySettings(**wrong)

    assert named in str(caught.value)


def test_files_are_named_in_full_for_processes_that_stand_elsewhere() -> None:
    settings = PolicySettings(bundle=Path("policy.tar.gz"), verification_key=Path("~/policy.pem"))

    assert (settings.bundle, settings.verification_key) == (Path.cwd() / "policy.tar.gz", Path.home() / "policy.pem")


def test_no_proxy_of_the_environment_is_asked(opa: Opa, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY"):
        monkeypatch.setitem(os.environ, name, "http://127.0.0.1:1")
    opa.put(POLICY)

    assert OpaEngine(POLICY, OpaServer(opa.tls_settings, clock)).decide(YES).is_allowed
