from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from nexus_ray.core.clock import ManualClock

settings.register_profile("house", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

WITH_RAY = ("tests/ray/", "tests/e2e/", "tests/examples/")  # Tests that start Ray.


class RayInOne(LoadScopeScheduling):
    """With `-n 2`, has one process run all that starts Ray, on one fleet, and the other all the rest meanwhile."""

    def _split_scope(self, nodeid: str) -> str:
        return "ray" if nodeid.startswith(WITH_RAY) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> RayInOne:
    return RayInOne(config, log)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()
