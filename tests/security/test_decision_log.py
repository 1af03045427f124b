"""The decision log: each decision is a line in the file before its caller goes on, and no line holds a secret."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from nexus_ray.audit.auditor import Scene, arrive
from nexus_ray.core.errors import PermissionDeniedError
from nexus_ray.core.identity import Session
from nexus_ray.observe import metrics
from nexus_ray.observe.logs import configure_logs, get_logger
from nexus_ray.security.authz import Authorizer
from nexus_ray.security.policy import parse_policy
from nexus_ray.security.rego_engine import RegoEngine

ANN = Session("s1", "ann", "nexus-local", ("office", "other"), 9e9, "acme")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    configure_logs("here", "node-1", tmp_path)
    yield tmp_path
    configure_logs("tests", "here", None)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (folder / "here.jsonl").read_bytes().splitlines()]


def test_every_decision_is_a_line_with_what_was_asked_why_and_by_which_policy(folder: Path) -> None:
    authorizer = Authorizer({"office": ["goal:read"]})

    authorizer.authorize(ANN, "goal:read", "g1")
    authorizer.authorize(ANN, "goal:read", "g2")
    with pytest.raises(PermissionDeniedError):
        authorizer.authorize(ANN, "goal:explode", "g1")

    found = lines(folder)
    assert [(one["event"], one["decision"], one["reason"], one["is_remembered"]) for one in found] == [
        ("authz.decided", "allow", "granted", False), ("authz.decided", "allow", "granted", True),
        ("authz.decided", "deny", "no_role_grants_it", False),
    ]  # fmt: skip
    told = {"principal": "ann", "tenant": "acme", "roles": ["office", "other"], "action": "goal:read", "resource": "g2",
            "revision": authorizer.revision, "component": "here", "node": "node-1", "level": "info"}  # fmt: skip
    assert told.items() <= found[1].items() and 0 < found[1]["duration_s"] < 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", found[1]["timestamp"])


def test_where_the_caller_is_stands_in_the_line_only_where_the_policy_looks_at_it(folder: Path) -> None:
    arrive(Scene("10.1.2.3"))
    policies: list[dict[str, Any]] = [
        {"office": ["goal:read"]}, {"office": {"grants": ["goal:read"], "sources": ["10.0.0.0/8"]}},
    ]  # fmt: skip

    for roles in policies:
        Authorizer({}, engine=RegoEngine(parse_policy({"roles": roles}))).authorize(ANN, "goal:read")

    assert [one["source"] for one in lines(folder)] == ["", "10.1.2.3"]


def test_decisions_are_counted_by_action_and_verdict() -> None:
    def counted() -> list[float]:
        text = metrics.exposition().decode()
        wanted = ['decision="allow",operation="cancel",resource_type="goal"',
                  'decision="deny",operation="unknown",resource_type="unknown"']  # fmt: skip
        found = [re.search(rf"^nexus_authz_decisions_total{{{labels}}} (\S+)$", text, re.M) for labels in wanted]
        return [float(one[1]) if one else 0.0 for one in found]

    authorizer = Authorizer({"office": ["goal:cancel"]})
    before = counted()

    for _ in range(3):
        authorizer.authorize(ANN, "goal:cancel")
    with pytest.raises(PermissionDeniedError):
        authorizer.authorize(ANN, "never:heard-of")

    assert [now - then for now, then in zip(counted(), before, strict=True)] == [3, 1]


def test_secrets_are_masked_and_a_traceback_holds_no_values(folder: Path) -> None:
    log = get_logger("tests")

    log.warning("x.tried", client_secret="s1", nested={"password": "s2", "name": "n"}, level_of="l")
    try:
        hidden = "s3"
        raise ValueError(len(hidden))
    except ValueError:
        log.exception("x.failed")

    tried, failed = lines(folder)
    assert (tried["client_secret"], tried["nested"], tried["level"]) == (
        "***",
        {"password": "***", "name": "n"},
        "warning",
    )
    assert "ValueError: 2" in failed["exception"] and "s3" not in failed["exception"] and failed["level"] == "error"
    assert (folder / "here.jsonl").stat().st_mode & 0o777 == 0o600
