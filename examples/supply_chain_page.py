"""How a review is shown: a table for the terminal, and one page of HTML that needs nothing but itself.

Law: the names, licences and source lines of a report were written by strangers. Everything is escaped on its way into
the page, and the page's own policy lets no script run but the one below.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from supply_chain import VERDICTS
from supply_chain_checks import RULES
from supply_chain_waterfall import duration, render_waterfall

TABLE_ROWS_MAX = 20  # What fits a screen; the page has them all.
SEVERITIES = ("high", "medium", "low")  # JSON has no order of keys to go by.
NAMED_MAX = 4

_STYLE = (Path(__file__).parent / "supply_chain_page.css").read_text(encoding="utf-8")
_SCRIPT = """
const rows = [...document.querySelectorAll('.row')], search = document.getElementById('search');
const groups = [...document.querySelectorAll('.group')], none = document.getElementById('none');
let verdict = '';
function show() {
  const words = search.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let count = 0;
  for (const row of rows) {
    const fits = (!verdict || row.dataset.verdict === verdict) && words.every(w => row.dataset.words.includes(w));
    row.hidden = !fits; count += fits;
  }
  for (const group of groups) {
    group.hidden = !group.querySelector('.row:not([hidden])');
    if (verdict || words.length) group.open = true;
  }
  none.hidden = count > 0;
}
search.addEventListener('input', show);
for (const button of document.querySelectorAll('.filter')) button.addEventListener('click', () => {
  verdict = button.dataset.verdict === verdict ? '' : button.dataset.verdict;
  for (const other of document.querySelectorAll('.filter'))
    other.setAttribute('aria-pressed', String(other.dataset.verdict === verdict));
  show();
});
document.getElementById('all').addEventListener('click', event => {
  const open = event.target.dataset.open !== 'yes';
  for (const row of rows) if (!row.hidden) row.open = open;
  event.target.dataset.open = open ? 'yes' : 'no';
  event.target.textContent = open ? 'Close all' : 'Open all';
});
let opened = [];
addEventListener('beforeprint', () => {
  opened = rows.filter(row => !row.open && ['concern', 'disputed', 'unreadable'].includes(row.dataset.verdict));
  for (const row of opened) row.open = true;
});
addEventListener('afterprint', () => { for (const row of opened) row.open = false; });
document.body.classList.add('scripted');
"""


def render_table(result: dict[str, Any]) -> Any:
    """Return the ranking as a rich table: what was found, without what is clean."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = [row for row in result["rows"] if row["verdict"] != "clean"]
    hidden = len(rows) - TABLE_ROWS_MAX
    told = [f"{hidden} more with lighter findings"] if hidden > 0 else []
    told += [f"{count} with nothing found" for count in [result["verdicts"].get("clean", 0)] if count]
    table = Table(
        title=Text(headline(result)), title_justify="left", title_style="bold",
        caption=Text(", ".join(told)), caption_justify="left",
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    # On a narrow terminal only columns that may wrap give way; their cells are cut instead.
    table.add_column("#", justify="right", style="dim", no_wrap=True)
    table.add_column("package", max_width=44)
    table.add_column("version", max_width=10, no_wrap=True, overflow="ellipsis")
    table.add_column("licence", max_width=16)
    for name, style in (("size", ""), ("native", ""), ("high", "red"), ("med", "yellow"), ("low", "dim")):
        table.add_column(name, justify="right", style=style, no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    styles = {"concern": "bold red", "disputed": "magenta", "unreadable": "magenta", "watch": "yellow", "fine": "green"}
    for row in rows[:TABLE_ROWS_MAX]:
        counts = [str(row["counts"][name] or "") for name in SEVERITIES]
        cells = [str(row["rank"]), row["name"], row["version"], row["licence"] or "-", size(row["size_bytes"]),
                 str(row["native"] or ""), *counts]  # fmt: skip
        cut = [Text(cell, no_wrap=True, overflow="ellipsis") for cell in cells]
        table.add_row(*cut, Text(row["verdict"], style=styles.get(row["verdict"], "")))
    return table


def headline(result: dict[str, Any]) -> str:
    """Return the review in one sentence."""
    concerns = [row["name"] for row in result["rows"] if row["verdict"] == "concern"]
    named = ", ".join(concerns[:NAMED_MAX]) + (f" and {len(concerns) - NAMED_MAX} more" * (len(concerns) > NAMED_MAX))
    read = f"{len(result['rows'])} reviewed"
    if not concerns:
        return f"{read}; none needs a closer look"
    return f"{read}; {len(concerns)} {'needs' if len(concerns) == 1 else 'need'} a closer look: {named}"


def render_page(result: dict[str, Any], spans: Sequence[dict[str, Any]], record: dict[str, Any]) -> str:
    """Return the report as one page of HTML.

    Args:
        result: What the goal returned.
        spans: The goal's spans, `{trace_id, span_id, parent_id, name, started_at, ended_at, status, attributes}`.
        record: The goal as the fleet's API tells it.
    """
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Supply-chain review</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{_header(result, record)}
{_tiles(result, record)}
{_ranking(result)}
{_rules(result)}
{render_waterfall(spans)}
<footer><p>A finding is a place to look at, and no proof of harm; a clean row is no proof of safety. Sources were parsed
and never run. Reviewed by a Nexus fleet as goal <code>{escape(str(record.get("id", "")))}</code>.</p></footer>
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _header(result: dict[str, Any], record: dict[str, Any]) -> str:
    at = _seconds(record.get("finished_at"))
    day = "" if at is None else datetime.fromtimestamp(at, UTC).strftime(" · %Y-%m-%d %H:%M UTC")
    return (
        f'<header><p class="eyebrow">Supply-chain review</p><h1>{escape(headline(result))}</h1>'
        f'<p class="muted">{escape(result["subject"])}{day}</p></header>'
    )


def _tiles(result: dict[str, Any], record: dict[str, Any]) -> str:
    rows = result["rows"]
    began, ended = _seconds(record.get("accepted_at")), _seconds(record.get("finished_at"))
    skipped = sum(sum(row["skipped"].values()) for row in rows)
    unread = sum(row["verdict"] == "unreadable" for row in rows)
    left_out = result["left_out"]
    over = ", ".join([f"{unread} unreadable"] * (unread > 0) + [f"{left_out} left out"] * (left_out > 0))
    tiles = [
        ("packages", f"{len(rows):,}", over or "none unreadable", ""),
        ("source files read", f"{result['files']:,}", f"{size(result['source_bytes'])}, {skipped:,} skipped", ""),
        *((f"{name} findings", f"{result['counts'][name]:,}", _worst_rules(result, name), name) for name in SEVERITIES),
        ("took", "" if began is None or ended is None else duration(ended - began), "from accepted to finished", ""),
    ]
    return '<section class="tiles" aria-label="Summary">' + "".join(
        f'<div class="tile {kind}"><div class="label">{name}</div><div class="number">{number or "-"}</div>'
        f'<div class="muted">{escape(note)}</div></div>'
        for name, number, note, kind in tiles
    ) + "</section>"  # fmt: skip


def _worst_rules(result: dict[str, Any], severity: str) -> str:
    rules = [(count, name) for name, count in result["rules"].items() if RULES[name].severity == severity]
    return ", ".join(f"{count} {name}" for count, name in sorted(rules, reverse=True)[:2]) or "none"


def _ranking(result: dict[str, Any]) -> str:
    filters = "".join(
        f'<button type="button" class="filter pill {name}" data-verdict="{name}" aria-pressed="false"'
        f' title="{meaning}">{name} <b>{result["verdicts"][name]}</b></button>'
        for name, meaning in VERDICTS.items()
        if result["verdicts"].get(name)
    )
    rows = [row for row in result["rows"] if row["verdict"] != "clean"]
    clean = [row for row in result["rows"] if row["verdict"] == "clean"]
    columns = ("#", "package", "licence", "size", "native")
    head = "".join(f"<span>{name}</span>" for name in columns)
    head += '<span class="counts"><span>high</span><span>med.</span><span>low</span></span><span>verdict</span>'
    group = "" if not clean else (
        f'<details class="group"><summary>{len(clean)} with nothing found</summary>{_rows(clean)}</details>'
    )  # fmt: skip
    return (
        f'<section aria-labelledby="ranking"><h2 id="ranking">Ranking</h2><div class="controls">'
        f'<input id="search" type="search" placeholder="Search package, licence, rule or file" aria-label="Search">'
        f'{filters}<button type="button" id="all">Open all</button></div>'
        f'<div class="card list"><div class="columns" aria-hidden="true">{head}</div>{_rows(rows)}{group}'
        f'<p id="none" class="muted" hidden>Nothing fits.</p></div></section>'
    )


def _rows(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(_row(row) for row in rows)


def _row(row: dict[str, Any]) -> str:
    name, verdict = escape(row["name"]), row["verdict"]
    texts = {row["name"], row["licence"], verdict, *row["rules"], *(item["file"] for item in row["findings"])}
    words = escape(" ".join(sorted(texts)).lower())
    counts = "".join(
        f'<span class="count {level}{"" if count else " zero"}" title="{count} {level}">{count or "·"}</span>'
        for level, count in ((level, row["counts"][level]) for level in SEVERITIES)
    )
    return (
        f'<details class="row" data-verdict="{verdict}" data-words="{words}"><summary>'
        f'<span class="rank">{row["rank"]}</span>'
        f'<span class="name"><b>{name}</b> <span class="muted">{escape(row["version"])}</span></span>'
        f'<span class="licence muted" title="{escape(row["licence"])}">{escape(row["licence"]) or "no licence"}</span>'
        f'<span class="size">{size(row["size_bytes"])}</span><span class="native">{row["native"] or ""}</span>'
        f'<span class="counts">{counts}</span>'
        f'<span class="verdict"><span class="pill {verdict}">{verdict}</span></span>'
        f"</summary>{_detail(row)}</details>"
    )


def _detail(row: dict[str, Any]) -> str:
    facts = [f"<b>{row['verdict']}</b>: {VERDICTS[row['verdict']]}"]
    if row["problem"]:
        facts.append(f"<span class='problem'>{escape(row['problem'])}</span>")
    else:
        facts.append(f"{row['files']:,} files read, {size(row['source_bytes'])}")
    facts += [f"{count:,} skipped: {escape(reason)}" for reason, count in row["skipped"].items()]
    if row["in_tests"]:
        facts.append(f"{row['in_tests']:,} of the findings in its own tests")
    unreadable = "".join(f"<li>{escape(line)}</li>" for line in row["unreadable"])
    listed = "".join(
        f'<tr><td><span class="dot {item["severity"]}"></span>'
        f'<span title="{escape(RULES[item["rule"]].meaning)}">{escape(item["rule"])}</span></td>'
        f'<td><code class="place">{escape(item["file"])}:{item["line"]}</code><code class="code">{escape(item["code"])}'
        f"</code></td></tr>"
        for item in row["findings"]
    )
    more = sum(row["counts"].values()) - len(row["findings"])
    return (
        f'<div class="detail"><p class="facts">{"<i></i>".join(f"<span>{fact}</span>" for fact in facts)}</p>'
        + (f'<ul class="unreadable">{unreadable}</ul>' if unreadable else "")
        + (f'<table><tbody>{listed}</tbody></table>' if listed else "")
        + (f'<p class="muted">… and {more:,} more, counted but not listed.</p>' if more > 0 else "")
        + "</div>"
    )


def _rules(result: dict[str, Any]) -> str:
    items = "".join(
        f'<li class="{"" if count else "none"}"><span class="dot {rule.severity}"></span><b>{name}</b>'
        f'<span class="total">{count:,}</span><span class="muted">{rule.meaning}</span></li>'
        for name, rule in RULES.items()
        for count in [result["rules"].get(name, 0)]
    )
    return (
        f'<section aria-labelledby="rules"><h2 id="rules">What was looked for</h2>'
        f'<ul class="card rules">{items}</ul></section>'
    )


def size(count: int) -> str:
    """Return a number of bytes in the unit that fits."""
    amount = float(count)
    for unit in ("B", "KB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 10 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def _seconds(value: Any) -> float | None:
    """Return an instant, given as seconds or as RFC 3339 text, in seconds."""
    if isinstance(value, int | float):
        return float(value)
    try:
        return datetime.fromisoformat(value).timestamp()
    except (TypeError, ValueError):
        return None
