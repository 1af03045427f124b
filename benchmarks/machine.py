"""The machine that the figures were taken on: what a reader must know to compare them with another's."""

import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.sampling import summarise

_SYNCS = 50
_PAGE_BYTES = 4096


def facts(folder: Path) -> dict[str, Any]:
    """Return what stays as it is during a run; no name of the machine."""
    return {
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": _processor(),
        "memory_mib": psutil.virtual_memory().total // (1024 * 1024),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": sys.version.split()[0],
        "ray": version("ray"),
        "nexus": version("nexus-ray"),
        "fsync_ms": _fsync_ms(folder / "sync-probe"),
        "settings_from_environment": sorted(name for name in os.environ if name.startswith("NEXUS_")),
    }


def load_average() -> list[float]:
    """Return the load of the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _fsync_ms(path: Path) -> float:
    """Return the median time that a page takes to the disk under the ledger."""
    taken = []
    with open(path, "wb", buffering=0) as file:
        for _ in range(_SYNCS):
            file.write(b"x" * _PAGE_BYTES)
            started = time.perf_counter()
            os.fsync(file.fileno())
            taken.append((time.perf_counter() - started) * 1e3)
    path.unlink()
    return round(summarise(taken).median, 3)
