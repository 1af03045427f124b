from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from nexus_ray.core.clock import ManualClock

settings.register_profile("house", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

ROOT = Path(__file__).parent
WITH_RAY = ("ray", "e2e", "examples")  # Folders of tests that start Ray.


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `-n 2`, have one process run all that starts Ray, on one fleet, and the other all the rest meanwhile."""
    for item in items:
        if item.path.relative_to(ROOT).parts[0] in WITH_RAY:
            item.add_marker(pytest.mark.xdist_group("ray"))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)  # The longest first.


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()
