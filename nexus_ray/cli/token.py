"""`nexus token`: make tokens for people and programs, with this machine's issuer key."""

import re
import secrets
from collections.abc import Iterable
from typing import Annotated

import typer

from nexus_ray.cli.exits import Verbs
from nexus_ray.cli.show import moment, print_json, say
from nexus_ray.core.errors import FailedPreconditionError, InvalidArgumentError

verbs = typer.Typer(cls=Verbs, no_args_is_help=True, help="Make tokens.")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_PRINCIPAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._-]{0,99}\Z")


@verbs.callback()
def _group() -> None:
    """Make tokens."""


@verbs.command()
def create(
    role: Annotated[list[str], typer.Option(help="A role from roles.toml; may be repeated.")],
    ttl: Annotated[str, typer.Option(help="How long it is valid: 30m, 1h, 7d.")] = "1h",
    name: Annotated[str, typer.Option(help="Whom the token names.")] = "local-user",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Print a new token; whoever holds it is NAME, with these roles, until it expires."""
    lifetime_s = parse_ttl_s(ttl)
    if not _PRINCIPAL.match(name):
        raise InvalidArgumentError(f"{name!r} is not a name for a token: use letters, digits, '@', '.', '_', '-'")
    from nexus_ray.config import load
    from nexus_ray.core.clock import SystemClock
    from nexus_ray.runtime.audit_local import write_down
    from nexus_ray.security.authz import ensure_role_file, load_roles
    from nexus_ray.security.keys import load_or_create_issuer_key
    from nexus_ray.security.tokens import issue_token

    settings = load()
    if lifetime_s > settings.tokens.lifetime_max_s:
        longest_d = settings.tokens.lifetime_max_s / 86_400
        raise InvalidArgumentError(f"a token may live {longest_d:g} days at most, not {ttl}")
    folder = settings.state_dir
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    ensure_role_file(folder)
    check_roles(role, load_roles(folder, settings.security.policy))
    now = SystemClock().now()
    roles = list(dict.fromkeys(role))
    id = secrets.token_hex(16)
    token = issue_token(load_or_create_issuer_key(folder), settings.tokens, name, roles, lifetime_s, now, jti=id)
    # Before it is given away, and not at all where it cannot be written down.
    write_down(settings, "token:create", name, {"roles": roles, "id": id, "expires_at": now + lifetime_s}, is_name=True)
    if as_json:
        print_json({"token": token, "principal": name, "roles": roles, "expires_at": now + lifetime_s})
        return
    typer.echo(token)
    say(f"{name}: {', '.join(roles)}, until {moment(now + lifetime_s)}; use it as NEXUS_TOKEN")


@verbs.command("rotate-key")
def rotate_key(
    forget_old: Annotated[bool, typer.Option("--forget-old", help="End what keys before have signed, now.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Have a new key sign tokens; what the one before has signed holds until it expires."""
    from nexus_ray.config import load
    from nexus_ray.core.clock import SystemClock
    from nexus_ray.runtime.audit_local import write_down
    from nexus_ray.runtime.state import write_operator_token
    from nexus_ray.security.keys import rotate_issuer_key

    settings = load()
    folder = settings.state_dir
    if not (folder / "issuer.key").exists():
        raise FailedPreconditionError(f"there is no key in {folder} yet; `nexus up` makes one")
    now = SystemClock().now()
    keep_s = 0.0 if forget_old else settings.tokens.lifetime_max_s + settings.tokens.leeway_s

    def before(old: str, new: str) -> None:
        write_down(settings, "key:rotate", new, {"before": old, "before_until": now + keep_s})

    old, new = rotate_issuer_key(folder, now, keep_s, before)
    if (folder / "token").exists():
        write_operator_token(settings)  # The command line's own goes on, whatever becomes of the key before.
    if as_json:
        print_json({"kid": new.kid, "before": old.kid, "before_until": now + keep_s})
        return
    ends = "ended now" if forget_old else f"is believed until {moment(now + keep_s)}"
    say(f"{new.kid} signs from now on; {old.kid} {ends}")


def parse_ttl_s(text: str) -> float:
    """Return the seconds that `90s`, `30m`, `1h` or `7d` mean.

    Raises:
        InvalidArgumentError: It is none of these, or no time at all.
    """
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text.strip())
    if match is None or int(match[1]) == 0:
        raise InvalidArgumentError(f"{text!r} is not a length of time: write 90s, 30m, 1h or 7d")
    return float(int(match[1]) * _UNITS_S[match[2]])


def check_roles(roles: list[str], known: Iterable[str]) -> None:
    """Refuse a role that the role file does not know: such a token would open nothing.

    Raises:
        InvalidArgumentError: An unknown role.
    """
    unknown = [role for role in roles if role not in known]
    if unknown:
        raise InvalidArgumentError(f"there is no role {unknown[0]!r}; roles.toml has {', '.join(sorted(known))}")
