from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from nexus_ray.core.clock import ManualClock
from tests.support.opa import opa as opa  # A server that all tests of a process share.

settings.register_profile("house", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

WITH_RAY = ("tests/ray/", "tests/e2e/")  # Tests that start Ray and kill parts of it.
APART = ("tests/examples/", "tests/e2e/test_notebooks.py")  # Those that only use a fleet, of their own.


class RayInOne(LoadScopeScheduling):
    """With `-n 2`, has one process run all that kills parts of Ray, on one fleet, and the other all the rest meanwhile.

    The demo and the notebooks, each on a fleet of its own, come last in the other.
    """

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(APART):
            return "apart"
        return "ray" if nodeid.startswith(WITH_RAY) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> RayInOne:
    return RayInOne(config, log)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()
