"""The page and the table, on what a hostile package would put into them."""

import base64
import hashlib
import io
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import supply_chain
import supply_chain_waterfall
from supply_chain_page import TABLE_ROWS_MAX, headline, render_page, render_table, size
from supply_chain_sources import Unit, read_unit
from supply_chain_waterfall import at_once_max, duration, lanes_of, render_waterfall

HOSTILE = "<script>alert(1)</script>"
RECORD = {"id": "goal-1", "accepted_at": "2026-01-02T03:04:05+00:00", "finished_at": "2026-01-02T03:04:17+00:00"}


class Page(HTMLParser):
    """Keeps what a browser would act on."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        (self.scripts if self._open[-1:] == ["script"] else self.texts).append(data)


def span(name: str, started_at: float, ended_at: float, **attributes: str) -> dict[str, Any]:
    return {
        "trace_id": "t", "span_id": f"{name}-{started_at}", "parent_id": "", "name": name, "status": "ok",
        "started_at": started_at, "ended_at": ended_at,
        "attributes": {key.replace("_", "."): value for key, value in attributes.items()},
    }  # fmt: skip


def report(folder: Path, *names: str, source: str = "eval(x)\n") -> dict[str, Any]:
    readings = []
    for name in names or ("pkg",):
        path = folder / name.replace("/", "_")
        path.mkdir()
        (path / "a.py").write_text(source)
        readings.append(read_unit(Unit(name=name, path=str(path))))
    draft = supply_chain.Draft(subject="here", left_out=0, readings=readings, verdicts={})
    return supply_chain.rank(draft).model_dump(mode="json")


def test_every_finding_stands_in_the_page_with_file_line_and_source(tmp_path: Path) -> None:
    result = report(tmp_path, "one", "two", source="import os\neval(x)\nos.system(y)\n")

    page = Page(render_page(result, [], RECORD))

    text = "\n".join(page.texts)
    for place, code in (("a.py:2", "eval(x)"), ("a.py:3", "os.system(y)")):
        assert text.count(place) == 2 and text.count(code) == 2
    assert "one" in page.texts and "two" in page.texts
    assert "12.0 s" in page.texts


def test_names_licences_and_sources_of_strangers_are_text_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "<script>alert(1)<"
    folder.mkdir()
    (folder / "script>.py").write_text(f"eval('{HOSTILE}\"><img src=x onerror=alert(1)>', x)\n")
    reading = read_unit(Unit(name=HOSTILE, path=str(tmp_path)))
    reading.version = reading.licence = '"><b onload=x>'
    reading.unreadable, reading.skipped, reading.problem = [HOSTILE], {HOSTILE: 1}, ""
    lost = supply_chain.Reading(name="lost", problem=HOSTILE)
    draft = supply_chain.Draft(subject=HOSTILE, left_out=0, readings=[reading, lost], verdicts={HOSTILE: "concern"})
    spans = [span(HOSTILE, 0, 1), span("x", 0, 1, agent_type=HOSTILE, agent_id=f"a/{HOSTILE}", nexus_host=HOSTILE)]

    text = render_page(supply_chain.rank(draft).model_dump(mode="json"), spans, {**RECORD, "id": HOSTILE})

    page = Page(text)
    assert [tag for tag, _ in page.tags if tag in ("script", "img", "iframe", "object", "link", "base")] == ["script"]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert HOSTILE not in text
    assert f"{HOSTILE}.py:1" in page.texts
    assert headline(supply_chain.rank(draft).model_dump(mode="json")).endswith(HOSTILE)


def test_the_page_needs_nothing_but_itself_and_runs_no_script_but_its_own(tmp_path: Path) -> None:
    text = render_page(report(tmp_path), [span("a", 0, 1)], RECORD)

    page = Page(text)
    assert not [value for _, found in page.tags for name, value in found.items() if name in ("src", "href", "action")]
    assert not re.search(r"url\(|@import|https?://", text)
    (policy,) = [found["content"] for _, found in page.tags if found.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256("".join(page.scripts).encode()).digest()).decode()
    assert policy is not None and f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_the_order_of_keys_in_the_result_changes_nothing(tmp_path: Path) -> None:
    from rich.console import Console

    result = report(tmp_path, "one", "two", source="import os, socket\neval(x)\nos.execv(x, y)\nsocket.socket()\n")
    turned = json.loads(json.dumps(result, sort_keys=True))
    consoles = [Console(width=100, record=True, file=io.StringIO()) for _ in range(2)]

    for console, one in zip(consoles, (result, turned), strict=True):
        console.print(render_table(one))

    assert list(turned["rows"][0]["counts"]) != list(result["rows"][0]["counts"])
    assert render_page(turned, [], RECORD) == render_page(result, [], RECORD)
    assert consoles[0].export_text() == consoles[1].export_text()


def test_a_report_of_nothing_and_without_a_trace_is_a_page_too() -> None:
    draft = supply_chain.Draft(subject="", left_out=0, readings=[], verdicts={})

    page = Page(render_page(supply_chain.rank(draft).model_dump(mode="json"), [], {}))

    assert "0 reviewed; none needs a closer look" in page.texts
    assert "The fleet kept no trace of this goal." in page.texts


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_shows_the_first_and_counts_the_rest(tmp_path: Path, width: int) -> None:
    from rich.console import Console

    result = report(tmp_path, *(f"package-{number:02}" for number in range(TABLE_ROWS_MAX + 5)), "[red]markup[/red]")
    console = Console(width=width, record=True, file=io.StringIO())

    console.print(render_table(result))

    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "[red]" in text and "package-00" in text
    assert "6 more with lighter findings" in text
    assert all(word in text for word in ("high", "med", "low", "native", "licence", "flagged"))


def test_spans_of_one_lane_do_not_overlap() -> None:
    spans = [span("a", start / 7, start / 7 + (1 + start % 5) / 4) for start in range(40)]

    lanes = lanes_of(spans)

    for lane in set(lanes):
        mine = [one for one, number in zip(spans, lanes, strict=True) if number == lane]
        assert all(before["ended_at"] <= after["started_at"] for before, after in itertools.pairwise(mine))
    assert max(lanes) + 1 == at_once_max(spans)


def test_hundreds_of_spans_take_a_bounded_height_and_the_longest_are_listed() -> None:
    spans = [span("task", 0, 1 + n / 1000, agent_type="reader", agent_id=f"reader/p{n}") for n in range(700)]

    text = render_waterfall(spans)

    assert max(lanes_of(spans)) + 1 == supply_chain_waterfall.LANES_MAX
    heights = [float(height) for height in re.findall(r"style=\"height:(\d+)px", text)]
    assert max(heights) <= supply_chain_waterfall.BAND_PIXELS_MAX
    assert text.count('class="line"') == supply_chain_waterfall.LISTED_MAX
    assert "700 spans, 700 at once" in text and "p699" in text and "680 shorter" in text


def test_what_is_a_sliver_of_the_whole_is_enlarged_and_what_failed_is_marked() -> None:
    failed = {**span("b", 50.0, 50.1), "status": "error"}

    text = render_waterfall([span("a", 0, 100), failed, span("b", 50.05, 50.2)])

    assert "enlarged" in text and "1 failed" in text
    assert text.count("failed") >= 2


@pytest.mark.parametrize(
    ("shown", "expected"),
    [(size(0), "0 B"), (size(1500), "1.5 KB"), (size(71_000_000), "71 MB"), (size(2_500_000_000), "2.5 GB"),
     (duration(0.0042), "4.2 ms"), (duration(0.5), "500 ms"), (duration(18.84), "18.8 s"),
     (duration(150), "2 min 30 s")],
)  # fmt: skip
def test_sizes_and_durations_have_the_unit_that_fits(shown: str, expected: str) -> None:
    assert shown == expected
