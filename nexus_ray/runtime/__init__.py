"""The machine room: processes, hosts, parcels, the directory and placement.

Law: with `api/ingress.py` the only place that imports ray; a Ray actor owns a driver and has no logic of its own.
"""
