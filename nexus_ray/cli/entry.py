"""The tree of verbs, and the console's way in."""

from typing import Annotated

import typer

from nexus_ray.cli import (
    access,
    audit,
    dashboard,
    demo,
    doctor,
    env,
    fleet,
    goal,
    ledger,
    login,
    node,
    policy,
    questions,
    safekeeping,
    token,
)
from nexus_ray.cli.exits import Verbs
from nexus_ray.cli.show import print_json

app = typer.Typer(
    name="nexus",
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # Rich help costs 0.1 s, and the text is the same.
    help="Run fleets of agents in production on a Ray cluster.",
    epilog="Exits with 0 ok, 1 goal failed, 2 wrong input, 3 not allowed, 4 not up, 5 cancelled or expired.",
)
app.command()(fleet.up)
app.command()(fleet.down)
app.command()(fleet.status)
app.command()(env.env)
app.command()(login.login)
app.command()(login.logout)
app.command()(dashboard.dashboard)
app.command()(demo.demo)
goal.verbs.command()(questions.questions)
goal.verbs.command()(questions.answer)
for verb in (safekeeping.verify, safekeeping.backup, safekeeping.restore, safekeeping.export):
    ledger.verbs.command()(verb)
app.add_typer(goal.verbs, name="goal")
app.add_typer(fleet.agent_verbs, name="agent")
app.add_typer(node.verbs, name="node")
app.add_typer(token.verbs, name="token")
app.add_typer(access.sessions, name="session")
app.add_typer(access.identities, name="identity")
app.add_typer(ledger.verbs, name="ledger")
app.add_typer(audit.verbs, name="audit")
app.add_typer(policy.verbs, name="policy")
app.command()(doctor.doctor)


@app.command()
def version(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False) -> None:
    """Print the versions of Nexus, Ray and Python."""
    import platform
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    from nexus_ray import __version__

    try:
        ray = installed("ray")
    except PackageNotFoundError:
        ray = "not installed"
    versions = {"nexus": __version__, "ray": ray, "python": platform.python_version()}
    if as_json:
        print_json(versions)
    else:
        typer.echo(", ".join(f"{name} {number}" for name, number in versions.items()))


def run() -> None:
    """Run the verb that the command line names, and exit with its code."""
    app()
