"""Ray on this machine, and a fleet's control plane on it: checked before, secured, stopped again.

Law: everything that can be refused is refused before anything is started; all of Ray listens on loopback only.
"""

import contextlib
import errno
import inspect
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

from nexus_ray.config import Settings
from nexus_ray.core.errors import FailedPreconditionError, UnavailableError
from nexus_ray.core.files import replace_file
from nexus_ray.runtime.names import NAMESPACE
from nexus_ray.runtime.state import socket_folder
from nexus_ray.security.client_certificates import check_authorities

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HOSTS_READY_S = 60.0
_STOP_S = 10.0


def check_listen(settings: Settings) -> None:
    """Refuse to listen beyond this machine without TLS, and on ports that are taken.

    Raises:
        FailedPreconditionError: With what to do about it.
    """
    runtime = settings.runtime
    has_tls = runtime.tls_cert is not None and runtime.tls_key is not None
    if runtime.http_host not in _LOOPBACK and not has_tls:
        raise FailedPreconditionError(
            f"refusing to listen on {runtime.http_host} without TLS: tokens would cross the network in clear. "
            "Give --tls-cert and --tls-key, or stay on 127.0.0.1"
        )
    for path in (runtime.tls_cert, runtime.tls_key):
        if path is not None and not Path(path).is_file():
            raise FailedPreconditionError(f"there is no TLS file {path}")
    check_client_certificates(settings)
    _check_port("http", runtime.http_host, runtime.http_port, "--port")
    if runtime.dashboard:
        _check_port("dashboard", "127.0.0.1", runtime.dashboard_port, "NEXUS_RUNTIME__DASHBOARD_PORT")


def check_client_certificates(settings: Settings) -> None:
    """Refuse client certificates as a log-in where the gateway would not see them, or cannot check them.

    Raises:
        FailedPreconditionError: With what to do about it.
    """
    ca_file, runtime = settings.security.certificates.ca_file, settings.runtime
    if ca_file is None:
        return
    if runtime.tls_cert is None or runtime.front != "replica":
        raise FailedPreconditionError(
            "client certificates are proved to who ends TLS: they need --tls-cert and --tls-key, and "
            'runtime.front = "replica"'
        )
    check_authorities(ca_file)


def _check_port(name: str, host: str, port: int, flag: str) -> None:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            told = f"the {name} port {host}:{port} is taken; choose another with {flag}"
        else:
            told = f"cannot listen on {host}:{port}: {error.strerror}"
        raise FailedPreconditionError(told) from None


# Ray's metrics are open to whoever reaches their ports. One switch closes those of the nodes; the autoscaler's and the
# dashboard's have none, but both do without where their port cannot be had, and this one cannot.
_NO_RAY_METRICS = {
    "RAY_enable_metrics_collection": "0", "AUTOSCALER_METRIC_PORT": "-1", "DASHBOARD_METRIC_PORT": "-1",
}  # fmt: skip
_RAY_SESSIONS_KEPT = 2  # Ray's logs of the last runs: what a crash left there is still to be read.
# Such as ray/session_2026-01-31_23-59-59_123456_4194304/sockets/dash_MetricsHead.
_RAY_SOCKET_CHARACTERS = 80


def ray_environment(settings: Settings) -> dict[str, str]:
    """Return what Ray and its workers read from the environment: loopback only, tokens on, and where Nexus's state is.

    Ray's own commands (`ray start`, `ray job submit`, `serve deploy`) need the same; `nexus env` prints it for them.
    """
    folder = settings.state_dir.absolute()
    paths = [os.getcwd(), *(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path)]
    binaries = [str(Path(sys.executable).parent), *os.environ.get("PATH", "").split(os.pathsep)]
    closed = {} if settings.runtime.ray_metrics else _NO_RAY_METRICS
    return {
        **closed,
        # Ray lets everybody on the machine write to its folder; this one stands in a folder that lets nobody in.
        "RAY_TMPDIR": str(socket_folder(settings.state_dir, _RAY_SOCKET_CHARACTERS)),
        # Ray binds every port to all interfaces unless told that this is a desktop machine.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        # A token is asked for by Ray's own methods only. Who shows no certificate gets no further than the handshake:
        # not to what gRPC brings along, nor to a method that ends the raylet before it looks for a token.
        "RAY_USE_TLS": "1",
        **ray_tls(settings),
        "GRPC_VERBOSITY": "NONE",  # It would tell whoever has the fleet in a terminal of every stranger that knocks.
        "RAY_AUTH_TOKEN_PATH": str(folder / "ray_token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        # What goes to stderr is for the person who typed `nexus up`; Serve's lines are in Ray's session folder.
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "nexus_ray.api.ingress:edge",
        # A proxy that was killed is missed after three of these, and there again a second later; by default after 30 s.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "5",
        # The head would keep a record of every process that ever died.
        "RAY_maximum_gcs_destroyed_actor_cached_count": "1000",
        "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"),
        "NEXUS_STATE_DIR": str(folder),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        # `ray` and `nexus` in a submitted job are the ones of this environment.
        "PATH": os.pathsep.join(dict.fromkeys(binaries)),
    }


