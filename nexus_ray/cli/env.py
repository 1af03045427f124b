"""`nexus env`: what Ray's own commands need to know: `ray job submit`, `ray start`, `serve deploy`.

Law: prints names of secret files, never a secret.
"""

import shlex
from typing import Annotated

import typer

from nexus_ray.cli.show import print_json


def env(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False) -> None:
    """Print shell exports for Ray's own commands: eval "$(nexus env)"."""
    from nexus_ray.cli.detached import running_fleet
    from nexus_ray.config import load
    from nexus_ray.runtime.local import ray_environment
    from nexus_ray.runtime.state import prepare_state

    settings = load()
    prepare_state(settings)
    fleet = running_fleet(settings.state_dir)
    address = (fleet.dashboard_url if fleet else None) or f"http://127.0.0.1:{settings.runtime.dashboard_port}"
    variables = {
        **ray_environment(settings),
        # The first is what `ray job` reads, the second what `serve` does.
        **dict.fromkeys(("RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS"), address),
    }
    if as_json:
        print_json(variables)
        return
    for name, value in variables.items():
        typer.echo(f"export {name}={shlex.quote(value)}")
