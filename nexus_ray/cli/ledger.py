"""`nexus ledger`: the durable record from outside a fleet: what stands in it, and the schema of a PostgreSQL one."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nexus_ray.cli.exits import Verbs
from nexus_ray.cli.show import plain, print_json, print_rich, say, table

if TYPE_CHECKING:
    from nexus_ray.ledger.status import LedgerStatus

verbs = typer.Typer(cls=Verbs, no_args_is_help=True, help="Look at the ledger and keep it safe.")
_CONFIG = typer.Option(help="Settings file, TOML.")
_JSON = typer.Option("--json", help="Print JSON for scripts.")


@verbs.callback()
def _group() -> None:
    """Look at the ledger and keep it safe."""


@verbs.command()
def status(
    config: Annotated[Path | None, _CONFIG] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Show which ledger the settings name and what stands in it; a fleet may run meanwhile."""
    found = _status(config)
    if as_json:
        print_json({**asdict(found), "standing": found.standing})
        return
    print_rich(table(("", "ledger"), _lines(found)))
    if found.standing != "current":
        say(_TODO[found.standing])


@verbs.command()
def migrate(
    config: Annotated[Path | None, _CONFIG] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Bring a PostgreSQL ledger to this version's schema; does nothing where it is already.

    The embedded ledger needs no such thing.
    """
    from nexus_ray.config import load
    from nexus_ray.runtime.which_ledger import need_postgres

    settings = load(config).ledger
    if not settings.url:
        before = after = 0
        told = "the embedded ledger is made by `nexus up`: there is nothing to migrate"
    else:
        need_postgres()
        from nexus_ray.ledger.postgres_migrate import migrate as carry_out

        before, after = carry_out(settings)
        told = f"schema {after}: nothing to do" if before == after else f"from schema {before} to {after}"
    if as_json:
        print_json({"adapter": "postgresql" if settings.url else "sqlite", "before": before, "after": after})
    else:
        say(told)


_TODO = {
    "missing": "there is no ledger yet: run `nexus ledger migrate`",
    "older": "written by an older Nexus: run `nexus ledger migrate`",
    "newer": "written by a newer Nexus: this one refuses it",
}


def _status(config: Path | None) -> "LedgerStatus":
    from nexus_ray.config import load
    from nexus_ray.runtime.which_ledger import ledger_path, need_postgres

    settings = load(config)
    if not settings.ledger.url:
        from nexus_ray.ledger.status import sqlite_status

        return sqlite_status(ledger_path(settings))
    need_postgres()
    from nexus_ray.ledger.postgres_migrate import postgres_status

    return postgres_status(settings.ledger)


def _lines(found: "LedgerStatus") -> list[tuple[str, str]]:
    lease = f"{found.lease_holder}, for {found.lease_s:.0f} s more" if found.lease_holder else "nobody"
    return [
        ("kind", found.adapter),
        ("place", plain(found.place)),
        ("schema", f"{found.schema}, {found.standing} (this version knows {found.schema_known})"),
        *((f"goals {name}", str(count)) for name, count in sorted(found.goals.items())),
        ("entries", str(found.entries)),
        ("agents with state", str(found.agents)),
        ("hosts fenced", str(found.fenced)),
        ("epoch", str(found.epoch)),
        ("size", f"{found.size_bytes / (1 << 20):.1f} MiB"),
        *([("held by", plain(lease))] if found.adapter == "postgresql" else []),
    ]
