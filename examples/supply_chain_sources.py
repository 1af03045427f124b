"""What there is to review on this machine, and what one unit of it holds.

Law: everything is bounded, and what lies beyond a bound is counted in the report rather than dropped.
"""

import importlib.metadata
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path

from pydantic import BaseModel
from supply_chain_checks import RULES, Finding, check_licence, check_source, check_startup, shown

UNITS_MAX = 1000  # Ten times what an environment usually holds.
FILES_MAX = 400  # Python files of one unit: a few seconds of reading.
FILE_BYTES_MAX = 512 * 1024  # Larger ones are tables that a program wrote; parsing one would hold its host up.
SOURCE_BYTES_MAX = 4_000_000  # All that is parsed of one unit, at about a third of a second a megabyte.
ENTRIES_MAX = 50_000  # Entries of a folder that are looked at.
FINDINGS_MAX = 25  # Findings of one unit that travel on, the gravest first; all are counted.
UNREADABLE_SHOWN_MAX = 5
NAME_CHARACTERS_MAX = 120  # A unit's name is the key of its agent.
WEIGHTS = {"high": 10, "medium": 3, "low": 1}

_NATIVE = (".so", ".pyd", ".dylib", ".dll")
_SKIPPED_FOLDERS = {"__pycache__", "node_modules", "site-packages", "venv"}


class Unit(BaseModel):
    """What one reader reads: an installed distribution, or with `path` a folder or file."""

    name: str
    path: str = ""
    files: int = 0


class Survey(BaseModel):
    """All that is to be read; `problem` says why nothing can be."""

    units: list[Unit] = []
    subject: str = ""
    left_out: int = 0
    problem: str = ""


class Reading(BaseModel):
    """What a reader has seen; `problem` says why it could not.

    `counts` and `rules` are of all findings; `grave` counts the high ones outside of tests, `score` weighs all those.
    """

    name: str
    version: str = ""
    licence: str = ""
    files: int = 0
    source_bytes: int = 0
    size_bytes: int = 0
    native: int = 0
    counts: dict[str, int] = dict.fromkeys(WEIGHTS, 0)
    rules: dict[str, int] = {}
    in_tests: int = 0
    grave: int = 0
    score: int = 0
    findings: list[Finding] = []
    skipped: dict[str, int] = {}
    unreadable: list[str] = []
    problem: str = ""


def survey(paths: list[str]) -> Survey:
    """Return what there is to read, the largest first, so that nothing long is begun last."""
    if not paths:
        units = list(_installed())
        subject = f"Python {sys.version.split()[0]} in {sys.prefix}"
    else:
        units = []
        for path in dict.fromkeys(os.path.abspath(path) for path in paths):
            if not os.path.exists(path):
                return Survey(problem=f"there is no file or folder {shown(path, 300)}")
            files = [entry for entry in _entries(path) if entry.endswith(".py")]
            if not files:
                what = "holds no Python files" if os.path.isdir(path) else "is no Python file"
                return Survey(problem=f"{shown(path, 300)} {what}")
            name = path[-NAME_CHARACTERS_MAX:]  # The end of a long path tells more than its beginning.
            units.append(Unit(name=shown(name, NAME_CHARACTERS_MAX), path=path, files=len(files)))
        subject = ", ".join(unit.name for unit in units[:3]) + (", …" if len(units) > 3 else "")
    units = list({unit.name: unit for unit in units}.values())
    units.sort(key=lambda unit: (-unit.files, unit.name))
    return Survey(units=units[:UNITS_MAX], subject=subject, left_out=max(0, len(units) - UNITS_MAX))


def _installed() -> Iterator[Unit]:
    seen: set[str] = set()
    for number, distribution in enumerate(importlib.metadata.distributions()):
        # One that was damaged has no name; its reader will say so.
        name = shown(str(distribution.metadata["Name"] or f"(unnamed {number})"), NAME_CHARACTERS_MAX)
        canonical = name.lower().replace("_", "-").replace(".", "-")
        if canonical not in seen:  # A second one of the name is hidden by the first on the path.
            seen.add(canonical)
            yield Unit(name=name, files=sum(file.suffix == ".py" for file in distribution.files or ()))


def _entries(path: str) -> Iterator[str]:
    """Yield the files of a folder in a fixed order, without following links; or the file itself."""
    if not os.path.isdir(path):
        yield path
        return
    count = 0
    for folder, names, files in os.walk(path):
        names[:] = sorted(name for name in names if name not in _SKIPPED_FOLDERS and not name.startswith("."))
        for file in sorted(files):
            count += 1
            if count > ENTRIES_MAX:
                return
            yield os.path.join(folder, file)


