"""The policy: roles, what they grant on which resources and when, who holds them; and the port of what decides by it.

Law: checked whole at load, with the line's name in the error; what it does not say is denied. Compiled into a document
in which everything is a key or the beginning of a text, so that engines need to know neither addresses nor patterns.
"""

import hashlib
import ipaddress
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from nexus_ray.core.errors import InvalidArgumentError

ACTIONS = (
    "goal:submit", "goal:read", "goal:cancel", "goal:answer", "goal_type:read", "agent:read", "agent:ask", "host:read",
    "host:drain", "metrics:read", "trace:read", "audit:read", "audit:hold", "session:read", "session:revoke",
    "identity:read", "identity:suspend", "identity:restore", "policy:read", "ledger:read", "ledger:write",
    "dashboard:read", "dashboard:write", "job:submit", "job:stop", "job:delete",
)  # fmt: skip
"""One for each thing that a caller can do; nothing else is ever granted."""

NO_ROLE = "no_role_grants_it"
REASONS = frozenset({"granted", NO_ROLE, "tenant_unknown"})
"""What a policy may say; engines add codes of their own where they refuse."""

_GRANT = re.compile(r"([a-z_]+):([a-z_]+|\*)(?: ([^\s\"\\*]{1,200}\*?|\*))?\Z")
_HOURS = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]|24):([0-5][0-9])\Z")
_NAME = re.compile(r"[^\s\"\\*]{1,200}\*?\Z")
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES = 24 * 60
_LIMITS = frozenset({"grants", "tenants", "sources", "hours", "weekdays"})
_BINDING = frozenset({"role", "principals", "groups", "tenants"})
_TOP = frozenset({"roles", "bindings", "tenants"})


class PolicyRequest(NamedTuple):
    """Who wants to do what to what, from where; `at` is wall-clock seconds."""

    principal: str
    roles: tuple[str, ...]
    tenant: str
    action: str
    resource: str = ""
    source: str = ""
    at: float = 0.0


class Decision(NamedTuple):
    """What was decided: yes or no, a fixed code that says why, and the revision of the policy that said it."""

    is_allowed: bool
    reason: str
    revision: str


class PolicyEngine(Protocol):
    """Decides by a policy."""

    def narrow(self, request: PolicyRequest) -> PolicyRequest:
        """Return a request without what the policy does not look at: all that are equal then are decided alike."""

    def decide(self, request: PolicyRequest) -> Decision:
        """Return the decision; what cannot be decided is denied, and nothing is raised."""

    @property
    def revision(self) -> str:
        """Return the revision that decides now."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A checked policy: what each role grants, all of it as engines read it, and where in that to look for somebody."""

    grants: dict[str, frozenset[str]]
    document: dict[str, Any]
    holders: dict[str, list[int]]
    """By the form of a role, group, principal or pattern of principals: which entries of `held` are of it."""
    names: frozenset[str]
    """Roles and groups that mean something; others are not shown to an engine."""
    lengths: tuple[int, ...]
    """How long the patterns of principals are: only so many beginnings of a name are looked up."""
    numbers: dict[tuple[str, str], int]
    """By role and action: which entry of `grants` says what that role may do."""
    patterned: frozenset[str]
    """Actions for which a grant names resources; for others the resource is not looked at."""
    has_principals: bool
    is_bound_to_place_or_time: bool

    @property
    def revision(self) -> str:
        """Return what names this policy: a digest of all it says."""
        return str(self.document["revision"])

    def narrow(self, request: PolicyRequest) -> PolicyRequest:
        """Leave out of a request what this policy does not look at, so that it costs no look-up and no refusal."""
        return PolicyRequest(
            request.principal if self.has_principals else "",
            tuple([role for role in request.roles if role in self.names]),
            request.tenant,
            request.action,
            request.resource if request.action in self.patterned else "",
            *((request.source, request.at) if self.is_bound_to_place_or_time else ("", 0.0)),
        )


