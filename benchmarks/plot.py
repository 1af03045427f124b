"""The curves of a run as one picture: the knee, narrow and wide goals, few and many agents. SVG beside the JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.sampling import Row

Curves = dict[str, list[tuple[float, float]]]
Panel = tuple[str, str, str, Curves]
"""A title, what is across, what is up, and the curves."""

_SVG = {"svg.fonttype": "none", "svg.hashsalt": "nexus", "font.size": 8.0}


def curve(
    rows: Sequence[Row], section: str, series: str, unit: str, figure: str = "median"
) -> list[tuple[float, float]]:
    """Return the points of one curve, from few to many."""
    found = [row for row in rows if (row.section, row.series, row.unit) == (section, series, unit) and row.at > 0]
    return sorted((row.at, getattr(row.summary, figure)) for row in found)


def draw(path: Path, rows: Sequence[Row]) -> Path | None:
    """Draw what there are curves of; None where there are none."""
    panels = [panel for panel in (_knee(rows), _widths(rows), _agents(rows)) if panel is not None]
    if not panels:
        return None
    # Slow to load, and only those who measure have it.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(_SVG):
        figure, axes = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.2), squeeze=False)
        for axis, panel in zip(axes[0], panels, strict=True):
            _plot(axis, *panel)
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
    return path


def _knee(rows: Sequence[Row]) -> Panel | None:
    rates = dict(curve(rows, "knee", "Nexus", "goals/s"))
    if not rates:
        return None
    curves: Curves = {}
    for figure in ("p50", "p99"):
        at = dict(curve(rows, "knee", "Nexus", "ms", figure))
        # In the order of goals under way, so that a curve which bends back is seen to do so.
        curves[figure] = [(rates[n], at[n]) for n in sorted(rates) if n in at]
    return "1 to 256 goals under way", "goals a second", "ms a goal", curves


def _widths(rows: Sequence[Row]) -> Panel | None:
    names = dict.fromkeys(row.series for row in rows if row.section == "widths" and row.unit == "tasks/s")
    curves = {name: curve(rows, "widths", name, "tasks/s") for name in names}
    return ("eight goals under way", "agents in a goal", "tasks a second", curves) if curves else None


def _agents(rows: Sequence[Row]) -> Panel | None:
    points = curve(rows, "agents", "Nexus", "goals/s")
    return ("32 asked in a goal", "agents active", "goals a second", {"Nexus": points}) if points else None


def _plot(axis: Any, title: str, across: str, up: str, curves: Curves) -> None:
    for name, points in curves.items():
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    axis.set_title(title)
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    if across != "goals a second":
        axis.set_xscale("log")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    if len(curves) > 1:
        axis.legend(loc="upper left", fontsize="small")
