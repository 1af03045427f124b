"""Counting and measuring by the names of the catalogue.

Law: a name or a label set that is not in the catalogue is a bug and raises `ValueError`; series are capped.
With PROMETHEUS_MULTIPROC_DIR in the environment, all processes of a node count into one folder and any of them can
show the whole.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

import psutil
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from nexus_ray.observe.catalogue import METRICS

_SERIES_MAX = 500  # For each metric and process. A label that grows beyond this is an id in disguise.
_OVERFLOW = "other"

_families: dict[str, Any] = {}
# Label values to the bound child: the look-up inside prometheus_client costs three times as much. Only ever added to.
_children: dict[tuple[str, frozenset[tuple[str, Any]]], Any] = {}
_series: dict[str, int] = {}


def count(name: str, value: float = 1, **labels: Any) -> None:
    """Add to a counter."""
    _child(name, labels).inc(value)


def record(name: str, value: float, **labels: Any) -> None:
    """Add a measurement to a histogram."""
    _child(name, labels).observe(value)


def gauge(name: str, value: float, **labels: Any) -> None:
    """Set a gauge."""
    _child(name, labels).set(value)


def exposition() -> bytes:
    """Return the metrics of this node as Prometheus text: of all its processes, or of this one."""
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


def _child(name: str, labels: dict[str, Any]) -> Any:
    key = (name, frozenset(labels.items()))
    child = _children.get(key)
    if child is None:
        child = _children[key] = _new_child(name, labels)
    return child


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
