"""`nexus ledger verify|backup|restore|export`: whether the record is whole, a copy of it, and the way back.

Law: they read beside a fleet that runs, and hold it up in nothing; what they write is whole or not there.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nexus_ray.cli.exits import ExitCode
from nexus_ray.cli.show import plain, print_json, say

if TYPE_CHECKING:
    from nexus_ray.ledger.check import Report

Config = Annotated[Path | None, typer.Option(help="Settings file, TOML.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
_SHOWN_MAX = 20


def verify(
    file: Annotated[Path | None, typer.Option("--backup", help="Look at this backup instead of the ledger.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Check every record of the ledger, or of a backup: sums, numbers, and what belongs together."""
    from nexus_ray.ledger.archive import look_through
    from nexus_ray.ledger.archive import verify as look

    with _counting() as progress:
        if file is not None:
            report = look_through(file, progress)
        else:
            with _reading(config) as tables:
                report = look(tables, progress)
    if as_json:
        print_json({"sound": report.is_sound, **_numbers(report), "faults": report.faults})
    else:
        for fault in report.faults[:_SHOWN_MAX]:
            say(fault)
        if report.faults_count > _SHOWN_MAX:
            say(f"… and {report.faults_count - _SHOWN_MAX} faults more")
        say(f"{_told(report)}: " + ("sound" if report.is_sound else f"{report.faults_count} faults"))
        if not report.is_sound:
            say("stop the fleet, keep the files, and restore a backup into another folder: `nexus ledger restore`")
    if not report.is_sound:
        raise typer.Exit(ExitCode.FAILED)


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The new file.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Write the ledger as it is now into a new file, checked while it is read; the fleet goes on meanwhile."""
    from nexus_ray.ledger.archive import backup as carry_out

    with _reading(config) as tables, _counting() as progress:
        report = carry_out(tables, file, progress)
    _end(report, as_json, f"in {file}", file=str(file), bytes=file.stat().st_size)


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `nexus ledger backup` wrote.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Write a backup into the ledger that the settings name, which must be empty: all of it, or nothing.

    The embedded ledger is made anew in the state folder (NEXUS_STATE_DIR names another one); a PostgreSQL one must be
    migrated before.
    """
    from nexus_ray.config import load
    from nexus_ray.ledger.archive import restore as carry_out
    from nexus_ray.ledger.tables import writing
    from nexus_ray.runtime.which_ledger import ledger_path, need_postgres

    settings = load(config)
    if settings.ledger.url:
        need_postgres()
    with writing(settings.ledger, ledger_path(settings)) as tables, _counting() as progress:
        report = carry_out(file, tables, progress)
    place = "the database" if settings.ledger.url else str(ledger_path(settings))
    _end(report, as_json, f"restored into {place}", place=place)


def export(
    goal: Annotated[str, typer.Option(help="Only this goal.")] = "",
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="It is JSON in any case, a line for each record.")] = False,
) -> None:
    """Print the ledger as lines of JSON, a line for each record, for other tools."""
    from nexus_ray.ledger.archive import lines
    from nexus_ray.ledger.check import Check

    with _reading(config) as tables:
        for line in lines(tables, Check(tables.head()[0])):
            # A goal's id stands in its rows as it is: ids are made of letters, digits, dots and dashes.
            if not goal or f'"{goal}"'.encode() in line:
                sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


def _end(report: "Report", as_json: bool, what: str, **fields: Any) -> None:
    if as_json:
        print_json({**_numbers(report), **fields})
    else:
        say(f"{_told(report)} {plain(what)}")


def _numbers(report: "Report") -> dict[str, int]:
    return {"goals": report.goals, "entries": report.entries, "states": report.states}


def _told(report: "Report") -> str:
    return f"{report.goals} goals, {report.entries} entries, {report.states} agents' states"


@contextlib.contextmanager
def _reading(config: Path | None) -> Iterator[Any]:
    from nexus_ray.config import load
    from nexus_ray.ledger.tables import reading
    from nexus_ray.runtime.which_ledger import ledger_path, need_postgres

    settings = load(config)
    if settings.ledger.url:
        need_postgres()
    with reading(settings.ledger, ledger_path(settings)) as tables:
        yield tables


@contextlib.contextmanager
def _counting() -> Iterator[Callable[["Report"], None] | None]:
    """Show how far it is, on a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status("reading") as shown:
        yield lambda report: shown.update(_told(report))
