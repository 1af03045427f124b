"""Goals: what is wanted, the journal of what happened to it, and the coordinator that runs it to one outcome.

Law: journal, then state, then effect. Knows no host, no Ray and no HTTP.
"""
