"""`nexus policy`: what a policy grants, why, what another would change, and a signed one for every engine.

Law: needs no fleet; without `--file` it is the policy that a fleet of this state folder goes by. Decides by the engine
in this process, whichever the fleet asks: both say the same.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nexus_ray.cli.exits import ExitCode, Verbs
from nexus_ray.cli.show import plain, print_json, print_rich, say, table
from nexus_ray.core.errors import InvalidArgumentError

if TYPE_CHECKING:
    from nexus_ray.security.policy import PolicyRequest

verbs = typer.Typer(cls=Verbs, no_args_is_help=True, help="See what a policy grants and why, test it and sign it.")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
File = Annotated[Path | None, typer.Option(help="A policy such as roles.toml, or a bundle; else the fleet's.")]
Key = Annotated[Path | None, typer.Option("--verification-key", help="Public key of a bundle; else the setting's.")]
Files = Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="Files of [[expect]].")]
Action = Annotated[str, typer.Argument(metavar="ACTION", help="Such as goal:submit.")]
Resource = Annotated[str, typer.Argument(metavar="[RESOURCE]", help="Such as a goal type.")]
Principal = Annotated[str, typer.Option(help="Who asks, as `nexus session list` shows it.")]
Role = Annotated[list[str] | None, typer.Option(help="A role or group of the token; may be repeated.")]
Tenant = Annotated[str, typer.Option(help="The caller's tenant.")]
Source = Annotated[str, typer.Option(help="The caller's address.")]
At = Annotated[str, typer.Option(help="When, such as 2026-01-05T22:30Z; now if not given.")]
_TEXTS = ("action", "resource", "principal", "tenant", "source", "at", "reason", "title")
_EXPECT = {*_TEXTS, "roles", "allow"}


@verbs.command()
def test(
    expectations: Files = None,
    file: File = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Check a policy, and that it decides as files of [[expect]] say; 1 if one of them is not met."""
    from nexus_ray.security.policy import parse_policy
    from nexus_ray.security.rego_engine import RegoEngine

    engine = RegoEngine(parse_policy(_table(file, key)))
    failed: list[dict[str, Any]] = []
    count = 0
    for path in expectations or []:
        for title, request, wanted in _expected(path):
            count += 1
            decision = engine.decide(request)
            got = {"allow": decision.is_allowed, "reason": decision.reason}
            if any(got[name] != value for name, value in wanted.items()):
                failed.append({"file": str(path), "title": title, "expected": wanted, "got": got})
    if as_json:
        print_json({"revision": engine.revision, "expectations": count, "failed": failed})
    else:
        for one in failed:
            say(f"{one['file']}: {one['title']}: {_verdict(one['got'])}, expected {_verdict(one['expected'])}")
        say(f"policy {engine.revision}: {count - len(failed)} of {count} expectations met")
    if failed:
        raise typer.Exit(ExitCode.FAILED)


@verbs.command("eval")
def evaluate(
    action: Action,
    resource: Resource = "",
    principal: Principal = "",
    role: Role = None,
    tenant: Tenant = "main",
    source: Source = "",
    at: At = "",
    file: File = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Say what would be decided; exits with 3 where it is no."""
    from nexus_ray.security.policy_explain import decide

    request = _request(action, resource, principal, role or [], tenant, source, at)
    decision = decide(_table(file, key), request)
    told = {"allow": decision.is_allowed, "reason": decision.reason}
    if as_json:
        print_json({**told, "revision": decision.revision})
    else:
        typer.echo(f"{_verdict(told)} by policy {decision.revision}")
    if not decision.is_allowed:
        raise typer.Exit(ExitCode.NOT_ALLOWED)


@verbs.command()
def explain(
    action: Action,
    resource: Resource = "",
    principal: Principal = "",
    role: Role = None,
    tenant: Tenant = "main",
    source: Source = "",
    at: At = "",
    file: File = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Say which role, grant and binding grant something, or what is missing; exits with 3 where it is no."""
    from nexus_ray.security.policy_explain import explain as explained

    found = explained(_table(file, key), _request(action, resource, principal, role or [], tenant, source, at))
    told = {"allow": found.decision.is_allowed, "reason": found.decision.reason}
    if as_json:
        grounds = [ground._asdict() for ground in found.grounds]
        print_json({**told, "revision": found.decision.revision, "granted_by": grounds, "missing": found.missing,
                    "roles_that_would": found.roles})  # fmt: skip
    else:
        typer.echo(f"{_verdict(told)} by policy {found.decision.revision}")
        rows = [("granted by", f"role {one.role}, which {one.held_by} gives: {one.grant}") for one in found.grounds]
        rows += [("missing", line) for line in found.missing]
        rows += [("would do", f"role {name}") for name in found.roles]
        shown = table(("", "why"), rows)
        shown.show_header = False
        print_rich(shown)
    if not found.decision.is_allowed:
        raise typer.Exit(ExitCode.NOT_ALLOWED)


@verbs.command()
def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="A policy, or a bundle.")],
    new: Annotated[Path | None, typer.Argument(metavar="[NEW]", help="Another; else the fleet's.")] = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Say what the new policy grants more (+) and less (-)."""
    from nexus_ray.security.policy_explain import difference

    found = difference(_table(old, key), _table(new, key))
    if as_json:
        print_json({"more": found.more, "less": found.less})
        return
    for line in found.more:
        typer.echo(f"+ {plain(line)}")
    for line in found.less:
        typer.echo(f"- {plain(line)}")
    if not found.more + found.less:
        say("both grant the same")


@verbs.command()
def bundle(
    out: Annotated[Path, typer.Option(help="Where to; replaced whole where it is there.")],
    signing_key: Annotated[Path, typer.Option(help="Private key on P-256, PEM, that nobody else can read.")],
    file: Annotated[Path | None, typer.Option(help="A policy such as roles.toml; else the state folder's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Sign a policy: one file that fleets (`security.policy.bundle`) and Open Policy Agent load."""
    import time

    from nexus_ray.config import load
    from nexus_ray.core.files import SHARED, replace_file
    from nexus_ray.security.authz import read_table
    from nexus_ray.security.policy import parse_policy
    from nexus_ray.security.policy_bundle import load_signing_key, write_bundle

    read = read_table(file if file is not None else load().state_dir / "roles.toml")
    raw = write_bundle(read, load_signing_key(signing_key), int(time.time()))
    replace_file(out, raw, SHARED)
    revision = parse_policy(read).revision
    if as_json:
        print_json({"file": str(out), "bytes": len(raw), "revision": revision})
    else:
        say(f"{out}: policy {revision}, {len(raw)} bytes")


