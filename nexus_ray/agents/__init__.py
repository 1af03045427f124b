"""Agents: how a type is declared, what a task is, and the runner that holds many agents in one process.

Law: knows nothing of goals, hosts or Ray; an agent never learns where it runs.
"""
