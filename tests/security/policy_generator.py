"""Policies and requests made up by a seed, so that a good part of the requests is granted."""

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
