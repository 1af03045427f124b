"""`nexus up`: a whole fleet on this machine, secured, from one command.

Law: what can be refused is refused before anything is started; what was started is stopped again.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from nexus_ray.app import load_app
from nexus_ray.config import Settings
from nexus_ray.runtime.front_tls import client_authority
from nexus_ray.runtime.local import check_listen, set_environment, start_control_plane, start_ray, stop_ray
from nexus_ray.runtime.state import StateLock, prepare_state, write_fleet_file, write_operator_token
from nexus_ray.runtime.which_ledger import check_ledger, let_go_of_ledger


def serve_forever(
    app_path: str,
    settings: Settings,
    on_progress: Callable[[str], None],
    on_ready: Callable[[dict[str, Any]], None],
) -> None:
    """Run a fleet until SIGINT or SIGTERM, then stop it cleanly.

    Raises:
        AlreadyExistsError: A fleet holds the state folder.
        FailedPreconditionError: It may not or cannot listen.
        InvalidArgumentError: The app does not import.
        UnavailableError: Ray or the hosts did not come up.
    """
    load_app(app_path)
    check_listen(settings)
    os.umask(0o077)
    lock = StateLock(settings.state_dir)
    stop = threading.Event()
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        prepare_state(settings)
        write_operator_token(settings)
        check_ledger(settings)
        set_environment(settings)
        on_progress("starting Ray")
        start_ray(settings)
        try:
            # Imported here: ray reads its environment when it is imported.
            from nexus_ray.api.ingress import close_front_door, open_front_door

            on_progress(f"starting {settings.runtime.hosts_per_node} agent hosts")
            start_control_plane(app_path, settings)
            on_progress("opening the front door")
            url = open_front_door(app_path, settings)
            fields = _fleet_fields(app_path, settings, url)
            write_fleet_file(settings.state_dir, fields)
            on_ready(fields)
            stop.wait()
            on_progress("stopping")
            with contextlib.suppress(FileNotFoundError):
                (settings.state_dir / "fleet.json").unlink()
            close_front_door()
        finally:
            with contextlib.suppress(FileNotFoundError):
                (settings.state_dir / "fleet.json").unlink()
            stop_ray()
            let_go_of_ledger(settings)
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
        lock.release()


def _fleet_fields(app_path: str, settings: Settings, url: str) -> dict[str, Any]:
    runtime = settings.runtime
    return {
        "pid": os.getpid(),
        "url": url,
        "app": app_path,
        "started_at": time.time(),
        "dashboard_url": f"http://127.0.0.1:{runtime.dashboard_port}" if runtime.dashboard else None,
        "ca": str(authority) if (authority := client_authority(settings)) else None,
    }
