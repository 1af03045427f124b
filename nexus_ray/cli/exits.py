"""How a verb ends: exit codes, and one line on stderr instead of a traceback.

Law: 0 ok, 1 the goal failed (or a check did), 2 wrong usage or input, 3 not allowed, 4 not up or not reachable,
5 cancelled or expired, 130 Ctrl-C. A bug is no ending and keeps its traceback.
"""

from enum import IntEnum
from typing import Any

import typer
from typer.core import TyperGroup

from nexus_ray.cli.show import plain
from nexus_ray.core.errors import NexusError


class ExitCode(IntEnum):
    """What a verb tells the shell."""

    OK = 0
    FAILED = 1
    WRONG_INPUT = 2
    NOT_ALLOWED = 3
    UNAVAILABLE = 4
    CANCELLED = 5
    INTERRUPTED = 130


_BY_ERROR_CODE = {
    "invalid_argument": ExitCode.WRONG_INPUT,
    "not_found": ExitCode.WRONG_INPUT,
    "already_exists": ExitCode.WRONG_INPUT,
    "failed_precondition": ExitCode.WRONG_INPUT,
    "unauthenticated": ExitCode.NOT_ALLOWED,
    "permission_denied": ExitCode.NOT_ALLOWED,
    "unavailable": ExitCode.UNAVAILABLE,
    "resource_exhausted": ExitCode.UNAVAILABLE,
    "deadline_exceeded": ExitCode.UNAVAILABLE,
    "cancelled": ExitCode.CANCELLED,
}
_BY_STATUS = {
    "failed": ExitCode.FAILED,
    "cancelled": ExitCode.CANCELLED,
    "expired": ExitCode.CANCELLED,
}
_HINTS = {
    "unauthenticated": "set NEXUS_TOKEN to a valid token; `nexus token create` makes one",
    "permission_denied": "the roles of the token do not allow it; `nexus token create --role ROLE` makes another",
}
_PROBLEMS_SHOWN_MAX = 5


def error_exit_code(error: NexusError) -> ExitCode:
    """Return the exit code for an error."""
    return _BY_ERROR_CODE.get(error.code, ExitCode.FAILED)


def status_exit_code(status: str) -> ExitCode:
    """Return the exit code for where a goal stands; one that has not ended is no failure."""
    return _BY_STATUS.get(status, ExitCode.OK)


def error_line(error: NexusError) -> str:
    """Return the one line that says what went wrong, and where it is not said already, what to do."""
    line = error.message or error.code
    problems = error.details.get("problems")
    if isinstance(problems, list) and problems:
        line += ": " + "; ".join(_problem(entry) for entry in problems[:_PROBLEMS_SHOWN_MAX])
    hint = _HINTS.get(error.code)
    if hint and "`nexus token" not in line and "NEXUS_TOKEN" not in line:
        line += f"; {hint}"
    return plain(line)


def _problem(entry: Any) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    return f"{entry.get('field', '')} {entry.get('problem', entry.get('message', ''))}".strip()


class Verbs(TyperGroup):
    """The verbs, with every error of the world turned into a line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except NexusError as error:
            typer.echo(f"error: {error_line(error)}", err=True)
            raise typer.Exit(error_exit_code(error)) from None
        except BrokenPipeError:
            raise  # The reader of our output has gone; click ends quietly.
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            typer.echo(f"error: {error.strerror or error}{where}", err=True)
            raise typer.Exit(ExitCode.WRONG_INPUT) from None
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None
