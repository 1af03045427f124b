"""What Ray Serve opens besides its front door, and what we close of it.

Law: a replica listens nowhere. If Ray has moved what we close, we refuse to start rather than leave it open.
"""

from typing import Any

from nexus_ray.core.errors import FailedPreconditionError


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


def _no_port(server: Any, address: str) -> int:
    return 0
