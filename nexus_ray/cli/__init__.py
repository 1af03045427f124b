"""The command line: verbs for people and scripts, over the HTTP API and the state folder.

Law: nothing slow is imported before a verb needs it, and ray only where a fleet is started in this process.
"""
