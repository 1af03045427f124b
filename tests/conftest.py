from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from nexus_ray.core.clock import ManualClock

settings.register_profile("house", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

# Tests that start Ray, by the fleet that they share.
FLEETS = {"tests/ray/": "ray", "tests/e2e/": "e2e", "tests/examples/": "e2e"}


class ByFleet(LoadScopeScheduling):
    """With `-n 2`, has each process run what shares a fleet, which is waiting for the most part, and then the rest."""

    def _split_scope(self, nodeid: str) -> str:
        return next((fleet for folder, fleet in FLEETS.items() if nodeid.startswith(folder)), nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFleet:
    return ByFleet(config, log)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()
