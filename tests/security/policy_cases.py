"""The conformance table of policy engines: one policy, and what it must say to each request."""

from dataclasses import dataclass
from typing import Any

from nexus_ray.security.policy import NO_ROLE, PolicyRequest

POLICY: dict[str, Any] = {
    "tenants": ["main", "acme"],
    "roles": {
        "viewer": ["goal:read", "agent:*"],
        "submitter": ["goal:submit review.*", "goal:submit report"],
        "local": {"grants": ["goal:*"], "tenants": ["acme"]},
        "night": {"grants": ["goal:cancel"], "hours": ["22:00-06:00"], "weekdays": ["mon"]},
        "office": {"grants": ["host:drain"], "sources": ["10.1.0.0/16", "2001:db8::/32"]},
    },
    "bindings": [
        {"role": "submitter", "groups": ["engineering"], "principals": ["corp:*"], "tenants": ["acme"]},
        {"role": "viewer", "principals": ["ann"]},
    ],
}
_DAY_S = 86_400.0
_MONDAY = 4 * _DAY_S  # 5 January 1970.


@dataclass(frozen=True, slots=True)
class Case:
    title: str
    reason: str
    request: PolicyRequest


def _case(title: str, reason: str, action: str, resource: str = "", roles: str = "", **rest: Any) -> Case:
    told = {"principal": "bob", "tenant": "main", "at": _MONDAY + _DAY_S / 2, **rest}
    return Case(title, reason, PolicyRequest(action=action, resource=resource, roles=tuple(roles.split()), **told))


def _night(title: str, reason: str, hours: float) -> Case:
    return _case(title, reason, "goal:cancel", roles="night", at=_MONDAY + hours * 3600)


def _from(title: str, reason: str, source: str) -> Case:
    return _case(title, reason, "host:drain", "host-0", "office", source=source)


YES = "granted"
CASES = [
    _case("a role grants", YES, "goal:read", "g1", "viewer"),
    _case("one role of several grants", YES, "goal:read", "g1", "x viewer y"),
    _case("a star grants its type", YES, "agent:ask", "reader/a", "viewer"),
    _case("and no other", NO_ROLE, "host:read", roles="viewer"),
    _case("no role", NO_ROLE, "goal:read"),
    _case("an unknown role", NO_ROLE, "goal:read", roles="root"),
    _case("another spelling of a role", NO_ROLE, "goal:read", roles="Viewer"),
    _case("an unknown action", NO_ROLE, "agent:explode", roles="viewer"),
    _case("a star is no action", NO_ROLE, "agent:*", roles="viewer"),
    _case("no action", NO_ROLE, "", roles="viewer"),
    _case("a pattern", YES, "goal:submit", "review.code", "submitter"),
    _case("a pattern's shortest", YES, "goal:submit", "review.", "submitter"),
    _case("what only begins like a pattern", NO_ROLE, "goal:submit", "review", "submitter"),
    _case("what holds a pattern", NO_ROLE, "goal:submit", "xreview.a", "submitter"),
    _case("another case", NO_ROLE, "goal:submit", "Review.a", "submitter"),
    _case("a name in full", YES, "goal:submit", "report", "submitter"),
    _case("what begins with a name", NO_ROLE, "goal:submit", "report.a", "submitter"),
    _case("the form of a name", NO_ROLE, "goal:submit", "6=report", "submitter"),
    _case("the form of a pattern", NO_ROLE, "goal:submit", "~review.a", "submitter"),
    _case("no resource", NO_ROLE, "goal:submit", "", "submitter"),
    _case("an unknown tenant", "tenant_unknown", "goal:read", roles="viewer", tenant="other"),
    _case("no tenant", "tenant_unknown", "goal:read", roles="viewer", tenant=""),
    _case("all tenants", "tenant_unknown", "goal:read", roles="viewer", tenant="*"),
    _case("a role in its tenant", YES, "goal:cancel", roles="local", tenant="acme"),
    _case("a role in another tenant", NO_ROLE, "goal:cancel", roles="local"),
    _case("a bound group", YES, "goal:submit", "report", "engineering", tenant="acme"),
    _case("a bound group elsewhere", NO_ROLE, "goal:submit", "report", "engineering"),
    _case("what begins with a group", NO_ROLE, "goal:submit", "report", "engineering2", tenant="acme"),
    _case("a principal named as a group", NO_ROLE, "goal:submit", "report", principal="engineering", tenant="acme"),
    _case("the form of a group", NO_ROLE, "goal:submit", "report", principal="@11=engineering", tenant="acme"),
    _case("a bound pattern of principals", YES, "goal:submit", "report", principal="corp:eve", tenant="acme"),
    _case("a group named as a principal", NO_ROLE, "goal:submit", "report", "corp:eve", tenant="acme"),
    _case("a bound principal", YES, "goal:read", principal="ann"),
    _case("what begins with a principal", NO_ROLE, "goal:read", principal="anna"),
    _case("a principal named as a role", NO_ROLE, "goal:read", roles="ann"),
    _night("the evening", YES, 22),
    _night("before the evening", NO_ROLE, 21.99),
    _night("the night after", YES, 29.9),
    _night("the morning after", NO_ROLE, 30),
    _night("the night before", NO_ROLE, 5),
    _night("the next evening", NO_ROLE, 46.5),
    _from("from inside", YES, "10.1.2.3"),
    _from("from inside by IPv6", YES, "2001:db8:1::5"),
    _from("from inside through an IPv6 socket", YES, "::ffff:10.1.0.9"),
    _from("from outside", NO_ROLE, "10.2.0.1"),
    _from("from nowhere", NO_ROLE, ""),
    _from("from no address", NO_ROLE, "4:0000101000000001"),
    _from("from a name", NO_ROLE, "localhost"),
]  # fmt: skip
