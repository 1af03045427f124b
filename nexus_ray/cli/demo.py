"""`nexus demo`: the example fleet at work on what is installed here, from nothing to a page in the browser.

Law: a fleet that the demo started, the demo stops; one that was up already is left as it was.
"""

import contextlib
import importlib
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from nexus_ray.cli.exits import ExitCode, status_exit_code
from nexus_ray.cli.show import print_rich, say
from nexus_ray.core.errors import InvalidArgumentError, NotFoundError

APP = "supply_chain:app"
GOAL_TYPE = "review"
_GOAL_S = 600.0


def demo(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Files or folders; the installed packages if none.")
    ] = None,
    html: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("supply_chain_report.html"),
) -> None:
    """Review Python packages with a team of agents; prints a ranking and writes a page."""
    chosen = check_paths(paths or [])
    if not html.parent.is_dir():
        raise InvalidArgumentError(f"there is no folder {html.parent} for the page")
    folder = examples_folder()
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    with _fleet(folder) as (fleet, is_own):
        from nexus_ray.cli.watch import follow

        goal = fleet.submit(GOAL_TYPE, {"paths": chosen}, timeout_s=_GOAL_S)
        say(f"goal {goal.id} accepted")
        try:
            follow(goal)
        except KeyboardInterrupt:
            goal.cancel()
            say(f"cancelled {goal.id}")
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        record, spans = goal.record, goal.trace()
    if record["status"] != "succeeded":
        message = (record.get("failure") or {}).get("message", "")
        say(f"error: goal {goal.id} {record['status']}{f': {message}' if message else ''}")
        raise typer.Exit(status_exit_code(record["status"]))
    page = importlib.import_module("supply_chain_page")
    print_rich(page.render_table(record["result"]))
    html.write_text(page.render_page(record["result"], spans, record), encoding="utf-8")
    _tell_next(html, goal.id, folder, is_own)


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


@contextlib.contextmanager
def _fleet(folder: Path) -> Iterator[tuple[Any, bool]]:
    """Give a connection to a fleet with the example's app: the one that is up, or one for as long as this lasts."""
    from nexus_ray.cli.detached import running_fleet, start, stop
    from nexus_ray.cli.fleet import spinner
    from nexus_ray.runtime.client import connect
    from nexus_ray.runtime.fleet_file import read_token, state_folder

    state = state_folder()
    running = running_fleet(state)
    if running is not None and running.app == APP:
        say(f"using the fleet at {running.url}")
        with connect(running.url, read_token(state / "token"), state) as fleet:
            yield fleet, False
        return
    with contextlib.ExitStack() as stack:
        if running is not None:
            # Another app is up: leave it alone, and its state folder too.
            state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nexus-demo-")))
        environment = {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))),
            "NEXUS_RUNTIME__DASHBOARD_PORT": str(free_port()),
        }
        with spinner("starting a fleet") as progress:
            began = start(
                state, [APP, "--host", "127.0.0.1", "--port", str(free_port())], progress, environment=environment
            )
        stack.callback(_stop_quietly, stop, state)
        with connect(began.url, read_token(state / "token"), state) as fleet:
            yield fleet, True


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


def _tell_next(html: Path, goal_id: str, folder: Path, is_own: bool) -> None:
    say(f"the page: {html.resolve()}")
    say("next:")
    if is_own:
        say(f"  cd {folder} && nexus up {APP} --detach")
    say('  nexus goal submit review \'{"paths": ["."]}\' --watch')
    say(f"  nexus goal show {goal_id} --trace")
    say("  nexus status")
    say("  nexus down")
