"""The front door's own certificate, for a fleet that was given none: `nexus up --tls`.

Law: an authority of the fleet's own, made once and kept in the state folder, signs it anew at a start where it would
end soon or is for other addresses. Clients on this machine trust the authority by the fleet's file; those elsewhere are
given `front_ca.pem`, which stays the same, and compare its fingerprint.
"""

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from nexus_ray.config import Settings
from nexus_ray.core.clock import Clock
from nexus_ray.runtime.state import write_private
from nexus_ray.security.certificates import fingerprint, is_good_for, issue_certificate, make_authority

_DAYS = 397.0  # The longest that clients take from anybody.
_LEFT_DAYS = 180.0  # A fleet that is not started anew for longer than this ought to bring a certificate.
_WILDCARDS = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class FrontTls:
    """Where the certificate is, key and chain in one file, and whom to trust for it."""

    certificate: Path
    authority: Path
    fingerprint: str


def client_authority(settings: Settings) -> Path | None:
    """Return the authority that clients are to trust, where the front door's certificate is its own."""
    certificate = settings.runtime.tls_cert
    own = settings.state_dir / "front.pem"
    return settings.state_dir / "front_ca.pem" if certificate == own else certificate


def prepare_front_tls(settings: Settings, clock: Clock) -> FrontTls:
    """Make the authority and a certificate for where the front door listens, where those that are there will not do."""
    folder = settings.state_dir
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    secret, authority, own = folder / "front_ca.key", folder / "front_ca.pem", folder / "front.pem"
    if not (secret.exists() and authority.exists()):
        certificate, key = make_authority(f"nexus {socket.gethostname()}"[:64], clock.now())
        write_private(authority, certificate)
        write_private(secret, key)
    addresses = front_addresses(settings)
    trusted = authority.read_text()
    if not own.exists() or not is_good_for(own.read_text(), trusted, addresses, clock.now() + _LEFT_DAYS * 86_400):
        write_private(own, issue_certificate(trusted, secret.read_text(), addresses, clock.now(), _DAYS))
    return FrontTls(own, authority, fingerprint(trusted))


def front_addresses(settings: Settings) -> list[str]:
    """Return the names and addresses under which clients may reach the front door."""
    host = settings.runtime.http_host
    names = ["127.0.0.1", "::1", "localhost", socket.gethostname(), urlsplit(settings.security.public_url).hostname]
    if host in _WILDCARDS:
        for found in psutil.net_if_addrs().values():
            names += [one.address for one in found if one.family in (socket.AF_INET, socket.AF_INET6)]
    else:
        names.append(host)
    return sorted({name for name in names if name and _is_plain(name)})


def _is_plain(name: str) -> bool:
    """Tell whether a name can stand in a certificate; an address with a zone (`fe80::1%eth0`) is this machine's own."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.isascii() and "%" not in name
    return "%" not in name
