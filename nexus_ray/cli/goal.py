"""`nexus goal`: submit one or many, show, watch, list and cancel."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from nexus_ray.cli.exits import ExitCode, Verbs, status_exit_code
from nexus_ray.cli.show import goal_table, moment, print_json, print_rich, say, span_tree, table
from nexus_ray.core.errors import InvalidArgumentError, NexusError, NotFoundError

if TYPE_CHECKING:
    from nexus_ray.runtime.client import GoalHandle

verbs = typer.Typer(cls=Verbs, no_args_is_help=True, help="Submit goals and follow them.")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
GoalId = Annotated[str, typer.Argument(metavar="ID", help="The goal's id.")]


@verbs.command()
def submit(
    type: Annotated[str, typer.Argument(help="The goal type, as the app declares it.")],
    payload: Annotated[str, typer.Argument(help="JSON, @FILE, or - for stdin.")] = "{}",
    watch: Annotated[bool, typer.Option("--watch", help="Show progress and print the result.")] = False,
    wait: Annotated[float | None, typer.Option(min=0, help="Wait this many seconds for the result.")] = None,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds that the goal may take.")] = None,
    key: Annotated[str | None, typer.Option(help="Idempotency key: the same key gives the same goal.")] = None,
    as_json: AsJson = False,
) -> None:
    """Submit a goal; prints its id, or with --watch or --wait its result."""
    value = read_payload(payload)
    from nexus_ray.runtime.client import connect

    with connect() as fleet:
        try:
            goal = fleet.submit(type, value, timeout_s=timeout, idempotency_key=key, wait_s=wait)
        except KeyboardInterrupt:
            say("interrupted before the fleet's answer came: the goal may be accepted; `nexus goal list` tells")
            raise
        if watch:
            _watch(goal, as_json, is_own=True)
        if wait:
            goal.wait(wait)
            _end(goal, as_json)
        if as_json:
            print_json(goal.record)
        else:
            typer.echo(goal.id)
            say(f"accepted; follow it with: nexus goal watch {goal.id}")


@verbs.command()
def batch(
    file: Annotated[str, typer.Argument(metavar="FILE", help="One JSON object a line, or - for stdin.")],
    as_json: AsJson = False,
) -> None:
    """Submit many goals: lines of {"type", "payload", "timeout_s"?, "idempotency_key"?}; prints their ids in order."""
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise NotFoundError(f"cannot read {file}: {error.strerror}") from None
    from nexus_ray.runtime.batches import submit_batch
    from nexus_ray.runtime.client import connect

    refused, told = 0, []
    with connect() as fleet:
        for one in submit_batch(fleet, content.removesuffix(b"\n").split(b"\n")):
            problem = one.get("problem")
            refused += problem is not None
            if as_json:
                told.append(one)
            elif problem is None:
                typer.echo(one["id"])
            else:
                say(f"line {one['line']}: {problem['detail']}")
    if as_json:
        print_json({"goals": told})
    if refused:
        say(f"{refused} refused")
        raise typer.Exit(ExitCode.WRONG_INPUT)


@verbs.command()
def show(
    id: GoalId,
    trace: Annotated[bool, typer.Option("--trace", help="Show the tree of its spans.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a goal, and with --trace how it was worked on."""
    from nexus_ray.runtime.client import connect

    with connect() as fleet:
        goal = fleet.goal(id)
        spans = goal.trace() if trace else []
        record = goal.record
    if as_json:
        print_json({**record, "spans": spans} if trace else record)
        return
    print_rich(goal_table(record))
    if spans:
        print_rich(span_tree(spans, f"{record['type']} {record['id']}"))
    elif trace:
        say("no spans: the goal was not sampled, or has not begun")


@verbs.command()
def watch(id: GoalId, as_json: AsJson = False) -> None:
    """Follow a goal to its end; Ctrl-C stops watching, not the goal."""
    from nexus_ray.runtime.client import connect

    with connect() as fleet:
        _watch(fleet.goal(id), as_json, is_own=False)


@verbs.command("list")
def list_goals(
    status: Annotated[str | None, typer.Option(help="Only goals in this status.")] = None,
    type: Annotated[str | None, typer.Option(help="Only goals of this type.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="At most this many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List goals, newest first."""
    from nexus_ray.ledger.goal import GoalStatus
    from nexus_ray.runtime.client import connect

    known = [member.value for member in GoalStatus]
    if status is not None and status not in known:
        raise InvalidArgumentError(f"{status!r} is not a status; there are {', '.join(known)}")
    with connect() as fleet:
        goals = fleet.goals(status=status, type=type, limit=limit)
    if as_json:
        print_json({"goals": goals})
        return
    if not goals:
        say("no goals")
        return
    rows = [(g["id"], g["type"], g["status"], moment(g.get("accepted_at")), g.get("principal", "")) for g in goals]
    print_rich(table(("id", "type", "status", "accepted", "principal"), rows))


@verbs.command()
def cancel(id: GoalId, as_json: AsJson = False) -> None:
    """Ask for a goal to be cancelled."""
    from nexus_ray.runtime.client import connect

    with connect() as fleet:
        goal = fleet.goal(id)
        goal.cancel()
        if as_json:
            print_json(goal.record)
            return
    say(f"cancelling {id}")


def read_payload(text: str) -> Any:
    """Return the payload that an argument names: JSON itself, `@file`, or `-` for stdin.

    Raises:
        NotFoundError: There is no such file.
        InvalidArgumentError: It is not JSON.
    """
    where = "the payload"
    if text == "-":
        where, text = "stdin", sys.stdin.read()
    elif text.startswith("@"):
        where = text[1:]
        try:
            text = Path(where).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InvalidArgumentError(f"{where} is not UTF-8 text") from None
        except OSError as error:
            raise NotFoundError(f"cannot read {where or 'a file without a name'}: {error.strerror}") from None
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise InvalidArgumentError(
            f"{where} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}; "
            "quote it for the shell, such as '{\"paths\": []}', or give @FILE"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{where} is not JSON: {error}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _watch(goal: "GoalHandle", as_json: bool, is_own: bool) -> NoReturn:
    from nexus_ray.cli.watch import follow

    try:
        say(f"watching {goal.id}")  # Whoever reads this may press Ctrl-C at once.
        follow(goal)
    except KeyboardInterrupt:
        if is_own:
            _offer_cancel(goal)
        else:
            say(f"the goal goes on; nexus goal cancel {goal.id} would end it")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    _end(goal, as_json)


def _offer_cancel(goal: "GoalHandle") -> None:
    """Cancel the goal that this command began, unless a person says that it should go on."""
    go_on = f"the goal goes on; nexus goal watch {goal.id} follows it again"
    try:
        if sys.stdin.isatty() and not typer.confirm(f"\ncancel {goal.id}?", default=True, err=True):
            say(go_on)
            return
        goal.cancel()
        say(f"cancelled {goal.id}")
    except (KeyboardInterrupt, typer.Abort):
        say(go_on)
    except NexusError as error:
        say(f"not cancelled: {error.message}")


def _end(goal: "GoalHandle", as_json: bool) -> NoReturn:
    from nexus_ray.cli.watch import report

    raise typer.Exit(status_exit_code(report(goal, as_json)))
