"""Goals: what is wanted, how a function coordinates agents for it, and the coordinator that runs it to one outcome.

Law: a goal's function runs only while its host holds the goal on record, and what it asked stands in the journal. Knows
no host, no Ray and no HTTP.
"""
