"""An auditor over a log that this process has itself."""

import functools

from nexus_ray.audit.auditor import Auditor
from nexus_ray.config import Settings
from nexus_ray.core.clock import Clock
from nexus_ray.runtime.audit_link import here, load_salt, open_audit_file


def auditor_of(settings: Settings, clock: Clock) -> Auditor:
    """Return one; its log is opened at the first record, and closed with it."""
    log = here(functools.partial(open_audit_file, settings))
    return Auditor(log, settings.audit, clock, load_salt(settings), "gateway")