def parse_policy(table: Mapping[str, Any]) -> Policy:
    """Check a policy as it stands in a file, and compile it.

    Raises:
        InvalidArgumentError: It is malformed; the message names what.
    """
    roles = table.get("roles")
    if not isinstance(roles, dict) or not set(table) <= _TOP:
        raise InvalidArgumentError("it holds a table [roles], and if wanted [[bindings]] and a list of tenants")
    grants: dict[str, frozenset[str]] = dict.fromkeys(roles, frozenset())
    rules: list[dict[str, Any]] = []
    held: list[dict[str, Any]] = []
    limited = False
    tenants_of: dict[str, dict[str, bool]] = {}
    for role, says in sorted(roles.items()):  # One policy, one revision, in whatever order it is written.
        if not is_role_name(role) or not role.isprintable() or '"' in role or "\\" in role:
            raise InvalidArgumentError(f"{role!r} is not a role: a name without spaces and quotes is")
        limits = says if isinstance(says, dict) else {"grants": says}
        if not set(limits) <= _LIMITS:
            raise InvalidArgumentError(f"role {role!r} has {', '.join(sorted(_LIMITS))} and nothing else")
        told = f"role {role!r} is a list of actions such as 'goal:read'"
        grants[role] = frozenset(_texts(limits.get("grants"), told))
        limited = limited or set(limits) - {"grants", "tenants"} != set()
        rules += _rules(role, limits)
        tenants_of[role] = _keys(_texts(limits.get("tenants", ["*"]), f"tenants of role {role!r} are a list of names"))
        held.append({"holder": f"@{_exact(role)}", "role": role, "tenants": tenants_of[role]})
    for entry in _list(table.get("bindings", []), "[[bindings]]"):
        held += _bound(entry, tenants_of)
    tenants = _texts(table["tenants"], "tenants is a list of names") if "tenants" in table else ["*"]
    document: dict[str, Any] = {"grants": rules, "held": held, "tenants": _keys(tenants)}
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    holders: dict[str, list[int]] = {}
    for number, one in enumerate(held):
        holders.setdefault(one["holder"], []).append(number)
    return Policy(
        grants,
        {**document, "revision": digest[:16]},
        holders,
        frozenset(holder[1:].partition("=")[2] for holder in holders if holder[0] == "@"),
        tuple(sorted({len(holder) - 1 for holder in holders if holder[0] == "~"})),
        {(rule["role"], rule["action"]): number for number, rule in enumerate(rules)},
        frozenset(rule["action"] for rule in rules if rule["resources"] != ["~"]),
        any(holder[0] != "@" for holder in holders),
        limited,
    )


def facts(request: PolicyRequest, policy: Policy) -> dict[str, Any]:
    """Return a request as engines read it: the `input` of the Rego files, for this policy and no other.

    What cannot apply is not pointed at, and what is not looked at is left out: engines pay for all they are told.
    """
    held, grants = policy.document["held"], policy.document["grants"]
    shown: dict[str, None] = {}
    found: dict[int, dict[str, int]] = {}
    for key, form in _names(request, policy.lengths):
        for number in policy.holders.get(key, ()):
            grant = policy.numbers.get((held[number]["role"], request.action))
            tenant = next((at for at, name in enumerate(_tenants(request)) if name in held[number]["tenants"]), None)
            if grant is None or tenant is None:
                continue
            pointer = {"held": number, "grant": grant, "tenant": tenant}
            if grants[grant]["is_free"]:  # Nothing else can matter.
                return _input(request, {form: None}, [pointer], is_free=True)
            fitting = _fitting(request.resource, grants[grant]["resources"])
            # Another one that holds the same role here would be asked the same again.
            if grant not in found and fitting is not None:
                found[grant] = {**pointer, "form": fitting[0], "pattern": fitting[1]}
                shown[form] = None
    return _input(request, shown, list(found.values()), is_free=not found)


def _tenants(request: PolicyRequest) -> list[str]:
    return ["*", request.tenant]


def _resource(text: str) -> list[str]:
    return [f"~{text}", _exact(text)]


def _fitting(resource: str, patterns: list[str]) -> tuple[int, int] | None:
    """Return which form of a resource fits which pattern."""
    forms = _resource(resource)
    pairs = ((form, at) for at, pattern in enumerate(patterns) for form in (0, 1) if forms[form].startswith(pattern))
    return next(pairs, None)


def _names(request: PolicyRequest, lengths: tuple[int, ...]) -> list[tuple[str, str]]:
    """Return what a caller may be held by: where to look for it, and its form, of which that is the beginning."""
    principal, whole = request.principal, f"~{request.principal}"
    roles = [f"@{_exact(role)}" for role in request.roles]
    return [
        *((role, role) for role in roles),
        (_exact(principal), _exact(principal)),
        *((whole[: length + 1], whole) for length in lengths if length <= len(principal)),
    ]


def _input(
    request: PolicyRequest, shown: dict[str, None], candidates: list[dict[str, int]], *, is_free: bool
) -> dict[str, Any]:  # fmt: skip
    told: dict[str, Any] = {
        "action": request.action,
        "tenants": _tenants(request),
        "holders": list(shown),
        "candidates": candidates,
    }
    if not is_free:
        moment = time.gmtime(request.at)
        told["resource"] = _resource(request.resource)
        told["source"] = address_bits(request.source)
        told["weekday"] = _WEEKDAYS[moment.tm_wday]
        told["minute"] = moment.tm_hour * 60 + moment.tm_min
    return told


def address_bits(text: str) -> str:
    """Return an address or network as the text that networks are the beginnings of; "-" for what is no address."""
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        return "-"
    # An IPv4 caller of an IPv6 socket is who it is by its IPv4 address.
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen == 128:
        mapped = network.network_address.ipv4_mapped
        network = ipaddress.ip_network(mapped) if mapped else network
    bits = format(int(network.network_address), f"0{network.max_prefixlen}b")
    return f"{network.version}:{bits[: network.prefixlen]}"


