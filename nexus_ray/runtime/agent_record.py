"""What an agent has on record, as the front door tells it: its durable state, and whether it can be read.

Law: a state is shown however broken it is, and only to the tenant whose it is: another's agent is another agent.
"""

from typing import Any

import orjson

from nexus_ray.agents.state import read_state
from nexus_ray.core.errors import DataLossError, NotFoundError
from nexus_ray.core.identity import AgentId
from nexus_ray.goals.spec import Specs
from nexus_ray.ledger.ports import Ledger


async def agent_record(specs: Specs, ledger: Ledger, agent: AgentId, tenant: str) -> dict[str, Any]:
    """Return what a tenant's agent has on record.

    Raises:
        NotFoundError: There is no such agent type. Every key of a type exists.
    """
    spec = specs.agents.get(agent.type)
    if spec is None:
        raise NotFoundError(f"there is no agent type {agent.type!r}")
    found: dict[str, Any] = {
        "agent": str(agent), "type": agent.type, "key": agent.key, "is_durable": spec.state is not None,
        "state": None, "quarantine": None,
    }  # fmt: skip
    try:
        stored = await ledger.agent_state(agent.of(tenant))
        if stored is not None:
            found["state"] = {
                "version": stored.version, "schema_version": stored.schema, "bytes": len(stored.body),
                "body": _readable(stored.body),
            }  # fmt: skip
            if spec.state is not None:
                read_state(spec, stored)
    except DataLossError as error:
        found["quarantine"] = error.message
    return found


def _readable(body: bytes) -> Any:
    """Return JSON as its value, and what is none as text."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode(errors="replace")
