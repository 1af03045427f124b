"""Every metric that Nexus has, one row each. Names and labels are fixed here; durations are in seconds.

Law: labels come from closed sets; an id is never a label.
"""

from dataclasses import dataclass
from typing import Literal

DURATIONS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
GOAL_TIMES_S = (0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 1800.0, 3600.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its kind, its labels, and its buckets where it is a histogram."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


_ROWS = (
    Metric("nexus_operations_total", "counter", ("operation", "agent_type", "result"), "Operations, by how they ended"),
    Metric(
        "nexus_operation_duration_seconds", "histogram", ("operation", "agent_type", "result"),
        "How long operations took", DURATIONS_S,
    ),
    Metric("nexus_active_agents", "gauge", ("node", "agent_type"), "Agents that are awake"),
    Metric("nexus_hosts", "gauge", ("node",), "Agent hosts that are up"),
    Metric("nexus_errors_total", "counter", ("error_type", "component", "severity"), "Errors"),
    Metric(
        "nexus_goal_completion_time", "histogram", ("goal_type", "complexity"),
        "Seconds from acceptance to outcome", GOAL_TIMES_S,
    ),
    Metric("nexus_coordinations_total", "counter", ("coordination_type", "result"), "Goals, by outcome"),
    Metric("nexus_auth_attempts_total", "counter", ("provider", "result", "method"), "Authentication attempts"),
    Metric(
        "nexus_authz_decisions_total", "counter", ("resource_type", "operation", "decision"), "Authorization decisions"
    ),
    Metric(
        "nexus_policy_engine_failures_total", "counter", ("reason",), "Refusals because the engine did not decide"
    ),
    Metric("nexus_policy_loads_total", "counter", ("result",), "Changed policies, taken into force or refused"),
    Metric(
        "nexus_security_violations_total", "counter", ("violation_type", "severity", "source"),
        "Callers refused, and signs of tampering",
    ),
    Metric("nexus_audit_records_total", "counter", ("result",), "Records of the audit log"),
    Metric("nexus_audit_batch_records", "histogram", (), "Records to a transaction of the audit log", SIZES),
    Metric("nexus_ledger_commits_total", "counter", ("result",), "Transactions of the ledger"),
    Metric("nexus_ledger_batch_writes", "histogram", (), "Writes to a transaction", SIZES),
    Metric("nexus_parcels_total", "counter", ("direction", "result"), "Parcels between hosts"),
    Metric("nexus_parcel_items", "histogram", (), "Items to a parcel", SIZES),
    Metric("nexus_peer_calls_total", "counter", ("way",), "Calls between processes: over a socket, a stream, or Ray"),
    Metric("nexus_strangers_refused_total", "counter", ("door",), "Connections refused between processes"),
    Metric("nexus_mailbox_refusals_total", "counter", ("agent_type",), "Tasks refused by a full mailbox"),
    Metric("nexus_agents_quarantined_total", "counter", ("agent_type",), "Tasks refused for an unreadable state"),
    Metric("nexus_http_requests_total", "counter", ("route", "method", "status"), "HTTP requests"),
    Metric(
        "nexus_http_request_duration_seconds", "histogram", ("route", "method"), "How long HTTP requests took",
        DURATIONS_S,
    ),
)  # fmt: skip

METRICS: dict[str, Metric] = {row.name: row for row in _ROWS}