def _table(path: Path | None, key: Path | None) -> dict[str, Any]:
    """Return a policy as it stands in its file, checked; without a path the one that a fleet here goes by."""
    import time

    from nexus_ray.config import load
    from nexus_ray.security.authz import read_policy, read_table
    from nexus_ray.security.policy_bundle import load_verification_key, read_bundle

    settings = load()
    path = path or settings.security.policy.bundle or settings.state_dir / "roles.toml"
    if not path.exists():
        raise InvalidArgumentError(f"there is no policy {path}; `nexus up` makes one, and --file names another")
    raw = path.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        read_policy(path)
        return read_table(path)
    key = key or settings.security.policy.verification_key
    if key is None:
        raise InvalidArgumentError(f"{path} is a bundle: --verification-key names whose signature it must carry")
    try:
        return read_bundle(raw, load_verification_key(key), time.time()).table
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{path}: {error.message}") from None


def _request(
    action: str, resource: str, principal: str, roles: list[str], tenant: str, source: str, at: str
) -> "PolicyRequest":
    import difflib

    from nexus_ray.security.policy import ACTIONS, PolicyRequest

    if action not in ACTIONS:
        near = difflib.get_close_matches(action, ACTIONS, 1)
        raise InvalidArgumentError(f"there is no action {action!r}" + (f"; did you mean {near[0]}?" if near else ""))
    moment = datetime.now(UTC)
    if at:
        try:
            moment = datetime.fromisoformat(at)
        except ValueError:
            raise InvalidArgumentError(f"{at!r} is no time such as 2026-01-05T22:30Z") from None
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return PolicyRequest(principal, tuple(roles), tenant, action, resource, source, moment.timestamp())


def _expected(path: Path) -> list[tuple[str, "PolicyRequest", dict[str, Any]]]:
    import tomllib

    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("expect")
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"{path}: {getattr(error, 'strerror', '') or error}") from None
    if not isinstance(entries, list) or not entries:
        raise InvalidArgumentError(f"{path}: it holds tables [[expect]]")
    found = []
    for number, entry in enumerate(entries, 1):
        title = f"expect {number}" + (f" ({entry['title']})" if isinstance(entry, dict) and "title" in entry else "")
        unknown = set(entry) - _EXPECT if isinstance(entry, dict) else {"no table"}
        if unknown or "action" not in entry or not isinstance(entry.get("allow"), bool):
            told = f"has {', '.join(sorted(unknown))}" if unknown else "lacks an action, or `allow = true` or `false`"
            raise InvalidArgumentError(f"{path}: {title} {told}; it may have {', '.join(sorted(_EXPECT))}")
        roles = entry.get("roles", [])
        texts = [entry.get(name, "") for name in _TEXTS]
        if not isinstance(roles, list) or not all(isinstance(text, str) for text in [*texts, *roles]):
            raise InvalidArgumentError(f"{path}: {title}: all but `allow` are texts, and roles a list of them")
        try:
            request = _request(texts[0], texts[1], texts[2], roles, entry.get("tenant", "main"), texts[4], texts[5])
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{path}: {title}: {error.message}") from None
        found.append((title, request, {name: entry[name] for name in ("allow", "reason") if name in entry}))
    return found


def _verdict(told: dict[str, Any]) -> str:
    return ("allow" if told["allow"] else "deny") + (f" ({told['reason']})" if "reason" in told else "")
