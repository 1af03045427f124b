import collections
import dataclasses

import pytest

from nexus_ray.core.errors import UnavailableError
from nexus_ray.runtime.placement import Member, Membership, Placement, owner

NAMES = [f"agent/{number}" for number in range(10_000)]


def members(*weights: float) -> Membership:
    return Membership(1, tuple(Member(f"host-{n}", "here", "", weight=weight) for n, weight in enumerate(weights)))


def shares(membership: Membership) -> dict[str, int]:
    return collections.Counter(owner(membership, name).host for name in NAMES)


def test_equal_members_get_equal_shares() -> None:
    found = shares(members(1, 1, 1, 1, 1))

    assert len(found) == 5 and all(1_800 <= count <= 2_200 for count in found.values())


def test_shares_follow_the_weights() -> None:
    found = shares(members(1, 2, 0.5, 0))

    assert "host-3" not in found
    for host, expected in (("host-0", 10_000 / 3.5), ("host-1", 20_000 / 3.5), ("host-2", 5_000 / 3.5)):
        assert abs(found[host] - expected) < 0.07 * expected


def test_when_a_member_leaves_only_what_it_had_moves_and_it_moves_to_all() -> None:
    before, after = members(1, 1, 1, 1), Membership(2, members(1, 1, 1, 1).members[:3])

    moved = [name for name in NAMES if owner(before, name).host != owner(after, name).host]

    assert moved == [name for name in NAMES if owner(before, name).host == "host-3"]
    assert all(count > len(moved) / 4 for count in collections.Counter(owner(after, n).host for n in moved).values())


def test_when_a_member_joins_or_grows_names_move_only_to_it() -> None:
    before = members(1, 1, 1)
    for after in (members(1, 1, 1, 1), members(1, 1, 2)):
        newest = after.members[-1].host

        moved = [name for name in NAMES if owner(before, name).host != owner(after, name).host]

        assert 0 < len(moved) < 0.3 * len(NAMES)
        assert {owner(after, name).host for name in moved} == {newest}


def test_everybody_computes_the_same_whatever_the_order_the_epoch_and_the_machine() -> None:
    before = members(1, 2, 1)
    others = tuple(dataclasses.replace(member, node_id="x", node="there") for member in reversed(before.members))

    assert all(owner(before, n).host == owner(Membership(9, others), n).host for n in NAMES[:1000])
    assert [owner(before, name).host for name in ("a", "ü", "", "agent/" + "x" * 300)] == [
        "host-2", "host-0", "host-2", "host-1",
    ]  # fmt: skip


def test_nobody_there_is_said_and_not_guessed() -> None:
    for nobody in (Membership(1, ()), members(0, 0)):
        with pytest.raises(UnavailableError) as caught:
            owner(nobody, "a")
        assert caught.value.details["retry_after_s"] > 0


def test_what_is_remembered_is_what_is_computed() -> None:
    membership = members(1, 2, 3)
    placement = Placement(membership)

    assert all(placement.owner(name) is placement.owner(name) is owner(membership, name) for name in NAMES[:500])
