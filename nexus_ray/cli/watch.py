"""Follows a goal: a progress bar from its planned and step events, and its result at the end.

Law: progress goes to stderr and the result to stdout, so that a pipe gets the result and nothing else.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nexus_ray.cli.show import plain, print_json, say

if TYPE_CHECKING:
    from nexus_ray.runtime.client import GoalHandle

FAILURES_SHOWN_MAX = 5
_COUNT_EVERY_S = 5.0  # Often enough to see that it goes on, seldom enough for a log.


@dataclass(slots=True)
class Progress:
    """How far a goal is, as its events tell; a machine: event in, line for a person or nothing out."""

    planned: int = 0
    done: int = 0
    failed: int = 0
    doing: str = "accepted"
    status: str = ""

    @property
    def total(self) -> int:
        """How many tasks are known of; grows while the coordination asks for more."""
        return max(self.planned, self.done)

    def step(self, event: dict[str, Any]) -> str | None:
        """Take one event in; return what is worth a line."""
        body = event.get("body")
        if not isinstance(body, dict):
            body = {}
        match event.get("kind"):
            case "claimed":
                self.doing = "running"
            case "planned":
                self.planned += _count(body.get("tasks", 1))
                self.doing = plain(f"{body.get('strategy', 'step')} {body.get('agent', '')}", 60).strip()
            case "step":
                self.done += 1
                if body.get("failure"):
                    self.failed += 1
                    if self.failed <= FAILURES_SHOWN_MAX:
                        message = body["failure"].get("message", "")
                        return plain(f"failed: {body.get('agent', event.get('step', ''))}: {message}", 300)
            case "note":
                note = event.get("body")
                return plain(note if isinstance(note, str) else json.dumps(note, ensure_ascii=False), 300)
            case "asked":
                whom = body.get("to") or "anybody"
                return plain(f"question {body.get('key')} to {whom}: {body.get('question')}", 300)
            case "answered":
                said = "approved" if body.get("approved") else "not approved"
                return "nobody answered in time" if body.get("expired") else plain(f"{said} by {body.get('by')}", 300)
            case "effect_begun":
                self.doing = plain(f"effect {body.get('effect', '')}", 60)
            case "cancel_requested":
                self.doing = "cancelling"
            case "finished":
                self.status = str(body.get("status", ""))
        return None


def _count(tasks: Any) -> int:
    return len(tasks) if isinstance(tasks, list) else int(tasks)


def follow(goal: "GoalHandle") -> Progress:
    """Show a goal's progress until it has ended."""
    progress = Progress()
    with _bar(f"{goal.id}") as update:
        for event in goal.events():
            update(progress, progress.step(event))
    return progress


@contextmanager
def _bar(title: str) -> Iterator[Any]:
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bars:
        row = bars.add_task(title, total=None)

        def update(progress: Any, line: str | None) -> None:
            if line:
                bars.console.print(line, markup=False, highlight=False)
            bars.update(row, completed=progress.done, total=progress.total or None, description=progress.doing)

        yield update


def _lines() -> Callable[[Progress, str | None], None]:
    """Return what tells of progress where there is no terminal: what is worth a line, and now and then a count."""
    told_at = time.monotonic()

    def update(progress: Progress, line: str | None) -> None:
        nonlocal told_at
        if line is None and time.monotonic() - told_at >= _COUNT_EVERY_S and progress.done:
            line = f"{progress.done} of {progress.total} tasks done"
        if line is not None:
            told_at = time.monotonic()
            say(line)

    return update


def report(goal: "GoalHandle", as_json: bool) -> str:
    """Print how a goal ended, or where it stands: the result on stdout, anything else on stderr; return the status."""
    record = goal.record
    status = str(record["status"])
    if as_json:
        print_json(record)
    elif status == "succeeded":
        print_json(record.get("result"))
    else:
        failure = record.get("failure") or {}
        message = f": {failure['message']}" if failure.get("message") else ""
        is_over = status in ("failed", "cancelled", "expired")
        say(f"error: goal {goal.id} {status}{message}" if is_over else f"goal {goal.id} is {status}")
    return status
