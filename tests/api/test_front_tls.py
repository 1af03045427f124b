"""`nexus up --tls`: a certificate of the fleet's own, and clients that trust it and no other."""

import ssl
from pathlib import Path

import httpx2
import pytest

from nexus_ray.cli.fleet import up_settings
from nexus_ray.config import RuntimeSettings, Settings
from nexus_ray.core.clock import ManualClock, SystemClock
from nexus_ray.runtime.front_tls import client_authority, prepare_front_tls
from nexus_ray.runtime.local import check_listen
from nexus_ray.security.certificates import fingerprint
from tests.api.conftest import Door
from tests.api.test_listener import listening
from tests.cli.support import free_port

DAY_S = 86_400.0


def settings_of(folder: Path, host: str = "127.0.0.1") -> Settings:
    return Settings(state_dir=folder, runtime=RuntimeSettings(http_host=host, http_port=free_port()))


def test_it_is_made_once_with_an_authority_that_stays(tmp_path: Path) -> None:
    clock = ManualClock(SystemClock().now())
    made = prepare_front_tls(settings_of(tmp_path), clock)
    first, authority = made.certificate.read_text(), made.authority.read_text()

    clock.advance(200 * DAY_S)
    again = prepare_front_tls(settings_of(tmp_path), clock)
    assert (again, again.certificate.read_text()) == (made, first)

    elsewhere = prepare_front_tls(settings_of(tmp_path, "192.0.2.7"), clock).certificate.read_text()
    assert elsewhere != first
    clock.advance(220 * DAY_S)
    late = prepare_front_tls(settings_of(tmp_path, "192.0.2.7"), clock)
    assert late.certificate.read_text() != elsewhere
    assert late.authority.read_text() == authority and late.fingerprint == fingerprint(authority)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_what_is_damaged_or_of_another_authority_is_made_anew(tmp_path: Path) -> None:
    settings, clock = settings_of(tmp_path), SystemClock()
    made = prepare_front_tls(settings, clock)
    for damaged in ("", "nonsense", prepare_front_tls(settings_of(tmp_path / "other"), clock).certificate.read_text()):
        made.certificate.write_text(damaged)

        assert prepare_front_tls(settings, clock) == made
        assert made.certificate.read_text() != damaged


def test_the_flag_says_so_in_the_settings_and_clients_are_told_whom_to_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEXUS_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("NEXUS_RUNTIME__DASHBOARD_PORT", str(free_port()))
    port = free_port()

    with_tls = up_settings("0.0.0.0", port, None, None, None, tls=True)
    without = up_settings(None, port, None, None, None)

    check_listen(with_tls)  # Beyond this machine, since there is TLS.
    assert with_tls.runtime.tls_cert == with_tls.runtime.tls_key == tmp_path / "front.pem"
    assert client_authority(with_tls) == tmp_path / "front_ca.pem" and client_authority(without) is None
    told = " ".join(capsys.readouterr().err.split())
    assert str(tmp_path / "front_ca.pem") in told and fingerprint((tmp_path / "front_ca.pem").read_text()) in told


async def test_clients_that_trust_the_authority_come_in_and_no_other_is_taken_for_the_fleet(
    door: Door, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path / "own")
    own, other = (prepare_front_tls(one, SystemClock()) for one in (settings, settings_of(tmp_path / "other")))
    runtime = settings.runtime.model_copy(update={"tls_cert": own.certificate, "tls_key": own.certificate})

    async with listening(door, runtime):
        for host in ("127.0.0.1", "localhost"):
            context = ssl.create_default_context(cafile=str(own.authority))
            context.verify_flags |= ssl.VERIFY_X509_STRICT  # As Python 3.13 has it.
            async with httpx2.AsyncClient(verify=context) as client:
                assert (await client.get(f"https://{host}:{runtime.http_port}/health")).status_code == 200
        context = ssl.create_default_context(cafile=str(other.authority))
        async with httpx2.AsyncClient(verify=context) as client:
            with pytest.raises(httpx2.ConnectError):
                await client.get(f"https://127.0.0.1:{runtime.http_port}/health")
