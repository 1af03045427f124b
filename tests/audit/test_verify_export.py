"""An auditor with nothing but an export, the key and one file of ours finds whatever was done to the log."""

import ast
import hashlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nexus_ray.audit import verify_export
from nexus_ray.audit.checkpoint import Checkpoint, sign_checkpoint
from nexus_ray.audit.export import export, receipt
from nexus_ray.audit.limits import AuditSettings
from nexus_ray.audit.log import DatabaseAuditLog
from nexus_ray.audit.record import GENESIS, Kind, Retention, seal
from nexus_ray.audit.sqlite import SqliteDatabase
from nexus_ray.audit.tree import root_of
from nexus_ray.audit.verify_export import Report, main, read_key, verify_receipt
from nexus_ray.core.clock import ManualClock
from tests.audit.support import KEY, entry

COUNT = 11
DAY_S = 86_400.0


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[DatabaseAuditLog]:
    """Eleven records, the first two emptied, with checkpoints of 4, 8 and 11."""
    made = await DatabaseAuditLog.open(
        lambda: SqliteDatabase(tmp_path / "audit.sqlite"), KEY, AuditSettings(checkpoint_records=4), ManualClock()
    )
    await made.append([entry(0, retention=Retention.ACCESS), entry(1, retention=Retention.ACCESS)])
    await made.retain(1000 * DAY_S)
    for n in range(3, COUNT):
        kinds = {7: Kind.INTENT, 9: Kind.INTENT}
        await made.append([entry(7, Kind.OUTCOME, outcome="ok") if n == 8 else entry(n, kinds.get(n, Kind.EVENT))])
    yield made
    await made.close()


@pytest.fixture
async def key(log: DatabaseAuditLog) -> verify_export.Key:
    return read_key(await log.key())


@pytest.fixture
async def lines(log: DatabaseAuditLog) -> list[bytes]:
    return b"".join([part async for part in export(log)]).splitlines()


def found(lines: list[bytes], key: verify_export.Key, *known: str) -> list[str]:
    return verify_export.verify_export(lines, key, known).findings


def header(lines: list[bytes], **changes: Any) -> bytes:
    return orjson.dumps({**orjson.loads(lines[0]), **changes})


def checkpoint(lines: list[bytes], at: int) -> str:
    return str(orjson.loads(lines[1 + COUNT + at])["checkpoint"])


async def test_an_export_of_a_log_as_it_was_written_is_in_order(lines: list[bytes], key: verify_export.Key) -> None:
    report = verify_export.verify_export(lines, key, [checkpoint(lines, n) for n in range(3)])

    assert report == Report([], COUNT, 2, 3, [9])
    assert len(lines) == 1 + COUNT + 3


async def test_a_change_of_any_byte_of_any_line_is_found(lines: list[bytes], key: verify_export.Key) -> None:
    for number, line in enumerate(lines):
        for at in range(0, len(line), 3 if number in (0, 1, 4) else 29 if number <= COUNT else 1):
            changed = [*lines]
            changed[number] = line[:at] + bytes([line[at] ^ 1]) + line[at + 1 :]
            try:
                assert found(changed, key), (number, at)
            except verify_export.Refused:
                assert number == 0


@pytest.mark.parametrize("says_so", [False, True], ids=["as it was", "the header agrees"])
async def test_a_record_taken_away_put_in_twice_or_moved_is_found_at_every_place(
    lines: list[bytes], key: verify_export.Key, says_so: bool
) -> None:
    for at in range(1, COUNT + 1):
        shorter = [*lines[:at], *lines[at + 1 :]]
        longer = [*lines[:at], lines[at], *lines[at:]]
        other = [*lines[:at], lines[1 + at % COUNT], *lines[at:]]
        if says_so:
            shorter[0], longer[0], other[0] = (header(lines, size=COUNT + more) for more in (-1, 1, 1))
        assert found(shorter, key) and found(longer, key) and found(other, key)
        for to in range(1, COUNT + 1):
            moved = [*lines]
            moved.insert(to, moved.pop(at))
            assert to == at or found(moved, key), (at, to)


async def test_a_log_cut_short_is_found_wherever_it_is_cut(lines: list[bytes], key: verify_export.Key) -> None:
    newest = checkpoint(lines, 2)
    for size in range(COUNT):
        cut = [header(lines, size=size), *lines[1 : 1 + size]]
        cut += [line for line in lines[1 + COUNT :] if int(orjson.loads(line)["checkpoint"].split("\n")[1]) <= size]

        # Up to a checkpoint it is what was once exported: only who has seen more can know.
        assert bool(found(cut, key)) == (size not in (4, 8))
        assert any("cut short" in finding for finding in found(cut, key, newest))


