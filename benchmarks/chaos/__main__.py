"""`python -m benchmarks.chaos [--kills 1000] [--seed N] [--against raw-ray,langgraph] [--json PATH] [--write-readme]`.

Ctrl-C ends the blows; what was accepted until then is accounted for all the same.
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import machine
from benchmarks.chaos import report
from benchmarks.chaos.contest import contest
from benchmarks.chaos.fleet import fleet
from benchmarks.chaos.langgraph import langgraph
from benchmarks.chaos.processes import Processes
from benchmarks.chaos.raw_ray import raw_ray
from benchmarks.chaos.schedule import Plan
from benchmarks.chaos.torment import PACE_S, Result, torment
from benchmarks.report import rewritten, write_json

ROOT = Path(__file__).resolve().parents[2]
LATEST = ROOT / "benchmarks" / "results" / "chaos.json"
README = ROOT / "benchmarks" / "README.md"
BLOWS_MAX = 100_000
EVERY_S_MAX = 3600.0
_INTERRUPTED = 130
PEERS = ("raw-ray", "langgraph")


def main() -> int:
    options = parse(sys.argv[1:])
    console = Console(width=None if sys.stdout.isatty() else 140)
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    console.print(f"seed {seed}: {options.kills} blows, one in {options.every:g} s on average")
    plan = Plan(seed, options.kills, options.every)
    about: dict[str, Any] = {"at": datetime.now(UTC).isoformat(timespec="seconds")}
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="nexus-chaos-") as temporary:
        folder = Path(temporary)
        about["machine"] = machine.facts(folder)
        for name in (*(() if options.alone else ("nexus",)), *options.against):
            try:
                results.append(_run(name, plan, folder / name, console))
            except KeyboardInterrupt:  # Before the first blow, or a second time: there is no account of this one.
                break
            plan = replace(plan, kinds=tuple(results[0].kinds) or plan.kinds)  # The same schedule for all.
            if not results[-1].is_whole:
                break
    if not results:
        console.print("stopped before the first blow")
        return _INTERRUPTED
    for result in results:
        console.print(report.recovery_table(result))
        for line in report.complaints(result):
            console.print(f"[red]{line}[/red]" if result.system == "Nexus" else line, highlight=False)
    console.print(report.table(results))
    _write(options, console, results, about)
    return 0 if all(result.is_clean for result in results if result.system == "Nexus") else 1


def parse(arguments: list[str]) -> Any:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="how many processes are killed or paused")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="between two blows, on average")
    parser.add_argument("--seed", type=int, help="the schedule and the load of an earlier run")
    parser.add_argument("--alone", action="store_true", help="only those of --against, without Nexus")
    parser.add_argument("--against", type=_peers, default=[], metavar="NAMES", help=f"of {','.join(PEERS)}")
    parser.add_argument("--json", type=Path, help="where to write; a whole run writes results/chaos.json")
    parser.add_argument("--write-readme", action="store_true", help="put the figures into benchmarks/README.md")
    options = parser.parse_args(arguments)
    if not 0 < options.kills <= BLOWS_MAX or not 0 < options.every <= EVERY_S_MAX:
        parser.error(f"--kills takes 1 to {BLOWS_MAX:,}, --every up to {EVERY_S_MAX:g} seconds")
    if options.alone and (options.write_readme or not options.against):
        parser.error("--alone takes --against, and no --write-readme")
    return options


def _peers(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if unknown := set(names) - set(PEERS):
        raise argparse.ArgumentTypeError(f"not known: {', '.join(sorted(unknown))}")
    return names


def _run(name: str, plan: Plan, folder: Path, console: Console) -> Result:
    folder.mkdir(mode=0o700)
    columns = (TextColumn("{task.fields[system]}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("{task.fields[goals]} goals · {task.description}"))  # fmt: skip
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("starting", total=plan.count, system=name, goals=0)

        def tell(what: str, count: int, goals: int) -> None:
            progress.update(bar, description=what, completed=count, goals=goals)

        return _SYSTEMS[name](plan, folder, tell)


def _nexus(plan: Plan, folder: Path, tell: Any) -> Result:
    traces = folder / "traces"
    traces.mkdir(mode=0o700)
    with fleet(folder / "state", lambda line: tell(line, 0, 0)) as (root, connection):
        plan = replace(plan, kinds=tuple(Processes(root).kinds()))
        return torment(connection, root, plan.blows(), traces, seed=plan.seed, tell=tell)


def _raw_ray(plan: Plan, folder: Path, tell: Any) -> Result:
    return _contest(raw_ray, plan, folder, tell)


def _langgraph(plan: Plan, folder: Path, tell: Any) -> Result:
    return _contest(langgraph, plan, folder, tell)


def _contest(up: Any, plan: Plan, folder: Path, tell: Any) -> Result:
    (folder / "traces").mkdir(mode=0o700)
    (folder / "state").mkdir(mode=0o700)
    with up(folder / "state", folder / "traces") as peer:
        return contest(peer, plan.blows(), folder / "traces", seed=plan.seed, pace_s=PACE_S, tell=tell)


_SYSTEMS: dict[str, Callable[[Plan, Path, Any], Result]] = {
    "nexus": _nexus, "raw-ray": _raw_ray, "langgraph": _langgraph,
}  # fmt: skip


def _write(options: Any, console: Console, results: list[Result], about: dict[str, Any]) -> None:
    is_whole = not options.alone and all(result.is_whole for result in results)
    path = options.json or (LATEST if is_whole else None)
    if path is not None:
        write_json(path, report.document(results, about))
        console.print(f"written to {path}")
    if options.write_readme and is_whole:
        text = report.markdown(results, about)
        README.write_text(rewritten(README.read_text(), text, report.BEGIN, report.END))
        console.print(f"figures written to {README.relative_to(ROOT)}")


if __name__ == "__main__":
    raise SystemExit(main())
