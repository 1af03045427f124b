"""Authorization: what a session may do, by the policy in the role file.

Law: deny by default; an unknown role, an unknown action, an engine that fails: no. A file that cannot be read is
refused at load, and one that breaks later changes nothing.
"""

import time
import tomllib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from nexus_ray.audit.auditor import source_of_request
from nexus_ray.core.clock import Clock, SystemClock
from nexus_ray.core.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    PermissionDeniedError,
    UnavailableError,
)
from nexus_ray.core.files import make_file, stamp_of
from nexus_ray.core.identity import Session
from nexus_ray.observe import metrics
from nexus_ray.observe.logs import get_logger
from nexus_ray.security.opa import OpaEngine, OpaServer
from nexus_ray.security.policy import (
    ACTIONS,
    NO_ROLE,
    REASONS,
    Decision,
    Policy,
    PolicyEngine,
    PolicyRequest,
    parse_policy,
)
from nexus_ray.security.policy_bundle import load_bundle
from nexus_ray.security.policy_settings import PolicySettings
from nexus_ray.security.rego_engine import RegoEngine

_KNOWN = frozenset(ACTIONS)
_DECIDED = REASONS | {"input_refused"}  # Other reasons say that nothing was decided; the next call asks again.
_FILE = "roles.toml"
_DEFAULT = """\
# What each role may do: an action, or `type:*`, and if wanted a space and a resource such as `review.*`. A role may
# be a table with `grants` and limits, and [[bindings]] give roles to principals and groups: see docs/policy.md.
# A change is in force within seconds.
[roles]
viewer = ["goal:read", "goal_type:read", "agent:read", "host:read", "metrics:read", "trace:read", "dashboard:read"]
reader = ["goal:read", "goal_type:read", "agent:read", "host:read", "metrics:read", "trace:read", "dashboard:read"]
submitter = ["goal:submit", "goal:read", "goal:cancel", "goal_type:read", "agent:ask"]
approver = ["goal:read", "goal:answer"]
auditor = ["audit:*", "goal:read", "policy:read"]
operator = [
  "goal:*", "goal_type:*", "agent:*", "host:*", "metrics:*", "trace:*", "audit:read", "session:*", "identity:*",
  "ledger:*", "policy:read", "dashboard:read", "job:*",
]
admin = [
  "goal:*", "goal_type:*", "agent:*", "host:*", "metrics:*", "trace:*", "audit:*", "session:*", "identity:*",
  "ledger:*", "policy:*", "dashboard:*", "job:*",
]
"""
_LOOK_S = 1.0  # How often the file is looked at; a change is in force after that and the five seconds below.
_REMEMBERED_S = 5.0  # Longest that a decision is remembered: the longest that an hour of a role begins or ends late.
_REMEMBERED_MAX = 10_000  # Decisions, some 5 MiB.

log = get_logger("security.authz")


def ensure_role_file(folder: Path) -> None:
    """Write the default roles where there is no file yet."""
    path = folder / _FILE
    if not path.exists():
        make_file(path, _DEFAULT.encode())


def load_policy(folder: Path, settings: PolicySettings | None = None, *, is_noted: bool = True) -> Policy:
    """Return the policy of a state folder, checked; that of a signed bundle where the settings name one.

    How old a bundle is, is remembered, unless `is_noted` says not to; see `load_bundle`.

    Raises:
        FailedPreconditionError: There is no file, or it cannot be read.
        InvalidArgumentError: It is malformed, and the message names the role or the line; or see `load_bundle`.
    """
    if settings is not None and settings.bundle is not None and settings.verification_key is not None:
        return load_bundle(settings.bundle, settings.verification_key, folder, is_noted=is_noted)
    return read_policy(folder / _FILE)


def read_policy(path: Path) -> Policy:
    """Return the policy of a file such as `roles.toml`, checked.

    Raises:
        FailedPreconditionError: There is no file, or it cannot be read.
        InvalidArgumentError: The file is malformed; the message names the role or the line.
    """
    table = read_table(path)
    try:
        return parse_policy(table)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{path}: {error.message}") from None


