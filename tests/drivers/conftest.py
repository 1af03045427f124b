import pytest

from nexus_ray.observe.logs import configure_logs


@pytest.fixture(scope="session", autouse=True)
def logs_in_a_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Log as a host does: what structlog does by itself takes a second to draw a traceback."""
    configure_logs("tests", "here", tmp_path_factory.mktemp("logs"))
