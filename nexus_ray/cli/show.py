"""What the terminal shows: tables, trees and durations; JSON for scripts.

Law: what comes from elsewhere is printed as text, never as markup or as commands to the terminal.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table
    from rich.tree import Tree

SIBLINGS_SHOWN_MAX = 12  # A fan-out of thousands is told by its first spans and a count.
_IDS = frozenset({"id", "agent", "host"})
_SHOWN_CHARACTERS_MAX = 2000
# Attributes that tell the spans of one goal from nothing; a line has room for four that do.
_SAME_EVERYWHERE = frozenset({"nexus.component", "nexus.cluster_id", "nexus.node_id", "result", "goal.id"})
_COLOURS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "expired": "yellow", "running": "cyan"}


def plain(text: Any, limit: int = _SHOWN_CHARACTERS_MAX) -> str:
    """Return `text` on one line, without characters that a terminal would obey."""
    shown = "".join(c if c.isprintable() else " " for c in str(text))
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout, with everything escaped that a terminal would obey."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    # JSON itself asks only for the first 32 to be escaped; terminals obey some of the others too.
    shown = "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
    sys.stdout.write(shown + "\n")


def print_rich(*items: Any, is_wrapped: bool = True) -> None:
    """Print rich renderables on stdout; lines that hold a command to copy are better not wrapped."""
    from rich.console import Console

    console = Console(highlight=False)
    for item in items:
        console.print(item, soft_wrap=not is_wrapped)


def say(text: str) -> None:
    """Tell a person something on stderr, so that stdout stays what was asked for."""
    sys.stderr.write(plain(text) + "\n")
    sys.stderr.flush()


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], numbers: Sequence[str] = ()) -> "Table":
    """Return a table; the columns named by `numbers` are aligned to the right, `status` is coloured.

    An id is never folded: it is there to be copied.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        justify: Any = "right" if column in numbers else "left"
        found.add_column(column, justify=justify, overflow="fold", no_wrap=column in _IDS)
    for row in rows:
        cells = [plain(cell, 200) for cell in row]
        found.add_row(
            *(Text(cell, style=_COLOURS.get(cell, "")) for cell in cells),
        )
    return found


def moment(value: Any) -> str:
    """Return an instant, given as seconds or as RFC 3339 text, in local time."""
    if value in (None, ""):
        return "-"
    try:
        at = datetime.fromtimestamp(value) if isinstance(value, int | float) else datetime.fromisoformat(value)
    except (ValueError, TypeError, OverflowError):
        return str(value)
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float) -> str:
    """Return a length of time in the unit that fits."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 120:
        return f"{seconds:.2f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def goal_table(record: dict[str, Any]) -> "Table":
    """Return what is on record about one goal, a row per field."""
    rows: list[tuple[str, Any]] = []
    for name in ("id", "type", "status", "principal", "host", "parent", "answered_by"):
        if record.get(name):
            rows.append((name, record[name]))
    for name in ("accepted_at", "deadline_at", "finished_at"):
        if record.get(name):
            rows.append((name.removesuffix("_at"), moment(record[name])))
    failure = record.get("failure")
    if failure:
        where = ", ".join(f"{key} {failure[key]}" for key in ("agent", "host", "attempts", "step") if failure.get(key))
        rows.append(("failure", f"{failure.get('message', '')}{f' ({where})' if where else ''}"))
    if record.get("result") is not None:
        rows.append(("result", json.dumps(record["result"], ensure_ascii=False)))
    found = table(("", "value"), rows)
    found.show_header = False
    return found


def span_tree(spans: Sequence[dict[str, Any]], title: str) -> "Tree":
    """Return spans as a tree with durations; a span whose parent is missing stands at the top."""
    from rich.text import Text
    from rich.tree import Tree

    known = {span["span_id"] for span in spans}
    children: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span["started_at"]):
        parent = span.get("parent_id") or ""
        children[parent if parent in known and parent != span["span_id"] else ""].append(span)
    tree = Tree(Text(plain(title), style="bold"))
    waiting = [("", tree)]
    while waiting:
        parent, branch = waiting.pop()
        for span in children[parent][:SIBLINGS_SHOWN_MAX]:
            waiting.append((span["span_id"], branch.add(_span_line(span))))
        hidden = children[parent][SIBLINGS_SHOWN_MAX:]
        if hidden:
            slowest = max(span["ended_at"] - span["started_at"] for span in hidden)
            branch.add(Text(f"… and {len(hidden)} more, the slowest {duration(slowest)}", style="dim"))
    return tree


def _span_line(span: dict[str, Any]) -> Any:
    from rich.text import Text

    line = Text(plain(span["name"], 120))
    line.append(f"  {duration(span['ended_at'] - span['started_at'])}", style="cyan")
    attributes = span.get("attributes") or {}
    own = [(key, value) for key, value in attributes.items() if key not in _SAME_EVERYWHERE]
    told = " ".join(f"{key}={plain(value, 60)}" for key, value in own[:4])
    if told:
        line.append(f"  {told}", style="dim")
    if str(span.get("status", "")).lower() in ("error", "failed"):
        line.append("  failed", style="red")
    return line
