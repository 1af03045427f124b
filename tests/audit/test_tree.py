"""The tree against the facts of RFC 9162, and against the definition for whatever trees there are."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus_ray.audit.tree import (
    EMPTY_ROOT,
    Peaks,
    complete_subtrees,
    consistency_stretches,
    inclusion_stretches,
    joined,
    leaf_hash,
    node_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)

# The leaves and roots that Certificate Transparency's implementations test each other with.
LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
HASHES = [leaf_hash(leaf) for leaf in LEAVES]


def by_definition(hashes: list[bytes]) -> bytes:
    if len(hashes) <= 1:
        return hashes[0] if hashes else EMPTY_ROOT
    k = 1
    while k * 2 < len(hashes):
        k *= 2
    return node_hash(by_definition(hashes[:k]), by_definition(hashes[k:]))


def stretch(hashes: list[bytes], low: int, high: int) -> bytes:
    subtrees = complete_subtrees(low, high)
    return joined([root_of(hashes[at << level : (at + 1) << level]) for level, at in subtrees])


def inclusion(hashes: list[bytes], index: int, size: int) -> list[bytes]:
    return [stretch(hashes, low, high) for low, high in inclusion_stretches(index, size)]


def consistency(hashes: list[bytes], old: int, new: int) -> list[bytes]:
    return [stretch(hashes, low, high) for low, high in consistency_stretches(old, new)]


def test_known_leaves_have_their_known_roots() -> None:
    assert hashlib.sha256(b"").digest() == EMPTY_ROOT == root_of([])
    assert [root_of(HASHES[: size + 1]).hex() for size in range(8)] == ROOTS


def test_the_proofs_of_the_rfc_are_made_of_its_nodes() -> None:
    """RFC 9162, 2.1.5: with seven leaves a to j as there."""
    a, b, c, d, e, f, j = HASHES[:7]
    g, h, i = node_hash(a, b), node_hash(c, d), node_hash(e, f)
    k, left = node_hash(g, h), node_hash(i, j)

    assert inclusion(HASHES, 0, 7) == [b, h, left]
    assert inclusion(HASHES, 3, 7) == [c, g, left]
    assert inclusion(HASHES, 4, 7) == [f, j, k]
    assert inclusion(HASHES, 6, 7) == [i, k]
    assert consistency(HASHES, 3, 7) == [c, d, g, left]
    assert consistency(HASHES, 4, 7) == [left]
    assert consistency(HASHES, 6, 7) == [i, j, k]


def test_every_leaf_is_proved_in_every_tree_and_in_no_other_place() -> None:
    hashes = [leaf_hash(bytes([n])) for n in range(19)]
    for size in range(1, 20):
        root = root_of(hashes[:size])
        for index in range(size):
            path = inclusion(hashes, index, size)

            assert verify_inclusion(hashes[index], index, size, path, root)
            assert not any(verify_inclusion(hashes[index], other, size, path, root)
                           for other in range(size) if other != index)  # fmt: skip
            assert not verify_inclusion(hashes[index], index, size, [*path, root], root)
            assert not path or not verify_inclusion(hashes[index], index, size, path[:-1], root)
            assert not any(verify_inclusion(hashes[index], index, size, [*path[:n], root, *path[n + 1 :]], root)
                           for n in range(len(path)))  # fmt: skip


def test_every_tree_is_proved_to_be_the_beginning_of_every_later_one_and_of_no_other() -> None:
    hashes = [leaf_hash(bytes([n])) for n in range(17)]
    other = root_of([leaf_hash(b"other"), *hashes[1:]])
    for new in range(1, 18):
        for old in range(1, new + 1):
            path = consistency(hashes, old, new)
            roots = root_of(hashes[:old]), root_of(hashes[:new])

            assert verify_consistency(old, new, *roots, path)
            assert not verify_consistency(old, new, other, roots[1], path)
            assert not verify_consistency(old, new, roots[0], other, path)
            assert not verify_consistency(old, new, *roots, [*path, other])
            assert not path or not verify_consistency(old, new, *roots, path[:-1])
            assert old == new or not verify_consistency(new, old, roots[1], roots[0], path)


@given(st.lists(st.binary(max_size=4), max_size=70), st.data())
@settings(max_examples=40, deadline=None)
def test_peaks_know_the_root_of_any_tree_and_can_be_put_away(leaves: list[bytes], more: st.DataObject) -> None:
    hashes = [leaf_hash(leaf) for leaf in leaves]
    cut = more.draw(st.integers(0, len(hashes)))
    peaks = Peaks()
    completed = [one for hash in hashes[:cut] for one in peaks.add(hash)]

    peaks = Peaks.from_bytes(peaks.size, peaks.to_bytes())
    completed += [one for hash in hashes[cut:] for one in peaks.add(hash)]

    assert peaks.root() == by_definition(hashes)
    assert all(hash == by_definition(hashes[at << level : (at + 1) << level]) for level, at, hash in completed)
    assert len({(level, at) for level, at, _ in completed}) == len(completed)


def test_what_is_not_a_tree_is_refused() -> None:
    with pytest.raises(ValueError, match="peaks"):
        Peaks.from_bytes(3, bytes(32))
    for index, size in ((0, 0), (3, 3), (-1, 3)):
        with pytest.raises(ValueError, match="leaf"):
            inclusion_stretches(index, size)
        assert not verify_inclusion(HASHES[0], index, size, [], HASHES[0])
    for old, new in ((0, 3), (4, 3)):
        with pytest.raises(ValueError, match="tree"):
            consistency_stretches(old, new)
        assert not verify_consistency(old, new, HASHES[0], HASHES[0], [])
