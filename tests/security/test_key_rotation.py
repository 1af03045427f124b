"""A key that another follows: whose tokens hold, for how long, and from when on, in processes that go on meanwhile."""

import json
from pathlib import Path

import pytest

from nexus_ray.core.clock import ManualClock
from nexus_ray.core.errors import UnauthenticatedError
from nexus_ray.security.authn import Authenticator
from nexus_ray.security.keys import FolderKey, SigningKey, load_key_set, load_or_create_issuer_key, rotate_issuer_key
from nexus_ray.security.tokens import TokenSettings, issue_token

LIFE_S = 3600.0
SETTINGS = TokenSettings(lifetime_max_s=LIFE_S)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000.0)


def rotate(folder: Path, clock: ManualClock, keep_s: float = LIFE_S + 5) -> SigningKey:
    return rotate_issuer_key(folder, clock.now(), keep_s, lambda old, new: None)[1]


def token_of(key: SigningKey, clock: ManualClock, lifetime_s: float = LIFE_S) -> str:
    return issue_token(key, SETTINGS, "ann", ["reader"], lifetime_s, clock.now())


def test_the_new_key_signs_and_the_old_one_is_believed_until_its_longest_token_is_over(
    tmp_path: Path, clock: ManualClock
) -> None:
    old = load_or_create_issuer_key(tmp_path)
    authenticator = Authenticator.from_folder(tmp_path, SETTINGS, clock)
    before = token_of(old, clock)
    authenticator.authenticate(before)

    new = rotate(tmp_path, clock)

    assert load_or_create_issuer_key(tmp_path).kid == new.kid != old.kid
    assert authenticator.authenticate(token_of(new, clock)).principal == "ann"  # At once, and without a restart.
    clock.advance(LIFE_S - 1)
    assert authenticator.authenticate(before).principal == "ann"
    clock.advance(10)
    # A token that the old key signs now is whoever's has it.
    for token in (before, token_of(old, clock, 60)):
        with pytest.raises(UnauthenticatedError) as caught:
            authenticator.authenticate(token)
        assert caught.value.details["reason"] in ("expired", "unknown_key")
    assert set(load_key_set(tmp_path).keys) == {old.kid, new.kid}
    third = rotate(tmp_path, clock)
    assert set(load_key_set(tmp_path).keys) == {new.kid, third.kid}


def test_a_key_that_is_forgotten_ends_what_it_signed_in_processes_that_have_seen_it(
    tmp_path: Path, clock: ManualClock
) -> None:
    old = load_or_create_issuer_key(tmp_path)
    authenticator = Authenticator.from_folder(tmp_path, SETTINGS, clock)
    token = token_of(old, clock)
    authenticator.authenticate(token)

    rotate(tmp_path, clock, keep_s=0.0)
    clock.advance(1.1)

    with pytest.raises(UnauthenticatedError) as caught:
        authenticator.authenticate(token)
    assert caught.value.details == {"reason": "key_is_gone"}


def test_who_signs_takes_the_new_key_up_with_the_next_token(tmp_path: Path, clock: ManualClock) -> None:
    key = FolderKey(tmp_path)
    first = key()
    assert key() is first

    new = rotate(tmp_path, clock)

    assert key().kid == new.kid and key() is key()


def test_what_keeps_a_rotation_from_being_written_down_keeps_it_from_happening(
    tmp_path: Path, clock: ManualClock
) -> None:
    old = load_or_create_issuer_key(tmp_path)
    seen = sorted(path.name for path in tmp_path.iterdir())

    def fails(*_: str) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        rotate_issuer_key(tmp_path, clock.now(), LIFE_S, fails)

    assert load_or_create_issuer_key(tmp_path).kid == old.kid
    assert sorted(path.name for path in tmp_path.iterdir()) == seen
    assert rotate(tmp_path, clock).kid != old.kid  # And nothing was left locked.


def test_a_crash_between_the_two_files_leaves_the_old_key_signing_and_believed(
    tmp_path: Path, clock: ManualClock
) -> None:
    old = load_or_create_issuer_key(tmp_path)
    private = (tmp_path / "issuer.key").read_bytes()
    rotate(tmp_path, clock)
    (tmp_path / "issuer.key").write_bytes(private)  # As if the second had never come.

    signs = load_or_create_issuer_key(tmp_path)

    assert signs.kid == old.kid
    token = token_of(signs, clock)
    assert Authenticator.from_folder(tmp_path, SETTINGS, clock).authenticate(token).principal == "ann"


def test_a_public_set_that_is_damaged_meanwhile_changes_nothing_until_it_is_whole(
    tmp_path: Path, clock: ManualClock
) -> None:
    key = load_or_create_issuer_key(tmp_path)
    authenticator = Authenticator.from_folder(tmp_path, SETTINGS, clock)
    path = tmp_path / "jwks.json"
    whole = path.read_text()

    for damaged in ("", "{}", json.dumps({"keys": [{**json.loads(whole)["keys"][0], "nexus_until": "soon"}]})):
        path.write_text(damaged)
        clock.advance(1.1)
        assert authenticator.authenticate(token_of(key, clock)).principal == "ann"
    path.unlink()
    clock.advance(1.1)
    assert authenticator.authenticate(token_of(key, clock)).principal == "ann"


def test_a_made_up_key_id_of_any_kind_is_refused(tmp_path: Path, clock: ManualClock) -> None:
    key = load_or_create_issuer_key(tmp_path)
    authenticator = Authenticator.from_folder(tmp_path, SETTINGS, clock)

    with pytest.raises(UnauthenticatedError) as caught:
        authenticator.authenticate(token_of(SigningKey("made-up", key.private), clock))

    assert caught.value.details == {"reason": "unknown_key"}
