"""Observability: one door, `observe(operation)`, behind which spans, durations, counters and log lines are made.

Law: names come from the catalogue, labels from closed sets; an id is never a label; nothing here decides anything.
"""
