"""Audit: what was done or refused, by whom, on what; and proofs that the record of it was not changed afterwards.

Law: a record is only ever added. Each names the hash of the one before, all of them are the leaves of one Merkle tree
(RFC 9162), and signed checkpoints say what its root was. Nothing secret is written down.
"""
