"""Log-ins with a password of a directory: bind as the user, over TLS with a verified certificate and nothing else.

Law: a password goes to the directory that the settings name and nowhere else: no StartTLS, no referral, no plain
connection, no certificate that does not say the server's name. What a user typed never becomes part of a filter or a
name unescaped. A user that does not exist takes the same steps as one whose password is wrong.
Sources: RFC 4513 (5.1.2: an empty password is no authentication), 4514, 4515.
"""

import asyncio
import contextlib
import math
import secrets
import ssl
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import ldap3
from ldap3.core.exceptions import LDAPException, LDAPInvalidDnError
from ldap3.utils.conv import escape_filter_chars
from ldap3.utils.dn import escape_rdn, parse_dn

from nexus_ray.core.clock import Clock
from nexus_ray.core.errors import (
    FailedPreconditionError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from nexus_ray.observe.logs import get_logger
from nexus_ray.security.jose import refused
from nexus_ray.security.login import LdapSettings, LogIn, principal_of, roles_of

log = get_logger("security.ldap")

_PASSWORD_BYTES_MAX = 1024  # No directory hashes more; it only costs it time.
_ENTRIES_MAX = 2  # One is looked for; the second shows that the filter is not good enough.


class _NamedTls(ldap3.Tls):  # type: ignore[misc]
    """TLS as Python itself checks it: ldap3 compares names by a copy of code that the standard library gave up."""

    def __init__(self, context: ssl.SSLContext, host: str, timeout_s: float) -> None:
        super().__init__(validate=ssl.CERT_REQUIRED)
        self._context = context
        self._host = host
        self._timeout_s = timeout_s

    def wrap_socket(self, connection: Any, do_handshake: bool = False) -> None:
        """Put TLS over a connection, or raise."""
        connection.socket.settimeout(self._timeout_s)
        connection.socket = self._context.wrap_socket(connection.socket, server_hostname=self._host)


class Directory:
    """Checks users and passwords; used from one event loop only."""

    def __init__(self, settings: LdapSettings, clock: Clock) -> None:
        """Read what the settings name.

        Raises:
            FailedPreconditionError: The authorities or the password of the searching account cannot be read.
        """
        parts = urlsplit(settings.url)
        host = parts.hostname or ""
        try:
            context = ssl.create_default_context(cafile=settings.ca_file)
            password = settings.bind_password_file.read_text().rstrip("\n") if settings.bind_password_file else ""
        except (OSError, ValueError) as error:
            raise FailedPreconditionError(f"security.ldap: a file that it names cannot be read: {error}") from None
        if settings.bind_dn and not password:
            raise FailedPreconditionError("security.ldap: the password of bind_dn is empty")
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._host, self._port = host, parts.port or 636
        self._tls = _NamedTls(context, host, settings.timeout_s)
        self._settings = settings
        self._password = password
        self._roles = {_normal(name): roles for name, roles in settings.roles.items()}
        self._clock = clock
        self._threads = ThreadPoolExecutor(settings.concurrent_max, "ldap")
        self._busy = 0

    async def log_in(self, user: str, password: str) -> LogIn:
        """Return who that is.

        Raises:
            UnauthenticatedError: Unknown, another password, or no group that grants anything; all read alike.
            ResourceExhaustedError: Too many log-ins at one time.
            UnavailableError: The directory does not answer, or is not the one that it should be.
        """
        if not user or len(user) > 190 or not user.isprintable():
            raise refused("user")
        # An empty one would be an anonymous bind, which succeeds; and a NUL ends a password for some directories.
        if not password or "\0" in password or len(password.encode("utf-8", "surrogatepass")) > _PASSWORD_BYTES_MAX:
            raise refused("password")
        if self._busy >= self._settings.concurrent_max:
            raise ResourceExhaustedError("too many log-ins at one time", retry_after_s=1.0)
        self._busy += 1
        running = asyncio.get_running_loop().run_in_executor(self._threads, self._log_in, user, password)
        # Counted until the thread has ended, also where nobody waits for it any more.
        running.add_done_callback(self._ended)
        return await asyncio.shield(running)

    def close(self) -> None:
        """Take no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ended(self, running: "asyncio.Future[LogIn]") -> None:
        self._busy -= 1
        if not running.cancelled():
            running.exception()  # Whoever asked may be gone; then nobody else looks at it.

    def _log_in(self, user: str, password: str) -> LogIn:
        try:
            return self._by_search(user, password) if self._settings.bind_dn else self._by_place(user, password)
        except (UnauthenticatedError, UnavailableError):
            raise
        except Exception as error:  # ldap3 lets others than its own through: of sockets, of ssl, of what it decodes.
            log.warning("ldap.failed", error_type=type(error).__name__, error=str(error)[:300])
            raise UnavailableError("the directory does not answer as it should") from None

    def _by_search(self, user: str, password: str) -> LogIn:
        settings = self._settings
        with self._connection(settings.bind_dn, self._password) as service:
            if not service.bind():
                log.error("ldap.bind_dn_refused", result=service.result["description"])
                raise UnavailableError("the directory does not answer as it should")
            wanted = settings.user_filter.replace("{user}", escape_filter_chars(user))
            found = _entries(service, settings.user_base, wanted, [settings.name_attribute], _ENTRIES_MAX)
            # A user that is not there is bound too, under a name that nobody has: the same steps, the same time.
            dn = found[0][0] if len(found) == 1 else f"cn={secrets.token_hex(16)},{settings.user_base}"
            with self._connection(dn, password) as own:
                is_bound = own.bind()
            if not is_bound or len(found) != 1:
                raise refused("user_or_password")
            return self._known(service, dn, found[0][1])

    def _by_place(self, user: str, password: str) -> LogIn:
        settings = self._settings
        dn = settings.user_dn.replace("{user}", escape_rdn(user))
        with self._connection(dn, password) as own:
            if not own.bind():
                raise refused("user_or_password")
            wanted = [settings.name_attribute]
            found = _entries(own, dn, "(objectClass=*)", wanted, _ENTRIES_MAX, scope=ldap3.BASE)
            if len(found) != 1:
                raise refused("entry")
            return self._known(own, found[0][0], found[0][1])

    def _known(self, connection: Any, dn: str, attributes: dict[str, Any]) -> LogIn:
        settings = self._settings
        names = attributes.get(settings.name_attribute) or []
        names = names if isinstance(names, list) else [names]
        if len(names) != 1:
            raise refused("name")  # Of two names it would depend on the directory which one is meant.
        principal = principal_of("ldap", str(names[0]))
        wanted = settings.group_filter.replace("{dn}", escape_filter_chars(dn))
        groups = _entries(connection, settings.group_base, wanted, ["1.1"], settings.groups_max)
        roles = roles_of((_normal(group) for group, _ in groups), self._roles)
        now = self._clock.now()
        return LogIn("ldap", "password", principal, roles, settings.tenant, now, amr=("pwd",))

    @contextlib.contextmanager
    def _connection(self, dn: str, password: str) -> Any:
        timeout_s = self._settings.timeout_s
        # One for each connection: ldap3 would answer for five seconds that a server which failed once is not there.
        server = ldap3.Server(
            self._host, port=self._port, use_ssl=True, tls=self._tls, get_info=ldap3.NONE,
            connect_timeout=timeout_s, allowed_referral_hosts=[],
        )  # fmt: skip
        connection = ldap3.Connection(
            server, dn, password, authentication=ldap3.SIMPLE, auto_bind=ldap3.AUTO_BIND_NONE, version=3,
            receive_timeout=math.ceil(timeout_s), auto_referrals=False, read_only=True,
            raise_exceptions=False, check_names=False,
        )  # fmt: skip
        try:
            yield connection
        finally:
            with contextlib.suppress(LDAPException, OSError):
                connection.unbind()


def _entries(
    connection: Any, base: str, wanted: str, attributes: list[str], limit: int, scope: str = ldap3.SUBTREE
) -> list[tuple[str, dict[str, Any]]]:
    """Return name and attributes of what is found, referrals left out; one more than `limit` is a refusal."""
    connection.search(base, wanted, scope, ldap3.DEREF_NEVER, attributes, size_limit=limit)
    code = connection.result["description"]
    if code == "sizeLimitExceeded":
        raise refused("too_many_entries")
    if code not in ("success", "noSuchObject", "referral"):
        log.warning("ldap.search_failed", result=code)
        raise UnavailableError("the directory does not answer as it should")
    entries = [entry for entry in connection.response or () if entry["type"] == "searchResEntry"]
    return [(entry["dn"], dict(entry["attributes"])) for entry in entries]


def _normal(dn: str) -> str:
    """Return a name as it is compared: spaces and case say nothing in what directories call their groups."""
    try:
        parts = parse_dn(dn, strip=True)
        return "".join(f"{kind.lower()}={value.casefold()}{end}" for kind, value, end in parts)
    except LDAPInvalidDnError:
        return dn
