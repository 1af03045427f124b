"""Why a policy says what it says, and what another one would say otherwise.

Law: the engine is the only judge. Why something is granted or not is found by asking it about parts of the policy, so
an explanation never disagrees with a decision. Takes a policy as it stands in its file, checked.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from nexus_ray.security.policy import ACTIONS, Decision, PolicyRequest, parse_policy
from nexus_ray.security.rego_engine import RegoEngine

_LIMITS = ("tenants", "sources", "hours", "weekdays")
_TIMES = ("hours", "weekdays")
_PROBE = "probe"

Table = Mapping[str, Any]


class Ground(NamedTuple):
    """One way by which a request is granted: a role, a grant of it, and how the caller has that role."""

    role: str
    grant: str
    held_by: str


class Explanation(NamedTuple):
    """A decision, what granted it, and otherwise what was missing and which roles would do."""

    decision: Decision
    grounds: list[Ground]
    missing: list[str]
    roles: list[str]


class Difference(NamedTuple):
    """What the second of two policies grants more, and less, a line each."""

    more: list[str]
    less: list[str]


def decide(table: Table, request: PolicyRequest) -> Decision:
    """Return what the embedded engine says."""
    return RegoEngine(parse_policy(table)).decide(request)


def explain(table: Table, request: PolicyRequest) -> Explanation:
    """Return the decision on a request, and why."""
    decision = decide(table, request)
    if decision.reason not in ("granted", "no_role_grants_it"):
        told = {
            "tenant_unknown": f"the policy knows no tenant {request.tenant!r}; it knows {_named(table['tenants'])}"
            if "tenants" in table else "",
            "input_refused": "a text has a quote, a backslash or a control character, or is too long",
        }  # fmt: skip
        return Explanation(decision, [], [told.get(decision.reason, "the engine did not decide")], [])
    grounds: list[Ground] = []
    missing: list[str] = []
    for role, held_by in _held(table, request, missing):
        _look_at_role(table, role, held_by, request, grounds, missing)
    if decision.is_allowed:
        return Explanation(decision, grounds, [], [])
    roles = [
        role for role in table["roles"]
        if _grants(table, role, request.action) and decide(_only(table, role), _as(request, role)).is_allowed
    ]  # fmt: skip
    if not request.action or request.action not in ACTIONS:
        missing = [f"there is no action {request.action!r}"]
    elif not missing:
        missing = ["the caller has none of the roles of this policy"]
    return Explanation(decision, grounds, missing, roles)


def difference(old: Table, new: Table) -> Difference:
    """Return what `new` grants more and less than `old`: by tenant, role, action and resource, and by binding."""
    for table in (old, new):
        parse_policy(table)
    before, after = list(_lines(old)), list(_lines(new))
    return Difference(
        [line.text for line in after if not any(_covers(other, line) for other in before)],
        [line.text for line in before if not any(_covers(other, line) for other in after)],
    )


def _held(table: Table, request: PolicyRequest, missing: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the roles that the caller has, and how; tell of those that he nearly has."""
    for role in dict.fromkeys(request.roles):
        if role in table["roles"]:
            yield role, "the token"
    for number, binding in enumerate(table.get("bindings", []), 1):
        named = f"binding {number} ({_holders(binding)})"
        probed = {"roles": {_PROBE: [ACTIONS[0]]}, "bindings": [{**binding, "role": _PROBE}]}
        asked = request._replace(
            action=ACTIONS[0], resource="", roles=tuple(role for role in request.roles if role != _PROBE)
        )
        if decide(probed, asked).is_allowed:
            yield binding["role"], named
        elif "tenants" in binding:
            everywhere = {name: value for name, value in binding.items() if name != "tenants"}
            if decide({**probed, "bindings": [{**everywhere, "role": _PROBE}]}, asked).is_allowed:
                missing.append(
                    f"{named} gives the role {binding['role']!r} in tenants {_named(binding['tenants'])}, "
                    f"not in {request.tenant!r}"
                )


