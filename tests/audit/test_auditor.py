"""The auditor of a process: what strangers cannot do to the log."""

from pathlib import Path

from nexus_ray.audit.auditor import Auditor, Scene, arrive
from nexus_ray.audit.limits import AuditSettings
from nexus_ray.audit.ports import RecordQuery
from nexus_ray.config import Settings
from nexus_ray.core.clock import ManualClock
from nexus_ray.core.errors import PermissionDeniedError, UnauthenticatedError
from nexus_ray.core.identity import Session
from tests.support.auditing import auditor_of


async def told(auditor: Auditor) -> list[tuple[str, int]]:
    await auditor.flush()
    found = [one.fields for one in await auditor.log.records(RecordQuery(is_oldest_first=True))]
    return [(one.get("source", one["action"]), one.get("facts", {}).get("count", 1)) for one in found]


async def test_strangers_fill_the_log_at_a_bounded_rate_from_however_many_addresses(tmp_path: Path) -> None:
    clock = ManualClock()
    auditor = auditor_of(Settings(state_dir=tmp_path, audit=AuditSettings(strangers_a_minute_max=2)), clock)
    ada = Session("s", "ada", "idp", (), 9e9)

    for number in range(5):
        arrive(Scene(f"2001:db8::{number}"))
        auditor.refused(None, "session:authenticate", "", UnauthenticatedError("no", reason="signature"))
        assert len(await told(auditor)) <= 2
    auditor.refused(ada, "goal:read", "", PermissionDeniedError("no", reason="no_role_grants_it"))
    within = await told(auditor)
    clock.advance(60.0)
    after = await told(auditor)
    auditor.refused(None, "session:authenticate", "", UnauthenticatedError("no", reason="signature"))

    assert within == [("2001:db8::0", 1), ("2001:db8::1", 1), ("2001:db8::4", 1)]  # The last is known by name.
    assert after == [*within, ("2001:db8::4", 3)]  # How many there were besides, in one record.
    assert await told(auditor) == [*after, ("2001:db8::4", 1)]
    await auditor.close()
