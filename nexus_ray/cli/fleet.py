"""`nexus up`, `down`, `status` and `agent list`: a fleet on this machine, and what it is doing."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nexus_ray.cli.exits import ExitCode, Verbs
from nexus_ray.cli.show import duration, print_json, print_rich, say, table
from nexus_ray.core.errors import AlreadyExistsError, InvalidArgumentError, NexusError

if TYPE_CHECKING:
    from nexus_ray.config import Settings
    from nexus_ray.runtime.fleet_file import FleetFile

agent_verbs = typer.Typer(cls=Verbs, no_args_is_help=True, help="See the agents.")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def up(
    app: Annotated[str, typer.Argument(metavar="MODULE:APP", help="The app, such as my_fleet:app.")],
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Run in the background.")] = False,
    host: Annotated[str | None, typer.Option(help="Address to listen on; beyond loopback needs TLS.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on.")] = None,
    tls: Annotated[bool, typer.Option("--tls", help="TLS with a certificate of the fleet's own.")] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key, PEM.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file, TOML.")] = None,
    as_json: AsJson = False,
) -> None:
    """Start a fleet on this machine, secured; Ctrl-C or `nexus down` stops it."""
    from nexus_ray.cli.detached import running_fleet, start
    from nexus_ray.runtime.local import check_listen

    settings = up_settings(host, port, tls_cert, tls_key, config, tls=tls)
    if (fleet := running_fleet(settings.state_dir)) is not None:
        raise AlreadyExistsError(
            f"a fleet is up already: {fleet.app} at {fleet.url}; `nexus down` ends it, NEXUS_STATE_DIR names another"
        )
    check_listen(settings)
    if not detach:
        from nexus_ray.api.up import serve_forever

        serve_forever(app, settings, say, lambda fields: _tell_up(fields, "Ctrl-C", as_json))
        say("the fleet is down")
        return
    flags = {"--host": host, "--port": port, "--tls-cert": tls_cert, "--tls-key": tls_key, "--config": config}
    arguments = [app]
    for flag, value in flags.items():
        if value is not None:
            arguments += [flag, str(value)]
    arguments += ["--tls"] if tls else []
    with spinner("starting") as progress:
        fleet = start(settings.state_dir, arguments, progress)
    _tell_up(asdict(fleet), "nexus down", as_json)


def up_settings(
    host: str | None, port: int | None, tls_cert: Path | None, tls_key: Path | None, config: Path | None,
    *, tls: bool = False,
) -> "Settings":  # fmt: skip
    """Return the settings with the command line's on top.

    Raises:
        InvalidArgumentError: A settings file is missing, or only one half of the TLS material was given.
    """
    from nexus_ray.config import load

    if (tls_cert is None) != (tls_key is None):
        raise InvalidArgumentError("TLS needs both --tls-cert and --tls-key")
    if tls and tls_cert is not None:
        raise InvalidArgumentError("--tls makes a certificate: it does not go with --tls-cert and --tls-key")
    if config is not None and not config.is_file():
        raise InvalidArgumentError(f"there is no settings file {config}")
    given = {"http_host": host, "http_port": port, "tls_cert": tls_cert, "tls_key": tls_key}
    settings = load(config, runtime={name: value for name, value in given.items() if value is not None})
    if not tls:
        return settings
    from nexus_ray.core.clock import SystemClock
    from nexus_ray.runtime.front_tls import prepare_front_tls

    own = prepare_front_tls(settings, SystemClock())
    say(f"trust {own.authority} (SHA-256 {own.fingerprint}) where this fleet is spoken to from elsewhere")
    paths = {"tls_cert": own.certificate, "tls_key": own.certificate}
    return settings.model_copy(update={"runtime": settings.runtime.model_copy(update=paths)})


def down(as_json: AsJson = False) -> None:
    """Stop the fleet; accepted goals are on disk and go on at the next start."""
    from nexus_ray.cli.detached import stop
    from nexus_ray.runtime.fleet_file import state_folder

    with spinner("stopping"):
        fleet = stop(state_folder())
    if as_json:
        print_json({**asdict(fleet), "down": True})
    else:
        say(f"{fleet.app} is down")


def status(as_json: AsJson = False) -> None:
    """Show the fleet: where it listens, which parts answer, how busy the hosts are."""
    from nexus_ray.runtime.client import connect
    from nexus_ray.runtime.fleet_file import read_fleet_file, state_folder

    with connect() as connection:
        parts = connection.ready()
        hosts, problem = _hosts(connection)
        url = connection.url
    fleet = read_fleet_file(state_folder())
    fleet = fleet if fleet is not None and fleet.url.rstrip("/") == url else None
    is_ready = all(truths(parts)) and problem is None
    if as_json:
        print_json({"url": url, "ready": is_ready, "parts": parts, "hosts": hosts, **_local(fleet)})
    else:
        rows = [("url", url), ("ready", "yes" if is_ready else "no"), *_local(fleet).items()]
        rows += [(name, "ok" if value is True else value) for name, value in parts.items() if name != "ready"]
        shown = table(("", "value"), [(name, value) for name, value in rows if value is not None])
        shown.show_header = False
        print_rich(shown)
        if hosts:
            columns = list(dict.fromkeys(name for host in hosts for name in host))
            numbers = ("epoch", "goals", "process")
            print_rich(table(columns, [[_cell(host.get(name, "")) for name in columns] for host in hosts], numbers))
        if problem is not None:
            say(f"the hosts cannot be listed: {problem}")
    if not is_ready:
        raise typer.Exit(ExitCode.UNAVAILABLE)


def _cell(value: Any) -> Any:
    """Return counts by type as `3 reader, 1 editor`; anything else as it is."""
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in sorted(value.items(), key=lambda item: -item[1])) or "-"
    return value


@agent_verbs.command("list")
def list_agents(as_json: AsJson = False) -> None:
    """List the agents that are active now."""
    from nexus_ray.runtime.client import connect

    with connect() as fleet:
        agents = fleet.agents()
    if as_json:
        print_json({"agents": agents})
        return
    if not agents:
        say("no agent is active; agents are activated by their first task and passivated when idle")
        return
    columns = ("agent", "host", "running", "waiting")
    print_rich(table(columns, [[a.get(name, "") for name in columns] for a in agents], ("running", "waiting")))


@agent_verbs.command("show")
def show_agent(
    agent: Annotated[str, typer.Argument(metavar="TYPE/KEY", help="The agent, such as account/ann.")],
    as_json: AsJson = False,
) -> None:
    """Show what an agent has on record: its durable state, and why it cannot be used where it cannot."""
    from nexus_ray.core.identity import AgentId
    from nexus_ray.runtime.client import connect

    AgentId.parse(agent)
    with connect() as fleet:
        record = fleet.agent(agent)
    if as_json:
        print_json(record)
        return
    state = record.get("state")
    rows = [("agent", record.get("agent", agent))]
    if state is None and record.get("quarantine") is None:
        rows.append(("state", "none yet" if record.get("is_durable") else "none: this type keeps no durable state"))
    if state is not None:
        rows += [("commits", state["version"]), ("schema", state["schema_version"])]
        rows += [("bytes", state["bytes"]), ("state", json.dumps(state["body"], ensure_ascii=False))]
    if record.get("quarantine"):
        rows.append(("quarantine", record["quarantine"]))
    shown = table(("", "value"), rows)
    shown.show_header = False
    print_rich(shown)


@contextmanager
def spinner(text: str) -> Iterator[Callable[[str], None]]:
    """Show that something is under way; the yielded function changes the text. Plain lines without a terminal."""
    if not sys.stderr.isatty():
        yield say
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(escape(text)) as shown:
        yield lambda line: shown.update(escape(line))


def _tell_up(fleet: dict[str, Any], ended_by: str, as_json: bool) -> None:
    if as_json:
        print_json(fleet)
        sys.stdout.flush()  # The process goes on, and whoever reads this wants to begin.
        return
    say(f"{fleet['app']} is up at {fleet['url']}")
    say(f"submit with `nexus goal submit TYPE`, look with `nexus status`, stop with {ended_by}")


def _hosts(connection: Any) -> tuple[list[dict[str, Any]], str | None]:
    try:
        return connection.hosts(), None
    except NexusError as error:
        return [], error.message


def _local(fleet: "FleetFile | None") -> dict[str, Any]:
    if fleet is None:
        return {}
    return {
        "app": fleet.app,
        "process": fleet.pid,
        "up_for": duration(max(0.0, time.time() - fleet.started_at)),
        "dashboard": fleet.dashboard_url,
    }


def truths(parts: dict[str, Any]) -> list[bool]:
    """Return what a readiness answer says of each part."""
    inner = parts.get("parts")
    values = inner.values() if isinstance(inner, dict) else parts.values()
    return [value for value in values if isinstance(value, bool)]
