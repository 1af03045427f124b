"""Policies and requests made up by a seed, so that a good part is granted, and a plain reading of them."""

import ipaddress
from datetime import UTC, datetime
from random import Random
from typing import Any

from nexus_ray.security.policy import ACTIONS, PolicyRequest

_ROLES = ["viewer", "lead", "night", "office", "ghost"]
_GROUPS = ["engineering", "sales", "lead"]
_PRINCIPALS = ["ann", "anna", "corp:ann", "corp:bob", "ci:1", ""]
_TENANTS = ["main", "acme", "other", "*", ""]
_RESOURCES = ["", "review.a", "review.b", "review", "report", "report.a", "6=report", "~review.", "räksmörgås.1"]
_PATTERNS = ["*", "review.*", "report", "r*", "räksmörgås.*"]
_SOURCES = ["", "10.1.2.3", "10.2.0.1", "192.168.1.9", "2001:db8::5", "::ffff:10.1.0.1", "localhost", "10.1.0.0/16"]
_NETWORKS = ["10.0.0.0/8", "10.1.0.0/16", "192.168.1.0/24", "2001:db8::/32", "0.0.0.0/0"]
_HOURS = ["00:00-24:00", "08:00-18:00", "22:00-06:00", "12:00-12:30", "18:00-00:00"]
_DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_TYPES = sorted({action.partition(":")[0] for action in ACTIONS})
_WEEK_S = 7 * 86_400


def _some(seeded: Random, values: list[str], least: int = 1) -> list[str]:
    return seeded.sample(values, seeded.randint(least, len(values)))


def generated_policy(seeded: Random) -> dict[str, Any]:
    """Return a policy as it would stand in a file."""
    roles: dict[str, Any] = {}
    for role in _ROLES[:4]:
        types = seeded.sample(_TYPES, 4)
        grants = [f"{type}:*" for type in types] + ["goal:read"]
        grants += [f"goal:submit {pattern}" for pattern in _some(seeded, _PATTERNS)[:2]]
        roles[role] = grants
        limits: dict[str, Any] = {}
        if role == "night":
            limits = {"hours": _some(seeded, _HOURS)[:2], "weekdays": _some(seeded, _DAYS, 3)}
        if role == "office":
            limits = {"sources": _some(seeded, _NETWORKS)[:3], "tenants": _some(seeded, ["main", "acme"])}
        if limits:
            roles[role] = {"grants": grants, **limits}
    bindings = [
        {"role": seeded.choice(_ROLES[:4]), "groups": _some(seeded, _GROUPS)[:2], "tenants": ["main", "acme"]},
        {"role": seeded.choice(_ROLES[:4]), "principals": [seeded.choice(["ann", "corp:*", "ci:1", "a*"])]},
    ]
    policy: dict[str, Any] = {"roles": roles, "bindings": bindings}
    if seeded.random() < 0.7:
        policy["tenants"] = ["main", "acme"]
    return policy


def generated_requests(seeded: Random, count: int) -> list[PolicyRequest]:
    """Return requests that such a policy grants in part."""
    actions = [*ACTIONS, "goal:read", "goal:submit", "goal:submit", "goal:*", "", "x:y"]
    return [
        PolicyRequest(
            seeded.choice(_PRINCIPALS),
            tuple(_some(seeded, [*_ROLES, *_GROUPS], 0)[:3]),
            seeded.choice(["main", "main", "acme", "acme", *_TENANTS]),
            seeded.choice(actions),
            seeded.choice(_RESOURCES),
            seeded.choice(_SOURCES),
            seeded.uniform(0, _WEEK_S),
        )
        for _ in range(count)
    ]


def plainly_allowed(policy: dict[str, Any], request: PolicyRequest) -> bool:
    """Return what a reader of the policy's file would say, who knows neither engines nor what they are given."""
    if not {"*", request.tenant} & set(policy.get("tenants", ["*"])):
        return False
    held = {role for role in request.roles if role in policy["roles"]}
    for binding in policy.get("bindings", []):
        is_group = bool(set(binding.get("groups", [])) & set(request.roles))
        is_named = any(_fits(pattern, request.principal) for pattern in binding.get("principals", []))
        if (is_group or is_named) and {"*", request.tenant} & set(binding.get("tenants", ["*"])):
            held.add(binding["role"])
    return any(_role_allows(policy["roles"][role], request) for role in held)


def _role_allows(says: Any, request: PolicyRequest) -> bool:
    limits = says if isinstance(says, dict) else {"grants": says}
    is_granted = any(_grant_fits(grant, request) for grant in limits["grants"])
    is_here = bool({"*", request.tenant} & set(limits.get("tenants", ["*"])))
    return is_granted and is_here and _from_there(limits, request.source) and _then(limits, request.at)


def _grant_fits(grant: str, request: PolicyRequest) -> bool:
    action, _, resource = grant.partition(" ")
    if request.action not in ACTIONS or not _fits(action, request.action):
        return False
    return _fits(resource or "*", request.resource)


def _fits(pattern: str, text: str) -> bool:
    return text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern


def _from_there(limits: dict[str, Any], source: str) -> bool:
    if "sources" not in limits:
        return True
    try:
        # A whole network is asked for by nobody, and is inside of what holds all of it.
        asked = ipaddress.ip_network(source)
    except ValueError:
        return False
    mapped = getattr(asked.network_address, "ipv4_mapped", None)
    asked = ipaddress.ip_network(mapped) if mapped else asked
    networks = (ipaddress.ip_network(text) for text in limits["sources"])
    return any(asked.version == one.version and asked.subnet_of(one) for one in networks)  # type: ignore[arg-type]


def _then(limits: dict[str, Any], at: float) -> bool:
    moment = datetime.fromtimestamp(at, UTC)
    minute = moment.hour * 60 + moment.minute
    days = limits.get("weekdays", _DAYS)
    for text in limits.get("hours", ["00:00-24:00"]):
        begin, end = (int(part[:2]) * 60 + int(part[3:]) for part in text.split("-"))
        today, yesterday = _DAYS[moment.weekday()], _DAYS[moment.weekday() - 1]
        if begin < end and today in days and begin <= minute < end:
            return True
        if begin > end and ((today in days and minute >= begin) or (yesterday in days and minute < end)):
            return True
    return False
