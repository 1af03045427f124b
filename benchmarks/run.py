"""The runner: `python -m benchmarks.run [--quick] [--only NAME] [--json PATH] [--write-readme]`, or `make bench`."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import environments, machine, plot, report
from benchmarks.contender import PEERS
from benchmarks.sampling import Row
from benchmarks.section import CONTAINED, MODULES

ROOT = Path(__file__).resolve().parents[1]
LATEST = ROOT / "benchmarks" / "results" / "latest.json"
README = ROOT / "benchmarks" / "README.md"
WHOLE = [name for name in MODULES if name not in CONTAINED]
_SECTION_S_MAX = 600.0  # The longest takes some 300 s on two cores that have nothing else to do.
_STOP_S = 20.0


def main() -> int:
    options = parse(sys.argv[1:])
    console = Console(width=None if sys.stdout.isatty() else 160)
    names = options.only or WHOLE
    started, before = time.monotonic(), machine.load_average()
    at = datetime.now(UTC).isoformat(timespec="seconds")
    rows: list[Row] = []
    notes: list[str] = []
    failed: list[str] = []
    if "contenders" in names:
        prepare(console)
    with tempfile.TemporaryDirectory(prefix="nexus-bench-") as folder:
        machine_facts = machine.facts(Path(folder))
        for name in names:
            console.print(f"[bold]{name}[/bold]")
            made = run_section(name, Path(folder), options.quick)
            if made is None:
                failed.append(name)
            else:
                rows += made[0]
                notes += made[1]
                report.show(console, name, made[0])
                for note in made[1]:
                    console.print(f"  {note}", markup=False, highlight=False)
    content = report.document(
        rows,
        {
            "at": at,
            "quick": options.quick,
            "duration_s": round(time.monotonic() - started, 1),
            "machine": machine_facts,
            "load_average": {"before": before, "after": machine.load_average()},
            "notes": notes,
            "failed": failed,
        },
    )
    is_whole = names == WHOLE and not options.quick and not failed
    path = options.json or (LATEST if is_whole else None)
    if path is not None:
        drawn = plot.draw(path.with_suffix(".svg"), rows)
        content["picture"] = drawn.name if drawn else ""
        report.write_json(path, content)
        console.print(f"written to {path}" + (f" and {drawn}" if drawn else ""))
    if options.write_readme and is_whole:
        README.write_text(report.rewritten(README.read_text(), report.markdown(content)))
        console.print(f"figures written to {README.relative_to(ROOT)}")
    for name in content["not_reached"]:
        console.print(f"not reached: {name}")
    for name in failed:
        console.print(f"[red]failed: {name}[/red]")
    console.print(f"{content['duration_s']:.0f} s in all")
    return 1 if failed else 0


def parse(arguments: list[str]) -> Any:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few and short rounds: to see that it runs, not to quote")
    parser.add_argument("--only", action="append", choices=list(MODULES), metavar="NAME",
                        help=f"one section, may be repeated: {', '.join(MODULES)}")  # fmt: skip
    parser.add_argument("--json", type=Path, help="where to write; a whole run that is not quick writes latest.json")
    parser.add_argument("--write-readme", action="store_true", help="put a whole run's figures into README.md")
    options = parser.parse_args(arguments)
    if options.write_readme and (options.quick or options.only):
        parser.error("--write-readme takes a whole run: without --quick and --only")
    return options


def prepare(console: Console) -> None:
    """Make the contenders' environments; who has none does not take part, and the section says so."""
    for name in dict.fromkeys(peer.module for peer in PEERS):
        try:
            environments.ensure(name, console.print)
        except environments.NotMadeError as error:
            console.print(f"no environment for {name}: {error}", markup=False)


def run_section(name: str, folder: Path, is_quick: bool) -> tuple[list[Row], list[str]] | None:
    """Run a section in its own process; return its rows and notes, or None where it failed."""
    out = folder / f"{name}.json"
    metrics = folder / f"{name}-metrics"
    metrics.mkdir(mode=0o700)
    # Set before the process starts, because prometheus_client decides at import whether it counts into files.
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(metrics), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "benchmarks.section", name, str(folder / name), str(out)]
    process = subprocess.Popen([*command, *(["--quick"] if is_quick else [])], cwd=ROOT, env=environment)
    try:
        process.wait(_SECTION_S_MAX)
    except BaseException as error:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
    if process.returncode != 0 or not out.exists():
        return None
    found = json.loads(out.read_text())
    return [Row.from_json(row) for row in found["rows"]], found["notes"]


if __name__ == "__main__":
    raise SystemExit(main())
