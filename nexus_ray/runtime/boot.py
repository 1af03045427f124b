"""What every process of a fleet does first: logs, traces and metrics on.

Law: a process learns all it needs from its settings; nothing is passed in by pickle but names and plain values.
"""

import gc
import socket
from pathlib import Path

from nexus_ray.config import Settings
from nexus_ray.observe.operation import configure

FOLDERS = ("ledger", "traces", "logs", "metrics")


def configure_process(settings: Settings, component: str) -> None:
    """Turn on logs, traces and metrics for this process under the name `component`."""
    configure(settings.observe, component, node_name(), Path(settings.state_dir))


def settle_down() -> None:
    """Have the garbage collector leave alone what was loaded, and look less often; call when all is imported.

    A host makes some hundred objects a task, and none in cycles. With the defaults the collector walked through all
    modules several times a second: a quarter of a host's CPU, in pauses of tens of milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def node_name() -> str:
    """Return the name of this machine, as metrics and logs show it."""
    return socket.gethostname()
