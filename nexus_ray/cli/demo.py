"""`nexus demo`: the example fleet at work on what is installed here, from nothing to a page in the browser.

Law: a fleet that the demo started, the demo stops; one that was up already is left as it was.
"""

import contextlib
import importlib
import os
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from nexus_ray.cli.exits import ExitCode, status_exit_code
from nexus_ray.cli.show import print_json, print_rich, say
from nexus_ray.core.errors import FailedPreconditionError, InvalidArgumentError, NexusError, NotFoundError

APP = "supply_chain:app"
GOAL_TYPE = "review"
_GOAL_S = 600.0
_CANCEL_S = 5.0  # How long a person who pressed Ctrl-C waits for the cancellation to be on record.


def demo(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Files or folders; the installed packages if none.")
    ] = None,
    html: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("supply_chain_report.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON for scripts.")] = False,
) -> None:
    """Review Python packages with a team of agents; prints a ranking and writes a page."""
    chosen = check_paths(paths or [])
    if not html.parent.is_dir():
        raise InvalidArgumentError(f"there is no folder {html.parent} for the page")
    folder = examples_folder()
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    refuse_nothing_to_read(chosen)
    with _fleet(folder) as (fleet, kept):
        from nexus_ray.cli.watch import follow

        goal = fleet.submit(GOAL_TYPE, {"paths": chosen}, timeout_s=_GOAL_S)
        say(f"goal {goal.id} accepted")
        try:
            follow(goal)
        except KeyboardInterrupt:
            _cancel(goal)
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        _report(goal, html, as_json)
    if as_json:
        return
    for line in questions(nexus_command(), goal.id, folder, kept, has_paths=bool(chosen)):
        say(line)


def _report(goal: Any, html: Path, as_json: bool) -> None:
    record = goal.record
    if record["status"] != "succeeded":
        message = (record.get("failure") or {}).get("message", "")
        say(f"error: goal {goal.id} {record['status']}{f': {message}' if message else ''}")
        raise typer.Exit(status_exit_code(record["status"]))
    page = importlib.import_module("supply_chain_page")
    if as_json:
        print_json(record["result"])
    else:
        print_rich(page.render_table(record["result"]))
    html.write_text(page.render_page(record["result"], goal.trace(), record), encoding="utf-8")
    say("")
    say(f"every finding, and how the work was shared: {html.resolve()}")


def examples_folder() -> Path:
    """Return where the examples are: beside the package in a checkout, inside it in an installation.

    Raises:
        NotFoundError: In neither place.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "examples", package / "_examples"):
        if (folder / "supply_chain.py").is_file():
            return folder
    raise NotFoundError("the example supply_chain.py is not part of this installation; install nexus-ray again")


def check_paths(paths: list[Path]) -> list[str]:
    """Return the paths in full, for agents that work in another folder.

    Raises:
        NotFoundError: One of them is not there.
    """
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise NotFoundError(f"there is no file or folder {missing[0]}")
    return [str(path.resolve()) for path in paths]


def refuse_nothing_to_read(paths: list[str]) -> None:
    """Refuse, before a fleet is started, what its scout would refuse as well.

    Raises:
        InvalidArgumentError: A path holds no Python file.
    """
    if paths and (problem := importlib.import_module("supply_chain_sources").survey(paths).problem):
        raise InvalidArgumentError(problem)


@contextlib.contextmanager
def _fleet(folder: Path) -> Iterator[tuple[Any, str]]:
    """Give a connection to a fleet with the example's app: the one that is up, or one for as long as this lasts.

    The second value tells what is left of the fleet after that: it is `up`, on `disk`, or `gone`.
    """
    from nexus_ray.cli.detached import running_fleet, start, stop
    from nexus_ray.cli.fleet import spinner
    from nexus_ray.runtime.client import connect
    from nexus_ray.runtime.fleet_file import read_token, state_folder

    state = state_folder()
    running = running_fleet(state)
    if running is not None and running.app == APP:
        say(f"using the fleet at {running.url}")
        with connect(running.url, read_token(state / "token"), state) as fleet:
            yield fleet, "up"
        return
    with contextlib.ExitStack() as stack:
        if running is not None:
            # Another app is up: leave it alone, and its state folder too.
            state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nexus-demo-")))
        environment = {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))),
            "NEXUS_RUNTIME__DASHBOARD": "false",  # Nobody looks at it in this while, and it starts for seconds.
        }
        with spinner("starting a fleet") as progress:
            arguments = [APP, "--host", "127.0.0.1", "--port", str(free_port())]
            began = start(state, arguments, _only_steps(progress), environment=environment)
        stack.callback(_stop_quietly, stop, state)
        with connect(began.url, read_token(state / "token"), state) as fleet:
            yield fleet, "disk" if running is None else "gone"


def _only_steps(progress: Callable[[str], None]) -> Callable[[str], None]:
    """Pass on the steps of the start; what libraries log meanwhile stands in the fleet's log."""
    return lambda line: progress(line) if line.startswith(("starting", "opening")) else None


def _stop_quietly(stop: Any, state: Path) -> None:
    from nexus_ray.cli.fleet import spinner
    from nexus_ray.core.errors import UnavailableError

    with spinner("stopping the fleet"):
        try:
            stop(state)
        except UnavailableError as error:
            say(error.message)


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _cancel(goal: Any) -> None:
    """Cancel the goal, and give its cancellation the time to be written down."""
    try:
        goal.cancel()
        goal.wait(_CANCEL_S)
    except FailedPreconditionError:
        say(f"goal {goal.id} had ended")
    except NexusError as error:
        say(f"not cancelled: {error.message}")
    else:
        say(f"cancelled {goal.id}")


def nexus_command() -> str:
    """Return how the user can call this program again: by its name, if the shell would find it."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m nexus_ray.cli"
    found = shutil.which("nexus")
    if found is not None and Path(found).resolve() == called.resolve():
        return "nexus"
    try:
        return shlex.quote(str(called.resolve().relative_to(Path.cwd())))
    except ValueError:
        return shlex.quote(str(called.resolve()))


def questions(nexus: str, goal_id: str, folder: Path, kept: str, *, has_paths: bool) -> list[str]:
    """Return what a user would ask next, as commands that work.

    Args:
        nexus: How to call this program.
        goal_id: The goal that the demo ran.
        folder: Where the examples are.
        kept: What is left of the fleet: it is `up`, on `disk`, or `gone`.
        has_paths: The demo was given paths; else it reviewed what is installed.
    """
    asked = ("what of all that is installed?", "") if has_paths else ("what of my own code?", " .")
    lines = ["", "what next?", f"  {asked[0]}", f"    {nexus} demo{asked[1]}"]
    if kept == "gone":
        return lines
    if kept == "disk":
        lines += ["  how was this worked on, step by step? (the fleet is down, its records are kept)"]
        lines += [f"    PYTHONPATH={shlex.quote(str(folder))} {nexus} up {APP} --detach"]
    else:
        lines += ["  how was this worked on, step by step?"]
    return [
        *lines,
        f"    {nexus} goal show {goal_id} --trace",
        "  can a script have it?",
        f"    {nexus} goal submit {GOAL_TYPE} '{{\"paths\": [\".\"]}}' --watch",
        "  which parts are up, and what are the agents doing?",
        f"    {nexus} status",
        f"    {nexus} agent list",
        "  how do I stop the fleet?",
        f"    {nexus} down",
    ]
