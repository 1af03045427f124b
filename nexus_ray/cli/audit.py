"""`nexus audit`: what was done and refused, and proofs that nobody changed the record of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nexus_ray.cli.exits import Verbs
from nexus_ray.cli.show import moment, plain, print_json, print_rich, say, table
from nexus_ray.core.errors import DataLossError, FailedPreconditionError, InvalidArgumentError

if TYPE_CHECKING:
    from nexus_ray.runtime.client import Connection

verbs = typer.Typer(cls=Verbs, no_args_is_help=True, help="See what was done and refused, and prove it.")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
What = Annotated[str, typer.Argument(metavar="GOAL|NUMBER", help="A goal's id, or the number of a record.")]
HoldName = Annotated[str, typer.Argument(metavar="NAME", help="What the hold is called.")]
_COLUMNS = ("seq", "at", "action", "resource", "principal", "outcome")  # The rest is what `show` is for.
_FINDINGS_SHOWN = 20


@verbs.command("list")
def list_records(
    goal: Annotated[str, typer.Option(help="Only records of this goal.")] = "",
    principal: Annotated[str, typer.Option(help="Only what this caller did.")] = "",
    action: Annotated[str, typer.Option(help="Only this action, such as goal:submit.")] = "",
    decision: Annotated[str, typer.Option(help="Only `allow` or `deny`.")] = "",
    is_open: Annotated[bool, typer.Option("--open", help="Only intents whose outcome is not known.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List records, newest first."""
    asked = {"goal": goal, "principal": principal, "action": action, "decision": decision, "limit": limit,
             "open": is_open}  # fmt: skip
    with _connected() as fleet:
        found = fleet.send("GET", "/v1/audit", params=asked).json()
    if as_json:
        print_json(found)
        return
    print_rich(table(_COLUMNS, [_row(record) for record in found["records"]], ("seq",)))


@verbs.command()
def show(what: What, as_json: AsJson = False) -> None:
    """Show a record, or all of a goal's, with everything that they say."""
    with _connected() as fleet:
        if what.isdecimal():
            records = [fleet.send("GET", f"/v1/audit/{what}").json()["record"]]
        else:
            records = fleet.send("GET", "/v1/audit", params={"goal": what, "limit": 1000}).json()["records"][::-1]
    if as_json:
        print_json({"records": records})
        return
    for record in records:
        print_rich(table(("", f"record {record['seq']}"), [(name, plain(value)) for name, value in record.items()]))


