"""An agent's durable state, from what is stored to what its class expects today.

Law: a state that cannot be read is quarantined: nothing runs on it, nothing is written over it, and nobody else is
held up. What is wrong with it is said each time, until a version of the class comes that reads it.
"""

from typing import Any

import orjson

from nexus_ray.agents.spec import AgentSpec
from nexus_ray.agents.task import AgentState
from nexus_ray.core.errors import DataLossError, NexusError


def read_state(spec: AgentSpec, stored: AgentState) -> bytes:
    """Return a stored state in today's shape, as JSON; one of an older schema goes through the class's `upgrade`.

    Raises:
        DataLossError: It cannot be read: quarantined.
    """
    wanted = spec.state_version
    assert spec.state is not None, "an agent without durable state has none to read"
    if stored.schema > wanted:
        raise _quarantined(
            stored, f"a newer version of the agent wrote it (schema {stored.schema}; this one reads {wanted})"
        )
    try:
        if stored.schema == wanted:
            spec.state.decode(stored.body, "state")
            return stored.body
        upgraded: Any = spec.cls.upgrade(orjson.loads(stored.body), stored.schema)
        return spec.state.encode(upgraded, "upgraded state")
    except NexusError as error:
        raise _quarantined(stored, error.message) from None
    except Exception as error:  # `upgrade` is the user's.
        raise _quarantined(stored, f"its upgrade raised {type(error).__name__}: {error}"[:500]) from error


def _quarantined(stored: AgentState, why: str) -> DataLossError:
    return DataLossError(
        f"the state of {stored.agent} cannot be read and is quarantined: {why}. "
        f"It is kept as it is; `nexus agent show {stored.agent}` shows it",
        agent=str(stored.agent),
        version=stored.version,
        schema=stored.schema,
    )
