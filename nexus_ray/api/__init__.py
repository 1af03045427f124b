"""The front door: HTTP in, problem documents out.

Law: the only place that knows HTTP; it parses, asks the fleet and answers, and decides nothing itself.
"""
