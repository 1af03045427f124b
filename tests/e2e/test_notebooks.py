"""The notebooks run from top to bottom against one fleet, show what they speak of, and are in step with their texts."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from notebooks.build import APP, EXAMPLES, TEXTS, execute, read_text
from tests.ray.conftest import ROOT, Fleet

STRATEGIES = ["ask", "fan_out", "quorum", "race", "hedge", "vote", "pipeline", "map_reduce"]
FAILING = {"ask", "fan_out", "pipeline", "map_reduce"}  # Those that need every answer.
# A folder of a machine, a token (its header is base64 of `{"`), an address with a port.
OF_A_MACHINE = re.compile(r"/(?:home|root|tmp|usr|work|var|Users)/\w|eyJ\w{10}|127\.0\.0\.1:\d|localhost:\d")


def outputs(notebook: NotebookNode) -> list[str]:
    """Return everything that the cells of a notebook gave, as text; pictures are told by `<picture>`."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            shown = output.get("data", {})
            found.append(
                "<picture>" if "image/png" in shown
                else shown.get("text/markdown") or shown.get("text/plain") or output.get("text") or str(output)
            )  # fmt: skip
    return found


def tables(notebook: NotebookNode) -> list[list[dict[str, str]]]:
    """Return the tables that the cells of a notebook gave."""
    found = []
    for text in outputs(notebook):
        if text.startswith("| "):
            head, _, *rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines()]
            found.append([dict(zip(head, row, strict=False)) for row in rows])
    return found


def table_with(notebook: NotebookNode, column: str) -> dict[str, dict[str, str]]:
    """Return the one table that has a column, its rows by their first cell."""
    (found,) = [rows for rows in tables(notebook) if column in rows[0]]
    return {next(iter(row.values())): row for row in found}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path_factory.mktemp("notebooks") / "state", APP)
    fleet.environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(EXAMPLES)])
    fleet.up()
    yield fleet
    fleet.down()


@pytest.mark.e2e
@pytest.mark.timeout(240)
def test_the_tour_shows_what_it_tells_of(fleet: Fleet) -> None:
    (text,) = [path for path in TEXTS if path.stem == "00_tour"]

    notebook = execute(read_text(text), fleet.state)

    shown = "\n".join(outputs(notebook))
    assert list(table_with(notebook, "goal type")) == STRATEGIES
    assert "'hosts': True" in shown
    assert f"{'█' * 40} 24 of 24  succeeded" in shown
    assert set(table_with(notebook, "problem")) == {"things", "round"}
    assert "expert/barometer#1 failed: RuntimeError: no opinion on the barometer" in shown
    assert shown.count("<picture>") == 1
    assert int(table_with(notebook, "awake")["expert"]["awake"]) >= 24
    assert 'nexus_coordinations_total{coordination_type="fan_out",result="failed"}' in shown
    assert not OF_A_MACHINE.search(shown)


@pytest.mark.e2e
@pytest.mark.timeout(240)
def test_the_strategies_differ_in_what_they_cost_and_survive(fleet: Fleet) -> None:
    (text,) = [path for path in TEXTS if path.stem == "01_strategies"]

    notebook = execute(read_text(text), fleet.state)

    compared = table_with(notebook, "median ms")
    assert list(compared) == STRATEGIES
    assert {strategy for strategy, row in compared.items() if row["failed"] != "0"} == FAILING
    assert {row["failed"] for strategy, row in compared.items() if strategy in FAILING} == {"3"}
    costs = {strategy: float(row["cost"]) for strategy, row in compared.items()}
    assert costs["fan_out"] == pytest.approx(8, abs=0.3) and costs["ask"] < 7.7  # It stops at the first failure.
    assert 8 < costs["hedge"] <= 24 and 8 < costs["race"] <= 24 and 16 < costs["vote"] <= 24
    assert compared["race"]["answered"] == compared["hedge"]["answered"] == "100%"
    assert 75 <= int(compared["quorum"]["answered"].strip("%")) <= 100
    assert compared["vote"]["answered"] == compared["vote"]["right"]  # It would rather say nothing.
    in_round_5 = table_with(notebook, "outcome")
    assert {strategy for strategy, row in in_round_5.items() if row["outcome"] == "failed"} == FAILING
    assert {in_round_5[strategy]["calls that failed"] for strategy in FAILING} == {"expert/barometer#1"}
    assert int(table_with(notebook, "why")["the first failed"]["times"]) >= 1
    assert "fiddle: 1 of 3 gave the answer that 2 must give" in "\n".join(outputs(notebook))
    assert outputs(notebook).count("<picture>") == 2
    assert not OF_A_MACHINE.search("\n".join(outputs(notebook)))


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_its_text_with_outputs(text: Path) -> None:
    expected = read_text(text)

    notebook = nbformat.read(text.with_suffix(".ipynb"), as_version=4)

    nbformat.validate(notebook)
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in expected.cells
    ]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum(bool(cell.outputs) for cell in code) >= len(code) / 2


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_a_committed_notebook_tells_nothing_of_the_machine_that_made_it(text: Path) -> None:
    written = text.with_suffix(".ipynb").read_text()

    shown = "\n".join(outputs(nbformat.reads(written, as_version=4)))
    assert not OF_A_MACHINE.search(shown)
    assert '"language_info"' not in written and "iopub" not in written


def test_what_tells_of_a_machine_is_seen() -> None:
    seen = ["/Users/ada/x", "at /tmp/a", "eyJhbGciOiJFZERTQSJ9.e30.x", "http://127.0.0.1:8600/v1"]

    assert all(OF_A_MACHINE.search(text) for text in seen)
    assert not OF_A_MACHINE.search("goal-01M86PF5PD0MSN0JT36PD3 expert/coin 1#1 | 0.045 | examples/strategies.py")


def test_each_notebook_begins_with_how_to_start_the_one_fleet() -> None:
    assert [text.name for text in TEXTS] == ["00_tour.py", "01_strategies.py"]
    assert all("nexus up strategies:app --detach" in read_text(text).cells[0].source for text in TEXTS)
