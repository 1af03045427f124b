"""One section in a process of its own: `python -m benchmarks.section NAME FOLDER OUT [--quick]`.

So each begins with fresh heaps and a fresh Ray, and one that fails does not take the others with it.
"""

import importlib
import json
import signal
import sys
from pathlib import Path
from types import FrameType

from benchmarks.sampling import Note, Row

MODULES = {
    "contenders": "benchmarks.side_by_side",
    "against-ray": "benchmarks.against_ray",
    "knee": "benchmarks.knee",
    "widths": "benchmarks.widths",
    "agents": "benchmarks.agents",
    "recovery": "benchmarks.recovery",
    "carrier": "benchmarks.carrier",
    "front-door": "benchmarks.front_door",
    "parts": "benchmarks.parts",
    "identity": "benchmarks.identity",
}
CONTAINED = ("against-ray",)  # In `contenders`, which is slower: a whole run has no need of it.


def main(arguments: list[str]) -> None:
    name, folder, out = arguments[:3]
    signal.signal(signal.SIGTERM, _leave)  # As an exception, so that the fleet is stopped on the way out.
    found = importlib.import_module(MODULES[name]).run(Path(folder), "--quick" in arguments)
    rows = [one.to_json() for one in found if isinstance(one, Row)]
    notes = [one.text for one in found if isinstance(one, Note)]
    Path(out).write_text(json.dumps({"rows": rows, "notes": notes}))


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main(sys.argv[1:])
