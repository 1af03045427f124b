import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import against_ray, contender, knee, parts, plot, race, report, run, section, widths
from benchmarks.sampling import Round, Row, Target, summarise

ROWS = [
    Row("against-ray", "Nexus over raw Ray, concurrency 8", "x", summarise([10.0, 30.0, 25.0]), Target("at_least", 20)),
    Row("agents", "1,000 agents idle, each", "KiB", summarise([9.5]), Target("at_most", 8.0)),
    Row("agents", "1,000 agents activated", "s", summarise([0.25, 0.35])),
]
ABOUT: dict[str, Any] = {
    "at": "2026-01-02T03:04:05+00:00",
    "quick": False,
    "duration_s": 200.4,
    "machine": {
        "cores": 2, "processor": "P", "memory_mib": 4096, "system": "Linux", "python": "3.11", "ray": "2.60.0",
        "fsync_ms": 0.1,
    },
    "load_average": {"before": [0.1, 0.2, 0.3], "after": [1.0, 0.5, 0.4]},
}  # fmt: skip


def test_the_document_tells_ratios_and_what_was_missed() -> None:
    content = report.document(ROWS, ABOUT)

    assert content["ratios"] == {"Nexus over raw Ray, concurrency 8": 25.0}
    assert content["not_reached"] == ["1,000 agents idle, each"]
    assert content["machine"]["cores"] == 2
    assert content["rows"][0] == {
        "section": "against-ray",
        "name": "Nexus over raw Ray, concurrency 8",
        "unit": "x",
        "summary": {"n": 3, "median": 25.0, "p50": 25.0, "p99": 30.0, "min": 10.0, "max": 30.0},
        "target": {"sense": "at_least", "value": 20},
        "reached": True,
        "series": "",
        "at": 0,
    }


def test_the_document_is_written_whole(tmp_path: Path) -> None:
    content = report.document(ROWS, ABOUT)

    report.write_json(tmp_path / "results" / "latest.json", content)

    assert json.loads((tmp_path / "results" / "latest.json").read_text()) == json.loads(json.dumps(content))
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["latest.json"]


def test_the_table_shows_every_row_with_its_verdict() -> None:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115

    report.show(console, "agents", ROWS)
    text = console.export_text()

    assert all(row.name in text for row in ROWS)
    assert "≥ 20, reached" in text
    assert "≤ 8, not reached" in text


def test_figures_take_the_place_of_older_ones_in_the_readme() -> None:
    readme = f"# Title\n\n{report.BEGIN}\nold figures\n{report.END}\n\nAfter.\n"

    once = report.rewritten(readme, report.markdown(report.document(ROWS, ABOUT)))
    twice = report.rewritten(once, "new")

    assert "old figures" not in once
    assert "| 1,000 agents activated | s | 0.3 | 0.35 | 0.25 | 0.35 | 2 |  |" in once
    assert "Not reached: 1,000 agents idle, each." in once
    assert twice == f"# Title\n\n{report.BEGIN}\nnew\n{report.END}\n\nAfter.\n"


@pytest.mark.parametrize(
    "readme", ["no marks", report.BEGIN, f"{report.END}\n{report.BEGIN}", f"{report.BEGIN}{report.BEGIN}{report.END}"]
)
def test_a_readme_without_a_place_for_figures_is_refused(readme: str) -> None:
    with pytest.raises(ValueError, match="no place"):
        report.rewritten(readme, "new")


def test_the_readme_here_has_the_place() -> None:
    assert report.rewritten(run.README.read_text(), "new") != run.README.read_text()


@pytest.mark.parametrize("value, expected", [(1234.5, "1,234"), (12.345, "12.3"), (0.0123, "0.0123"), (0.0, "0")])
def test_figures_have_what_matters(value: float, expected: str) -> None:
    assert report.figure(value) == expected


def _seen(rates: dict[str, int], concurrencies: tuple[int, ...] = against_ray.CONCURRENCIES) -> race.Seen:
    return {
        (name, concurrency): [Round(wall_s=1.0, cpu_s=0.5, latencies_s=[0.01] * rate)]
        for name, rate in rates.items()
        for concurrency in concurrencies
    }


def _raced(seen: race.Seen) -> list[Row]:
    return race.rows("contenders", seen, contender.NEXUS, contender.OURS, against_ray.TARGETS)


def test_nexus_is_compared_with_everybody_at_every_concurrency() -> None:
    seen = _seen({contender.NEXUS: 60, contender.LEDGERED: 50, contender.ONE_EACH: 1, contender.GROUPED: 30})

    rows = {row.name: row for row in _raced(seen)}

    assert rows["Nexus over raw Ray, one actor per agent, concurrency 8"].summary.median == 60.0
    assert rows["Nexus over raw Ray, one actor per agent, concurrency 8"].reached is True
    assert rows["Nexus over raw Ray, one grouped call to one host, concurrency 8"].reached is False
    assert rows["Nexus over raw Ray, one actor per agent, concurrency 64"].target is None
    assert rows["Nexus, concurrency 1, latency"].summary.median == pytest.approx(10.0)
    assert rows["Nexus, concurrency 1, of all its processes"].summary.median == pytest.approx(500 / 60)
    assert not any(name.startswith("Nexus over Nexus") for name in rows)