def ray_tls(settings: Settings) -> dict[str, str]:
    """Return the files of the certificate that Ray's processes show each other."""
    own = settings.state_dir.absolute() / "ray_tls.pem"
    mounted = settings.runtime.ray_tls_folder
    return {
        "RAY_TLS_SERVER_CERT": str(mounted / "tls.crt" if mounted else own),
        "RAY_TLS_SERVER_KEY": str(mounted / "tls.key" if mounted else own),
        "RAY_TLS_CA_CERT": str(mounted / "ca.crt" if mounted else own),
    }


def set_environment(settings: Settings) -> None:
    """Set `ray_environment` for this process and those it starts; must come before ray is imported."""
    os.environ.update(ray_environment(settings))
    os.environ.pop("RAY_AUTH_TOKEN", None)
    os.environ.pop("RAY_ADDRESS", None)
    for leftover in (settings.state_dir / "metrics").glob("*.db"):
        leftover.unlink()
    folder = Path(os.environ["RAY_TMPDIR"], "ray")
    folder.mkdir(mode=0o700, exist_ok=True)  # Ray makes it only where it is to hold a node.
    for session in sorted(folder.glob("session_2*"), key=lambda path: path.name)[:-_RAY_SESSIONS_KEPT]:
        shutil.rmtree(session, ignore_errors=True)


def start_ray(settings: Settings) -> None:
    """Start Ray on this machine, on loopback only, with token authentication.

    Raises:
        UnavailableError: It did not start.
    """
    import ray

    _free_agent_port()
    runtime = settings.runtime
    try:
        ray.init(
            "local",
            namespace=NAMESPACE,
            num_cpus=runtime.ray_cpus,
            object_store_memory=runtime.object_store_bytes,
            include_dashboard=runtime.dashboard,
            dashboard_host="127.0.0.1",
            dashboard_port=runtime.dashboard_port,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except Exception as error:
        raise UnavailableError(f"Ray did not start: {error}") from error
    # As `ray start` leaves it in Ray's folder. Without, a job's driver is told of any Ray that runs on this machine.
    replace_file(
        Path(os.environ["RAY_TMPDIR"], "ray", "ray_current_cluster"), ray.get_runtime_context().gcs_address.encode()
    )


def _free_agent_port() -> None:
    """Have the node's agent take any free port: `ray.init` has no word for it, and by default all take the same one.

    The second fleet's agent would do without its port, and `ray job submit` find "no available agent".
    """
    from ray._private.parameter import RayParams

    made: Any = RayParams.__init__
    names = [name for name, given in inspect.signature(made).parameters.items() if given.default is not given.empty]
    made.__defaults__ = tuple(
        0 if name == "dashboard_agent_listen_port" else value
        for name, value in zip(names, made.__defaults__, strict=True)
    )


def start_control_plane(app_path: str, settings: Settings) -> None:
    """Make the ledger, the directory and the hosts; return when the hosts are ready.

    Raises:
        NexusError: They did not come up.
    """
    import ray

    from nexus_ray.runtime.fleet import ensure_control_plane
    from nexus_ray.runtime.ray_errors import translate

    directory = ensure_control_plane(app_path, settings)
    try:
        ray.get(directory.watch.remote(0, 1.0), timeout=_HOSTS_READY_S)
    except Exception as error:
        raise translate(error, "the directory") from error


def stop_ray() -> None:
    """Stop the hosts, close the ledger, stop Ray. Goals under way go on at the next start."""
    import ray
    import ray.util

    from nexus_ray.runtime.names import DIRECTORY, HOST_PREFIX, LEDGER

    if not ray.is_initialized():
        return
    with contextlib.suppress(Exception):
        ray.get(ray.get_actor(DIRECTORY, namespace=NAMESPACE).stop.remote(), timeout=_STOP_S)
        names = [entry["name"] for entry in ray.util.list_named_actors(all_namespaces=True)]
        hosts = [ray.get_actor(name, namespace=NAMESPACE) for name in names if name.startswith(HOST_PREFIX)]
        ray.get([host.stop.remote() for host in hosts], timeout=_STOP_S)
    with contextlib.suppress(Exception):
        ray.get(ray.get_actor(LEDGER, namespace=NAMESPACE).stop.remote(), timeout=_STOP_S)
    ray.shutdown()
