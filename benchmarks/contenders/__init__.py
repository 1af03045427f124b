"""Other systems at Nexus' own job, each a process in an environment of its own that speaks `protocol`'s lines.

Law: a module here imports the standard library, `benchmarks.job`, its neighbours and the system it is named after, and
nothing else, because nothing else is installed where it runs. A system runs with its own defaults.
"""
