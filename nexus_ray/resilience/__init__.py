"""Resilience: what is done when a call fails or takes too long.

Law: machines only; the caller runs the call, and every retry is bounded and inside the deadline.
"""
