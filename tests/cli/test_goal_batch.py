"""`nexus goal batch`: many goals from a file."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nexus_ray.runtime import batches
from tests.cli.conftest import Answer, Fleet, as_problem
from tests.cli.support import nexus

ROUTE = "POST /v1/goals:batch"
REFUSED = {"status": 404, "code": "not_found", "detail": "there is no goal type 'nosuch'"}


@pytest.fixture(autouse=True)
def _up(is_up: Callable[..., None]) -> None:
    is_up()


def as_lines(*lines: dict) -> Answer:
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    return 200, {"Content-Type": "application/x-ndjson"}, body


def accepted(line: int) -> dict:
    return {"line": line, "id": f"goal-{line}", "is_new": True}


def sent(fleet: Fleet) -> list[list[str]]:
    return [body.decode().split("\n") for _, _, body in fleet.requests]


def test_the_ids_are_printed_in_order_and_what_is_refused_by_its_line(fleet: Fleet, tmp_path: Path) -> None:
    fleet.on(ROUTE, as_lines(accepted(1), {"line": 2, "problem": REFUSED}, accepted(3)))
    file = tmp_path / "goals.ndjson"
    file.write_text('{"type":"a","idempotency_key":"k"}\n{"type":"nosuch"}\nno JSON\n')

    result = nexus("goal", "batch", str(file))

    assert result.exit_code == 2
    assert result.stdout == "goal-1\ngoal-3\n"
    assert "line 2: there is no goal type 'nosuch'" in result.stderr
    ((first, second, third),) = sent(fleet)
    assert first == '{"type":"a","idempotency_key":"k"}' and third == "no JSON"
    assert json.loads(second)["idempotency_key"].startswith("key-")


def test_stdin_and_json(fleet: Fleet) -> None:
    fleet.on(ROUTE, as_lines(accepted(1)))

    result = nexus("goal", "batch", "-", "--json", stdin='{"type":"a"}\n')

    assert (result.exit_code, json.loads(result.stdout)) == (0, {"goals": [accepted(1)]})


def test_a_request_that_was_cut_off_is_sent_again_with_the_same_keys(fleet: Fleet) -> None:
    fleet.on(ROUTE, None, as_lines(accepted(1)))

    result = nexus("goal", "batch", "-", stdin='{"type":"a"}')

    first, again = sent(fleet)
    assert result.exit_code == 0
    assert first == again


def test_a_long_file_goes_in_several_requests_and_its_lines_are_counted_through(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_LINES_MAX", 2)
    fleet.on(ROUTE, as_lines(accepted(1), accepted(2)), as_lines({"line": 1, "problem": REFUSED}))

    result = nexus("goal", "batch", "-", stdin='{"type":"a"}\n' * 3)

    assert [len(lines) for lines in sent(fleet)] == [2, 1]
    assert "line 3:" in result.stderr


def test_a_batch_that_is_refused_as_a_whole_says_so(fleet: Fleet) -> None:
    fleet.on(ROUTE, as_problem("permission_denied", "not allowed", 403))

    assert nexus("goal", "batch", "-", stdin='{"type":"a"}').exit_code == 3


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert nexus("goal", "batch", str(tmp_path / "none")).exit_code == 2
