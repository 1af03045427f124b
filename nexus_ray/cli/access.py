"""`nexus session` and `nexus identity`: who came in, and who may no more."""

from typing import Annotated, Any

import typer

from nexus_ray.cli.exits import Verbs
from nexus_ray.cli.show import moment, print_json, print_rich, say, table

sessions = typer.Typer(cls=Verbs, no_args_is_help=True, help="See who came in, and revoke sessions.")
identities = typer.Typer(cls=Verbs, no_args_is_help=True, help="Suspend identities, and restore them.")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Tenant = Annotated[str, typer.Option(help="Another tenant, for an admin of all.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The principal, as `nexus session list` shows it.")]


@sessions.command("list")
def list_sessions(as_json: AsJson = False) -> None:
    """List the sessions that were seen and have not expired."""
    found = _ask("GET", "/v1/sessions")["sessions"]
    if as_json:
        print_json({"sessions": found})
        return
    columns = ("session", "principal", "tenant", "method", "expires", "revoked")
    rows = [
        (one["id"], one["principal"], one["tenant"], one["method"], moment(one["expires_at"]),
         "yes" if one["is_revoked"] else "")
        for one in found
    ]  # fmt: skip
    print_rich(table(columns, rows))


@sessions.command()
def revoke(
    session: Annotated[str, typer.Argument(metavar="SESSION", help="As `nexus session list` shows it.")],
    tenant: Tenant = "",
    as_json: AsJson = False,
) -> None:
    """Let a session in no more; its goals go on."""
    told = _ask("POST", "/v1/sessions:revoke", id=session, tenant=tenant)
    if as_json:
        print_json(told)
    else:
        say(f"session {session} is revoked")


@identities.command("list")
def list_identities(as_json: AsJson = False) -> None:
    """List the identities that are suspended."""
    found = _ask("GET", "/v1/identities")["identities"]
    if as_json:
        print_json({"identities": found})
        return
    rows = [(one["principal"], one["tenant"], one["by"], moment(one["at"])) for one in found]
    print_rich(table(("principal", "tenant", "by", "since"), rows))


@identities.command()
def suspend(
    name: Name,
    cancel_goals: Annotated[bool, typer.Option("--cancel-goals", help="End its goals under way.")] = False,
    tenant: Tenant = "",
    as_json: AsJson = False,
) -> None:
    """Let an identity in no more, whatever it shows, until it is restored; its goals under way go on by default."""
    told = _ask("POST", "/v1/identities:suspend", principal=name, tenant=tenant, cancel_goals=cancel_goals)
    if as_json:
        print_json(told)
    else:
        say(f"{name} is suspended" + (f"; goals asked to end: {told['goals_cancelled']}" if cancel_goals else ""))


@identities.command()
def restore(name: Name, tenant: Tenant = "", as_json: AsJson = False) -> None:
    """Let a suspended identity in again."""
    told = _ask("POST", "/v1/identities:restore", principal=name, tenant=tenant)
    if as_json:
        print_json(told)
    else:
        say(f"{name} is restored")


def _ask(method: str, path: str, **query: Any) -> Any:
    from nexus_ray.runtime.client import connect

    with connect() as fleet:
        return fleet.send(method, path, params={name: value for name, value in query.items() if value}).json()
