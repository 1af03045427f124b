"""The job that everybody does: one goal asks 32 stateful agents, each with 256 bytes. Standard library only."""

TASKS = 32
TEXT = "x" * 245  # As JSON, {"text": "…"}, 256 bytes.
