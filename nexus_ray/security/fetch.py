"""One GET of a JSON document from an identity provider.

Law: one request to one address that was looked at first; no redirect, no proxy, no cookie; bounded in time and size.
Whose documents name further addresses gets none of them fetched from inside this network (SSRF): the address that is
connected to is the very one that was checked, so a name that resolves differently the next moment changes nothing.
"""

import asyncio
import ipaddress
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx2

from nexus_ray.core.errors import UnavailableError

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SHARED = ipaddress.ip_network("100.64.0.0/10")  # RFC 6598: neither public nor called private.

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_loopback_url(url: str) -> bool:
    """Tell whether a URL names this machine, by one of the names that always do."""
    try:
        return urlsplit(url).hostname in _LOOPBACK_NAMES
    except ValueError:
        return False


def check_url(url: str, *, may_be_loopback: bool) -> None:
    """Refuse a URL that is not `https://host…`; `http` may stand before this machine's own names where allowed.

    Raises:
        UnavailableError: It is another kind of URL.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UnavailableError("an address of the identity provider is malformed") from None
    is_local = may_be_loopback and is_loopback_url(url)
    is_plain = url.isascii() and url.isprintable() and " " not in url and "\\" not in url and port != 0
    if not is_plain or not parts.hostname or parts.username is not None or parts.fragment:
        raise UnavailableError("an address of the identity provider is malformed")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_local):
        raise UnavailableError("an address of the identity provider is not https")


def may_connect(address: str, *, may_be_loopback: bool, may_be_private: bool) -> bool:
    """Tell whether a provider's document may be fetched from this IP address."""
    found: Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inside = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inside = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        found = inside or found
    if found.is_loopback:
        return may_be_loopback
    # Link-local holds the clouds' metadata services: never, whatever is set.
    if found.is_link_local or found.is_multicast or found.is_unspecified or found.is_reserved:
        return False
    if found.is_private or (found.version == 4 and found in _SHARED) or not found.is_global:
        return may_be_private
    return True


async def get_json(
    url: str, *, timeout_s: float, bytes_max: int, may_be_loopback: bool = False, may_be_private: bool = False
) -> Any:
    """Return the JSON document at `url`.

    Raises:
        UnavailableError: No answer in time, another answer than 200, too large, no JSON, or an address not allowed.
    """
    check_url(url, may_be_loopback=may_be_loopback)
    try:
        async with asyncio.timeout(timeout_s):
            address = await _resolve(url, may_be_loopback, may_be_private)
            raw = await _get(url, address, timeout_s, bytes_max)
        return json.loads(raw.decode("utf-8"))
    except (TimeoutError, httpx2.HTTPError, httpx2.InvalidURL):
        raise UnavailableError("the identity provider does not answer") from None
    except (ValueError, RecursionError):
        raise UnavailableError("the identity provider answers no JSON") from None


async def _resolve(url: str, may_be_loopback: bool, may_be_private: bool) -> str:
    parts = urlsplit(url)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            parts.hostname, parts.port or 443, type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError):
        raise UnavailableError("the identity provider's name does not resolve") from None
    addresses = [str(entry[4][0]) for entry in found]
    # One address that is not allowed spoils the name: a resolver that mixes them is up to something.
    for address in addresses:
        if not may_connect(address, may_be_loopback=may_be_loopback, may_be_private=may_be_private):
            raise UnavailableError("an address of the identity provider is not allowed")
    return addresses[0]


async def _get(url: str, address: str, timeout_s: float, bytes_max: int) -> bytes:
    asked = httpx2.URL(url)
    async with httpx2.AsyncClient(timeout=timeout_s, follow_redirects=False, trust_env=False) as client:
        request = client.build_request(
            "GET",
            asked.copy_with(host=address),
            headers={"Host": asked.netloc.decode("ascii"), "Accept": "application/json", "Accept-Encoding": "identity"},
            extensions={"sni_hostname": asked.host},  # The certificate is checked for the name, not for the address.
        )
        answer = await client.send(request, stream=True)
        try:
            if answer.status_code != 200 or "content-encoding" in answer.headers:
                raise UnavailableError("the identity provider refuses", status=answer.status_code)
            raw = b""
            async for chunk in answer.aiter_raw():
                raw += chunk
                if len(raw) > bytes_max:
                    raise UnavailableError("the identity provider's document is too large")
            return raw
        finally:
            await answer.aclose()
