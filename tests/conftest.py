import pytest
from hypothesis import HealthCheck, settings

from nexus_ray.core.clock import ManualClock

settings.register_profile("house", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()
