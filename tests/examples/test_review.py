"""The goal over hosts in one process, on folders made for it and on an environment made for it."""

import os
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
import supply_chain
import supply_chain_sources
from supply_chain import Draft, contextual, lenient, rank, strict, within_budget
from supply_chain_sources import Reading, Unit, read_unit, survey

from nexus_ray.ledger.goal import EntryKind, GoalStatus
from tests.support.in_process import in_process_fleet

GOOD = "import json\n\n\ndef read(text):\n    return json.loads(text)\n"
BAD = "import os, pickle\n\n\ndef run(x):\n    os.system(x)\n    return pickle.loads(x), eval(x)\n"


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def install(site: Path, name: str, files: dict[str, str | bytes], metadata: str | None = None) -> None:
    """Put a distribution into a folder as an installer would."""
    write(site, files)
    record = "".join(f"{file},,\n" for file in files)
    described = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" if metadata is None else metadata
    write(site, {f"{name}-1.0.dist-info/METADATA": described, f"{name}-1.0.dist-info/RECORD": record})


async def review(*paths: Path, **options: Any) -> Any:
    async with in_process_fleet(supply_chain.app, **options) as fleet:
        return await fleet.run("review", {"paths": [str(path) for path in paths]}, timeout_s=60)


def rows_of(outcome: Any) -> dict[str, Any]:
    assert outcome.status is GoalStatus.SUCCEEDED, outcome
    return {row["name"]: row for row in orjson.loads(outcome.result)["rows"]}


async def test_the_gravest_comes_first_and_what_is_clean_last(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good", {"a.py": GOOD}), write(tmp_path / "bad", {"a.py": BAD, "b/c.py": GOOD})

    outcome = await review(good, bad)

    rows = rows_of(outcome)
    assert [(row["name"], row["verdict"]) for row in rows.values()] == [(str(bad), "concern"), (str(good), "clean")]
    assert rows[str(bad)]["rules"] == {"shell": 1, "unsafe-load": 1, "dynamic-code": 1}
    places = [(item["file"], item["line"]) for item in rows[str(bad)]["findings"]]
    assert places == [("a.py", 6), ("a.py", 5), ("a.py", 6)]
    report = orjson.loads(outcome.result)
    assert (report["files"], report["counts"]["high"]) == (3, 3)


async def test_files_that_cannot_be_read_are_told_and_hide_nothing_else(tmp_path: Path) -> None:
    files = {"bad.py": BAD, "broken.py": "eval(:\n", "latin.py": b"x = '\xff'\n", "empty.py": ""}
    folder = write(tmp_path / "mixed", {**files, "note.txt": "eval(x)"})

    row = rows_of(await review(folder))[str(folder)]

    assert row["files"] == 4
    assert row["counts"]["high"] == 3
    assert row["skipped"] == {"unreadable": 2}
    assert [line.partition(":")[0] for line in row["unreadable"]] == ["broken.py", "latin.py"]


async def test_a_review_says_the_same_twice(tmp_path: Path) -> None:
    folders = [write(tmp_path / str(n), {"a.py": BAD * n, "tests/test_a.py": BAD}) for n in range(1, 6)]

    first, second = await review(*folders), await review(*folders, hosts=3)

    assert first.result == second.result


@pytest.mark.parametrize(
    ("path", "reason"), [("nosuch", "there is no"), ("empty", "no Python"), ("a.txt", "no Python")]
)
async def test_a_path_with_nothing_to_read_fails_the_goal_and_is_named(tmp_path: Path, path: str, reason: str) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path, {"a.txt": "x"})

    outcome = await review(tmp_path / path)

    assert outcome.status is GoalStatus.FAILED
    assert outcome.failure.code == "invalid_argument"
    assert reason in outcome.failure.message and str(tmp_path / path) in outcome.failure.message


async def test_reviewers_of_whom_no_two_agree_leave_it_disputed(tmp_path: Path) -> None:
    folder = write(tmp_path / "odd", {"a.py": "eval(x)\n", **{f"m{n}.py": GOOD for n in range(30)}})

    assert rows_of(await review(folder))[str(folder)]["verdict"] == "disputed"


async def test_followers_are_told_what_is_being_done(tmp_path: Path) -> None:
    folder = write(tmp_path / "bad", {"a.py": BAD})

    async with in_process_fleet(supply_chain.app) as fleet:
        goal = fleet.goal("review", {"paths": [str(folder)]})
        await fleet.ledger.accept([goal])
        await fleet.poke([goal])
        await fleet.outcome(goal)
        journal = await fleet.ledger.journal(goal.id, 0, 1000)

    notes = [orjson.loads(entry.body) for entry in journal if entry.kind is EntryKind.NOTE]
    assert notes == [f"reading 1 unit: {folder}", "1 of 1 flagged, a vote on the gravest 1"]


async def test_a_damaged_distribution_stands_in_the_report_as_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "fine", {"fine.py": GOOD}, "Name: fine\nVersion: 2.0\nLicense-Expression: MIT\n")
    install(tmp_path, "damaged", {"damaged.py": BAD}, "")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(path for path in sys.path if "site-packages" not in path)])

    rows = rows_of(await review())

    assert rows["fine"]["verdict"] == "clean"
    (unreadable,) = [row for row in rows.values() if row["verdict"] == "unreadable"]
    assert unreadable["name"].startswith("(unnamed") and "damaged" in unreadable["problem"]


