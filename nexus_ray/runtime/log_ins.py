"""Log-ins by a directory or an identity provider, over the fleet's ledger and its issuer's key.

Law: no logic here but the wiring; what opens once is on record in the ledger that all gateways share.
"""

from typing import Any

from nexus_ray.audit.auditor import Auditor
from nexus_ray.config import Settings
from nexus_ray.core.clock import Clock
from nexus_ray.core.errors import FailedPreconditionError, UnauthenticatedError
from nexus_ray.core.identity import Session
from nexus_ray.ledger.marks import Mark
from nexus_ray.ledger.ports import Ledger
from nexus_ray.runtime.front import FrontDoor
from nexus_ray.security.exchange import Exchange
from nexus_ray.security.keys import FolderKey
from nexus_ray.security.login import LogIn
from nexus_ray.security.throttle import Throttle
from nexus_ray.security.token_exchange import TokenExchange

_KIND = "once"


class LedgerOnce:
    """What was used, as marks of the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def claim(self, name: str, at: float, until: float) -> bool:
        """Return true to the first who claims a name; see `security.exchange.Once`."""
        return await self._ledger.put_mark(Mark(_KIND, name, at, until), only_new=True)


def open_exchange(settings: Settings, ledger: Ledger, clock: Clock, auditor: Auditor) -> Exchange | None:
    """Return the exchange of a gateway, or None where no provider is configured.

    Raises:
        FailedPreconditionError: A file that the settings name cannot be read.
    """
    security = settings.security
    if not (security.ldap.url or security.saml.entity_id):
        return None
    directory = provider = None
    key = FolderKey(settings.state_dir)
    try:
        if security.ldap.url:
            from nexus_ray.security.ldap import Directory

            directory = Directory(security.ldap, clock)
        if security.saml.entity_id:
            from nexus_ray.security.saml import ServiceProvider

            provider = ServiceProvider(security.saml, key().private.private_bytes_raw(), clock)
    except ImportError as error:
        raise FailedPreconditionError(
            f"{error.name} is not installed: `pip install 'nexus-ray[ldap,saml]'` has what log-ins need"
        ) from None

    def note(error: UnauthenticatedError) -> None:
        auditor.refused(None, "session:authenticate", "", error)

    async def granted(log_in: LogIn, token_id: str) -> None:
        session = Session(token_id, log_in.principal, settings.tokens.issuer, log_in.roles, 0.0, log_in.tenant)
        facts = {"provider": log_in.provider, "method": log_in.method, "roles": log_in.roles}
        name = auditor.principal(log_in.principal)
        await auditor.append([auditor.entry(session, "token:create", name, outcome="ok", facts=facts)])

    throttle = Throttle(settings.throttle, clock)
    once = LedgerOnce(ledger)
    return Exchange(security, settings.tokens, key, once, clock, directory, provider, throttle, note, granted)


def open_token_exchange(settings: Settings, front: FrontDoor, clock: Clock, auditor: Auditor) -> TokenExchange:
    """Return what exchanges the tokens that a gateway takes."""

    async def write_down(subject: Session, facts: dict[str, Any]) -> None:
        facts = {**facts, "actors": [auditor.principal(actor) for actor in facts["actors"]]}
        name = auditor.principal(subject.principal)
        await auditor.append([auditor.entry(subject, "token:exchange", name, outcome="ok", facts=facts)])

    key = FolderKey(settings.state_dir)
    throttle = Throttle(settings.throttle, clock)
    return TokenExchange(settings.security, settings.tokens, key, clock, front.identify, throttle, write_down)
