"""What came of a run: a table for people, JSON for programs, and the place in the benchmarks' README."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from benchmarks.chaos.torment import Result
from benchmarks.report import figure
from benchmarks.sampling import summarise

BEGIN = "<!-- chaos: begin; written by `python -m benchmarks.chaos --write-readme` -->"
END = "<!-- chaos: end -->"
_SHOWN_MAX = 5


def rows(result: Result) -> list[tuple[str, str]]:
    """Return what is told of one system, name and figure."""
    account = result.account
    known = [one.took_s for one in result.recoveries if one.took_s is not None]
    never = len(result.recoveries) - len(known)
    return [
        ("blows (kills and pauses)", f"{result.blows:,}"),
        ("goals accepted", f"{account.accepted:,}"),
        ("steps recorded", f"{account.steps:,}"),
        ("goals and steps lost", f"{len(account.lost):,}"),
        ("goals, outcomes, steps and effects doubled", f"{len(account.doubled):,}"),
        ("steps that agents' states have lost", f"{len(account.counts_lost):,}"),
        ("changes of agents' states that were doubled", f"{len(account.counts_doubled):,}"),
        ("goals stuck", f"{len(account.stuck):,}"),
        ("things done outside", f"{account.effects:,}"),
        ("of these done again, under the same key", f"{account.repeated:,}"),
        ("recorded effects whose outcome is said to be unknown", f"{account.unknown:,}"),
        ("recovery, p50", f"{figure(summarise(known).p50)} s" if known else "-"),
        ("recovery, p99", f"{figure(summarise(known).p99)} s" if known else "-"),
        ("blows not recovered from in 90 s", f"{never}"),
    ]


def table(results: Sequence[Result]) -> Table:
    made = Table(title="chaos", title_justify="left")
    made.add_column("")
    for result in results:
        made.add_column(result.system, justify="right")
    for line in zip(*(rows(result) for result in results), strict=True):
        made.add_row(line[0][0], *(value for _, value in line))
    return made


def recovery_table(result: Result) -> Table:
    """Return the recoveries by what was struck."""
    made = Table(title=f"{result.system}: seconds until a goal over all of it succeeds", title_justify="left")
    for heading in ("struck", "n", "p50", "p99", "max"):
        made.add_column(heading, justify="left" if heading == "struck" else "right")
    for kind, n, *figures in recoveries_by_kind(result):
        made.add_row(kind, str(n), *(figure(value) for value in figures))
    return made


def recoveries_by_kind(result: Result) -> list[tuple[str, int, float, float, float]]:
    by_kind: dict[str, list[float]] = {}
    for one in result.recoveries:
        if one.took_s is not None:
            by_kind.setdefault(one.kind, []).append(one.took_s)
    if result.undisturbed_s:
        by_kind = {"nothing": result.undisturbed_s, **by_kind}
    summaries = ((kind, summarise(samples)) for kind, samples in by_kind.items())
    return [(kind, summary.n, summary.p50, summary.p99, summary.max) for kind, summary in summaries]


def complaints(result: Result) -> list[str]:
    """Return what went wrong, a few lines of each kind."""
    account = result.account
    late = [one.blow for one in result.recoveries if one.took_s is None]
    kinds = {"lost": account.lost + account.counts_lost, "doubled": account.doubled + account.counts_doubled,
             "stuck": account.stuck, "not accepted": account.refused, "not there to be struck": result.absent,
             "not recovered from": late}  # fmt: skip
    return [f"{result.system}: {kind}: {line}" for kind, lines in kinds.items() for line in lines[:_SHOWN_MAX]]


def document(results: Sequence[Result], about: dict[str, Any]) -> dict[str, Any]:
    """Return the whole run as JSON values: what is to be 0 as a count, with a few of each kind."""
    found = []
    for result in results:
        fields = asdict(result)
        account = fields["account"]
        for name, value in account.items():
            if isinstance(value, list):
                account[name] = {"count": len(value), "first": value[:_SHOWN_MAX]}
        found.append(fields)
    return {"schema": 1, **about, "results": found}


def markdown(results: Sequence[Result], about: dict[str, Any]) -> str:
    """Return what stands between the marks."""
    machine = about["machine"]
    lines = [
        f"Measured {about['at'][:10]} with seed {results[0].seed} on {machine['cores']} cores ({machine['processor']});"
        f" {results[0].seconds:,.0f} s.",
        "",
        f"| | {' | '.join(result.system for result in results)} |",
        f"|---|{'---|' * len(results)}",
    ]
    for line in zip(*(rows(result) for result in results), strict=True):
        lines.append(f"| {line[0][0]} | {' | '.join(value for _, value in line)} |")
    lines += ["", "| struck | n | recovery p50, s | p99 | longest |", "|---|---|---|---|---|"]
    for kind, n, *figures in recoveries_by_kind(results[0]):
        lines.append(f"| {kind} | {n} | {' | '.join(figure(value) for value in figures)} |")
    return "\n".join(lines)
