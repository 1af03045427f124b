"""The front door on Ray Serve: a thin, stateless gateway in front of the fleet.

Law: no logic here; a replica builds the FastAPI app over a `FrontDoor` and nothing else. `serve deploy` takes
`nexus_ray.api.ingress:build` with the app's path as its argument.
"""

import contextlib
import logging
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from nexus_ray.api.app import build_app
from nexus_ray.api.listener import Listener
from nexus_ray.api.sockets import close_replica_port, has_proxy
from nexus_ray.app import load_app
from nexus_ray.config import Settings, load
from nexus_ray.core.clock import SystemClock
from nexus_ray.goals.spec import Specs
from nexus_ray.runtime.audit_link import open_auditor
from nexus_ray.runtime.boot import configure_process
from nexus_ray.runtime.fleet import RayFleet, ensure_control_plane
from nexus_ray.runtime.front import FrontDoor
from nexus_ray.runtime.local import check_client_certificates
from nexus_ray.runtime.log_ins import open_exchange, open_token_exchange
from nexus_ray.runtime.state import fleet_seal, prepare_state
from nexus_ray.runtime.which_ledger import open_ledger
from nexus_ray.security.authn import Authenticator
from nexus_ray.security.authz import Authorizer

# Headers with which a client could switch off Serve's own limits or steer its router.
_STEERING_HEADERS = frozenset(
    {b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"serve_multiplexed_model_id"}
)


def build(arguments: dict[str, Any]) -> Application:
    """Return the Serve application for `{"app": "module:attribute"}`; `"replicas"` stands above `runtime.gateways`.

    Raises:
        InvalidArgumentError: The app does not import.
    """
    settings = load()
    return application(str(arguments["app"]), settings, int(arguments.get("replicas", settings.runtime.gateways)))


def application(app_path: str, settings: Settings, replicas: int) -> Application:
    """Return the Serve application of an app under given settings."""
    load_app(app_path)
    check_client_certificates(settings)

    def asgi() -> ASGIApp:
        close_replica_port()
        prepare_state(settings)
        configure_process(settings, "gateway")
        if ray.is_initialized():
            ensure_control_plane(app_path, settings)
        app = load_app(app_path)
        clock = SystemClock()
        ledger = open_ledger(settings, "gateway")
        auditor = open_auditor(settings, "gateway", clock)
        front = FrontDoor(
            specs=Specs(app.agents, app.goals),
            ledger=ledger,
            fleet=RayFleet(),
            authenticator=Authenticator.from_folder(settings.state_dir, settings.tokens, clock, settings.security),
            authorizer=Authorizer.from_folder(settings.state_dir, clock, settings.security.policy),
            clock=clock,
            settings=settings.goals,
            trace_folder=settings.state_dir / "traces",
            auditor=auditor,
            revocation=settings.revocation,
            seal=fleet_seal(settings),
            exchange=open_exchange(settings, ledger, clock, auditor),
        )
        front.token_exchange = open_token_exchange(settings, front, clock, auditor)
        ray_token = settings.state_dir / "ray_token"
        made = build_app(front, settings.runtime, settings.security.public_url, settings.throttle, ray_token)
        # Where Serve has no proxy the replica listens itself.
        return made if has_proxy() else Listener(made, settings.runtime, settings.security.certificates.ca_file)

    gateway = serve.ingress(asgi)(Gateway)
    deployment = serve.deployment(
        gateway,
        name="gateway",
        num_replicas=replicas,
        max_ongoing_requests=settings.runtime.requests_in_flight_max,
        max_queued_requests=settings.runtime.requests_in_flight_max,
        health_check_period_s=1.0,
        health_check_timeout_s=5.0,
        ray_actor_options={"num_cpus": 0},
    )
    return deployment.bind()


def open_front_door(app_path: str, settings: Settings) -> str:
    """Start Serve with the app's gateway; return the URL."""
    runtime = settings.runtime
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    tls = {"ssl_certfile": str(runtime.tls_cert), "ssl_keyfile": str(runtime.tls_key)} if runtime.tls_cert else {}
    if runtime.front == "proxy":
        serve.start(http_options={"host": runtime.http_host, "port": runtime.http_port, **tls})
    else:
        serve.start(proxy_location="Disabled")
    serve.run(application(app_path, settings, runtime.gateways), name="nexus", route_prefix="/")
    host = f"[{runtime.http_host}]" if ":" in runtime.http_host else runtime.http_host
    return f"{'https' if tls else 'http'}://{host}:{runtime.http_port}"


def close_front_door() -> None:
    """Stop Serve; requests under way are answered first."""
    with contextlib.suppress(Exception):
        serve.shutdown()


class Gateway:
    """One replica of the front door."""

    app: ASGIApp  # Serve sets it.

    def check_health(self) -> None:
        """Answer Serve's health check: the process lives, and listens; `/ready` tells about the rest."""
        if isinstance(self.app, Listener):
            self.app.check()


class _Edge:
    """Runs in Serve's proxy, before anything else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["path"].startswith("/-/"):
                # Serve's own pages tell strangers what is deployed here.
                await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
                await send({"type": "http.response.body", "body": b""})
                return
            scope["headers"] = [item for item in scope["headers"] if item[0].lower() not in _STEERING_HEADERS]
        await self._app(scope, receive, send)


def edge() -> list[Middleware]:
    """Return the middleware of Serve's proxy; named by `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`."""
    return [Middleware(_Edge)]
