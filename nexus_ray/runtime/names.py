"""Names of the fleet's actors, as they stand in the Ray dashboard, in `nexus agent list` and in logs."""

NAMESPACE = "nexus"
LEDGER = "nexus-ledger"
DIRECTORY = "nexus-directory"
HOST_PREFIX = "agent-host-"


def host_name(slot: int, incarnation: int) -> str:
    """Return the name of the host in a slot; each new process in it has a name of its own."""
    return f"{HOST_PREFIX}{slot}.{incarnation}"