def test_the_matrix_has_a_line_for_each_contender() -> None:
    seen = _seen({contender.NEXUS: 60, contender.ONE_EACH: 2, contender.LANGGRAPH_SQLITE.name: 5}, (1, 8))

    headings, *lines = report.matrix(_raced(seen))

    assert headings[:4] == ["contender", "durable", "goals/s at 1", "goals/s at 8"]
    assert lines == [
        ["Nexus", "yes", "60", "60", "10", "10", "8.33", "", ""],
        ["raw Ray, one actor per agent", "no", "2", "2", "10", "10", "250", "30", "30"],
        ["LangGraph, checkpoints in SQLite", "yes", "5", "5", "10", "10", "100", "12", "12"],
    ]


def test_what_many_are_compared_in_is_shown_as_a_matrix_and_what_was_aimed_at() -> None:
    raced = _raced(_seen({contender.NEXUS: 60, contender.ONE_EACH: 2}))

    text = report.markdown(report.document(raced, {**ABOUT, "notes": ["dramatiq: not run: apt install redis-server"]}))

    assert "| raw Ray, one actor per agent | no | 2 | 2 | 2 |" in text
    assert (
        "| Nexus over raw Ray, one actor per agent, concurrency 8 | x | 30 | 30 | 30 | 30 | 1 | ≥ 60, not reached |"
        in text
    )
    assert "Nexus, concurrency 1, latency" not in text
    assert "not run: apt install redis-server." in text


async def test_who_fails_is_out_with_all_that_it_did() -> None:
    asked: list[tuple[str, int]] = []

    def runner(name: str, rounds_max: int) -> race.Runner:
        async def measure(concurrency: int, seconds: float) -> Round:
            asked.append((name, concurrency))
            if sum(by == name for by, _ in asked) > rounds_max:
                raise contender.NotRunError("it left")
            return Round(wall_s=1.0, cpu_s=1.0, latencies_s=[0.1])

        return race.Runner(name, measure)

    heats = [race.Heat(1, 2, 0.1), race.Heat(8, 1, 0.1)]
    seen, notes = await race.race("contenders", [runner("a", 99), runner("b", 2)], heats)

    assert {key: len(rounds) for key, rounds in seen.items()} == {("a", 1): 2, ("a", 8): 1}
    assert [note.text for note in notes] == ["b: not run: it left"]
    assert asked == [("a", 4), ("b", 4), ("a", 1), ("b", 1), ("b", 1), ("a", 1), ("a", 8)]


def test_the_tail_is_judged_round_by_round() -> None:
    calm, rough = ([0.01] * 98 + [slow] * 2 for slow in (0.02, 0.08))
    seen = {("Nexus", 8): [Round(1.0, 1.0, calm), Round(1.0, 1.0, calm), Round(1.0, 1.0, rough)]}

    row = race.tail("contenders", seen, "Nexus", 8, 5.0)

    assert row.summary.median == pytest.approx(2.0)
    assert row.reached is True


def test_curves_are_drawn_in_one_picture_that_is_the_same_for_the_same_figures(tmp_path: Path) -> None:
    rounds = {at: [Round(1.0, 1.0, [0.01] * at)] for at in (1, 8, 64)}
    rows = [*knee.rows(rounds), *widths.rows({(name, 32): rounds[8] for name in (contender.NEXUS, contender.GROUPED)})]

    once, twice = plot.draw(tmp_path / "once.svg", rows), plot.draw(tmp_path / "twice.svg", rows)

    assert once is not None and twice is not None
    assert once.read_bytes() == twice.read_bytes()
    assert once.stat().st_size < 100_000
    assert plot.curve(rows, "knee", contender.NEXUS, "goals/s") == [(1, 1.0), (8, 8.0), (64, 64.0)]


def test_the_readme_shows_the_picture_where_there_is_one() -> None:
    with_one = report.markdown({**report.document(ROWS, ABOUT), "picture": "latest.svg"})
    without = report.markdown(report.document(ROWS, ABOUT))

    assert "](results/latest.svg)" in with_one
    assert "![" not in without


def test_nothing_is_drawn_of_a_run_without_curves(tmp_path: Path) -> None:
    assert plot.draw(tmp_path / "none.svg", ROWS) is None
    assert not list(tmp_path.iterdir())


def test_a_whole_run_leaves_out_only_what_is_in_another_section() -> None:
    assert set(section.MODULES) - set(run.WHOLE) == {"against-ray"}
    assert all((run.ROOT / f"{module.replace('.', '/')}.py").exists() for module in section.MODULES.values())


def test_the_runner_knows_its_sections() -> None:
    options = run.parse(["--quick", "--only", "parts", "--only", "agents"])

    assert options.quick
    assert options.only == ["parts", "agents"]


@pytest.mark.parametrize(
    "arguments", [["--only", "nothing"], ["--write-readme", "--quick"], ["--write-readme", "--only", "parts"]]
)
def test_the_runner_refuses_what_makes_no_sense(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        run.parse(arguments)

    assert refusal.value.code == 2
    assert "error" in capsys.readouterr().err


def test_a_part_costs_what_goes_away_with_it() -> None:
    def rounds(cpu_ms: tuple[float, ...], wall_s: float) -> list[Round]:
        return [Round(wall_s=wall_s, cpu_s=one / 1e3, latencies_s=[0.01]) for one in cpu_ms]

    seen = {variant: rounds((2.0, 2.2), 1.0) for variant in parts.VARIANTS}
    seen[parts.NO_LEDGER] = rounds((1.1, 1.0), 0.5)

    rows = {row.name: row for row in parts.rows(seen)}

    assert rows["the ledger costs, in CPU"].summary.median == pytest.approx(100.0)
    assert rows["the ledger costs, in goals/s"].summary.median == pytest.approx(50.0)
    assert rows["tracing costs, in CPU"].summary.median == pytest.approx(0.0)
    assert rows["tracing costs, in CPU"].reached is True