def read_table(path: Path) -> dict[str, Any]:
    """Return what stands in a file such as `roles.toml`; see `read_policy` for what is refused."""
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise FailedPreconditionError(f"there is no role file {path}; `nexus up` makes it") from None
    except OSError as error:
        raise FailedPreconditionError(f"the role file {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # Not TOML, or not even text.
        raise InvalidArgumentError(f"{path}: {error}") from None


def load_roles(folder: Path, settings: PolicySettings | None = None) -> dict[str, frozenset[str]]:
    """Return what each role grants, in the words of the file; see `load_policy` for what is refused."""
    return load_policy(folder, settings).grants


def engine_of(settings: PolicySettings) -> Callable[[Policy], PolicyEngine]:
    """Return what makes the engine that the settings name, for one policy after the other."""
    if settings.engine == "opa":
        server = OpaServer(settings)  # One for all of them: how it does is not forgotten with a policy.
        return lambda policy: OpaEngine(policy, server)
    return lambda policy: RegoEngine(policy, timeout_s=settings.decision_timeout_s)


class Authorizer:
    """Decides by an engine, remembers that for seconds, and counts and logs each decision."""

    def __init__(
        self, roles: Mapping[str, Iterable[str]], *, engine: PolicyEngine | None = None, clock: Clock | None = None
    ) -> None:
        self._clock = clock or SystemClock()
        self._engine = engine or RegoEngine(parse_policy({"roles": {role: list(g) for role, g in roles.items()}}))
        self._roles = sorted(roles)
        self._remembered: OrderedDict[tuple[object, ...], tuple[Decision, float]] = OrderedDict()
        self._counts: dict[tuple[str, bool], metrics.Count | metrics.Spread] = {}  # Two for each action there is.
        self._folder: Path | None = None
        self._settings = PolicySettings()
        self._make_engine = engine_of(self._settings)
        self._stamp: object = None
        self._looked_at = 0.0

    @classmethod
    def from_folder(
        cls, folder: Path, clock: Clock | None = None, settings: PolicySettings | None = None
    ) -> "Authorizer":
        """Return an authorizer over the role file or the bundle of a fleet; it follows the file's changes."""
        settings = settings or PolicySettings()
        stamp = stamp_of(settings.bundle or folder / _FILE)
        policy, make_engine = load_policy(folder, settings), engine_of(settings)
        made = cls(policy.grants, engine=make_engine(policy), clock=clock)
        made._folder, made._stamp, made._settings, made._make_engine = folder, stamp, settings, make_engine
        made._looked_at = made._clock.monotonic()
        return made

    @property
    def roles(self) -> list[str]:
        """The roles there are."""
        return self._roles

    @property
    def revision(self) -> str:
        """The revision of the policy that is in force."""
        return self._engine.revision

    def flush(self) -> None:
        """Forget every decision, as when somebody may come in no more."""
        self._remembered.clear()

    def authorize(self, session: Session, action: str, resource: str = "") -> None:
        """Refuse what the policy does not allow.

        Raises:
            PermissionDeniedError: Not allowed; `details` hold the action and a fixed reason.
            UnavailableError: Nothing decides now, so it is not allowed; to ask again later is no waste.
        """
        started = time.perf_counter()
        decision, is_remembered, source = self._decision(session, action, resource)
        self._count(action, decision.is_allowed)
        log.info(
            "authz.decided", principal=session.principal, roles=session.roles, tenant=session.tenant, action=action,
            resource=resource, source=source, decision="allow" if decision.is_allowed else "deny",
            reason=decision.reason, revision=decision.revision, is_remembered=is_remembered,
            duration_s=time.perf_counter() - started,
        )  # fmt: skip
        if decision.reason not in _DECIDED:
            told = "nothing decides now who may do what"
            raise UnavailableError(told, action=action, resource=resource, reason=decision.reason)
        if not decision.is_allowed:
            raise PermissionDeniedError("not allowed", action=action, resource=resource, reason=decision.reason)

    def _count(self, action: str, is_allowed: bool) -> None:
        named = action if action in _KNOWN else "unknown:unknown"
        counted = self._counts.get((named, is_allowed))
        if counted is None:
            resource_type, _, operation = named.partition(":")
            counted = self._counts[named, is_allowed] = metrics.series(
                "nexus_authz_decisions_total", resource_type=resource_type, operation=operation,
                decision="allow" if is_allowed else "deny",
            )  # fmt: skip
        counted.add(1)

    def _decision(self, session: Session, action: str, resource: str) -> tuple[Decision, bool, str]:
        """Return the decision, whether it was remembered, and where the caller is, if the policy looks at that."""
        now = self._clock.monotonic()
        if self._folder is not None and now - self._looked_at >= _LOOK_S:
            self._look(self._folder, now)
        if action not in _KNOWN:
            return Decision(False, NO_ROLE, self._engine.revision), False, ""
        # What was given to the principal by name is not what a token with less of its roles was asked for.
        is_narrowed = session.delegation is not None and session.delegation.is_narrowed
        told = ("" if is_narrowed else session.principal, session.roles, session.tenant, action, resource)
        # Narrowed, or each goal's id would be a decision of its own.
        request = self._engine.narrow(PolicyRequest(*told, source_of_request(), self._clock.now()))
        # The session stands in the key beside what is asked: what one is allowed is never another's answer.
        key = (self._engine.revision, session.id, *request[:6])
        known = self._remembered.get(key)
        if known is not None and now - known[1] < _REMEMBERED_S:
            return known[0], True, request.source
        try:
            decision = self._engine.decide(request)
        except Exception:  # An engine promises not to raise; that this is no yes does not hang on its promise.
            log.error("authz.engine_failed", exc_info=True)
            decision = Decision(False, "engine_failed", self._engine.revision)
        if decision.reason not in _DECIDED:
            metrics.count("nexus_policy_engine_failures_total", reason=decision.reason)
            return decision, False, request.source
        self._remembered[key] = (decision, now)
        if len(self._remembered) > _REMEMBERED_MAX:
            self._remembered.popitem(last=False)
        return decision, False, request.source

    def _look(self, folder: Path, now: float) -> None:
        """Take a changed file into force; a broken one changes nothing but the log."""
        self._looked_at = now
        stamp = stamp_of(self._settings.bundle or folder / _FILE)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            policy = load_policy(folder, self._settings)
            engine = self._make_engine(policy)
        except (FailedPreconditionError, InvalidArgumentError) as error:
            metrics.count("nexus_policy_loads_total", result="failure")
            log.error("policy.refused", reason=error.message, revision=self._engine.revision)
            return
        metrics.count("nexus_policy_loads_total", result="success")
        log.info("policy.loaded", revision=policy.revision, before=self._engine.revision)
        self._engine, self._roles = engine, sorted(policy.grants)
        self.flush()
