"""A fleet's life: up, full, killed, up again, Ctrl-C. What was accepted is there at every turn."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx2
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nexus_ray.core.errors import UnavailableError
from tests.ray.conftest import NEXUS, Fleet, until

pytestmark = pytest.mark.e2e

LEDGER_BYTES = 1024 * 1024
BIG = "x" * 60_000


class Foreground(Fleet):
    """A fleet as somebody has it in a terminal: `nexus up`, and Ctrl-C."""

    process: "subprocess.Popen[str]"

    def up(self, *arguments: str, **settings: str) -> None:
        self.process = subprocess.Popen(
            [*NEXUS, "up", self.app, *arguments], env={**self.environment, **settings}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        until(lambda: self.process.poll() is not None or self._is_up(), within_s=120, every_s=0.2)
        assert self.process.poll() is None, self.process.communicate()

    def _is_up(self) -> bool:
        try:
            with self.connect() as connection:
                return self.record["pid"] == self.process.pid and bool(connection.ready().get("ready"))
        except (OSError, UnavailableError):
            return False


def tls(folder: Path) -> tuple[str, ...]:
    """Make a certificate for loopback, and return the flags that name it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1)).not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(private)
    return "--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Foreground]:
    fleet = Foreground(tmp_path / "state", "tests.ray.fleet_app:app")
    yield fleet
    if fleet.process.poll() is None:
        fleet.process.terminate()
        fleet.process.communicate(timeout=60)


@pytest.mark.timeout(240)
def test_what_was_accepted_is_there_after_a_full_disk_a_kill_and_a_restart(
    fleet: Foreground, tmp_path: Path
) -> None:
    fleet.up(*tls(tmp_path), NEXUS_LEDGER__FILE_BYTES_MAX=str(LEDGER_BYTES))
    accepted = []
    # With TLS the client trusts this fleet's certificate and nobody speaks in clear.
    assert fleet.record["url"].startswith("https://")
    with pytest.raises(httpx2.TransportError):
        httpx2.get(fleet.record["url"].replace("https://", "http://") + "/health")
    with pytest.raises(httpx2.TransportError):
        httpx2.get(fleet.record["url"] + "/health")
    with fleet.connect() as connection:
        sleeping = connection.submit("count_then_sleep", 5.0)
        until(lambda: sleeping.status == "running")
        # Full: refused with "not now", and nothing that was accepted is lost.
        with pytest.raises(UnavailableError, match="full"):
            for _ in range(100):
                accepted.append(connection.submit("raise_", BIG).id)
        assert 0 < len(accepted) < 50
        assert {goal["id"] for goal in connection.goals(limit=200)} == {sleeping.id, *accepted}

    # Killed: every process of it, at once, as a power cut would.
    processes = fleet.processes()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # Some end with the one that started them.
            process.kill()
    fleet.process.wait(10)
    assert fleet.nexus("status").returncode == 4

    # Up again, with room: the goals are there, and end.
    fleet.up()
    with fleet.connect() as connection:
        assert connection.goal(sleeping.id).result(60) == [1] * 10 + [11] * 10
        for goal_id in accepted:
            goal = connection.goal(goal_id)
            assert goal.wait(30)
            assert goal.record["status"] == "failed"
        assert {goal["id"] for goal in connection.goals(limit=200)} == {sleeping.id, *accepted}

    # A second fleet on the same folder is refused, and says what to do.
    second = fleet.nexus("up", fleet.app)
    assert second.returncode == 2
    assert "nexus down" in second.stderr and "NEXUS_STATE_DIR" in second.stderr

    # Ctrl-C: stops cleanly, and leaves no process behind.
    children = fleet.processes()
    fleet.process.send_signal(signal.SIGINT)
    out, said = fleet.process.communicate(timeout=60)
    assert fleet.process.returncode == 0, said
    assert "the fleet is down" in said and "Traceback" not in said + out
    _, alive = psutil.wait_procs(children, timeout=20)
    assert [process.name() for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
