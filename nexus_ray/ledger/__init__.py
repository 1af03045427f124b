"""The ledger: the durable record of goals, steps, agents' states and marks; its port and what implements it.

Law: journal, then state, then effect. What was acknowledged is on disk, once, whoever is killed; who was declared dead
writes no more.
"""
