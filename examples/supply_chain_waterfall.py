"""The coordination as a waterfall: a band of bars for each kind of agent, on one axis of time.

Law: hundreds of spans stay legible. Spans of a kind share a band and are packed into as few lanes as their overlap
needs; each band opens to its longest spans, one a line.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from typing import Any

LANES_MAX = 48  # More would be thinner than a pixel; what overlaps beyond is drawn into the last lane.
BAND_PIXELS_MAX = 144
SHORT_SHARE = 0.05  # A band that takes less of the whole is drawn low, and enlarged when it is opened.
SHORT_PIXELS = 16
LISTED_MAX = 20
_HOST_COLOURS = 6

Span = dict[str, Any]


def render_waterfall(spans: Sequence[Span]) -> str:
    """Return the section of the page that shows who did what when; says so where there are no spans."""
    title = '<section aria-labelledby="work"><h2 id="work">How it was done</h2>'
    if not spans:
        return f'{title}<p class="card muted">The fleet kept no trace of this goal.</p></section>'
    began = min(span["started_at"] for span in spans)
    length_s = max(max(span["ended_at"] for span in spans) - began, 1e-6)
    groups: dict[str, list[Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: (span["started_at"], span["ended_at"], span["span_id"])):
        groups[_kind(span)].append(span)
    hosts = sorted({_host(span) for span in spans})
    colours = {host: f"host{position % _HOST_COLOURS}" for position, host in enumerate(hosts)}
    ticks = _ticks(length_s)
    axis = "".join(f'<span style="left:{at / length_s:.4%}">{_tick(at)}</span>' for at in ticks)
    bands = "".join(_band(kind, members, began, length_s, colours, ticks) for kind, members in groups.items())
    legend = "".join(f'<span><i class="{colours[host]}"></i>{escape(host or "gateway")}</span>' for host in hosts)
    return (
        f'{title}<p class="muted">{len(spans):,} spans over {duration(length_s)}, coloured by the host that ran them; '
        f"open a band for its longest spans.</p>"
        f'<div class="card work"><p class="legend">{legend}</p>'
        f'<div class="axis" aria-hidden="true"><span></span><div>{axis}</div></div>{bands}</div></section>'
    )


def duration(seconds: float) -> str:
    """Return a length of time in the unit that fits."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def lanes_of(spans: Sequence[Span]) -> list[int]:
    """Return a lane for each of the spans, which are in order of their start: those of one lane do not overlap."""
    free_at: list[float] = []
    lanes = []
    for span in spans:
        lane = next((number for number, at in enumerate(free_at) if at <= span["started_at"]), len(free_at))
        if lane == len(free_at) and lane < LANES_MAX:
            free_at.append(0.0)
        lane = min(lane, LANES_MAX - 1)
        free_at[lane] = max(free_at[lane], span["ended_at"])
        lanes.append(lane)
    return lanes


def at_once_max(spans: Sequence[Span]) -> int:
    """Return how many of the spans were under way at one time, at the most."""
    edges = [(span["started_at"], 1) for span in spans] + [(span["ended_at"], -1) for span in spans]
    most = running = 0
    for _, step in sorted(edges):  # At the same instant an end comes before a start.
        running += step
        most = max(most, running)
    return most


def _band(
    kind: str, spans: Sequence[Span], began: float, length_s: float, colours: dict[str, str], ticks: Sequence[float]
) -> str:
    first, last = spans[0]["started_at"], max(span["ended_at"] for span in spans)
    is_short = last - first < SHORT_SHARE * length_s
    failed = sum(span["status"] == "error" for span in spans)
    told = duration(_length(spans[0]))
    if len(spans) > 1:
        told = f"{len(spans):,} spans, {at_once_max(spans)} at once, {duration(sum(map(_length, spans)))} in all"
    told += f", {failed} failed" if failed else ""
    picture = _picture(spans, began, length_s, colours, SHORT_PIXELS if is_short else BAND_PIXELS_MAX, ticks)
    inside = ""
    if is_short and len(spans) > 1:
        # What is a sliver of the whole is shown on an axis of its own.
        began, length_s = first, max(last - first, 1e-6)
        inside = (
            f'<div class="line"><span class="who">its {duration(length_s)}, enlarged</span>'
            f"{_picture(spans, began, length_s, colours, BAND_PIXELS_MAX, ())}<span></span></div>"
        )
    longest = sorted(spans, key=lambda span: (-_length(span), span["started_at"]))[:LISTED_MAX]
    inside += "".join(_line(span, began, length_s, colours) for span in longest)
    hidden = len(spans) - len(longest)
    more = f'<p class="muted more">… and {hidden:,} shorter ones.</p>' if hidden > 0 else ""
    return (
        f'<details class="band"><summary><span class="who"><b>{escape(kind)}</b>'
        f'<span class="muted">{told}</span></span>{picture}</summary>{inside}{more}</details>'
    )


def _picture(
    spans: Sequence[Span], began: float, length_s: float, colours: dict[str, str], pixels_max: float,
    ticks: Sequence[float],
) -> str:  # fmt: skip
    lanes = lanes_of(spans)
    pitch = min(16.0, pixels_max / (max(lanes) + 1))
    height = (max(lanes) + 1) * pitch
    drawn = [f'<path d="M{1000 * at / length_s:.2f} 0V{height:.1f}"/>' for at in ticks]
    for span, lane in zip(spans, lanes, strict=True):
        # A sliver stays visible, and two of one lane apart.
        width = max(2.5, 1000 * _length(span) / length_s - 0.8)
        left = min(1000 * (span["started_at"] - began) / length_s, 1000 - width)
        drawn.append(
            f'<rect class="{colours[_host(span)]}{" failed" if span["status"] == "error" else ""}" x="{left:.2f}" '
            f'y="{lane * pitch + pitch * 0.08:.1f}" width="{width:.2f}" height="{pitch * 0.84:.1f}">'
            f"<title>{_label(span)}: {duration(_length(span))}</title></rect>"
        )
    return (
        f'<svg viewBox="0 0 1000 {height:.1f}" preserveAspectRatio="none" style="height:{height:.0f}px" '
        f'aria-hidden="true">{"".join(drawn)}</svg>'
    )


def _line(span: Span, began: float, length_s: float, colours: dict[str, str]) -> str:
    left, width = (span["started_at"] - began) / length_s, _length(span) / length_s
    return (
        f'<div class="line"><span class="who">{_label(span)}</span><div><i class="{colours[_host(span)]}" '
        f'style="left:{left:.3%};width:max(2px,{width:.3%})"></i></div><span>{duration(_length(span))}</span></div>'
    )


def _attribute(span: Span, name: str) -> str:
    return str((span.get("attributes") or {}).get(name) or "")


def _kind(span: Span) -> str:
    return _attribute(span, "agent.type") or str(span["name"])


def _label(span: Span) -> str:
    key = _attribute(span, "agent.id").partition("/")[2] or _kind(span)
    return escape(key)


def _host(span: Span) -> str:
    return _attribute(span, "nexus.host")


def _length(span: Span) -> float:
    return max(0.0, span["ended_at"] - span["started_at"])


def _ticks(length_s: float) -> list[float]:
    """Return four to ten round instants."""
    rough = length_s / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return [step * number for number in range(int(length_s / step) + 1)]


def _tick(at: float) -> str:
    if at == 0:
        return "0"
    return f"{at:.3g} s" if at >= 1 else f"{at * 1000:.3g} ms"
