"""What Ray Serve opens besides its front door, and what we close of it.

Law: a replica listens nowhere but, where there is no proxy, at the front door. If Ray has moved what we close, we
refuse to start rather than leave it open.
"""

from typing import Any

from nexus_ray.core.errors import FailedPreconditionError

_ANSWER_S = 10.0


def close_replica_port() -> None:
    """Keep a Serve replica from opening its own gRPC port; call in the replica before it is initialized.

    Ray 2.60 binds a server for calls between deployments to all interfaces, in clear, whatever the HTTP host is.
    Nobody uses it: the proxy and our handles call the replica as an actor (`RAY_SERVE_USE_GRPC_BY_DEFAULT` is off).

    Raises:
        FailedPreconditionError: Ray no longer does it where we look.
    """
    from ray.serve._private import replica

    if not hasattr(replica, "add_port_to_grpc_server"):
        raise FailedPreconditionError("this version of Ray Serve opens its ports elsewhere; Nexus is made for 2.60")
    replica.add_port_to_grpc_server = _no_port


def has_proxy() -> bool:
    """Tell, in a replica, whether Serve runs a proxy that requests come through.

    Raises:
        FailedPreconditionError: Ray no longer says it where we ask.
    """
    import ray
    from ray.serve.config import ProxyLocation
    from ray.serve.context import _get_global_client

    try:
        location = ray.get(_get_global_client()._controller.get_proxy_location.remote(), timeout=_ANSWER_S)
    except AttributeError:
        raise FailedPreconditionError("this version of Ray Serve hides its proxies; Nexus is made for 2.60") from None
    return bool(location != ProxyLocation.Disabled)


def _no_port(server: Any, address: str) -> int:
    return 0
