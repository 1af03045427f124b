"""Who is calling where proxies stand before the fleet: the address that the nearest one of them was called from.

Law: what a header says of a caller is believed of nobody but a proxy that the settings name, and of that one only what
it wrote itself: the last entry. Further back it is read only for as long as each entry is such a proxy's again.
"""

import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from starlette.types import Scope

from nexus_ray.config import RuntimeSettings

PEER = "nexus.peer"
_HOPS_MAX = 16
_ELEMENT = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')  # Between commas, but for those in quotes (RFC 7239, 4).
_FOR = re.compile(r'(?:^|;)\s*for="?([^";]*)"?\s*(?:;|$)', re.IGNORECASE)
_PORT = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+))(?::[0-9]{1,5})?\Z")

Network = IPv4Network | IPv6Network


class Proxies:
    """Knows the proxies that are believed."""

    def __init__(self, settings: RuntimeSettings) -> None:
        self._networks: list[Network] = [ip_network(text) for text in settings.trusted_proxies]
        self._header = settings.proxy_header.encode()

    def seen_through(self, scope: Scope) -> Scope:
        """Return a request with the address that it comes from, and in `PEER` the one that is connected to us."""
        client = scope.get("client")
        if not self._networks or client is None:
            return scope
        source = self._source(client[0], scope["headers"])
        return {**scope, "client": (source, client[1] if source == client[0] else 0), PEER: client[0]}

    def _source(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        source = peer
        said = [value.decode("latin-1") for name, value in headers if name == self._header]
        for _, entry in zip(range(_HOPS_MAX), self._entries(said), strict=False):
            if not self._is_trusted(source):
                break
            address = _address(entry)
            if address is None:
                break  # Who it was is not known, and what stands before that is anybody's word.
            source = address
        return source

    def _entries(self, said: list[str]) -> Iterator[str]:
        """Give the addresses that are said, the last first."""
        for line in reversed(said):
            if self._header == b"x-forwarded-for":
                yield from reversed(line.split(","))
                continue
            for element in reversed(_ELEMENT.findall(line)):
                match = _FOR.search(element.strip())
                yield match[1] if match else ""

    def _is_trusted(self, address: str) -> bool:
        try:
            found = ip_address(address)
        except ValueError:
            return False
        if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        return any(found in network for network in self._networks)


def peer_of(scope: Scope) -> str:
    """Return the other end of the connection itself, whoever it speaks for."""
    client = scope.get("client")
    return str(scope.get(PEER, client[0] if client else ""))


def _address(entry: str) -> str | None:
    text = entry.strip()
    match = _PORT.match(text)
    try:
        return str(ip_address((match[1] or match[2]) if match else text))
    except ValueError:
        return None