@verbs.command()
def prove(
    what: What,
    out: Annotated[Path | None, typer.Option(help="Write the receipt to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Get the receipt of a goal or a record: that it is in the log, under a signed checkpoint; and check it here."""
    from nexus_ray.audit.verify_export import verify_receipt

    with _connected() as fleet:
        if what.isdecimal():
            given = fleet.send("GET", f"/v1/audit/{what}").json()["receipt"]
        else:
            given = fleet.send("GET", f"/v1/goals/{what}/receipt").json()
    findings = verify_receipt(given, _key(None))
    if findings:
        raise DataLossError(f"the receipt does not prove it: {findings[0]}")
    if out is not None:
        import json

        out.write_text(json.dumps(given), encoding="utf-8")
        say(f"written to {out}; verify_export.py --receipt {out} checks it anywhere")
    if as_json or out is None:
        print_json(given)


@verbs.command()
def export(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; it must not be there yet.")],
    as_json: AsJson = False,
) -> None:
    """Export the whole log for an auditor, who verifies it with verify_export.py and the key alone."""
    if out.exists():
        raise FailedPreconditionError(f"{out} is there already")
    with _connected() as fleet:
        content = fleet.send("GET", "/v1/audit/export").content
    out.write_bytes(content)
    if as_json:
        print_json({"file": str(out), "bytes": len(content)})
    else:
        say(f"{out}: {len(content)} bytes; the auditor gets {_key_path()} from you by another way")


@verbs.command()
def verify(
    exported: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="An export; else the fleet's log.")] = None,
    key: Annotated[Path | None, typer.Option(help="The log's verifier key; else the state folder's.")] = None,
    known: Annotated[list[Path] | None, typer.Option(help="A checkpoint that was kept; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Verify the whole log: any record changed, taken away, put in or moved, any checkpoint forked or rolled back.

    What is in order is remembered in the state folder: the next time the log must still begin with it.
    """
    from nexus_ray.audit.verify_export import Refused, verify_export

    remembered = _key_path().with_name("known.checkpoint")
    texts = [_text(path) for path in [*(known or []), *([remembered] if remembered.exists() else [])]]
    if exported is not None:
        content = exported.read_bytes() if exported.exists() else b""
    else:
        with _connected() as fleet:
            content = fleet.send("GET", "/v1/audit/export").content
    lines = content.removesuffix(b"\n").split(b"\n")
    try:
        report = verify_export(lines, _key(key), texts)
    except Refused as error:
        raise InvalidArgumentError(f"cannot verify: {error}") from None
    if as_json:
        print_json({
            "is_in_order": not report.findings, "findings": report.findings, "records": report.records,
            "emptied": report.emptied, "checkpoints": report.checkpoints, "open": report.open_intents,
        })  # fmt: skip
    if report.findings:
        for finding in report.findings[:_FINDINGS_SHOWN]:
            say(finding)
        raise DataLossError(f"the audit log is NOT in order: {len(report.findings)} findings")
    if key is None:
        import json

        remembered.write_text(json.loads(lines[-1])["checkpoint"], encoding="utf-8")
    if not as_json:
        say(f"in order: {report.records} records, {report.emptied} of them emptied by retention, "
            f"{report.checkpoints} checkpoints, {len(report.open_intents)} intents without an outcome")  # fmt: skip


@verbs.command()
def hold(
    name: HoldName,
    goal: Annotated[str, typer.Option(help="Hold the records of this goal.")] = "",
    principal: Annotated[str, typer.Option(help="Hold the records of this caller.")] = "",
    tenant: Annotated[str, typer.Option(help="Hold the records of this tenant.")] = "",
    reason: Annotated[str, typer.Option(help="Why; it is written down.")] = "",
    as_json: AsJson = False,
) -> None:
    """Keep records in clear whatever their age, until the hold is released."""
    chosen = [pair for pair in (("goal", goal), ("principal", principal), ("tenant", tenant)) if pair[1]]
    if len(chosen) != 1:
        raise InvalidArgumentError("a hold names one of --goal, --principal and --tenant")
    ((field, value),) = chosen
    with _connected() as fleet:
        body = {"field": field, "value": value, "reason": reason}
        placed = fleet.send("PUT", f"/v1/audit/holds/{_quoted(name)}", json=body, is_repeatable=False).json()
    if as_json:
        print_json(placed)
    else:
        say(f"{name}: records of {field} {placed['value']} are kept")


@verbs.command()
def release(name: HoldName, as_json: AsJson = False) -> None:
    """Let go of a hold."""
    with _connected() as fleet:
        released = fleet.send("DELETE", f"/v1/audit/holds/{_quoted(name)}", is_repeatable=False).json()
    if as_json:
        print_json(released)
    else:
        say(f"{name} is released")


@verbs.command()
def holds(as_json: AsJson = False) -> None:
    """List what is held."""
    with _connected() as fleet:
        found = fleet.send("GET", "/v1/audit/holds").json()
    if as_json:
        print_json(found)
        return
    columns = ("name", "field", "value", "reason", "by", "at")
    rows = [[plain(hold[name]) for name in columns[:-1]] + [moment(hold["at"])] for hold in found["holds"]]
    print_rich(table(columns, rows))


def _connected() -> "Connection":
    from nexus_ray.runtime.client import connect

    return connect()


def _key_path() -> Path:
    from nexus_ray.runtime.fleet_file import state_folder

    return state_folder(None) / "audit" / "verifier.key"


def _key(path: Path | None) -> Any:
    from nexus_ray.audit.verify_export import Refused, read_key

    try:
        return read_key(_text(path or _key_path()))
    except Refused as error:
        raise InvalidArgumentError(f"{path or _key_path()}: {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{path} cannot be read: {getattr(error, 'strerror', '') or 'not text'}") from None


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="")


def _row(record: dict[str, Any]) -> list[Any]:
    if "emptied" in record:
        return [record["seq"], "", "emptied", "", "", ""]
    shown = [plain(record.get(name, "")) for name in _COLUMNS[2:5]]
    return [record["seq"], moment(record["at"]), *shown, plain(record.get("outcome", record["kind"]))]