async def test_a_log_that_its_owner_begins_anew_at_any_place_is_found_by_who_kept_a_checkpoint(
    lines: list[bytes], key: verify_export.Key
) -> None:
    for at in range(1, COUNT):
        last, hashes, forged = GENESIS, [], []
        for seq in range(COUNT):
            record = seal(entry(seq, principal="eve" if seq >= at else "ada"), seq, last)
            last = record.hash
            hashes.append(last)
            forged.append(record.body or b"")
        signed = sign_checkpoint(Checkpoint(key.origin, COUNT, root_of(hashes)), KEY)
        whole = [lines[0], *forged, orjson.dumps({"checkpoint": signed})]

        assert found(whole, key) == []
        assert any("begun anew" in finding for finding in found(whole, key, checkpoint(lines, 2)))


async def test_checkpoints_that_go_back_fork_or_are_of_others_are_found(
    lines: list[bytes], key: verify_export.Key
) -> None:
    body, signed = lines[: 1 + COUNT], lines[1 + COUNT :]

    def forged(size: int, origin: str = key.origin, by: Ed25519PrivateKey = KEY) -> bytes:
        return orjson.dumps({"checkpoint": sign_checkpoint(Checkpoint(origin, size, bytes(32)), by)})

    for at in range(len(signed) + 1):
        for size in range(COUNT + 2):
            assert found([*body, *signed[:at], forged(size), *signed[at:]], key), (at, size)
    for at in range(len(signed)):
        assert found([*body, *signed[:at], signed[at], *signed[at:]], key)
        assert at == len(signed) - 1 or found([*body, *signed[:at], *signed[at + 1 :], signed[at]], key)
    assert found([*body, *signed[:-1]], key) and found(body, key)
    assert found([*body, *signed, b"{}"], key) and found([*body, *signed, body[1]], key)
    assert found([*body, *signed], key, orjson.loads(forged(5, "another"))["checkpoint"])
    stranger = orjson.loads(forged(5, by=Ed25519PrivateKey.generate()))["checkpoint"]
    assert found([*body, *signed], key, stranger) and found([*body, *signed], key, "nothing")


async def test_a_record_that_is_emptied_without_retention_saying_so_is_found(
    lines: list[bytes], key: verify_export.Key
) -> None:
    for at in range(3, COUNT + 1):
        hidden = hashlib.sha256(b"\x00" + lines[at]).hexdigest()
        changed = [*lines[:at], orjson.dumps({"emptied": hidden, "seq": at - 1}), *lines[at + 1 :]]
        assert any("emptied" in finding for finding in found(changed, key)), at


async def test_a_receipt_proves_its_record_and_no_other(log: DatabaseAuditLog, key: verify_export.Key) -> None:
    for seq in range(COUNT):
        given = receipt(await log.prove(seq))
        if seq < 2:
            assert verify_receipt(given, key)  # Only its hash is left.
            continue

        assert verify_receipt(given, key) == []
        assert verify_receipt({**given, "record": given["record"].replace("ada", "eve")}, key) or seq == 2
        assert verify_receipt({**given, "path": given["path"][:-1]}, key)
        assert verify_receipt({**given, "path": [*given["path"], "00" * 32]}, key)
        assert verify_receipt({**given, "checkpoint": given["checkpoint"].replace("\n", "\n1", 1)}, key)
    assert verify_receipt({}, key) and verify_receipt({**given, "path": ["x"]}, key)


def test_the_verifier_stands_alone() -> None:
    tree = ast.parse(Path(verify_export.__file__).read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}

    assert {name.partition(".")[0] for name in imported} <= {*sys.stdlib_module_names, "cryptography"}


@pytest.mark.parametrize("change", [
    lambda text: text.replace("+", "-"), lambda text: text[:-8], lambda text: "other" + text, lambda text: "",
])  # fmt: skip
async def test_a_key_that_is_none_is_refused(log: DatabaseAuditLog, change: Callable[[str], str]) -> None:
    with pytest.raises(verify_export.Refused):
        read_key(change(await log.key()))


async def test_an_auditor_runs_it_on_files(
    log: DatabaseAuditLog, lines: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_text(await log.key())
    (tmp_path / "export").write_bytes(b"\n".join(lines) + b"\n")
    (tmp_path / "known").write_text(checkpoint(lines, 1))
    (tmp_path / "receipt").write_bytes(orjson.dumps(receipt(await log.prove(5))))
    (tmp_path / "bad").write_bytes(b"\n".join([*lines[:8], *lines[9:]]))
    key = ["--key", str(tmp_path / "key")]

    alone = [sys.executable, "-I", str(verify_export.__file__), str(tmp_path / "export"), *key]
    done = subprocess.run(alone, capture_output=True, text=True, timeout=30, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("in order: 11 records, 2 of them emptied by retention, 3 checkpoints, 1 intents without an "
                           "outcome\n")  # fmt: skip
    assert main([str(tmp_path / "export"), *key, "--known", str(tmp_path / "known")]) == 0
    assert main(["--receipt", str(tmp_path / "receipt"), *key]) == 0
    assert main([str(tmp_path / "bad"), *key]) == 1
    assert "NOT in order" in capsys.readouterr().out
    assert main([str(tmp_path / "nowhere"), *key]) == 2
    assert main([str(tmp_path / "key"), *key]) == 2
