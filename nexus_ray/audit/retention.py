"""Retention: what is old enough and not held loses its words and keeps its hash, so that chain and tree still verify.

Law: what was emptied, and under which rule, is itself a record that stays; a record that is empty without one was
tampered with.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from nexus_ray.audit.limits import AuditSettings
from nexus_ray.audit.ports import Hold
from nexus_ray.audit.record import Entry, Kind, Retention
from nexus_ray.audit.store import AuditStore
from nexus_ray.core.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError
from nexus_ray.core.ids import new_id

_DAY_S = 86_400.0
_RUN_MAX = 10_000  # A transaction of some 50 ms; the rest goes with the next one.
_STRETCHES_MAX = 500  # They must fit into one record.
_HELD_BY = {"goal", "principal", "tenant"}
_EMPTY = (
    "UPDATE audit_records SET body = NULL, operation = 'emptied-' || seq, action = '', principal = '', tenant = '',"
    " goal = '', decision = '' WHERE seq >= ? AND seq <= ?"
)


def retain(store: AuditStore, settings: AuditSettings, now: float) -> int:
    """Empty what is due; return how many records."""
    limits = {
        Retention.ACCESS: settings.access_days,
        Retention.CHANGE: settings.change_days,
        Retention.ADMINISTRATION: settings.administration_days,
    }
    return sum(_retain(store, kind, days, now) for kind, days in limits.items())


def _retain(store: AuditStore, kind: Retention, days: float, now: float) -> int:
    emptied = 0
    while True:
        with store.database.writing():
            stretches = _due(store, kind, now - days * _DAY_S)
            if not stretches:
                return emptied
            for low, high in stretches:
                store.database.execute(_EMPTY, low, high)
            facts = {"emptied": [list(stretch) for stretch in stretches], "retention": kind.value, "days": days}
            store.write([
                Entry(new_id("op"), Kind.EVENT, now, "audit:retain", Retention.FOREVER, principal="nexus",
                      outcome="ok", facts=facts)
            ])  # fmt: skip
        emptied += sum(high - low + 1 for low, high in stretches)


def _due(store: AuditStore, kind: Retention, before: float) -> list[tuple[int, int]]:
    """Return the stretches, first and last number, of records whose time is over."""
    text = "SELECT seq FROM audit_records WHERE body IS NOT NULL AND is_open = 0 AND retention = ? AND at < ?"
    values: list[Any] = [kind.value, before]
    for hold in holds(store):
        assert hold.field in _HELD_BY
        text += f" AND {hold.field} <> ?"
        values.append(hold.value)
    found = [seq for (seq,) in store.database.rows(f"{text} ORDER BY seq LIMIT {_RUN_MAX}", *values)]
    return _stretches(found)[:_STRETCHES_MAX]


def _stretches(numbers: Sequence[int]) -> list[tuple[int, int]]:
    if not numbers:
        return []
    cuts = [(left, right) for left, right in pairwise(numbers) if right != left + 1]
    firsts = [numbers[0], *(right for _, right in cuts)]
    lasts = [*(left for left, _ in cuts), numbers[-1]]
    return list(zip(firsts, lasts, strict=True))


def hold(store: AuditStore, wanted: Hold, entry: Entry) -> None:
    """Place a hold, and write down who did."""
    if wanted.field not in _HELD_BY or not wanted.value or not wanted.name or not wanted.name.isprintable():
        raise InvalidArgumentError(f"a hold has a name, and names one of {', '.join(sorted(_HELD_BY))} and its value")
    values = (wanted.name, wanted.field, wanted.value, wanted.reason, wanted.by, wanted.at)
    try:
        with store.database.writing():
            store.database.insert("INSERT INTO audit_holds VALUES (?, ?, ?, ?, ?, ?)", [values])
            store.write([entry])
    except KeyError:
        raise AlreadyExistsError(f"there is a hold {wanted.name!r} already") from None


def release(store: AuditStore, name: str, entry: Entry) -> None:
    """Let go of a hold, and write down who did."""
    with store.database.writing():
        if not store.database.execute("DELETE FROM audit_holds WHERE name = ?", name):
            raise NotFoundError(f"there is no hold {name[:80]!r}")
        store.write([entry])


def holds(store: AuditStore) -> list[Hold]:
    """Return the holds, by name."""
    text = "SELECT name, field, value, reason, by, at FROM audit_holds ORDER BY name"
    return [Hold(*row) for row in store.database.rows(text)]
