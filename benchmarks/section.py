"""One section in a process of its own: `python -m benchmarks.section NAME FOLDER OUT [--quick]`.

So each begins with fresh heaps and a fresh Ray, and one that fails does not take the others with it.
"""

import importlib
import json
import signal
import sys
from pathlib import Path
from types import FrameType

MODULES = {
    "against-ray": "benchmarks.against_ray",
    "agents": "benchmarks.agents",
    "front-door": "benchmarks.front_door",
    "parts": "benchmarks.parts",
}


def main(arguments: list[str]) -> None:
    name, folder, out = arguments[:3]
    signal.signal(signal.SIGTERM, _leave)  # As an exception, so that the fleet is stopped on the way out.
    rows = importlib.import_module(MODULES[name]).run(Path(folder), "--quick" in arguments)
    Path(out).write_text(json.dumps([row.to_json() for row in rows]))


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main(sys.argv[1:])
