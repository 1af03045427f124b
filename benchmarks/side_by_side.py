"""Everybody at the same job in the same run: Nexus, raw Ray, and the peers, each in an environment of its own."""

from pathlib import Path

from benchmarks.against_ray import Found, side_by_side
from benchmarks.contender import PEERS

SECTION = "contenders"


def run(folder: Path, is_quick: bool) -> Found:
    return side_by_side(SECTION, folder, is_quick, PEERS)