def is_role_name(text: str) -> bool:
    """Tell whether a role may be called this; roles travel as one text, parted by spaces."""
    return text.split() == [text]


def _exact(text: str) -> str:
    # The length in front: one such text is the beginning of another only where they are the same.
    return f"{len(text)}={text}"


def _pattern(text: str) -> str:
    return f"~{text[:-1]}" if text.endswith("*") else _exact(text)


def _rules(role: str, limits: dict[str, Any]) -> list[dict[str, Any]]:
    by_action: dict[str, set[str]] = {}
    for grant in limits["grants"]:
        match = _GRANT.match(grant)
        meant = [] if match is None else [
            action for action in ACTIONS if action == f"{match[1]}:{match[2]}" or
            (match[2] == "*" and action.startswith(f"{match[1]}:"))
        ]  # fmt: skip
        if match is None or not meant:
            raise InvalidArgumentError(
                f"role {role!r}: {grant!r} is no grant; one is an action such as 'goal:read' or 'goal:*', and if "
                "wanted a space and a resource such as 'review.*'"
            )
        for action in meant:
            by_action.setdefault(action, set()).add(_pattern(match[3] or "*"))
    sources = _sources(limits["sources"], role) if "sources" in limits else [""]
    times = _times(limits, role)
    is_anytime = not {"sources", "hours", "weekdays"} & set(limits)
    return [
        {
            "role": role, "action": action, "is_free": is_anytime and "~" in patterns,
            "resources": ["~"] if "~" in patterns else sorted(patterns), "sources": sources, "times": times,
        }
        for action, patterns in sorted(by_action.items())
    ]  # fmt: skip


def _sources(value: Any, role: str) -> list[str]:
    bits = []
    for text in _texts(value, f"sources of role {role!r} are a list of networks"):
        found = address_bits(text)
        if found == "-":
            raise InvalidArgumentError(f"role {role!r}: {text!r} is not a network such as '10.0.0.0/8'")
        bits.append(found)
    return bits


def _times(limits: dict[str, Any], role: str) -> list[dict[str, Any]]:
    days = _texts(limits.get("weekdays", list(_WEEKDAYS)), f"weekdays of role {role!r} are a list")
    hours = _texts(limits.get("hours", ["00:00-24:00"]), f"hours of role {role!r} are a list")
    if not set(days) <= set(_WEEKDAYS):
        raise InvalidArgumentError(f"role {role!r}: weekdays are among {', '.join(_WEEKDAYS)}")
    spans = []
    for text in hours:
        match = _HOURS.match(text)
        begin, end = (int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4])) if match else (0, 0)
        if begin == end or end > _DAY_MINUTES:
            raise InvalidArgumentError(f"role {role!r}: {text!r} are no hours such as '08:00-18:00' (UTC)")
        # Over midnight: what comes after it belongs to the next day.
        after = [_WEEKDAYS[(_WEEKDAYS.index(day) + 1) % 7] for day in days]
        spans.append({"weekdays": _keys(days), "begin": begin, "end": end if begin < end else _DAY_MINUTES})
        if end < begin and end > 0:
            spans.append({"weekdays": _keys(after), "begin": 0, "end": end})
    return spans


def _bound(entry: Any, tenants_of: Mapping[str, dict[str, bool]]) -> list[dict[str, Any]]:
    """Return whom a binding gives its role to, and in which tenants: there where the role itself holds."""
    if not isinstance(entry, dict) or not set(entry) <= _BINDING:
        raise InvalidArgumentError(f"a binding has {', '.join(sorted(_BINDING))} and nothing else")
    if not isinstance(entry.get("role"), str) or entry["role"] not in tenants_of:
        raise InvalidArgumentError(f"a binding gives the role {entry.get('role')!r}, which is not among [roles]")
    told = f"principals and groups of the binding of {entry['role']!r} are lists of names"
    principals, groups = _texts(entry.get("principals", []), told), _texts(entry.get("groups", []), told)
    if not principals + groups or not all(_NAME.match(name) for name in principals + groups):
        raise InvalidArgumentError(f"{told}; a `*` stands only at the end, and one of the two is given")
    if any(group.endswith("*") for group in groups):
        raise InvalidArgumentError(f"{told}; a group is named in full")
    where = _texts(entry.get("tenants", ["*"]), f"tenants of the binding of {entry['role']!r} are a list")
    here, there = _keys(where), tenants_of[entry["role"]]
    both = there if "*" in here else here if "*" in there else _keys([tenant for tenant in here if tenant in there])
    holders = [*map(_pattern, principals), *(f"@{_exact(group)}" for group in groups)]
    return [{"holder": holder, "role": entry["role"], "tenants": both} for holder in holders]


def _keys(names: list[str]) -> dict[str, bool]:
    return dict.fromkeys(names, True)


def _list(value: Any, told: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidArgumentError(f"{told} is a list")
    return value


def _texts(value: Any, told: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise InvalidArgumentError(told)
    return value
