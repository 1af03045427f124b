"""The ways in besides HTTP: the command line, `ray job submit`, `serve deploy`; and what strangers meet."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from nexus_ray.runtime.client import Connection
from tests.cli.support import obey_ctrl_c

from .conftest import NEXUS, ROOT, Fleet, until

pytestmark = pytest.mark.ray

BIN = Path(sys.executable).parent
INSIDE = """
import asyncio, json, os, pathlib
import ray
from nexus_ray.runtime.direct import DirectClient

async def main():
    client = DirectClient((pathlib.Path(os.environ["NEXUS_STATE_DIR"]) / "token").read_text().strip())
    await client.connect()
    outcomes = await asyncio.gather(*(client.run("count_then_sleep", b"3.0", 60.0) for _ in range(6)))
    await client.close()
    assert all(json.loads(outcome.result) == [1] * 10 + [11] * 10 for outcome in outcomes), outcomes
    print("all 6 as they should be")

ray.init()
asyncio.run(main())
"""


def sockets(process: psutil.Process) -> list[Any]:
    try:
        return list(process.net_connections())
    except psutil.NoSuchProcess:
        return []  # It ended since it was listed; what has ended listens nowhere.


def rays_environment(fleet: Fleet) -> dict[str, str]:
    printed = fleet.nexus("env", "--json")
    return {**fleet.environment, **json.loads(printed.stdout)}


def test_the_command_line_submits_watches_shows_and_lists(fleet: Fleet) -> None:
    watched = fleet.nexus("goal", "submit", "count", "3", "--watch")
    listed = json.loads(fleet.nexus("goal", "list", "--type", "count", "--limit", "1", "--json").stdout)
    shown = fleet.nexus("goal", "show", listed["goals"][0]["id"], "--trace")

    assert watched.returncode == 0, watched.stderr
    assert len(json.loads(watched.stdout)) == 3
    assert listed["goals"][0]["status"] == "succeeded"
    assert "coordination.execute" in shown.stdout
    assert shown.stdout.count("agent.interaction") == 3


def test_a_failed_goal_and_a_wrong_payload_have_exit_codes_of_their_own(fleet: Fleet) -> None:
    failed = fleet.nexus("goal", "submit", "raise_", '"boom"', "--watch")
    wrong = fleet.nexus("goal", "submit", "count", '"many"')
    unknown = fleet.nexus("goal", "submit", "nosuch", "1")

    assert (failed.returncode, wrong.returncode, unknown.returncode) == (1, 2, 2)
    assert "boom" in failed.stderr and "Traceback" not in failed.stderr
    assert "integer" in wrong.stderr
    assert "count_then_sleep" in unknown.stderr


def test_ctrl_c_while_watching_cancels_the_own_goal(fleet: Fleet, connection: Connection) -> None:
    process = subprocess.Popen(
        [*NEXUS, "goal", "submit", "sleep", "600", "--watch"],
        env=fleet.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=obey_ctrl_c,
    )  # fmt: skip
    assert process.stderr is not None and "watching" in process.stderr.readline()
    running = until(lambda: connection.goals(status="running", type="sleep"))

    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)

    assert process.returncode == 130, said
    assert "cancelled" in said
    goal = connection.goal(running[0]["id"])
    assert goal.wait(10) and goal.record["status"] == "cancelled"


def test_a_ray_job_submits_a_goal_with_rays_token_on(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "payload.json").write_text("4")
    command = [
        BIN / "ray", "job", "submit", "--working-dir", tmp_path, "--",
        "nexus", "goal", "submit", "count", "@payload.json", "--watch",
    ]  # fmt: skip

    done = subprocess.run(
        command, env=rays_environment(fleet), capture_output=True, text=True, timeout=120, cwd=tmp_path
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count('"process"') == 4


@pytest.mark.timeout(240)  # Twenty seconds; a job begins after a minute on a machine that is busy.
def test_a_driver_inside_the_cluster_gets_its_outcomes_though_a_host_is_killed(
    fleet: Fleet, connection: Connection, tmp_path: Path
) -> None:
    (tmp_path / "inside.py").write_text(INSIDE)

    def running() -> set[str]:
        return {goal["id"] for goal in connection.goals(status="running", type="count_then_sleep")}

    others = running()
    job = subprocess.Popen(
        [BIN / "ray", "job", "submit", "--working-dir", tmp_path, "--", "python", "inside.py"],
        env=rays_environment(fleet), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip

    def all_run() -> bool:
        assert job.poll() is None, job.communicate()[0]
        return len(running() - others) == 6

    until(all_run, within_s=100)

    fleet.host_process(connection.hosts()[0]["host"]).kill()

    printed, _ = job.communicate(timeout=120)
    assert job.returncode == 0, printed
    assert "all 6 as they should be" in printed
    until(lambda: len(connection.hosts()) == 2)


def test_a_job_goes_to_its_own_fleet_though_there_are_others_on_the_machine(fleet: Fleet, tmp_path: Path) -> None:
    # Ray looks for what is called like its own process, and takes the address that stands there.
    (tmp_path / "raylet").symlink_to("/bin/sleep")
    others = []
    for port in range(1, 9):
        name = f"{tmp_path}/raylet --gcs-address=127.0.0.1:{port}"
        others.append(subprocess.Popen([name, "120"], executable=tmp_path / "raylet"))
    look = "from ray._private.services import canonicalize_bootstrap_address_or_die as found; print(found('auto'))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", look], env=rays_environment(fleet), capture_output=True, text=True, timeout=60
        )
    finally:
        for other in others:
            other.kill()
            other.wait()

    (own,) = {
        word.partition("=")[2] for process in fleet.processes() for word in process.cmdline()
        if "raylet/raylet" in process.cmdline()[0] and word.startswith("--gcs-address=")
    }  # fmt: skip
    assert done.stdout.split()[-1:] == [own], done.stdout + done.stderr


def test_a_ray_job_without_the_token_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    environment = rays_environment(fleet)
    environment["RAY_AUTH_TOKEN_PATH"] = str(tmp_path / "token")
    (tmp_path / "token").write_text("0" * 64)

    done = subprocess.run(
        [BIN / "ray", "job", "list"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode != 0
    assert "403" in done.stderr or "nvalid" in done.stderr


def test_serve_deploy_takes_the_configuration_of_serve_configs(fleet: Fleet, tmp_path: Path) -> None:
    text = (ROOT / "serve_configs" / "dev.yaml").read_text()
    config = tmp_path / "dev.yaml"
    config.write_text(text.replace("supply_chain:app", fleet.app).replace("8600", str(_port(fleet))))

    done = subprocess.run(
        [BIN / "serve", "deploy", config], env=rays_environment(fleet), capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 0, done.stderr
    until(lambda: _serve_status(fleet) == "RUNNING", within_s=60, every_s=0.5)
    with fleet.connect() as connection:
        assert len(connection.submit("count", 2).result(30)) == 2


def test_every_socket_of_the_fleet_listens_on_loopback_only(fleet: Fleet) -> None:
    listening = {
        (process.name(), connection.laddr.ip, connection.laddr.port)
        for process in fleet.processes()
        for connection in sockets(process)
        if connection.status == "LISTEN"
    }

    assert len(listening) > 10
    assert [entry for entry in listening if entry[1] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")] == []


@pytest.mark.parametrize("path", ["/api/version", "/api/jobs/", "/api/serve/applications/", "/nodes?view=summary"])
def test_the_dashboard_refuses_strangers(fleet: Fleet, path: str) -> None:
    url = fleet.record["dashboard_url"] + path
    token = (fleet.state / "ray_token").read_text()

    assert httpx2.get(url).status_code == 401
    assert httpx2.get(url, headers={"Authorization": f"Bearer {'0' * 64}"}).status_code == 403
    assert httpx2.get(url, headers={"Authorization": f"Bearer {token}"}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/goals", "/ready", "/metrics", "/openapi.json", "/v1/agents", "/-/routes"])
def test_the_front_door_refuses_strangers(fleet: Fleet, path: str) -> None:
    assert httpx2.get(fleet.record["url"] + path).status_code in (401, 404)


def test_a_reader_may_look_and_nothing_else(fleet: Fleet) -> None:
    token = fleet.nexus("token", "create", "--role", "reader", "--ttl", "5m").stdout.strip()
    url, headers = fleet.record["url"], {"Authorization": f"Bearer {token}"}

    assert httpx2.get(f"{url}/v1/goals", headers=headers).status_code == 200
    refused = httpx2.post(f"{url}/v1/goals", headers=headers, json={"type": "count", "payload": 1})
    assert refused.status_code == 403
    assert refused.headers["content-type"] == "application/problem+json"


def test_serves_own_timeout_cannot_be_steered_from_outside(fleet: Fleet, connection: Connection) -> None:
    headers = {"x-request-timeout-seconds": "0.001", "Authorization": f"Bearer {(fleet.state / 'token').read_text()}"}

    answer = httpx2.get(f"{fleet.record['url']}/v1/goals", headers=headers)

    assert answer.status_code == 200


def test_metrics_are_those_of_all_processes_of_the_node(connection: Connection) -> None:
    connection.submit("count", 8).result(30)

    text = connection.metrics()

    assert 'nexus_operations_total{agent_type="counter",operation="agent.interaction",result="success"}' in text
    assert "nexus_http_requests_total" in text
    assert "nexus_ledger_commits_total" in text
    until(lambda: _gauge(connection.metrics(), "nexus_hosts") == 2, within_s=15)
    until(lambda: _gauge(connection.metrics(), "nexus_active_agents", 'agent_type="counter"') >= 8, within_s=15)


def test_every_goal_has_a_log_line_that_joins_it_to_its_trace(fleet: Fleet, connection: Connection) -> None:
    goal = connection.submit("count", 2)
    goal.result(30)
    spans = until(lambda: [span for span in goal.trace() if span["name"] == "coordination.execute"])

    lines = [json.loads(line) for path in (fleet.state / "logs").glob("*.jsonl") for line in path.open()]

    (line,) = [
        entry for entry in lines
        if entry["event"] == "coordination.execute" and entry.get("coordination_id") == goal.id
    ]  # fmt: skip
    assert line["trace_id"] == spans[0]["trace_id"]
    assert line["result"] == "success"


def test_a_callers_trace_goes_on_in_the_fleet(fleet: Fleet, connection: Connection) -> None:
    trace_id = os.urandom(16).hex()
    headers = {
        "traceparent": f"00-{trace_id}-00f067aa0ba902b7-01",
        "Authorization": f"Bearer {(fleet.state / 'token').read_text()}",
        "Prefer": "wait=20",
    }
    answer = httpx2.post(
        f"{fleet.record['url']}/v1/goals", headers=headers, json={"type": "count", "payload": 2}, timeout=30
    )

    spans = until(lambda: _of(connection, answer.json()["id"], "agent.interaction", 2))

    assert {span["trace_id"] for span in spans} == {trace_id}


def _of(connection: Connection, goal_id: str, name: str, number: int) -> list[dict[str, Any]]:
    spans = [span for span in connection.goal(goal_id).trace() if span["name"] == name]
    return spans if len(spans) == number else []


def _gauge(text: str, name: str, label: str = "") -> float:
    return sum(
        float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"{name}{{") and label in line
    )


def _port(fleet: Fleet) -> int:
    return int(httpx2.URL(fleet.record["url"]).port or 0)


def _serve_status(fleet: Fleet) -> str:
    token = (fleet.state / "ray_token").read_text()
    url = f"{fleet.record['dashboard_url']}/api/serve/applications/"
    applications = httpx2.get(url, headers={"Authorization": f"Bearer {token}"}).json()["applications"]
    return str(applications["nexus"]["status"])
