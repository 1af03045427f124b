"""`nexus policy`: what is granted, why, what would change, and a bundle for every engine."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nexus_ray.cli.exits import ExitCode
from nexus_ray.security.authz import ensure_role_file, load_policy, read_policy
from nexus_ray.security.policy_settings import PolicySettings
from tests.cli.support import nexus, printed

POLICY = """\
tenants = ["main", "acme"]

[roles]
viewer = ["goal:read", "agent:*"]
submitter = ["goal:submit review.*", "goal:submit report"]

[roles.night]
grants = ["goal:cancel"]
hours = ["22:00-06:00"]
weekdays = ["mon"]
sources = ["10.0.0.0/8"]
tenants = ["main"]

[[bindings]]
role = "submitter"
groups = ["engineering"]
principals = ["corp:*"]
tenants = ["acme"]
"""
EVENING = "2026-01-05T22:30Z"  # A Monday.


@pytest.fixture
def policy(tmp_path: Path, state: Path) -> str:
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    return str(path)


def test_what_would_be_decided_is_told_and_no_is_an_exit_code(policy: str) -> None:
    yes = nexus("policy", "eval", "goal:submit", "review.a", "--role", "x", "--role", "submitter", "--file", policy)
    no = nexus("policy", "eval", "goal:submit", "other", "--role", "submitter", "--file", policy, "--json")

    assert (yes.exit_code, no.exit_code) == (ExitCode.OK, ExitCode.NOT_ALLOWED)
    revision = read_policy(Path(policy)).revision
    assert yes.stdout == f"allow (granted) by policy {revision}\n"
    assert printed(no) == {"allow": False, "reason": "no_role_grants_it", "revision": revision}


def test_without_a_file_it_is_the_fleets_policy(state: Path) -> None:
    assert nexus("policy", "eval", "goal:read", "--role", "viewer").exit_code == ExitCode.WRONG_INPUT
    state.mkdir(exist_ok=True)
    ensure_role_file(state)

    result = nexus("policy", "eval", "goal:read", "--role", "viewer", "--json")

    assert printed(result) == {"allow": True, "reason": "granted", "revision": load_policy(state).revision}


@pytest.mark.parametrize(
    ("asked", "granted_by"),
    [
        (["goal:submit", "review.a", "--role", "submitter"], ["submitter", "goal:submit review.*", "the token"]),
        (["agent:ask", "reader", "--role", "viewer"], ["viewer", "agent:*", "the token"]),
        (["goal:submit", "report", "--principal", "corp:ann", "--tenant", "acme"],
         ["submitter", "goal:submit report", "binding 1 (group engineering, principal corp:*)"]),
        (["goal:submit", "report", "--role", "engineering", "--tenant", "acme"],
         ["submitter", "goal:submit report", "binding 1 (group engineering, principal corp:*)"]),
        (["goal:cancel", "--role", "night", "--source", "10.1.1.1", "--at", EVENING],
         ["night", "goal:cancel", "the token"]),
    ],
)  # fmt: skip
def test_what_grants_it_is_named(policy: str, asked: list[str], granted_by: list[str]) -> None:
    result = nexus("policy", "explain", *asked, "--file", policy, "--json")

    told = printed(result)
    assert result.exit_code == ExitCode.OK
    assert (told["allow"], told["missing"]) == (True, [])
    assert [list(one.values()) for one in told["granted_by"]] == [granted_by]


@pytest.mark.parametrize(
    ("asked", "missing", "would"),
    [
        (["goal:read"], ["the caller has none of the roles of this policy"], ["viewer"]),
        (["goal:read", "--role", "submitter"], ["role 'submitter', by the token, grants no goal:read"], ["viewer"]),
        (["goal:submit", "x", "--role", "submitter"],
         ["role 'submitter', by the token, grants goal:submit review.*, goal:submit report, not on 'x'"], []),
        (["goal:read", "--role", "viewer", "--tenant", "other"],
         ["the policy knows no tenant 'other'; it knows main, acme"], []),
        (["goal:submit", "report", "--principal", "corp:ann"],
         ["binding 1 (group engineering, principal corp:*) gives the role 'submitter' in tenants acme, not in 'main'"],
         ["submitter"]),
        (["goal:cancel", "--role", "night", "--source", "11.1.1.1", "--at", "2026-01-05T12:30Z", "--tenant", "acme"],
         ["role 'night', by the token, is limited to tenants main, and the caller's is acme",
          "role 'night', by the token, is limited to sources 10.0.0.0/8, and the caller's is 11.1.1.1",
          "role 'night', by the token, is limited to hours 22:00-06:00; weekdays mon"], []),
        (["goal:submit", 'review."', "--role", "submitter"],
         ["a text has a quote, a backslash or a control character, or is too long"], []),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(policy: str, asked: list[str], missing: list[str], would: list[str]) -> None:
    result = nexus("policy", "explain", *asked, "--file", policy, "--json")

    told = printed(result)
    assert result.exit_code == ExitCode.NOT_ALLOWED
    assert (told["allow"], told["granted_by"]) == (False, [])
    assert (told["missing"], told["roles_that_would"]) == (missing, would)


def test_an_explanation_is_shown_to_people_too(policy: str) -> None:
    no = nexus("policy", "explain", "goal:read", "--role", "submitter", "--file", policy)
    yes = nexus("policy", "explain", "goal:read", "--role", "viewer", "--file", policy)

    assert (no.exit_code, yes.exit_code) == (ExitCode.NOT_ALLOWED, ExitCode.OK)
    assert no.stdout.startswith("deny (no_role_grants_it)") and "would do   role viewer" in no.stdout
    assert yes.stdout.startswith("allow (granted)") and "role viewer, which the token gives: goal:read" in yes.stdout


def test_expectations_are_met_or_named(policy: str, tmp_path: Path) -> None:
    met, unmet = tmp_path / "met.toml", tmp_path / "unmet.toml"
    met.write_text(
        '[[expect]]\nprincipal = "corp:ann"\ntenant = "acme"\naction = "goal:submit"\nresource = "report"\n'
        'allow = true\n[[expect]]\nroles = ["night"]\nsource = "10.0.0.1"\naction = "goal:cancel"\n'
        'at = "2026-01-05T22:30:00Z"\nallow = true\nreason = "granted"\n'
        '[[expect]]\naction = "goal:read"\nallow = false\n'
    )
    unmet.write_text('[[expect]]\ntitle = "a stranger reads"\naction = "goal:read"\nallow = true\n')

    good = nexus("policy", "test", str(met), "--file", policy)
    bad = nexus("policy", "test", str(met), str(unmet), "--file", policy)
    told = nexus("policy", "test", str(met), str(unmet), "--file", policy, "--json")
    alone = nexus("policy", "test", "--file", policy)

    assert (good.exit_code, bad.exit_code, alone.exit_code) == (ExitCode.OK, ExitCode.FAILED, ExitCode.OK)
    assert "3 of 3 expectations met" in good.stderr and "3 of 4" in bad.stderr
    assert "expect 1 (a stranger reads): deny (no_role_grants_it), expected allow\n" in bad.stderr
    assert printed(told)["failed"] == [
        {"file": str(unmet), "title": "expect 1 (a stranger reads)", "expected": {"allow": True},
         "got": {"allow": False, "reason": "no_role_grants_it"}}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "[[expect]]"), ("expect = 1", "[[expect]]"), ("expect = [1]", "no table"), ("[[expect]]\n", "an action"),
        ('[[expect]]\naction = "goal:read"\n', "allow"), ('[[expect]]\naction = "goal:read"\nallow = 1\n', "allow"),
        ('[[expect]]\naction = "goal:red"\nallow = true\n', "did you mean goal:read"), ("x", "end of document"),
        ('[[expect]]\naction = "goal:read"\nallow = true\nrole = "a"\n', "has role"),
        ('[[expect]]\naction = "goal:read"\nallow = true\nroles = "a"\n', "a list of them"),
        ('[[expect]]\naction = "goal:read"\nallow = true\nat = "noon"\n', "no time"),
    ],
)  # fmt: skip
def test_a_mistake_in_expectations_is_named(policy: str, tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "expect.toml").write_text(text)

    result = nexus("policy", "test", str(tmp_path / "expect.toml"), "--file", policy)

    assert result.exit_code == ExitCode.WRONG_INPUT
    assert named in result.stderr and "expect.toml" in result.stderr


def test_a_mistake_in_a_policy_or_a_request_is_named(policy: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text('[roles]\na = ["goal:explode"]\n')

    for arguments, named in [
        (["test", "--file", str(broken)], "goal:explode"), (["test", "--file", str(tmp_path / "none")], "no policy"),
        (["eval", "goal:red", "--file", policy], "did you mean goal:read"), (["diff", policy, str(broken)], "explode"),
        (["eval", "goal:read", "--at", "noon", "--file", policy], "noon"),
        (["bundle", "--out", str(tmp_path / "b"), "--signing-key", str(tmp_path / "none"), "--file", policy], "none"),
    ]:  # fmt: skip
        result = nexus("policy", *arguments)
        assert result.exit_code == ExitCode.WRONG_INPUT, arguments
        assert named in result.stderr, arguments


def test_what_another_policy_grants_more_and_less_is_listed(policy: str, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(
        POLICY.replace('"goal:read", "agent:*"', '"goal:read", "agent:read", "goal:cancel"')
        .replace('"goal:submit review.*"', '"goal:submit r*"').replace('["10.0.0.0/8"]', '["10.0.0.0/16"]')
        .replace('["corp:*"]', '["corp:ann", "ci:1"]').replace('["main", "acme"]', '["main", "new"]')
    )  # fmt: skip

    told = printed(nexus("policy", "diff", policy, str(other), "--json"))

    assert told["more"] == [
        "tenant new", "role viewer: goal:cancel", "role submitter: goal:submit r*",
        "role night: goal:cancel (hours 22:00-06:00; sources 10.0.0.0/16; tenants main; weekdays mon)",
        "binding of submitter to principal ci:1 (tenants acme)",
    ]  # fmt: skip
    assert told["less"] == [
        "tenant acme", "role viewer: agent:ask",
        "role night: goal:cancel (hours 22:00-06:00; sources 10.0.0.0/8; tenants main; weekdays mon)",
        "binding of submitter to principal corp:* (tenants acme)",
    ]  # fmt: skip
    shown = nexus("policy", "diff", policy, str(other)).stdout.splitlines()
    assert shown == [f"+ {line}" for line in told["more"]] + [f"- {line}" for line in told["less"]]
    assert nexus("policy", "diff", policy, policy).stdout == ""


def test_a_bundle_is_signed_and_asked_like_a_policy(
    policy: str, tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public, out = tmp_path / "policy.key", tmp_path / "policy.pem", tmp_path / "policy.tar.gz"
    key = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    private.touch(0o600)
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))

    made = nexus("policy", "bundle", "--out", str(out), "--signing-key", str(private), "--file", policy, "--json")
    revision = read_policy(Path(policy)).revision
    assert printed(made) == {"file": str(out), "bytes": out.stat().st_size, "revision": revision}
    asked = ["policy", "eval", "goal:read", "--role", "viewer", "--json"]
    unsure = nexus(*asked, "--file", str(out))
    assert unsure.exit_code == ExitCode.WRONG_INPUT and "--verification-key" in unsure.stderr
    given: Any = printed(nexus(*asked, "--file", str(out), "--verification-key", str(public)))
    assert given == {"allow": True, "reason": "granted", "revision": revision}
    assert nexus("policy", "diff", policy, str(out), "--verification-key", str(public)).stdout == ""

    # And as the fleet's, for tokens too.
    monkeypatch.setenv("NEXUS_SECURITY__POLICY", json.dumps({"bundle": str(out), "verification_key": str(public)}))
    assert printed(nexus(*asked)) == given
    assert nexus("token", "create", "--role", "night").exit_code == ExitCode.OK
    assert nexus("token", "create", "--role", "operator").exit_code == ExitCode.WRONG_INPUT
    assert load_policy(state, PolicySettings(bundle=out, verification_key=public)).revision == revision
    out.write_bytes(out.read_bytes()[:-20])
    refused = nexus(*asked)
    assert refused.exit_code == ExitCode.WRONG_INPUT and "policy.tar.gz" in refused.stderr
