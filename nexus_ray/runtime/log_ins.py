"""Log-ins by a directory or an identity provider, over the fleet's ledger and its issuer's key.

Law: no logic here but the wiring; what opens once is on record in the ledger that all gateways share.
"""

from nexus_ray.audit.auditor import Auditor
from nexus_ray.config import Settings
from nexus_ray.core.clock import Clock
from nexus_ray.core.errors import FailedPreconditionError, UnauthenticatedError
from nexus_ray.goals.ledger import Ledger
from nexus_ray.goals.marks import Mark
from nexus_ray.security.exchange import Exchange
from nexus_ray.security.keys import load_or_create_issuer_key
from nexus_ray.security.throttle import Throttle

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
    key = load_or_create_issuer_key(settings.state_dir)
    try:
        if security.ldap.url:
            from nexus_ray.security.ldap import Directory

            directory = Directory(security.ldap, clock)
        if security.saml.entity_id:
            from nexus_ray.security.saml import ServiceProvider

            provider = ServiceProvider(security.saml, key.private.private_bytes_raw(), clock)
    except ImportError as error:
        raise FailedPreconditionError(
            f"{error.name} is not installed: `pip install 'nexus-ray[ldap,saml]'` has what log-ins need"
        ) from None

    def note(error: UnauthenticatedError) -> None:
        auditor.refused(None, "session:authenticate", "", error)

    throttle = Throttle(settings.throttle, clock)
    return Exchange(security, settings.tokens, key, LedgerOnce(ledger), clock, directory, provider, throttle, note)
