import os
from pathlib import Path
from typing import Any

import pytest

from nexus_ray.config import OTHER_VARIABLES, load
from nexus_ray.core.errors import InvalidArgumentError
from nexus_ray.runtime.fleet_file import state_folder


def settings_file(folder: Path, text: str | bytes) -> Path:
    path = folder / "nexus.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_command_line_comes_before_the_environment_and_that_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = settings_file(tmp_path, "[runtime]\nhttp_port = 1001\ndashboard_port = 1001\nwait_s_max = 7\n")
    monkeypatch.setenv("NEXUS_RUNTIME__HTTP_PORT", "1002")
    monkeypatch.setenv("NEXUS_RUNTIME__DASHBOARD_PORT", "1002")

    runtime = load(file, runtime={"http_port": 1003}).runtime

    assert (runtime.http_port, runtime.dashboard_port, runtime.wait_s_max) == (1003, 1002, 7)
    assert runtime.page_size_max == load().runtime.page_size_max


def test_a_settings_file_may_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUS_CONFIG", str(settings_file(tmp_path, "[goals]\ngoals_max = 3\n")))

    assert load().goals.goals_max == 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[runtim]\nhttp_port = 1\n", "runtim"),
        ("[runtime]\nhttp_prot = 1\n", "runtime.http_prot"),
        ("[runtime]\nhttp_port = 0\n", "runtime.http_port"),
        ("[runtime]\nwait_s_max = nan\n", "runtime.wait_s_max"),
        ("[goals]\ngoals_max = -5\n", "goals.goals_max: -5"),
        ("[ledger]\nbody_bytes_max = 'big'\n", "ledger.body_bytes_max"),
        ("state_dir = '/elsewhere'\n", "NEXUS_STATE_DIR"),
        ("= 1", "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
    ],
)
def test_what_no_setting_can_mean_is_refused_by_name(tmp_path: Path, text: str | bytes, told: str) -> None:
    with pytest.raises(InvalidArgumentError, match=told):
        load(settings_file(tmp_path, text))


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("NEXUS_RUNTIME__HTTP_PROT", "1", "did you mean NEXUS_RUNTIME__HTTP_PORT"),
        ("NEXUS_STATEDIR", "x", "did you mean NEXUS_STATE_DIR"),
        ("NEXUS_RUNTIME__HTTP_PORT__X", "1", "there is no setting"),
        ("NEXUS_RUNTIME__HTTP_PORT", "many", "runtime.http_port"),
        ("NEXUS_RUNTIME", "{", "runtime"),
        ("NEXUS_CONFIG", "/nowhere.toml", "cannot be read"),
        ("NEXUS_OBSERVE__SAMPLE_RATIO", "-0.5", "observe.sample_ratio"),
    ],
)
def test_a_variable_that_means_nothing_is_refused_and_not_ignored(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(InvalidArgumentError, match=told):
        load()


@pytest.mark.parametrize("name", ["NEXUS_RUNTIME__HTTP_PORT", "NEXUS_STATE_DIR", "NEXUS_CONFIG", *OTHER_VARIABLES])
def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("NEXUS_STATE_DIR")
    without = load()
    monkeypatch.setenv(name, "")

    assert load() == without


@pytest.mark.parametrize("place", ["~/nexus-state", "relative/state", "/absolute/state", ""])
def test_settings_and_clients_look_for_the_state_in_the_same_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEXUS_STATE_DIR", place)

    folder: Any = load().state_dir

    assert folder.is_absolute()
    assert folder == Path(os.path.abspath(state_folder()))
