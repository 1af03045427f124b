"""`nexus audit` against a fleet that answers from a script, with a real log's proofs."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nexus_ray.audit.export import export, receipt
from nexus_ray.audit.limits import AuditSettings
from nexus_ray.audit.log import DatabaseAuditLog
from nexus_ray.audit.sqlite import SqliteDatabase
from nexus_ray.core.clock import ManualClock
from tests.audit.support import KEY, entry
from tests.cli.conftest import Fleet, as_json, as_problem
from tests.cli.support import nexus, printed

RECORD = {"seq": 4, "at": 1.0, "kind": "event", "action": "goal:read", "principal": "ada", "decision": "deny"}


@pytest.fixture
def exported(tmp_path: Path, state: Path, fleet: Fleet, is_up: Callable[..., None]) -> bytes:
    """What a fleet with three records exports; its key is in the state folder, as on the fleet's own machine."""

    async def make() -> tuple[bytes, str, dict[str, object]]:
        log = await DatabaseAuditLog.open(
            lambda: SqliteDatabase(tmp_path / "audit.sqlite"), KEY, AuditSettings(), ManualClock()
        )
        await log.append([entry(n) for n in range(3)])
        made = b"".join([part async for part in export(log)]), await log.key(), receipt(await log.prove(1))
        await log.close()
        return made

    content, key, proof = asyncio.run(make())
    is_up()
    (state / "audit").mkdir()
    (state / "audit" / "verifier.key").write_text(key)
    fleet.on("GET /v1/audit/export", (200, {}, content))
    fleet.on("GET /v1/goals/goal-1/receipt", as_json(proof))
    fleet.on("GET /v1/audit/1", as_json({"record": {"seq": 1}, "receipt": proof}))
    return content


def test_records_are_listed_and_shown(fleet: Fleet, is_up: Callable[..., None]) -> None:
    is_up()
    emptied = {"seq": 3, "emptied": "aa"}
    fleet.on("GET /v1/audit", as_json({"records": [RECORD, emptied], "next": None}))
    fleet.on("GET /v1/audit/4", as_json({"record": RECORD, "receipt": {}}))

    listed = nexus("audit", "list", "--open", "--principal", "ada")

    assert listed.exit_code == 0 and "goal:read" in listed.stdout and "emptied" in listed.stdout
    assert printed(nexus("audit", "list", "--json"))["records"] == [RECORD, emptied]
    assert printed(nexus("audit", "show", "4", "--json")) == {"records": [RECORD]}
    assert printed(nexus("audit", "show", "goal-1", "--json")) == {"records": [emptied, RECORD]}
    assert "ada" in nexus("audit", "show", "4").stdout


def test_a_receipt_is_checked_before_it_is_handed_out(exported: bytes, fleet: Fleet, tmp_path: Path) -> None:
    out = tmp_path / "receipt.json"

    assert nexus("audit", "prove", "goal-1", "--out", str(out)).exit_code == 0
    assert json.loads(out.read_text()) == printed(nexus("audit", "prove", "1", "--json"))

    forged = json.loads(out.read_text())
    fleet.on("GET /v1/goals/goal-1/receipt", as_json({**forged, "record": forged["record"].replace("ada", "eve")}))
    refused = nexus("audit", "prove", "goal-1")
    assert refused.exit_code == 1 and "does not prove" in refused.stderr


def test_the_log_is_exported_once_and_verified_from_the_file_or_the_fleet(
    exported: bytes, state: Path, tmp_path: Path
) -> None:
    out = tmp_path / "export"

    assert printed(nexus("audit", "export", str(out), "--json")) == {"file": str(out), "bytes": len(exported)}
    assert out.read_bytes() == exported
    assert nexus("audit", "export", str(out)).exit_code == 2

    for told in (nexus("audit", "verify", "--json"), nexus("audit", "verify", str(out), "--json")):
        assert told.exit_code == 0
        assert printed(told) == {"is_in_order": True, "findings": [], "records": 3, "emptied": 0, "checkpoints": 1,
                                 "open": []}  # fmt: skip
    assert (state / "audit" / "known.checkpoint").read_text().split("\n")[1] == "3"


def test_a_log_that_was_changed_or_cut_short_since_it_was_last_in_order_is_told(
    exported: bytes, fleet: Fleet, tmp_path: Path
) -> None:
    assert nexus("audit", "verify").exit_code == 0

    fleet.on("GET /v1/audit/export", (200, {}, exported.replace(b"ada", b"eve", 1)))
    changed = nexus("audit", "verify", "--json")

    assert changed.exit_code == 1 and printed(changed)["is_in_order"] is False
    assert "NOT in order" in changed.stderr
    (tmp_path / "other").write_text("nothing")
    assert nexus("audit", "verify", "--key", str(tmp_path / "other")).exit_code == 2
    assert nexus("audit", "verify", str(tmp_path / "nowhere")).exit_code == 2


def test_holds_are_placed_listed_and_released(fleet: Fleet, is_up: Callable[..., None]) -> None:
    is_up()
    placed = {"name": "case 7", "field": "goal", "value": "goal-1", "reason": "", "by": "ada", "at": 1.0}
    fleet.on("PUT /v1/audit/holds/case%207", as_json(placed))
    fleet.on("GET /v1/audit/holds", as_json({"holds": [placed]}))
    fleet.on("DELETE /v1/audit/holds/case%207", as_json({"released": "case 7"}))

    assert printed(nexus("audit", "hold", "case 7", "--goal", "goal-1", "--json")) == placed
    assert printed(nexus("audit", "holds", "--json")) == {"holds": [placed]}
    assert "case 7" in nexus("audit", "holds").stdout
    assert printed(nexus("audit", "release", "case 7", "--json")) == {"released": "case 7"}
    assert nexus("audit", "hold", "x", "--goal", "a", "--tenant", "b").exit_code == 2


def test_who_may_not_read_the_log_is_told_so(fleet: Fleet, is_up: Callable[..., None]) -> None:
    is_up()
    fleet.on("GET /v1/audit", as_problem("permission_denied", "not allowed", 403))

    assert nexus("audit", "list").exit_code == 3