def _look_at_role(
    table: Table, role: str, held_by: str, request: PolicyRequest, grounds: list[Ground], missing: list[str]
) -> None:
    limits = _limits(table, role)
    asked = _as(request, role)
    grants = _grants(table, role, request.action)
    if not grants:
        missing.append(f"role {role!r}, by {held_by}, grants no {request.action}")
    covering = [grant for grant in grants if decide({"roles": {role: [grant]}}, asked).is_allowed]
    if grants and not covering:
        missing.append(f"role {role!r}, by {held_by}, grants {_named(grants)}, not on {request.resource!r}")
    if not covering:
        return
    lacking = False
    shown = {"tenants": request.tenant, "sources": request.source or "not known"}
    for names in (("tenants",), ("sources",), _TIMES):
        limit = {name: limits[name] for name in names if name in limits}
        if limit and not decide({"roles": {role: {"grants": covering, **limit}}}, asked).is_allowed:
            lacking = True
            told = "; ".join(f"{name} {_named(value)}" for name, value in limit.items())
            now = f", and the caller's is {shown[names[0]]}" if names[0] in shown else ""
            missing.append(f"role {role!r}, by {held_by}, is limited to {told}{now}")
    if not lacking:
        grounds.extend(Ground(role, grant, held_by) for grant in covering)


class _Line(NamedTuple):
    """Something that a policy gives: to whom or by which role, what, on which names, under which limits."""

    kind: str
    subject: str
    pattern: str
    limits: str

    @property
    def text(self) -> str:
        what = f"{self.kind} {self.subject} {self.pattern}".rstrip() if self.pattern != "*" else (
            f"{self.kind} {self.subject}"
        )  # fmt: skip
        return f"{what} ({self.limits})" if self.limits else what


def _covers(wide: _Line, narrow: _Line) -> bool:
    if (wide.kind, wide.subject, wide.limits) != (narrow.kind, narrow.subject, narrow.limits):
        return False
    if not wide.pattern.endswith("*"):
        return wide.pattern == narrow.pattern
    return narrow.pattern.startswith(wide.pattern[:-1])


def _lines(table: Table) -> Iterator[_Line]:
    for tenant in table.get("tenants", ["*"]):
        # Only a whole star stands for all tenants, and it is shown as what it is.
        yield _Line("tenant", "any" if tenant == "*" else tenant, "*", "")
    for role in table["roles"]:
        limits = "; ".join(f"{name} {_named(sorted(value))}" for name, value in sorted(_limits(table, role).items()))
        for action in ACTIONS:
            for grant in _grants(table, role, action):
                yield _Line(f"role {role}:", action, grant.partition(" ")[2] or "*", limits)
    for binding in table.get("bindings", []):
        limits = f"tenants {_named(sorted(binding['tenants']))}" if "tenants" in binding else ""
        for group in binding.get("groups", []):
            yield _Line("binding", f"of {binding['role']} to group {group}", "*", limits)
        for principal in binding.get("principals", []):
            yield _Line("binding", f"of {binding['role']} to principal", principal, limits)


def _grants(table: Table, role: str, action: str) -> list[str]:
    says = table["roles"][role]
    grants = says["grants"] if isinstance(says, dict) else says
    meant = (action, f"{action.partition(':')[0]}:*")
    return [grant for grant in grants if grant.partition(" ")[0] in meant]


def _limits(table: Table, role: str) -> dict[str, list[str]]:
    says = table["roles"][role]
    return {name: says[name] for name in _LIMITS if name in says} if isinstance(says, dict) else {}


def _only(table: Table, role: str) -> dict[str, Any]:
    return {"roles": {role: table["roles"][role]}}


def _as(request: PolicyRequest, role: str) -> PolicyRequest:
    return request._replace(roles=(role,))


def _holders(binding: Mapping[str, Any]) -> str:
    named = [f"group {name}" for name in binding.get("groups", [])]
    return ", ".join([*named, *(f"principal {name}" for name in binding.get("principals", []))])


def _named(names: list[str]) -> str:
    return ", ".join(names) or "none"
