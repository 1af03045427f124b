"""Ground: ids, time, errors, identity and the call context.

Law: standard library only, and nothing here knows any other package of Nexus.
"""
