"""The limit on failed authentications: what is refused, for whom, and that nobody can turn it against another."""

import pytest

from nexus_ray.core.clock import ManualClock
from nexus_ray.core.errors import ResourceExhaustedError
from nexus_ray.security.throttle import Throttle, ThrottleSettings, claimed_name, source_of

SETTINGS = ThrottleSettings(name_failures_max=3, source_failures_max=10, watched_max=50)


def is_admitted(throttle: Throttle, source: str, name: str = "ada") -> bool:
    try:
        throttle.admit(source, name)
    except ResourceExhaustedError as error:
        assert 0 < error.details["retry_after_s"] <= SETTINGS.lock_s_max
        return False
    return True


def test_a_few_failures_are_mistakes_and_more_lock_that_name_from_that_source_only() -> None:
    throttle = Throttle(SETTINGS, ManualClock())

    for _ in range(3):
        throttle.failed("198.51.100.7", "ada")
    assert is_admitted(throttle, "198.51.100.7")
    throttle.failed("198.51.100.7", "ada")

    assert not is_admitted(throttle, "198.51.100.7")
    assert is_admitted(throttle, "198.51.100.7", "bob")
    assert is_admitted(throttle, "203.0.113.9", "ada")


def test_however_many_sources_guess_at_a_name_its_owner_gets_in_from_his_own() -> None:
    throttle = Throttle(SETTINGS, ManualClock())

    for number in range(200):
        for _ in range(5):
            throttle.failed(f"198.51.100.{number}", "ada")

    assert is_admitted(throttle, "203.0.113.9", "ada")


def test_a_source_that_tries_many_names_is_locked_whole() -> None:
    throttle = Throttle(SETTINGS, ManualClock())

    for number in range(11):
        throttle.failed("198.51.100.7", f"user-{number}")

    assert not is_admitted(throttle, "198.51.100.7", "somebody")


def test_a_lock_ends_lasts_longer_each_time_and_is_forgotten_in_the_end() -> None:
    clock = ManualClock()
    throttle = Throttle(SETTINGS, clock)

    def locked_s() -> float:
        throttle.failed("198.51.100.7", "ada")
        with pytest.raises(ResourceExhaustedError) as caught:
            throttle.admit("198.51.100.7", "ada")
        return float(caught.value.details["retry_after_s"])

    for _ in range(3):
        throttle.failed("198.51.100.7", "ada")
    lengths = []
    for _ in range(3):
        lengths.append(locked_s())
        clock.advance(lengths[-1])
        assert is_admitted(throttle, "198.51.100.7")
    clock.advance(SETTINGS.window_s + 1)
    throttle.failed("198.51.100.7", "ada")

    assert lengths == [5.0, 10.0, 20.0]
    assert is_admitted(throttle, "198.51.100.7")


def test_who_comes_in_has_his_mistakes_forgotten() -> None:
    throttle = Throttle(SETTINGS, ManualClock())
    for _ in range(3):
        throttle.failed("198.51.100.7", "ada")

    throttle.succeeded("198.51.100.7", "ada")
    throttle.failed("198.51.100.7", "ada")

    assert is_admitted(throttle, "198.51.100.7")


def test_what_is_watched_is_bounded() -> None:
    throttle = Throttle(SETTINGS, ManualClock())

    for number in range(1000):
        throttle.failed(f"10.0.{number // 250}.{number % 250}", f"user-{number}")

    assert len(throttle._watched) <= SETTINGS.watched_max


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("203.0.113.9", "203.0.113.9"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("", ""), ("not an address", "not an address"),
    ],
)  # fmt: skip
def test_a_subscriber_is_one_source(address: str, source: str) -> None:
    assert source_of(address) == source


@pytest.mark.parametrize(
    ("credential", "name"),
    [
        ("a.eyJzdWIiOiJhZGEifQ.c", "ada"), ("a.W10.c", ""), ("a.!!.c", ""), ("a.eyJzdWIiOjF9.c", ""), ("", ""),
        (None, ""),
        ("a." + "W1tb" * 1000 + ".c", ""), ("one", ""),
    ],
)  # fmt: skip
def test_what_a_token_claims_is_read_and_never_believed(credential: str | None, name: str) -> None:
    assert claimed_name(credential) == name
