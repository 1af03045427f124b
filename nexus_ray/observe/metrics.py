"""Counting and measuring by the names of the catalogue.

Law: a name or a label set that is not in the catalogue is a bug and raises `ValueError`; series are capped.
With PROMETHEUS_MULTIPROC_DIR in the environment, all processes of a node count into one folder and any of them can
show the whole. Counts are gathered in memory, where one costs 0.3 µs, and written there a few times a second: into a
shared file each would cost 8.
"""

import contextlib
import os
import threading
from bisect import bisect_left
from pathlib import Path
from typing import Any

import psutil
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from nexus_ray.observe.catalogue import METRICS
from nexus_ray.observe.flusher import every_so_often, flush

_SERIES_MAX = 500  # For each metric and process. A label that grows beyond this is an id in disguise.
_OVERFLOW = "other"

_families: dict[str, Any] = {}
_series: dict[str, int] = {}
# Name and labels to what gathers for them. Only ever added to, under the lock.
_gathered: dict[tuple[Any, ...], "Count | Spread"] = {}
_gauges: dict[tuple[Any, ...], Any] = {}
_lock = threading.Lock()


class Count:
    """A counter's series: grows in memory, and is written from time to time. One thread adds, another writes."""

    __slots__ = ("_child", "_value", "_written")

    def __init__(self, child: Any) -> None:
        self._child = child
        self._value = 0.0
        self._written = 0.0

    def add(self, value: float = 1.0) -> None:
        """Add to it."""
        self._value += value

    def write(self) -> None:
        """Write what has come since the last time."""
        value = self._value
        if value != self._written:
            self._child.inc(value - self._written)
            self._written = value


class Spread:
    """A histogram's series: as `Count`."""

    __slots__ = ("_bounds", "_child", "_counts", "_total", "_written")

    def __init__(self, child: Any) -> None:
        self._child = child
        self._bounds: list[float] = list(child._upper_bounds)
        self._counts = [0] * len(self._bounds)
        self._total = 0.0
        self._written: tuple[list[int], float] = (list(self._counts), 0.0)

    def add(self, value: float) -> None:
        """Add a measurement."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def write(self) -> None:
        """Write what has come since the last time."""
        counts, total = list(self._counts), self._total
        before, total_before = self._written
        if counts == before:
            return
        # The library takes one measurement at a time; its fields take many.
        for bucket, count, written in zip(self._child._buckets, counts, before, strict=True):
            if count != written:
                bucket.inc(count - written)
        self._child._sum.inc(total - total_before)
        self._written = (counts, total)


def count(name: str, value: float = 1, **labels: Any) -> None:
    """Add to a counter."""
    series(name, **labels).add(value)


def record(name: str, value: float, **labels: Any) -> None:
    """Add a measurement to a histogram."""
    series(name, **labels).add(value)


def gauge(name: str, value: float, **labels: Any) -> None:
    """Set a gauge."""
    key = (name, *labels.items())
    child = _gauges.get(key)
    if child is None:
        with _lock:
            child = _gauges[key] = _new_child(name, labels)
    child.set(value)


def series(name: str, **labels: Any) -> Count | Spread:
    """Return what gathers for a counter or a histogram under these labels; worth keeping where it is used often."""
    key = (name, *labels.items())
    found = _gathered.get(key)
    if found is None:
        with _lock:
            child = _new_child(name, labels)
            found = _gathered[key] = Count(child) if METRICS[name].kind == "counter" else Spread(child)
            if len(_gathered) == 1:
                every_so_often(_write)
    return found


def _write() -> None:
    with _lock:
        for one in _gathered.values():
            one.write()


def exposition() -> bytes:
    """Return the metrics of this node as Prometheus text: of all its processes, or of this one."""
    flush()
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not folder:
        return bytes(generate_latest(REGISTRY))
    forget_dead(Path(folder))
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
    return bytes(generate_latest(registry))


def forget_dead(folder: Path) -> None:
    """Drop the gauges of processes that are gone; their counts stay."""
    for path in folder.glob("gauge_live*_*.db"):
        process = path.stem.rpartition("_")[2]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            with contextlib.suppress(FileNotFoundError):
                mark_process_dead(int(process), str(folder))  # type: ignore[no-untyped-call]


def _new_child(name: str, labels: dict[str, Any]) -> Any:
    metric = METRICS.get(name)
    if metric is None:
        raise ValueError(f"there is no metric {name!r} in the catalogue")
    if set(labels) != set(metric.labels):
        raise ValueError(f"{name} has the labels {metric.labels}, not {tuple(labels)}")
    family = _families.get(name)
    if family is None:
        family = _families[name] = _family(name)
    if not metric.labels:
        return family
    if _series.get(name, 0) >= _SERIES_MAX:
        labels = dict.fromkeys(metric.labels, _OVERFLOW)
    _series[name] = _series.get(name, 0) + 1
    return family.labels(**{label: str(value) for label, value in labels.items()})


def _family(name: str) -> Any:
    metric = METRICS[name]
    if metric.kind == "counter":
        return Counter(metric.name, metric.help, metric.labels)
    if metric.kind == "gauge":
        return Gauge(metric.name, metric.help, metric.labels, multiprocess_mode="livesum")
    return Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets)