def test_a_distribution_is_read_with_its_licence_native_code_and_start_up_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = write(tmp_path, {"outside.py": BAD}) / "outside.py"
    files = {"pkg/a.py": GOOD, "pkg/_x.so": b"\x7fELF", "x.pth": "import evil\n", "../outside.py": BAD}
    install(tmp_path / "site", "pkg", files, "Name: pkg\nVersion: 3.1\nLicense: UNKNOWN\n"
            "Classifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)\n")  # fmt: skip
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    reading = read_unit(Unit(name="pkg"))

    assert outside.exists()
    assert (reading.version, reading.native) == ("3.1", 1)
    assert reading.licence == "GNU General Public License v3 (GPLv3)"
    assert reading.rules == {"startup-code": 1, "copyleft": 1}


def test_what_lies_beyond_a_limit_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supply_chain_sources, "FILES_MAX", 3)
    monkeypatch.setattr(supply_chain_sources, "FILE_BYTES_MAX", 1024)
    folder = write(tmp_path, {"huge.py": "#" * 2000, **{f"m{n}.py": GOOD for n in range(3)}, "tests/t.py": BAD})
    os.mkfifo(folder / "pipe.py")

    reading = read_unit(Unit(name="x", path=str(folder)))

    assert reading.files == 3
    assert reading.skipped == {"beyond 3 files or 4 MB": 1, "larger than 1 KiB": 1, "not a regular file": 1}


def test_findings_are_all_counted_and_the_gravest_listed(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "import socket\n" + "socket.socket()\n" * 100 + "eval(x)\n"})

    reading = read_unit(Unit(name="x", path=str(tmp_path)))

    assert reading.counts == {"high": 1, "medium": 0, "low": 100}
    assert len(reading.findings) == 25 and reading.findings[0].rule == "dynamic-code"


def test_a_survey_takes_each_thing_once_and_the_largest_first(tmp_path: Path) -> None:
    small, large = write(tmp_path / "s", {"a.py": GOOD}), write(tmp_path / "l", {"a.py": GOOD, "b.py": GOOD})
    write(large, {".venv/lib/c.py": BAD, "node_modules/d.py": BAD})

    found = survey([str(small), str(large), f"{small}/../s"])

    assert [(unit.path, unit.files) for unit in found.units] == [(str(large), 2), (str(small), 1)]


def test_too_many_units_are_left_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supply_chain_sources, "UNITS_MAX", 2)
    paths = [str(write(tmp_path / str(n), {"a.py": GOOD})) for n in range(5)]

    found = survey(paths)

    assert (len(found.units), found.left_out) == (2, 3)


def test_the_editor_gets_no_more_findings_than_may_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supply_chain, "FINDINGS_BYTES_MAX", 1000)
    heavy = read_unit(Unit(name="heavy", path=str(write(tmp_path / "heavy", {"a.py": "eval(x)\n" * 20}))))
    light = read_unit(Unit(name="light", path=str(write(tmp_path / "light", {"a.py": "eval(x)\n"}))))

    kept = within_budget([light, heavy])

    assert [reading.name for reading in kept] == ["heavy", "light"]
    assert 0 < sum(len(item.model_dump_json()) for reading in kept for item in reading.findings) <= 1000
    assert len(kept[0].findings) < 20 and kept[0].counts["high"] == 20


def test_each_lens_sees_it_its_own_way(tmp_path: Path) -> None:
    def read(name: str, files: dict[str, str | bytes]) -> Reading:
        return read_unit(Unit(name=name, path=str(write(tmp_path / name, files))))

    in_tests = read("in_tests", {"a.py": GOOD, "tests/test_a.py": BAD})
    constant = read("constant", {"a.py": "eval('1')\n"})
    several = read("several", {"a.py": BAD})
    many_files = read("many", {"a.py": "eval(x)\neval(y)\n", **{f"m{n}.py": GOOD for n in range(60)}})

    assert [strict(r) for r in (in_tests, constant, several, many_files)] == ["concern"] * 4
    assert [lenient(r) for r in (in_tests, constant, several, many_files)] == ["fine", "concern", "concern", "watch"]
    assert [contextual(r) for r in (in_tests, constant, several, many_files)] == ["fine", "fine", "concern", "watch"]


def test_a_report_ranks_by_verdict_and_then_by_score() -> None:
    some = {"high": 0, "medium": 1, "low": 0}
    readings = [
        Reading(name="clean"), Reading(name="light", counts=some, score=3), Reading(name="lost", problem="gone"),
        Reading(name="worst", counts=some, score=9), Reading(name="bad", counts=some, score=5),
    ]  # fmt: skip

    report = rank(Draft(subject="", left_out=0, readings=readings, verdicts={"worst": "concern", "bad": "concern"}))

    assert [row.name for row in report.rows] == ["worst", "bad", "light", "lost", "clean"]
    assert [row.rank for row in report.rows] == [1, 2, 3, 4, 5]
    assert report.verdicts == {"concern": 2, "flagged": 1, "unreadable": 1, "clean": 1}