def read_unit(unit: Unit) -> Reading:
    """Read one unit.

    Raises:
        ValueError: It is damaged, or not there any more.
    """
    if unit.path:
        if not os.path.exists(unit.path):
            raise ValueError("it is not there any more")
        root = unit.path if os.path.isdir(unit.path) else os.path.dirname(unit.path)
        return _read(unit.name, [(entry, os.path.relpath(entry, root)) for entry in _entries(unit.path)])
    try:
        distribution = importlib.metadata.distribution(unit.name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise ValueError("its metadata is damaged: no distribution of this name can be found") from None
    listed = distribution.files
    entries = sorted((str(distribution.locate_file(file)), str(file)) for file in listed or ())
    reading = _read(unit.name, [(path, name) for path, name in entries if ".." not in Path(name).parts])
    if listed is None:
        reading.skipped["without a list of its files"] = 1
    reading.version = shown(distribution.version or "", 40)
    reading.licence = shown(licence_of(distribution), 60)
    _add(reading, check_licence(reading.licence, "METADATA"))
    return reading


def licence_of(distribution: Distribution) -> str:
    """Return the licence that a distribution names in its metadata, or an empty text."""
    metadata = distribution.metadata
    for field in ("License-Expression", "License"):
        lines = str(metadata[field] or "").strip().splitlines()
        if lines and len(lines[0]) <= 60 and lines[0] != "UNKNOWN":
            return lines[0]
    classifiers = [text for text in metadata.get_all("Classifier") or () if text.startswith("License ::")]
    return ", ".join(sorted(text.rpartition(":: ")[2] for text in classifiers if text.count("::") > 1))


def _read(name: str, entries: list[tuple[str, str]]) -> Reading:
    reading = Reading(name=name)
    skipped: Counter[str] = Counter()
    found: list[Finding] = []
    # Tests last: where a limit cuts, it should not cut what runs in production.
    for path, file in sorted(entries, key=lambda entry: (is_test(entry[1]), entry[1])):
        try:
            status = os.stat(path)
        except OSError:
            skipped["listed, but not there"] += 1
            continue
        reading.size_bytes += status.st_size
        reading.native += file.endswith(_NATIVE) or ".so." in file
        if not file.endswith((".py", ".pth")):
            continue
        if not stat.S_ISREG(status.st_mode):
            skipped["not a regular file"] += 1  # Reading from a pipe would wait for ever.
        elif status.st_size > FILE_BYTES_MAX:
            skipped[f"larger than {FILE_BYTES_MAX // 1024} KiB"] += 1
        elif reading.files >= FILES_MAX or reading.source_bytes + status.st_size > SOURCE_BYTES_MAX:
            skipped[f"beyond {FILES_MAX} files or {SOURCE_BYTES_MAX // 1_000_000} MB"] += 1
        else:
            reading.files += 1
            reading.source_bytes += status.st_size
            try:
                found += _read_file(path, file)
            except (ValueError, OSError) as error:
                skipped["unreadable"] += 1
                if len(reading.unreadable) < UNREADABLE_SHOWN_MAX:
                    reading.unreadable.append(f"{shown(file, 200)}: {shown(str(error), 200)}")
    reading.skipped = dict(sorted(skipped.items()))
    _add(reading, found)
    return reading


def _read_file(path: str, file: str) -> list[Finding]:
    with open(path, "rb") as opened:
        source = opened.read(FILE_BYTES_MAX)
    if file.endswith(".pth"):
        return check_startup(source.decode("utf-8", "replace"), file)
    return check_source(source, file)


def _add(reading: Reading, found: list[Finding]) -> None:
    """Count findings in; keep the gravest of them, those outside of tests first."""
    for item in found:
        reading.counts[item.severity] += 1
        reading.rules[item.rule] = reading.rules.get(item.rule, 0) + 1
        reading.in_tests += is_test(item.file)
        if not is_test(item.file):
            reading.grave += item.severity == "high"
            reading.score += WEIGHTS[item.severity]
    order = list(RULES)  # From the gravest rule to the lightest.
    gravest = sorted(
        [*reading.findings, *found],
        key=lambda item: (is_test(item.file), order.index(item.rule), item.file, item.line),
    )
    reading.findings = gravest[:FINDINGS_MAX]


def is_test(file: str) -> bool:
    """Tell whether a file belongs to a distribution's own tests, by its path."""
    *folders, name = file.lower().split("/")
    return name.startswith("test_") or name in ("conftest.py", "tests.py") or any(
        folder in ("test", "tests", "testing", "_tests") for folder in folders
    )
