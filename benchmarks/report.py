"""The report of a run: a table on the terminal, JSON for programs, and the place in README.md where figures stand."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.sampling import Row

BEGIN = "<!-- measured: begin; written by `python -m benchmarks.run --write-readme` -->"
END = "<!-- measured: end -->"
_SENSES = {"at_least": "≥", "at_most": "≤"}
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


def table(section: str, rows: Iterable[Row]) -> Table:
    made = Table(title=section, title_justify="left")
    for heading in _HEADINGS:
        made.add_column(heading, justify="left" if heading in ("what", "unit") else "right")
    for row in rows:
        style = {True: "green", False: "red", None: ""}[row.reached]
        made.add_row(*cells(row), style=style)
    return made


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
    for section in dict.fromkeys(row.section for row in rows):
        lines += ["", f"### {section}", "", f"| {' | '.join(_HEADINGS)} |", f"|{'|'.join('---' for _ in _HEADINGS)}|"]
        lines += [f"| {' | '.join(cells(row))} |" for row in rows if row.section == section]
    missed = content["not_reached"]
    lines += ["", "Not reached: " + ("; ".join(missed) if missed else "nothing that was aimed at") + "."]
    return "\n".join(lines)


def rewritten(readme: str, text: str) -> str:
    """Return a README with `text` between its marks.

    Raises ValueError where the marks are not there exactly once, in order.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ValueError("the README has no place for the figures: one begin mark, and one end mark after it")
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{text}\n{END}{tail}"
