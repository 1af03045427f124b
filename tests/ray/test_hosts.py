"""Goals over agents that live in Ray actors: what they answer, and what their failures say."""

import pytest

from nexus_ray.core.errors import DeadlineExceededError, InvalidArgumentError, TaskFailedError
from nexus_ray.runtime.client import Connection

from .conftest import Fleet, until

pytestmark = pytest.mark.ray


def test_a_fan_out_runs_on_all_hosts_in_processes_of_their_own(connection: Connection) -> None:
    answers = connection.submit("count", 32).result(30)

    hosts = {entry["process"] for entry in connection.hosts()}
    assert {answer["process"] for answer in answers} == hosts
    assert len(hosts) == 2


def test_an_agents_state_stays_from_goal_to_goal(connection: Connection) -> None:
    before = connection.submit("count", 1).result(30)[0]["n"]

    assert connection.submit("count", 1).result(30)[0]["n"] == before + 1


def test_agents_and_hosts_have_names_that_can_be_read(fleet: Fleet, connection: Connection) -> None:
    connection.submit("count", 2).result(30)

    listed = fleet.nexus("agent", "list")

    assert listed.returncode == 0
    assert "counter/0" in listed.stdout and "agent-host-" in listed.stdout
    assert fleet.processes("ray::AgentHost") and fleet.processes("ray::LedgerActor")


def test_an_agent_that_raises_fails_its_goal_with_what_where_and_how_often(connection: Connection) -> None:
    with pytest.raises(TaskFailedError, match="boom") as caught:
        connection.submit("raise_", "boom").result(30)

    details = caught.value.details
    assert details["agent"] == "raiser/main"
    assert details["host"].startswith("agent-host-")
    assert details["attempts"] == 1
    assert details["error_type"] == "ValueError"


def test_an_agent_that_exits_does_not_take_its_host_along(connection: Connection) -> None:
    before = {entry["process"] for entry in connection.hosts()}

    with pytest.raises(TaskFailedError, match="SystemExit"):
        connection.submit("raise_", "exit").result(30)

    assert {entry["process"] for entry in connection.hosts()} == before


def test_an_answer_that_is_no_json_fails_the_task(connection: Connection) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be written as JSON"):
        connection.submit("odd", 1).result(30)


def test_an_agent_that_hangs_past_the_deadline_expires_with_its_goal(connection: Connection) -> None:
    goal = connection.submit("sleep", 600, timeout_s=0.5)

    assert goal.wait(10)
    assert goal.record["status"] == "expired"


def test_an_isolated_agent_has_a_process_of_its_own_and_keeps_its_state_there(connection: Connection) -> None:
    first, second = connection.submit("alone", ["work", "work"]).result(60)

    assert first["process"] == second["process"]
    assert first["process"] not in {entry["process"] for entry in connection.hosts()}
    assert (first["n"], second["n"]) == (1, 2)


def test_an_isolated_agent_that_dies_fails_its_task_and_nothing_else(connection: Connection) -> None:
    hosts = {entry["process"] for entry in connection.hosts()}
    goal = connection.submit("alone", ["work", "die"])

    goal.wait(60)

    assert goal.record["status"] == "failed"
    assert "alone/" in goal.record["failure"]["agent"]
    assert {entry["process"] for entry in connection.hosts()} == hosts


def test_what_an_isolated_agent_does_outside_is_on_record_and_unknown_where_it_died_doing_it(
    connection: Connection,
) -> None:
    first, second = connection.submit("pay_alone", "pay").result(60)
    goal = connection.submit("pay_alone", "die")
    kinds = [event["kind"] for event in goal.events()]

    assert first == second and first.endswith("!pay")
    assert goal.record["failure"]["error_type"] == "EffectUnknownError"
    assert kinds.count("effect_begun") == 1 and "effect_ended" not in kinds


def test_an_agent_whose_resources_are_nowhere_is_given_up_in_time(connection: Connection) -> None:
    with pytest.raises(DeadlineExceededError, match=r"homeless/main did not answer within 1\.5 s"):
        connection.submit("homeless", 1).result(30)


def test_a_cancelled_goal_stops_its_agents(connection: Connection) -> None:
    goal = connection.submit("sleep", 600)
    until(lambda: [a for a in connection.agents() if a["agent"] == f"sleeper/{goal.id}" and a["running"]])

    goal.cancel()

    assert goal.wait(10)
    assert goal.record["status"] == "cancelled"
    until(lambda: not [a for a in connection.agents() if a["agent"] == f"sleeper/{goal.id}" and a["running"]])
