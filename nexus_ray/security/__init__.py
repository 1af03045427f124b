"""Security: keys, tokens, who the caller is and what the caller may do.

Law: refuse. No key, no policy, no clock: the answer is no, and outside all authentication failures read alike.
"""
