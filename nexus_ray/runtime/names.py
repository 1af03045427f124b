"""Names of the fleet's actors, as they stand in the Ray dashboard, in `nexus agent list` and in logs."""

from nexus_ray.core.ids import new_id

NAMESPACE = "nexus"
LEDGER = "nexus-ledger"
DIRECTORY = "nexus-directory"
HOST_PREFIX = "agent-host-"


def host_name(slot: int) -> str:
    """Return a new name for a host in a slot: a process that replaces another never has its name."""
    return f"{HOST_PREFIX}{slot}-{new_id('host')[-5:]}"
