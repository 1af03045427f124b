"""`nexus goal questions` and `nexus goal answer`: what goals ask of people, and a person's answer."""

from typing import Annotated

import typer

from nexus_ray.cli.goal import AsJson, GoalId
from nexus_ray.cli.show import moment, print_json, print_rich, say, table


def questions(as_json: AsJson = False) -> None:
    """List what goals ask of people and nobody has answered."""
    from nexus_ray.runtime.client import connect

    with connect() as fleet:
        found = fleet.questions()
    if as_json:
        print_json({"questions": found})
        return
    if not found:
        say("nobody is asked anything")
        return
    # The type and the beginning are in the JSON: on a terminal the question itself needs the room.
    rows = [(q["goal_id"], q["key"], q["question"], q["to"] or "anybody", moment(q["until"])) for q in found]
    print_rich(table(("id", "key", "question", "to", "until"), rows))


def answer(
    id: GoalId,
    key: Annotated[str, typer.Argument(help="Which of the goal's questions.")] = "main",
    is_approved: Annotated[bool | None, typer.Option("--yes/--no", help="Approve, or do not.")] = None,
    comment: Annotated[str, typer.Option(help="Why; kept with the answer.")] = "",
    as_json: AsJson = False,
) -> None:
    """Answer a question of a goal; the first answer stands."""
    if is_approved is None:
        raise typer.BadParameter("say --yes or --no")
    from nexus_ray.runtime.client import connect

    with connect() as fleet:
        stands = fleet.answer(id, key, is_approved, comment)
    if as_json:
        print_json(stands)
        return
    say(f"{'approved' if stands['approved'] else 'not approved'}: {stands['question']}")
