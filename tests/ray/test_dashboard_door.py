"""Ray's dashboard and jobs through the front door: what a session may there, without ever holding Ray's token."""

import json
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from nexus_ray.cli.dashboard import serving

from .conftest import Fleet

pytestmark = pytest.mark.ray

RAY = Path(sys.executable).parent / "ray"


def client(fleet: Fleet, role: str) -> httpx2.Client:
    token = fleet.nexus("token", "create", "--role", role, "--ttl", "5m").stdout.strip()
    headers = {"Authorization": f"Bearer {token}"}
    return httpx2.Client(base_url=f"{fleet.record['url']}/ray", headers=headers, timeout=30)


def test_who_looks_sees_the_dashboard_and_submits_nothing(fleet: Fleet) -> None:
    secret = (fleet.state / "ray_token").read_text()

    with client(fleet, "reader") as reader:
        page = reader.get("/")
        script = page.text.partition('src="./')[2].partition('"')[0]
        paths = (f"/{script}", "/api/version", "/api/jobs/", "/nodes?view=summary", "/logical/actors", "/api/v0/tasks")
        shown = [page, *map(reader.get, paths)]
        refused = [reader.post("/api/jobs/", json={"entrypoint": "true"}), reader.delete("/api/serve/applications/"),
                   reader.get("/worker/traceback?pid=1"), reader.post("/api/authenticate")]  # fmt: skip

    assert [answer.status_code for answer in shown] == [200] * len(shown)
    assert "Ray Dashboard" in page.text and len(shown[1].content) > 100_000
    assert [answer.status_code for answer in refused] == [403] * len(refused)
    assert not any(secret in answer.text + str(answer.headers) for answer in shown + refused)


def test_an_operator_submits_a_job_with_rays_own_command_through_the_door(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text("print('it', 'ran')\n")
    environment = {
        **fleet.environment,
        "RAY_API_SERVER_ADDRESS": f"{fleet.record['url']}/ray",
        "RAY_JOB_HEADERS": json.dumps({"Authorization": f"Bearer {(fleet.state / 'token').read_text().strip()}"}),
    }
    command = [RAY, "job", "submit", "--submission-id", "through-the-door", "--working-dir", tmp_path]

    done = subprocess.run(
        [*command, "--", "python", "tiny.py"], env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "it ran" in done.stdout and "succeeded" in done.stdout, "it follows the log to its end"
    with client(fleet, "operator") as operator:
        place = "/api/jobs/through-the-door"
        job = operator.get(place).json()
        assert "it ran" in operator.get(f"{place}/logs").json()["logs"]
        assert operator.delete(place).status_code == 200
    assert job["metadata"]["nexus_tenant"] == "main" and job["metadata"]["nexus_principal"]
    records = json.loads(fleet.nexus("audit", "list", "--action", "job:submit", "--json").stdout)["records"]
    assert {"intent", "outcome"} <= {record["kind"] for record in records}


def test_the_browsers_way_shows_the_page(fleet: Fleet) -> None:
    with fleet.connect() as connection, serving(connection) as passage, httpx2.Client() as browser:
        opened = browser.get(passage.url)
        cookie = {"Cookie": opened.headers["set-cookie"].partition(";")[0]}
        address = f"http://{passage.hosts[0]}{passage.base}"

        assert "Ray Dashboard" in browser.get(address, headers=cookie).text
        assert browser.get(f"{address}api/version", headers=cookie).json()["ray_version"]
        assert httpx2.get(f"{address}api/version").status_code == 401
