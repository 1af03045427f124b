from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from nexus_ray.core.clock import ManualClock
from tests.support.opa import opa as opa  # A server that all tests of a process share.

settings.register_profile("house", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

ONE_FLEET = "tests/ray/"  # Tests that kill parts of Ray, on one fleet; all but those that have fleets of their own.
FLEETS = (
    "tests/ray/test_nodes.py", "tests/e2e/test_life.py", "tests/e2e/test_postgres.py", "tests/examples/test_demo.py",
    "tests/e2e/",
)  # fmt: skip
LAST = "tests/simulation/"


def place(nodeid: str) -> int:
    """Return when a test begins: those on the one fleet, those on fleets of their own in that order, all the rest."""
    named = (number for number, name in enumerate(FLEETS, 1) if nodeid.startswith(name))
    return next(named, 0 if nodeid.startswith(ONE_FLEET) else len(FLEETS) + 1)


class ByFleet(LoadScopeScheduling):
    """Has one process run all tests on the one fleet, one those on fleets of their own, and one all the rest.

    The first two wait most of the time, for processes to start and to be missed, and so share two cores with the third.
    """

    def _split_scope(self, nodeid: str) -> str:
        at = place(nodeid)
        if at == 0:
            return "one fleet"
        if at <= len(FLEETS):
            return "fleets"
        # By file, for its servers are started once a process; in the end one by one, so that all end at one time.
        return nodeid if nodeid.startswith(LAST) else nodeid.partition("::")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: place(item.nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFleet:
    config.option.loadscopereorder = False  # It would begin with the files that hold most tests: those are short.
    return ByFleet(config, log)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()
