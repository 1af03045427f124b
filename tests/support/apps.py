"""The front door's parts that take long to make and keep nothing: made once, used by one test after the other."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI

from nexus_ray.api.app import build_app
from nexus_ray.config import RuntimeSettings
from nexus_ray.security.policy import parse_policy
from nexus_ray.security.rego_engine import RegoEngine
from nexus_ray.security.throttle import ThrottleSettings

_free: dict[str, list["Standing"]] = {}


class Standing:
    """An application whose routes stand, and lead to whichever front door it was lent for."""

    def __init__(self, key: str, runtime: RuntimeSettings, throttle: ThrottleSettings | None) -> None:
        self.key = key
        self.front: Any = None
        self.app: FastAPI = build_app(self, runtime, throttle=throttle)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.front, name)


def borrow(front: Any, runtime: RuntimeSettings, throttle: ThrottleSettings | None) -> Standing:
    """Return an application over `front`, with gate and limits that have seen nobody yet."""
    key = f"{runtime!r} {throttle!r}"
    free = _free.setdefault(key, [])
    standing = free.pop() if free else Standing(key, runtime, throttle)
    standing.front = front
    standing.app.middleware_stack = None  # Made anew at the first request: what it counts begins at nothing.
    return standing


def give_back(standing: Standing) -> None:
    """Have the next test use it."""
    standing.front = None
    _free[standing.key].append(standing)


def engine_of(roles: Mapping[str, Iterable[str]]) -> RegoEngine:
    """Return the engine that decides by these roles."""
    return _engine(tuple(sorted((role, tuple(sorted(grants))) for role, grants in roles.items())))


@functools.cache
def _engine(roles: tuple[tuple[str, tuple[str, ...]], ...]) -> RegoEngine:
    return RegoEngine(parse_policy({"roles": {role: list(grants) for role, grants in roles}}))
