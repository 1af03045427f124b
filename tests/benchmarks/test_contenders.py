"""The lines between runner and contenders, and what contenders are installed from. No test starts a contender."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import contender, environments
from benchmarks.contender import PEERS, NotRunError, missing, started
from benchmarks.contenders.protocol import (
    CONCURRENCY_MAX,
    GOALS_MAX,
    LINE_BYTES_MAX,
    WIDTH_MAX,
    Answer,
    Order,
    ProtocolError,
    Ready,
    decode_answer,
    decode_order,
    decode_ready,
    encode,
    failed,
)
from benchmarks.contenders.serve import carry_out, checked

CONTENDERS = Path(contender.__file__).parent / "contenders"
ENVIRONMENTS = sorted({peer.module for peer in PEERS})


def test_a_message_arrives_as_it_was_sent() -> None:
    order, answer, ready = Order(8, 1.5, 32), Answer(1.25, [0.5, 0.25]), Ready("1.2.3")

    lines = [encode(order), encode(answer), encode(ready)]

    assert all(line.endswith("\n") and line.count("\n") == 1 for line in lines)
    assert [decode_order(lines[0]), decode_answer(lines[1]), decode_ready(lines[2])] == [order, answer, ready]


def test_an_order_at_its_limits_is_taken() -> None:
    order = Order(CONCURRENCY_MAX, 60.0, WIDTH_MAX, GOALS_MAX)

    assert decode_order(encode(order)) == order


@pytest.mark.parametrize(
    "fields",
    [
        {"concurrency": 0}, {"concurrency": CONCURRENCY_MAX + 1}, {"concurrency": True}, {"concurrency": "8"},
        {"seconds": 0}, {"seconds": -1.0}, {"seconds": 61.0}, {"seconds": float("nan")}, {"seconds": "1"},
        {"width": 0}, {"width": WIDTH_MAX + 1}, {"width": 1.5}, {"goals_max": 0}, {"goals_max": GOALS_MAX + 1},
    ],
)  # fmt: skip
def test_an_order_beyond_its_limits_is_refused(fields: dict[str, Any]) -> None:
    line = json.dumps({"concurrency": 8, "seconds": 1.0, "width": 32, "goals_max": 100, **fields})

    with pytest.raises(ProtocolError, match="is to be"):
        decode_order(line)


@pytest.mark.parametrize(
    "fields",
    [
        {"latencies_s": []}, {"latencies_s": [0.1, float("inf")]}, {"latencies_s": ["0.1"]}, {"latencies_s": [-0.1]},
        {"wall_s": 0.0}, {"wall_s": None}, {"latencies_s": {"0": 0.1}},
    ],
)  # fmt: skip
def test_a_round_without_goals_or_with_impossible_times_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        decode_answer(json.dumps({"wall_s": 1.0, "latencies_s": [0.1], **fields}))


@pytest.mark.parametrize(
    "line", ["", "Traceback", "[]", "1", '{"wall_s": 1}', '{"wall_s": 1, "latencies_s": [1], "x": 1}']
)
def test_a_line_that_is_no_answer_is_refused(line: str) -> None:
    with pytest.raises(ProtocolError):
        decode_answer(line)


def test_a_line_without_end_is_refused() -> None:
    with pytest.raises(ProtocolError, match="too long"):
        decode_answer("[" * (LINE_BYTES_MAX + 1))


def test_a_contender_that_failed_says_why_whatever_it_was_asked() -> None:
    line = failed("no room\n" + "x" * 10_000)

    for decode in (decode_answer, decode_ready, decode_order):
        with pytest.raises(ProtocolError, match="no room"):
            decode(line)
    assert line.count("\n") == 1 and len(line) < 3_000


async def test_a_round_counts_no_more_goals_than_were_ordered() -> None:
    widths: list[int] = []

    async def goal(width: int) -> int:
        widths.append(width)
        await asyncio.sleep(0)
        return width

    answer = await carry_out(goal, Order(4, 10.0, 7, goals_max=10))

    assert len(answer.latencies_s) == 10
    assert widths == [7] * 10


async def test_a_contender_that_does_not_do_the_job_is_found_out() -> None:
    async def lazy(width: int) -> int:
        return width - 1

    with pytest.raises(RuntimeError, match="31 answers"):
        await checked(lazy, 32)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_environment_is_pinned_and_sorted_and_has_its_file(name: str) -> None:
    pins = environments.requirements(name)

    names = [pin.partition("==")[0].lower().replace("_", "-") for pin in pins]
    assert names == sorted(set(names))
    assert (CONTENDERS / f"{name}.py").exists()


def test_no_list_is_left_over() -> None:
    assert sorted(path.stem for path in environments.LISTS.iterdir()) == ENVIRONMENTS


@pytest.mark.parametrize(
    "line",
    ["dask", "dask>=1", "dask==1.*", "-r more.txt", "a==1 ; python_version>'3'", "a @ file:x", "# a"],
)
def test_a_list_with_anything_but_pins_is_refused(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "LISTS", tmp_path)
    (tmp_path / "some.txt").write_text(f"b==1.0\n{line}\n")

    with pytest.raises(ValueError, match="not a pinned name"):
        environments.requirements("some")


def test_an_environment_stands_in_the_cache_and_changes_with_its_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(environments, "LISTS", tmp_path)
    (tmp_path / "some.txt").write_text("b==1.0\n")
    before = environments.folder("some")

    (tmp_path / "some.txt").write_text("b==1.1\n")

    assert before.parent == tmp_path / "cache" / "nexus-benchmarks"
    assert environments.folder("some") != before
    assert not environments.is_ready("some")


def test_an_environment_that_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = environments.folder("dask")
    place.mkdir(parents=True)
    (place / "complete").touch()
    said: list[str] = []

    environments.ensure("dask", said.append)

    assert said == []
    assert [path.name for path in place.iterdir()] == ["complete"]


async def test_who_has_no_environment_does_not_take_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    with pytest.raises(NotRunError, match="could not be made"):
        async with started(contender.DASK, tmp_path / "dask"):
            pass


async def test_a_program_that_is_missing_is_named_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert missing(contender.DRAMATIQ) == "apt install redis-server"
    assert missing(contender.DASK) == ""
    with pytest.raises(NotRunError, match="apt install redis-server"):
        async with started(contender.DRAMATIQ, tmp_path / "dramatiq"):
            pass


def test_what_runs_in_another_environment_imports_nothing_of_this_one() -> None:
    allowed = {"benchmarks.job", "benchmarks.sampling", "benchmarks.contenders.protocol", "benchmarks.contenders.serve"}
    for path in [*CONTENDERS.glob("*.py"), CONTENDERS.parent / "job.py", CONTENDERS.parent / "sampling.py"]:
        lines = path.read_text().splitlines()

        imported = [line.split()[1] for line in lines if line.startswith(("import ", "from "))]

        foreign = [name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names]
        ours = [name for name in foreign if name.startswith("benchmarks")]
        theirs = {name.partition(".")[0] for name in foreign if name not in ours}
        assert set(ours) <= allowed
        installed = {pin.partition("==")[0] for pin in _pins(path.stem)}
        assert theirs <= installed, f"{path.name} imports {theirs - installed}"


def _pins(name: str) -> list[str]:
    return environments.requirements(name) if name in ENVIRONMENTS else []
