"""The report of a run: a table on the terminal, JSON for programs, and the place in README.md where figures stand."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.contender import DURABLE, NEXUS
from benchmarks.sampling import Row

BEGIN = "<!-- measured: begin; written by `python -m benchmarks.run --write-readme` -->"
END = "<!-- measured: end -->"
_SENSES = {"at_least": "≥", "at_most": "≤"}
_MATRIX_AT = 8  # Goals under way, where one concurrency must stand for all.
_HEADINGS = ("what", "unit", "median", "p99", "min", "max", "n", "to reach")


def document(rows: Sequence[Row], about: dict[str, Any]) -> dict[str, Any]:
    """Return the whole run as JSON values; `ratios` repeats the rows that compare, for who wants only those."""
    return {
        "schema": 1,
        **about,
        "rows": [row.to_json() for row in rows],
        "ratios": {row.name: row.summary.median for row in rows if row.unit == "x"},
        "not_reached": [row.name for row in rows if row.reached is False],
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the document, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    os.replace(temporary, path)


def show(console: Console, section: str, rows: Sequence[Row]) -> None:
    """Print a section."""
    styles = {aim(row): {True: "green", False: "red"}[bool(row.reached)] for row in rows if row.target is not None}
    for headings, *body in tables(rows):
        made = Table(title=section, title_justify="left")
        for number, heading in enumerate(headings):
            is_text = number == 0 or heading in ("unit", "durable")
            made.add_column(heading, justify="left" if is_text else "right")
        for line in body:
            made.add_row(*line, style=styles.get(line[-1], ""))
        console.print(made)


def tables(rows: Sequence[Row]) -> list[list[list[str]]]:
    """Return a section as tables of text, headings first.

    Where many are compared at the same job, a line for each of them comes first, and only what is aimed at, or stands
    on no curve, has a line of its own; the JSON has all.
    """
    if not any(row.series == NEXUS and row.unit == "CPU ms a goal" for row in rows):
        return [[list(_HEADINGS), *(cells(row) for row in rows)]]
    rest = [cells(row) for row in rows if row.target is not None or not row.series]
    return [matrix(rows), *([[list(_HEADINGS), *rest]] if rest else [])]


def cells(row: Row) -> list[str]:
    """Return a row as text, one for each heading."""
    summary = row.summary
    figures = [figure(value) for value in (summary.median, summary.p99, summary.min, summary.max)]
    return [row.name, row.unit, *figures, str(summary.n), aim(row)]


def aim(row: Row) -> str:
    if row.target is None:
        return ""
    verdict = "reached" if row.reached else "not reached"
    return f"{_SENSES[row.target.sense]} {figure(row.target.value)}, {verdict}"


def figure(value: float) -> str:
    """Return a number with three figures that matter."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def markdown(content: dict[str, Any]) -> str:
    """Return what stands between the marks in README.md."""
    machine, load = content["machine"], content["load_average"]
    rows = [Row.from_json(row) for row in content["rows"]]
    lines = [
        f"Measured {content['at'][:10]} in {content['duration_s']:.0f} s on {machine['cores']} cores"
        f" ({machine['processor']}), {machine['memory_mib']:,} MiB, {machine['system']}; Python {machine['python']},"
        f" Ray {machine['ray']}; fsync of a page {machine['fsync_ms']} ms;"
        f" load average {load['before'][0]} before, {load['after'][0]} after.",
    ]
    if picture := content.get("picture"):
        lines += ["", f"![The knee, narrow and wide goals, few and many agents](results/{picture})"]
    for section in dict.fromkeys(row.section for row in rows):
        lines += ["", f"### {section}"]
        for headings, *body in tables([row for row in rows if row.section == section]):
            lines += ["", f"| {' | '.join(headings)} |", f"|{'|'.join('---' for _ in headings)}|"]
            lines += [f"| {' | '.join(line)} |" for line in body]
    if notes := content.get("notes"):
        lines += ["", "Who took part, and who did not: " + "; ".join(notes) + "."]
    missed = content["not_reached"]
    lines += ["", "Not reached: " + ("; ".join(missed) if missed else "nothing that was aimed at") + "."]
    return "\n".join(lines)


def matrix(rows: Sequence[Row]) -> list[list[str]]:
    """Return a line for each contender, headings first: what a reader compares at a glance."""
    found = {(row.series, row.at, row.unit): row for row in rows if row.series}
    names = dict.fromkeys(row.series for row in rows if row.series and row.unit == "goals/s")
    ats = sorted({row.at for row in rows if row.series})
    at = _MATRIX_AT if _MATRIX_AT in ats else ats[0]

    def cell(name: str, at: int, unit: str, statistic: str = "median") -> str:
        row = found.get((name, at, unit))
        return figure(getattr(row.summary, statistic)) if row is not None else ""

    headings = [
        "contender", "durable", *(f"goals/s at {n}" for n in ats), f"p50 ms at {at}", f"p99 ms at {at}",
        f"CPU ms a goal at {at}", *(f"{NEXUS} over it at {n}" for n in ats),
    ]  # fmt: skip
    lines = [
        [
            name, "yes" if name in DURABLE else "no", *(cell(name, n, "goals/s") for n in ats),
            cell(name, at, "ms", "p50"), cell(name, at, "ms", "p99"), cell(name, at, "CPU ms a goal"),
            *(cell(name, n, "x") for n in ats),
        ]
        for name in names
    ]  # fmt: skip
    return [headings, *lines]


def rewritten(readme: str, text: str, begin: str = BEGIN, end: str = END) -> str:
    """Return a README with `text` between two marks.

    Raises ValueError where the marks are not there exactly once, in order.
    """
    if readme.count(begin) != 1 or readme.count(end) != 1 or readme.index(begin) > readme.index(end):
        raise ValueError("the README has no place for the figures: one begin mark, and one end mark after it")
    head, _, rest = readme.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{text}\n{end}{tail}"
