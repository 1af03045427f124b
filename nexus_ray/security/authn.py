"""Authentication: a credential becomes a `Session`, or is refused like every other one.

Law: the only place that makes sessions for callers from outside. Every attempt is counted.
"""

import hashlib
from collections import OrderedDict
from pathlib import Path

from nexus_ray.core.clock import Clock
from nexus_ray.core.errors import UnauthenticatedError
from nexus_ray.core.identity import Session
from nexus_ray.observe import metrics
from nexus_ray.observe.logs import get_logger
from nexus_ray.security.jose import refused
from nexus_ray.security.keys import KeySet, load_key_set
from nexus_ray.security.tokens import TokenSettings, verify_token

log = get_logger("security.authn")


class Authenticator:
    """Checks bearer tokens of the local issuer."""

    def __init__(self, key_set: KeySet, settings: TokenSettings, clock: Clock) -> None:
        self._key_set = key_set
        self._settings = settings
        self._clock = clock
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()

    @classmethod
    def from_folder(cls, folder: Path, settings: TokenSettings, clock: Clock) -> "Authenticator":
        """Return an authenticator over the public keys of a state folder.

        Raises:
            FailedPreconditionError: There are none.
        """
        return cls(load_key_set(folder), settings, clock)

    @property
    def is_ready(self) -> bool:
        """Tell whether there is a key to check with."""
        return bool(self._key_set.keys)

    def authenticate(self, credential: str | None) -> Session:
        """Return who presents `credential`, the text after `Bearer `.

        Raises:
            UnauthenticatedError: Nobody that we know; all refusals read alike.
        """
        now = self._clock.now()
        try:
            session = self._session(credential, now)
        except UnauthenticatedError as error:
            metrics.count("nexus_auth_attempts_total", provider="local", result="failure", method="token")
            log.info("authn.refused", reason=error.details.get("reason"))
            raise
        metrics.count("nexus_auth_attempts_total", provider="local", result="success", method="token")
        return session

    def _session(self, credential: str | None, now: float) -> Session:
        if not credential:
            raise refused("missing")
        # The hash, so that no token stays in memory in clear.
        name = hashlib.blake2b(credential.encode("utf-8", "surrogatepass"), digest_size=32).digest()
        session = self._sessions.get(name)
        if session is not None:
            if session.expires_at <= now - self._settings.leeway_s:
                del self._sessions[name]
                raise refused("expired")
            return session
        claims = verify_token(credential, self._key_set, self._settings, now)
        session = Session(claims.id, claims.subject, claims.issuer, claims.roles, claims.expires_at)
        self._sessions[name] = session
        if len(self._sessions) > self._settings.cached_max:
            self._sessions.popitem(last=False)
        return session
